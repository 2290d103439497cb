"""Models that leak, crash, hang or outgrow memory, beside one that does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper, save_model

from tlc.compress.inputs import PreprocessOptions
from tlc.compress.recipe import ModelSection
from tlc.compress.torch_session import TorchSession
from tlc.compress.torch_worker import open_model, profile, torch_case
from tlc.runtime.bench_report import Launch
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.health import model_warnings
from tlc.runtime.launch import launch
from tlc.runtime.process import Case, Failure, Limits
from tlc.runtime.worker import Request

LEAK_BYTES = 200_000
ROUNDS = 20

BAD = f"""
import ctypes
import time

import torch


class Good(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 2)
        self.runs, self.kept = 0, []

    def forward(self, x):
        self.runs += 1
        print("a line on stdout")
        time.sleep(0.001)
        self.misbehave()
        return self.head(x.flatten(1))

    def misbehave(self):
        pass


class Leaks(Good):
    def misbehave(self):
        self.kept.append(torch.ones({LEAK_BYTES} // 4))


class Crashes(Good):
    def misbehave(self):
        if self.runs > 30:
            ctypes.string_at(0)


class Hangs(Good):
    def misbehave(self):
        if self.runs > 30:
            time.sleep(3600)


class Outgrows(Good):
    def misbehave(self):
        while self.runs > 30:
            self.kept.append(torch.ones(12_500_000))
            time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad")
    (path / "bad.py").write_text(BAD, encoding="utf-8")
    state = {f"head.{key}": value for key, value in torch.nn.Linear(64, 2).state_dict().items()}
    torch.save(state, path / "model.pt")
    return path


def model_of(folder: Path, kind: str) -> ModelSection:
    arch = f"{folder / 'bad.py'}:{kind}"
    return ModelSection(path=folder / "model.pt", arch=arch, preprocess=PreprocessOptions(input=(1, 8, 8)))


def relu(path: Path) -> Case:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 64)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return Case("relu", path)


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Launch | Failure]:
    bad = [torch_case(kind, model_of(folder, kind)) for kind in ("Crashes", "Hangs", "Outgrows", "Leaks")]
    # What torch itself takes is some 500 MB.
    limits = Limits(timeout_s=6, memory_bytes=1_500_000_000)
    return launch([*bad, relu(folder / "relu.onnx")], rounds=ROUNDS, seed=0, limits=limits)


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("Crashes", "crashed", "SIGSEGV"),
        ("Hangs", "hung", "did not end within 6 s"),
        ("Outgrows", "out_of_memory", "the limit is 1,500 MB"),
    ],
)
def test_a_model_that_cannot_be_measured_is_reported_as_what_it_is(
    found: dict[str, Launch | Failure], kind: str, status: str, words: str
) -> None:
    failure = found[kind]
    assert isinstance(failure, Failure)
    assert failure.status == status
    assert words in failure.problem


def test_the_rest_goes_on_and_a_leak_is_found_in_what_every_run_leaves_behind(
    found: dict[str, Launch | Failure],
) -> None:
    leaky, good = found["Leaks"], found["relu"]
    assert isinstance(leaky, Launch)
    assert isinstance(good, Launch)
    assert leaky.rounds == good.rounds == ROUNDS
    assert leaky.memory.growth_bytes_per_run == pytest.approx(LEAK_BYTES, rel=0.15)
    assert good.memory.growth_bytes_per_run < LEAK_BYTES / 20
    assert "memory_grows" in {warning.code for warning in model_warnings("Leaks", [leaky])}
    assert "memory_grows" not in {warning.code for warning in model_warnings("relu", [good])}


def request_of(path: Path, **options: Any) -> Request:
    setting: dict[str, Any] = {"target": None, "threads": 1, "streams": 1, "batch": 1, "feeds": None}
    return Request(path=path, sizes={}, shapes={}, options=options, **setting)


def test_a_case_carries_all_that_says_what_the_model_is(folder: Path) -> None:
    case = torch_case("Good", model_of(folder, "Good"), threads=2)
    assert (case.path, case.worker, case.threads) == (folder / "model.pt", "tlc.compress.torch_worker", 2)
    with open_model(request_of(case.path, **case.options)) as session:
        assert isinstance(session, TorchSession)
        assert [spec.shape for spec in session.inputs] == [("N", 1, 8, 8)]


def test_options_that_no_model_has_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(UsageError, match="architecture"):
        open_model(request_of(folder / "model.pt", architecture="x"))


def test_layers_in_torch_are_not_timed(folder: Path) -> None:
    with pytest.raises(TlcError, match="not timed in PyTorch"):
        profile(request_of(folder / "model.pt"), {}, 1)
