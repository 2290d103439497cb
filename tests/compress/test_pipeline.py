"""The whole path on a small network: what it writes, resumes, reruns and refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import tiny
from tlc.calibration.images import ImageSet
from tlc.calibration.metrics import accuracy_change, score
from tlc.calibration.preprocess import Preprocess
from tlc.compress import pipeline
from tlc.compress.checkpoint import load_saved
from tlc.compress.events import Event, StageStarted
from tlc.compress.pipeline import compress
from tlc.compress.plan import make_plan
from tlc.compress.recipe import Recipe, read_recipe
from tlc.compress.verdict import choose, verdict
from tlc.export.metadata import read_metadata
from tlc.runtime.artifact import sha256_file
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Agreement, Interval, LatencyRecord, Measurement, Report


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model, the file that builds it, and data."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "net.py").write_text(Path(tiny.__file__).read_text())
    tiny.write_bars(folder / "bars.npz", 400)
    torch.save(tiny.seeded_net().state_dict(), folder / "model.pt")
    return folder


def recipe(inputs: Path, **changes: object) -> Recipe:
    return read_recipe(
        None,
        {
            "model.path": inputs / "model.pt",
            "model.arch": f"{inputs / 'net.py'}:tiny_net",
            "model.preprocess.input": (1, 8, 8),
            "model.preprocess.mean": (0.5,),
            "model.preprocess.std": (0.25,),
            "data.path": inputs / "bars.npz",
            "distill.student": "depth:0.34",
            "train.epochs": 2,
            "train.batch_size": 32,
            "train.precision": "fp32",
            "prune.ratio": 0.5,
            "prune.recovery_epochs": 1,
            "prune.round_to": 1,
            "measure.rounds": 10,
            "measure.launches": 1,
            "budget.max_drop_points": 100,
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


def _started(events: list[Event]) -> dict[str, bool]:
    return {event.name: event.reused for event in events if isinstance(event, StageStarted)}


@pytest.fixture(autouse=True, scope="module")
def every_step_pays() -> Iterator[None]:
    """A network of 20 microseconds is within the noise: let no measured ratio decide what these runs keep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "speedup", lambda *_, **__: Interval(estimate=2, low=2, high=2))
        yield


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A whole run."""
    out = tmp_path_factory.mktemp("run") / "out"
    return out, compress(recipe(inputs), out)


def test_a_run_ends_with_measured_files_that_say_how_to_feed_them(finished: tuple[Path, Report]) -> None:
    out, report = finished

    assert report.measurements[0].name == "original"
    assert report.measurements[-1].name == "int8"
    for row in report.measurements:
        assert sha256_file(out / row.file) == row.sha256
        assert row.size_bytes == (out / row.file).stat().st_size
        assert row.latency is not None
        assert len(row.latency.samples_ms) >= 80  # ten rounds of eight runs or more
        preprocess, classes = read_metadata(out / row.file)
        assert isinstance(preprocess, Preprocess)
        assert (preprocess.input_shape, classes) == ((1, 8, 8), ("flat", "upright"))
    chosen = next(row for row in report.measurements if row.name == report.chosen)
    assert sha256_file(out / "model.onnx") == chosen.sha256
    manifest = json.loads((out / "manifest.json").read_text())
    assert all(sha256_file(out / name) == digest for name, digest in manifest["files"].items())


def test_the_reported_accuracy_is_that_of_the_file(inputs: Path, finished: tuple[Path, Report]) -> None:
    out, report = finished
    evaluation = make_plan(recipe(inputs)).splits.evaluation
    assert isinstance(evaluation, ImageSet)
    session = ort.InferenceSession(out / "int8.onnx")
    images = [
        (np.asarray(evaluation.image(i), np.float32)[None, None] / 255 - 0.5) / 0.25 for i in range(len(evaluation))
    ]

    predicted = [int(session.run(None, {"input": image.reshape(1, 1, 8, 8)})[0].argmax()) for image in images]

    assert report.measurements[-1].accuracy.correct == int(np.sum(np.array(predicted) == evaluation.labels))


def test_the_final_network_loads_again_and_gives_the_float_files_outputs(
    inputs: Path, finished: tuple[Path, Report]
) -> None:
    out, report = finished
    model = load_saved(out / "model", arch=f"{inputs / 'net.py'}:tiny_net")
    last_float = [row for row in report.measurements if row.precision == "fp32"][-1]
    kept = {stage.name: stage.status for stage in report.stages}
    image = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)

    (logits,) = ort.InferenceSession(out / last_float.file).run(None, {"input": image})

    assert (last_float.name, kept["prune"]) == ("pruned", "kept")
    with torch.no_grad():
        assert np.allclose(model.module(torch.from_numpy(image)).numpy(), logits, atol=1e-5)


def test_a_finished_run_resumes_without_doing_anything_and_says_the_same(
    inputs: Path, finished: tuple[Path, Report]
) -> None:
    out, report = finished
    events: list[Event] = []

    again = compress(recipe(inputs), out, resume=True, emit=events.append)

    assert all(_started(events).values())
    assert again == report


def test_a_changed_setting_repeats_only_what_depends_on_it(
    inputs: Path, finished: tuple[Path, Report], tmp_path: Path
) -> None:
    out = shutil.copytree(finished[0], tmp_path / "out")
    events: list[Event] = []

    compress(recipe(inputs, quantize__samples=20), out, resume=True, emit=events.append)

    repeated = {name for name, reused in _started(events).items() if not reused}
    assert repeated <= {"quantize-pruned", "quantize-original", "measure"}
    assert "quantize-pruned" in repeated


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("stage", ["student", "export-student", "prune", "quantize-pruned", "measure"])
def test_a_run_that_dies_in_a_stage_ends_with_the_same_files(
    inputs: Path, finished: tuple[Path, Report], tmp_path: Path, stage: str
) -> None:
    out, report = finished

    def kill(event: Event) -> None:
        if isinstance(event, StageStarted) and event.name == stage:
            raise _KilledError

    with pytest.raises(_KilledError):
        compress(recipe(inputs), tmp_path / "out", emit=kill)
    resumed = compress(recipe(inputs), tmp_path / "out", resume=True)

    expected = {row.name: row.sha256 for row in report.measurements}
    assert {row.name: row.sha256 for row in resumed.measurements} == expected
    for name in ("model.json", "model.safetensors"):
        assert sha256_file(tmp_path / "out" / "model" / name) == sha256_file(out / "model" / name)


def test_few_images_leave_the_network_as_it_is_and_say_why(inputs: Path) -> None:
    plan = make_plan(recipe(inputs, distill__student="auto", prune__ratio=None))

    assert plan.student.value is None
    assert plan.prune.value is None
    assert "training images are too few" in plan.student.reason


def test_data_with_other_classes_than_the_model_is_refused(inputs: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "three.npz", x=images, y=np.arange(60) % 3)

    with pytest.raises(TlcError, match=r"three.npz has 3 classes .*the model has 2"):
        make_plan(recipe(inputs, data__path=tmp_path / "three.npz"))


def test_a_missing_model_is_named(inputs: Path) -> None:
    with pytest.raises(TlcError, match=r"There is no model at nowhere\.pt"):
        make_plan(recipe(inputs, model__path=Path("nowhere.pt")))


def test_nothing_is_written_when_the_input_is_wrong(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(TlcError):
        compress(recipe(inputs, model__path=Path("nowhere.pt")), tmp_path / "out")

    assert not (tmp_path / "out").exists()


def _row(name: str, p50_ms: float, correct: int) -> Measurement:
    labels = np.array([0, 1] * 50)
    truth = np.eye(2, dtype=np.float32)[labels]
    logits = truth.copy()
    logits[: 100 - correct] = 1 - logits[: 100 - correct]
    speed = Interval(estimate=1 / p50_ms, low=1 / p50_ms, high=1 / p50_ms)
    return Measurement(
        name=name,
        file=f"{name}.onnx",
        sha256="0" * 64,
        made_from=None if name == "original" else "original",
        precision="fp32",
        size_bytes=100,
        parameters=1,
        macs=1,
        peak_memory_bytes=1,
        p50_ms_by_input={},
        layers=None,
        latency=LatencyRecord(
            samples_ms=[p50_ms], p50_ms=p50_ms, p90_ms=p50_ms, p99_ms=p50_ms, mean_ms=p50_ms, min_ms=p50_ms,
            throughput_per_s=1000 / p50_ms, speedup=speed,
        ),
        accuracy=score(logits, labels, ("a", "b")),
        change=None if name == "original" else accuracy_change(truth, logits, labels, ("a", "b")),
        agreement=Agreement(samples=1, max_abs_error=0, cosine=1, top1_agreement=1),
    )  # fmt: skip


def test_of_files_as_fast_the_smallest_ships_and_none_slower_than_the_original() -> None:
    original, small, large = _row("original", 1.0, 100), _row("small", 0.52, 100), _row("large", 0.5, 100)
    large = large.model_copy(update={"size_bytes": 300})
    slower = _row("slower", 1.05, 100).model_copy(update={"size_bytes": 1})

    chosen, _ = choose([original, small, large], 1.0)

    assert chosen.name == "small"
    assert "its p50 is 0.5 ms, its file 3.0x as large" in verdict(original, chosen, large, 1.0)
    assert choose([original, slower], 1.0)[0].name == "original"


def test_the_fastest_within_the_budget_ships() -> None:
    rows = [_row("original", 1.0, 100), _row("slow", 0.8, 100), _row("int8", 0.5, 99)]

    chosen, met = choose(rows, 1.0)

    assert (chosen.name, met) == ("int8", True)
    assert verdict(rows[0], chosen, rows[-1], 1.0).startswith("int8 is 2.00x [2.00, 2.00] as fast as the original")


def test_a_file_over_the_budget_does_not_ship_and_is_named() -> None:
    rows = [_row("original", 1.0, 100), _row("slow", 0.8, 100), _row("int8", 0.5, 98)]

    chosen, met = choose(rows, 1.0)

    assert (chosen.name, met) == ("slow", False)
    assert "int8 was left out (it loses 2.00 points)" in verdict(rows[0], chosen, rows[-1], 1.0)


def test_a_file_that_is_slower_than_another_does_not_ship_and_is_named() -> None:
    rows = [_row("original", 1.0, 100), _row("student", 0.5, 100), _row("int8", 0.8, 100)]

    chosen, met = choose(rows, 1.0)

    assert (chosen.name, met) == ("student", True)
    assert "int8 was left out (its p50 is 0.8 ms, not below 0.5 ms)" in verdict(rows[0], chosen, rows[-1], 1.0)


def test_without_latencies_the_last_file_within_the_budget_ships() -> None:
    rows = [_row("original", 1.0, 100), _row("fp16", 0.5, 99), _row("int8", 0.8, 98)]
    rows = [row.model_copy(update={"latency": None}) for row in rows]

    chosen, met = choose(rows, 1.0)

    assert (chosen.name, met) == ("fp16", False)
    assert verdict(rows[0], chosen, rows[-1], 1.0).startswith("fp16 is 1.0x smaller than the original with 1.00x fewer")
    assert choose(rows, 2.0)[0].name == "int8"
    assert choose(rows, 0.0)[0].name == "original"
    assert verdict(rows[0], rows[0], rows[-1], 0.5) == (
        "Nothing beats the original within the budget: int8 loses 2.00 points of 0.5 allowed."
    )


def test_a_file_that_is_slower_than_the_original_does_not_ship() -> None:
    rows = [_row("original", 1.0, 100), _row("int8", 1.2, 100)]

    chosen, _ = choose(rows, 1.0)

    assert chosen.name == "original"
    assert verdict(rows[0], chosen, rows[-1], 1.0).startswith("Nothing beats the original within the budget")
