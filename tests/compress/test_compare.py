"""Two models compared: where they differ, that a drop in one domain shows, and what cannot be compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bar_net
import bar_nets
import numpy as np
import pytest
import tiny_text
import torch
from bar_nets import write_fog, write_net

import tiny
from tlc.compress.compare import Comparison, compare
from tlc.compress.events import Event, Progress
from tlc.compress.recipe import Recipe, read_recipe
from tlc.compress.steps import evaluate_files
from tlc.runtime.bench import Timing
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.process import Limits

Compare = Callable[..., Comparison]


def both(a: Path, b: Path, data: Path, **options: Any) -> tuple[Recipe, Recipe]:
    given = {"data.path": data, **options}
    return read_recipe(None, {"model.path": a, **given}), read_recipe(None, {"model.path": b, **given})


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """`compare` where the target's runtime is not here: everything but the timing."""
    monkeypatch.setattr("tlc.compress.runner.missing", lambda _target: "it is elsewhere")

    def run(a: Path, b: Path, *data: Path, options: dict[str, Any] | None = None, pictures: int = 0) -> Comparison:
        return compare(*both(a, b, data[0], **(options or {})), data, Timing(rounds=2), pictures=pictures)

    return run


@pytest.fixture
def clear(tmp_path: Path) -> Path:
    return tiny.write_bars(tmp_path / "clear.npz", 400)


def test_a_drop_that_one_domain_has_is_found_there(tmp_path: Path, clear: Path, compared: Compare) -> None:
    foggy = write_fog(clear, tmp_path / "foggy.npz")
    a, b = write_net(tmp_path / "a.onnx"), write_net(tmp_path / "b.onnx", bias=bar_nets.SHY)

    found = compared(a, b, clear, foggy, pictures=5)

    first, second = found.report.data
    assert (first.change.finding, second.change.finding) == ("not shown", "worse")
    assert (first.change.lost, first.change.won, first.changed) == (0, 0, [])
    assert second.change.lost == len(second.changed) > 20
    assert second.change.change_points.estimate == pytest.approx(
        100 * (second.accuracy_b.top1 - second.accuracy_a.top1)
    )
    assert second.bootstrap_points.high < -20
    assert second.macro_f1_points is not None
    assert second.accuracy_a.macro_f1 is not None
    assert second.accuracy_b.macro_f1 is not None
    macro_f1_points = 100 * (second.accuracy_b.macro_f1 - second.accuracy_a.macro_f1)
    assert second.macro_f1_points.estimate == pytest.approx(macro_f1_points)
    assert [(change.name, change.finding) for change in second.per_class] == [
        ("flat", "not shown"),
        ("upright", "worse"),
    ]
    assert {(sample.truth, sample.answer_a, sample.answer_b) for sample in second.changed} == {
        ("upright", "upright", "flat")
    }
    assert [len(pictures) for pictures in found.pictures] == [0, 5]
    assert found.pictures[1][0].startswith(b"\xff\xd8")  # JPEG


def test_outputs_differ_by_the_bias(tmp_path: Path, clear: Path, compared: Compare) -> None:
    a, b = write_net(tmp_path / "a.onnx"), write_net(tmp_path / "b.onnx", bias=0.25)

    (data,) = compared(a, b, clear).report.data

    (drift,) = data.drift
    assert (drift.output, drift.samples, drift.rows) == ("logits", 80, 80)
    assert drift.max_abs == pytest.approx(0.25, abs=1e-6)
    assert drift.mean_abs == pytest.approx(0.125, abs=1e-6)  # of two logits one has it
    assert drift.argmax_equal_ratio == 1
    assert data.not_compared == []


def test_classes_in_another_order_are_no_difference(tmp_path: Path, clear: Path, compared: Compare) -> None:
    a = write_net(tmp_path / "a.onnx")
    b = write_net(tmp_path / "b.onnx", classes=("upright", "flat"))

    (data,) = compared(a, b, clear).report.data

    assert data.changed == []
    assert (data.accuracy_a, data.drift[0].max_abs) == (data.accuracy_b, 0)
    _, row = evaluate_files(both(a, b, clear))
    assert row.change is not None
    assert (row.change.regressed, row.change.improved) == (0, 0)


