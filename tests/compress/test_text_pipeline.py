"""A text classifier from its folder to the file that ships: every row, and what is refused before work starts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from tiny_text import TAGS, write_entities, write_questions, write_reviews, write_tiny

from tlc.calibration.token_set import TextInput
from tlc.cli.main import main
from tlc.cli.report import write_report
from tlc.compress import pipeline
from tlc.compress.pipeline import compress
from tlc.compress.recipe import read_recipe
from tlc.compress.select import select
from tlc.export.metadata import read_metadata
from tlc.runtime.artifact import sha256_file
from tlc.runtime.report import Interval, Report

QUICK = {
    "measure.rounds": 10,
    "measure.launches": 1,
    "quantize.samples": 16,
    "quantize.qat_epochs": 0,
    "train.epochs": 1,
}


@pytest.fixture(autouse=True, scope="module")
def every_step_pays() -> Iterator[None]:
    """A network of 100 microseconds is within the noise: let no measured ratio decide what these runs keep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "speedup", lambda *_, **__: Interval(estimate=2, low=2, high=2))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_tiny(folder / "model")
    write_reviews(folder / "reviews.csv", count=160)
    (folder / "more.txt").write_text("the film was a\nand the plot is the plot\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    recipe = read_recipe(
        None,
        {
            "model.path": folder / "model",
            "data.path": folder / "reviews.csv",
            "distill.student": "depth:1+intermediate:0.5+vocabulary:data",
            "data.unlabeled": folder / "more.txt",
            "prune.ratio": 0.5,
            "prune.recovery_epochs": 1,
            "budget.max_drop_points": 100.0,
            **QUICK,
        },
    )
    return compress(recipe, folder / "run")


def test_every_form_is_measured_beside_the_original(report: Report) -> None:
    rows = {row.name: row for row in report.measurements}

    assert {"original", "student", "fp16", "int8-static", "int8-matmul", "int8-dynamic"} <= set(rows)
    assert all(row.accuracy.samples == report.data.evaluation_samples for row in rows.values())
    assert all(set(row.p50_ms_by_input) == {"long", "bucketed", "padded"} for row in rows.values())
    assert rows["pruned"].macs < rows["student"].macs < rows["original"].macs
    assert rows["int8-dynamic"].macs == rows["pruned"].macs
    assert rows["int8-dynamic"].size_bytes < rows["pruned"].size_bytes
    assert rows["original"].accuracy.matthews is not None
    assert report.data.unlabeled_samples == 2
    assert report.data.lengths is not None
    assert report.model.input_shape == [report.data.lengths.limit]


def test_what_ships_answers_on_a_device_with_its_own_tokenizer(report: Report, folder: Path) -> None:
    from tokenizers import Tokenizer

    fed, classes = read_metadata(folder / "run" / "model.onnx")
    tokenizer = Tokenizer.from_file(str(folder / "run" / "tokenizer.json"))
    ids = np.array([tokenizer.encode("a fine film").ids])
    session = onnxruntime.InferenceSession(folder / "run" / "model.onnx")
    (logits,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    assert fed is not None
    assert logits.shape == (1, len(classes))
    assert list(classes) == report.data.classes


def test_files_with_other_tokenizers_are_scored_with_their_own(report: Report, folder: Path) -> None:
    files = [str(folder / "run" / name) for name in ("original.onnx", "student.onnx")]

    result = run(["eval", *files, "--data", str(folder / "reviews.csv"), "--json"])

    scores = [row["accuracy"]["top1"] for row in json.loads(result.stdout)]
    assert scores == [row.accuracy.top1 for row in report.measurements if row.name in ("original", "student")]


def test_selecting_a_file_that_has_another_tokenizer_ships_that_one(report: Report, folder: Path) -> None:
    run_folder, shipped = folder / "run", set()
    write_report(report, run_folder)

    for name in ("original", "student"):
        select(run_folder, {}, name=name)
        fed, _classes = read_metadata(run_folder / "model.onnx")
        assert isinstance(fed, TextInput)
        assert sha256_file(run_folder / "tokenizer.json") == fed.tokenizer_sha256
        shipped.add(fed.tokenizer_sha256)
    own = select(run_folder, {})

    assert len(shipped) == 2
    assert (own.chosen, own.verdict) == (report.chosen, report.verdict)


def test_the_report_shows_lengths_and_scores_of_texts(report: Report, folder: Path) -> None:
    write_report(report, folder / "run")

    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "Latency of other inputs" in page
    assert "Matthews" in page
    assert f"the limit is {report.model.input_shape[0]}" in page
    assert "images" not in page
    assert "Latency of other inputs" in (folder / "run" / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "write", "score"),
    [("token-classification", write_entities, "entity_f1"), ("question-answering", write_questions, "answer_f1")],
)
def test_other_heads_are_quantised_and_scored(
    task: str, write: Callable[..., Path], score: str, tmp_path: Path
) -> None:
    write_tiny(tmp_path / "model", task=task, labels=TAGS)
    data = write(tmp_path / "data.jsonl", count=60)
    values = {"model.path": tmp_path / "model", "data.path": data, "budget.max_drop_points": 100.0, **QUICK}

    report = compress(read_recipe(None, values), tmp_path / "run")

    assert all(getattr(row.accuracy, score) is not None for row in report.measurements)
    assert {"original", "int8-dynamic"} <= {row.name for row in report.measurements}
    write_report(report, tmp_path / "run")


@pytest.mark.slow
def test_training_with_rounding_is_a_row_of_its_own(folder: Path, tmp_path: Path) -> None:
    values = {
        "model.path": folder / "model",
        "data.path": folder / "reviews.csv",
        **QUICK,
        "quantize.qat_epochs": 1,
    }

    report = compress(read_recipe(None, values), tmp_path / "run")

    assert "int8-qat" in {row.name for row in report.measurements}


def test_a_target_without_dynamic_forms_gets_the_static_one(folder: Path, tmp_path: Path) -> None:
    values = {
        "model.path": folder / "model",
        "data.path": folder / "reviews.csv",
        "target": "jetson-orin",
        "budget.max_drop_points": 100.0,
        **QUICK,
    }

    report = compress(read_recipe(None, values), tmp_path / "run")

    assert [row.name for row in report.measurements] == ["original", "fp16", "int8"]
    result = run(["check", str(tmp_path / "run" / "int8.onnx"), "--target", "jetson-orin"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label-column", "stars"], "stars"),
        (["--max-length", "100000"], "100000"),
        (["--student", "depth:9"], "depth:9"),
        (["--student", "hf:other"], "hf:other"),
        (["--set", "prune.macs_ratio=0.5"], "prune.ratio"),
        (["--unlabeled", "missing.txt"], "missing.txt"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    arguments: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    command = ["compress", str(folder / "model"), "--data", str(folder / "reviews.csv"), "--out", str(tmp_path / "out")]

    result = run([*command, *arguments])

    assert result.exit_code in (1, 2), result.output
    assert message in result.stderr
    assert "hint: " in result.stderr
    assert not (tmp_path / "out").exists()


def test_settings_of_texts_are_refused_for_images(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")

    result = run(["compress", str(tmp_path / "model.pt"), "--data", str(tmp_path), "--max-length", "32"])

    assert result.exit_code == 2
    assert "model.max_length: for text models" in result.stderr


def run(arguments: list[str]) -> Result:
    return CliRunner().invoke(main, arguments)
