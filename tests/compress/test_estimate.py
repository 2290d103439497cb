"""What a plan says of the time that training takes."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from tlc.compress import estimate
from tlc.compress.plan import Plan, make_plan
from tlc.compress.recipe import read_recipe


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(Path(tiny.__file__).read_text())
    tiny.write_bars(tmp_path / "bars.npz", 120)
    torch.manual_seed(0)
    torch.save(tiny.tiny_net().state_dict(), tmp_path / "model.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("student", "channels"),
    [("depth:1+width:1", 8), ("depth:1+width:2", 16), ("width:3", 24), ("depth:2+width:1.5", 12)],
)
def test_a_wider_student_is_timed_itself_and_a_smaller_one_costs_at_most_what_the_original_does(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, student: str, channels: int
) -> None:
    def seconds(_plan: Plan, network: nn.Module) -> tuple[float, float]:
        return float(network.get_submodule("stem").out_channels), 0.0  # type: ignore[arg-type]

    monkeypatch.setattr(estimate, "seconds_per_sample", seconds)
    options = {
        "model.path": inputs / "model.pt",
        "model.arch": f"{inputs / 'net.py'}:tiny_net",
        "model.preprocess.input": (1, 8, 8),
        "model.preprocess.mean": (0.5,),
        "model.preprocess.std": (0.25,),
        "data.path": inputs / "bars.npz",
        "distill.student": student,
        "train.epochs": 600,
        "prune.ratio": 0.0,
    }
    plan = make_plan(read_recipe(None, options))
    (line,) = [line for line in estimate.plan_lines(plan) if line.startswith("distill")]
    hours = 600 * len(plan.splits.fit) * channels / 3600
    assert line == f"distill    student {student}, 600 epochs, at most {hours:.1f} h"
