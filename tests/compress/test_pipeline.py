"""The whole path on a small network: what it writes, resumes, reruns and refuses."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import tiny
from tlc.calibration.images import ImageSet
from tlc.calibration.preprocess import Preprocess
from tlc.cli.report import write_report
from tlc.compress import pipeline
from tlc.compress.checkpoint import load_saved
from tlc.compress.events import Event, StageStarted
from tlc.compress.pipeline import compress
from tlc.compress.plan import make_plan
from tlc.compress.recipe import Recipe, read_recipe
from tlc.compress.select import select
from tlc.export.metadata import read_metadata
from tlc.runtime.artifact import sha256_file
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Interval, Report


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


def test_another_file_of_a_finished_run_ships_without_any_stage(finished: tuple[Path, Report], tmp_path: Path) -> None:
    out, report = shutil.copytree(finished[0], tmp_path / "out"), finished[1]
    write_report(report, out)

    chosen = select(out, {}, name="original")
    manifest = json.loads((out / "manifest.json").read_text())
    again = select(out, {})

    assert (chosen.chosen, chosen.budget_met) == ("original", True)
    assert manifest["files"]["model.onnx"] == manifest["files"]["original.onnx"]
    assert manifest["target"]["name"] == "cpu-x86"
    assert (again.chosen, again.front, again.verdict) == (report.chosen, report.front, report.verdict)
    assert sha256_file(out / "model.onnx") == sha256_file(finished[0] / "model.onnx")
    assert set(report.lost) == {row.name for row in report.measurements} - {report.chosen}


def test_a_smaller_network_that_is_not_faster_is_kept_where_the_smallest_file_is_wanted(
    inputs: Path, finished: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "speedup", lambda *_, **__: Interval(estimate=1, low=0.9, high=1.1))
    out = shutil.copytree(finished[0], tmp_path / "out", ignore=shutil.ignore_patterns("judge-*"))

    report = compress(recipe(inputs, budget__objective="smallest"), out, resume=True)

    for name in ("distill", "prune"):
        found = next(stage for stage in report.stages if stage.name == name)
        assert found.status == "kept"
        assert re.search(r", \d\.\d\dx smaller\.$", found.reason), found.reason
    smallest = min(report.measurements, key=lambda row: row.size_bytes)
    assert (report.chosen, report.budget.objective) == (smallest.name, "smallest")


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(
    "stage",
    [
        "student",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("export-student", "prune", "quantize-pruned", "measure")
        ),
    ],
)
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