def test_a_network_is_compared_with_what_was_made_of_it(tmp_path: Path, clear: Path) -> None:
    torch.save(bar_net.Bars().state_dict(), tmp_path / "model.pt")
    b = write_net(tmp_path / "b.onnx", bias=bar_nets.SHY)
    options = {
        "model.arch": f"{bar_net.__file__}:bars",
        "model.preprocess.input": (1, 8, 8),
        "model.preprocess.mean": (0.5,),
        "model.preprocess.std": (0.25,),
        "model.preprocess.channels": "gray",
    }
    seen: list[Event] = []

    report = compare(
        *both(tmp_path / "model.pt", b, clear, **options),
        [clear],
        Timing(rounds=2),
        limits=Limits(timeout_s=60),
        threads=1,
        emit=seen.append,
    ).report

    assert report.bench is not None
    assert [model.status for model in report.bench.models] == ["ok", "ok"], report.bench.models
    assert report.runtime_a.startswith("torch ")
    assert report.runtime_b.startswith("onnxruntime ")
    assert report.bench.models[0].setting.shapes == {"input": [1, 1, 8, 8]}
    assert report.latency_ratio is not None
    assert report.latency_ratio.low < 1  # a call of torch costs more than this network
    assert report.size_bytes_a == (tmp_path / "model.pt").stat().st_size
    assert report.data[0].drift[0].max_abs == pytest.approx(bar_nets.SHY, abs=1e-5)
    assert [event.what for event in seen if isinstance(event, Progress)] == ["answers"] * 2 + ["latency"] * 2


def test_texts(tmp_path: Path, compared: Compare) -> None:
    reviews = tiny_text.write_reviews(tmp_path / "reviews.csv", count=120)
    tiny_text.write_tiny(tmp_path / "bert")
    tiny_text.write_tiny(tmp_path / "other", seed=1)
    options = {"model.max_length": 16}

    (data,) = compared(tmp_path / "bert", tmp_path / "other", reviews, options=options, pictures=5).report.data

    assert (data.noun, data.samples) == ("texts", 24)
    assert data.changed
    assert all(sample.text and sample.key.startswith("reviews.csv:") for sample in data.changed)
    assert data.drift[0].rows == 24
    assert data.change.lost + data.change.won <= len(data.changed)


@pytest.mark.slow  # exports two transformers each
@pytest.mark.parametrize("task", ["token-classification", "question-answering"])
def test_words_and_questions(tmp_path: Path, compared: Compare, task: str) -> None:
    words = task == "token-classification"
    write = tiny_text.write_entities if words else tiny_text.write_questions
    data_path = write(tmp_path / "texts.jsonl")
    labels = tiny_text.TAGS if words else ("negative", "positive")
    a, b = (tiny_text.write_tiny(tmp_path / str(seed), task=task, labels=labels, seed=seed) for seed in (0, 1))

    (data,) = compared(a, b, data_path, options={"model.max_length": 32}).report.data

    assert data.samples == 8
    assert data.changed
    assert all(sample.confidence_a is None for sample in data.changed)
    if words:
        assert data.change.rows > 8
        assert all(": " in sample.truth for sample in data.changed)
        assert [change.name for change in data.per_class] == list(tiny_text.TAGS)
    else:
        assert (data.per_class, data.macro_f1_points) == ([], None)
        assert data.drift[0].rows == 16  # starts and ends


def test_the_same_file_twice_is_no_difference(tmp_path: Path, clear: Path, compared: Compare) -> None:
    a = write_net(tmp_path / "a.onnx")

    report = compared(a, a, clear).report

    assert (report.a, report.b) == (str(a), f"{a} #2")
    assert report.sha256_a == report.sha256_b
    assert report.data[0].drift[0].max_abs == 0
    assert report.not_measured.startswith("It is elsewhere. ")
    assert report.bench is None


def test_what_cannot_be_compared_is_said_first(tmp_path: Path, clear: Path, compared: Compare) -> None:
    a = write_net(tmp_path / "a.onnx")

    with pytest.raises(TlcError, match=r"There is nothing at .*none.npz"):
        compared(a, a, clear, tmp_path / "none.npz")
    with pytest.raises(TlcError, match=r"There is nothing at .*none.onnx"):
        compared(a, tmp_path / "none.onnx", clear)
    with pytest.raises(UsageError, match="A data set is given twice"):
        compared(a, a, clear, clear.parent / "." / clear.name)


def test_models_that_outgrow_their_memory_are_in_the_report(tmp_path: Path, clear: Path) -> None:
    a, b = write_net(tmp_path / "a.onnx"), write_net(tmp_path / "b.onnx")

    report = compare(*both(a, b, clear), [clear], Timing(rounds=2), limits=Limits(memory_bytes=1)).report

    assert report.bench is not None
    assert [model.status for model in report.bench.models] == ["out_of_memory"] * 2
    assert report.latency_ratio is None
    assert len(report.data) == 1


def test_models_for_other_classes_are_not_compared(tmp_path: Path, compared: Compare) -> None:
    arrays = dict(np.load(tiny.write_bars(tmp_path / "bars.npz")))
    np.savez(tmp_path / "plain.npz", x=arrays["x"], y=arrays["y"], classes=np.array(["0", "1"]))
    a = write_net(tmp_path / "a.onnx")
    b = write_net(tmp_path / "b.onnx", classes=("0", "1"))

    with pytest.raises(TlcError) as refused:
        compared(a, b, tmp_path / "bars.npz")

    assert "0, 1" in refused.value.message
