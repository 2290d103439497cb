"""Another file of a finished run ships: what is rewritten, what is not, and what is refused."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from bar_nets import write_net
from click.testing import CliRunner, Result

from tlc.cli.main import main
from tlc.compress import pipeline
from tlc.compress.recipe import Recipe
from tlc.compress.run import MARKER
from tlc.compress.select import select, write_manifest
from tlc.runtime.artifact import sha256_file
from tlc.runtime.budget import Budget
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Report
from tlc.runtime.target import load_target

make_report: Callable[..., Report] = runpy.run_path(str(Path(__file__).parents[1] / "cli" / "make_report.py"))[
    "make_report"
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run whose files are bar classifiers that differ in their bias."""
    return written(tmp_path / "run")


def written(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    (folder / MARKER).write_text("{}")
    recipe = {"target": "cpu-x86", "budget": Budget(max_drop_points=5).model_dump()}
    report = make_report(
        **{"samples": 400, "latency_samples": 8, "chosen": None, "budget": Budget(max_drop_points=5), **changes}
    )
    rows = []
    for number, row in enumerate(report.measurements):
        file = write_net(folder / f"{row.name}.onnx", bias=float(number))
        rows.append(row.model_copy(update={"file": file.name, "sha256": sha256_file(file)}))
    report = report.model_copy(update={"measurements": rows, "recipe": recipe, "warnings": ["It was noisy."]})
    (folder / "report.json").write_text(report.model_dump_json())
    (folder / "model.onnx").write_bytes((folder / f"{report.chosen}.onnx").read_bytes())
    target = load_target("cpu-x86").model_dump(mode="json")
    write_manifest(folder, {"chosen": report.chosen, "target": target, "files": {"model/model.json": "1"}})
    return folder


def tlc(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["select", *(str(argument) for argument in arguments)])


def read(run: Path) -> Report:
    return Report.model_validate_json((run / "report.json").read_bytes())


def test_another_budget_lets_another_file_ship_without_measuring_anything(run: Path) -> None:
    before = read(run)
    best = max(before.measurements, key=lambda row: row.accuracy.top1)

    report = select(run, {"objective": "most-accurate"}, command="tlc select run")

    assert (before.chosen, report.chosen, report.selected_by) == ("int8", best.name, "tlc select run")
    assert best.name != "int8"
    assert report.measurements == before.measurements
    assert report.budget == Budget(max_drop_points=5, objective="most-accurate")
    assert read(run) == report
    assert sha256_file(run / "model.onnx") == best.sha256
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["chosen"] == best.name
    assert manifest["files"] == {"model/model.json": "1", "model.onnx": best.sha256}


def test_without_an_option_the_runs_own_choice_is_back(run: Path) -> None:
    assert tlc(run, "--name", "student").exit_code == 0
    assert read(run).chosen == "student"

    done = tlc(run)

    assert done.exit_code == 0, done.output
    assert (read(run).chosen, read(run).budget) == ("int8", Budget(max_drop_points=5))
    assert sha256_file(run / "model.onnx") == sha256_file(run / "int8.onnx")


def test_the_reports_say_what_was_selected_and_the_history_hears_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLC_HISTORY", str(run / "history.sqlite"))

    done = tlc(run, "--max-latency", "0.8ms", "--objective", "most-accurate", "--json")

    report = read(run)
    assert done.exit_code == 0, done.output
    assert Report.model_validate_json(done.stdout).chosen == report.chosen == "pruned"
    assert report.budget.max_latency_ms == 0.8
    assert "pruned (ships)" in (run / "report.html").read_text()
    assert "**pruned** (ships)" in (run / "report.md").read_text()
    assert not (run / "history.sqlite").exists()


def test_a_budget_that_cannot_be_met_exits_with_1_when_everything_is_written(run: Path) -> None:
    done = tlc(run, "--max-size", "100kB")

    report = read(run)
    assert done.exit_code == 1
    assert "No measured file meets the budget. int8 comes closest: its file of 380 kB is 3.80 times the 100 kB" in (
        " ".join(done.stdout.split())
    )
    assert done.stderr.startswith(f"error: The budget is not met: {report.budget.words}. All files are in ")
    assert "hint: tlc select" in done.stderr
    assert (report.budget_met, report.chosen) == (False, "int8")
    assert report.needed


def test_a_run_whose_budget_is_not_met_exits_with_1_when_its_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Budget] = []

    def compress(recipe: Recipe, out: Path, **_: object) -> Report:
        asked.append(recipe.budget)
        out.mkdir()
        return make_report(samples=400, latency_samples=8, chosen=None, budget=recipe.budget)

    monkeypatch.setattr(pipeline, "compress", compress)
    monkeypatch.setenv("TLC_HISTORY", "")
    limits = ("--max-drop", "5", "--max-latency", "400us", "--max-size", "2MB", "--max-memory", "50MB")
    command = ("compress", "m.pt", "--data", "d", "--out", tmp_path / "run", "--quiet", *limits)

    done = CliRunner().invoke(main, [str(word) for word in command])

    limited = Budget(max_drop_points=5, max_latency_ms=0.4, max_size_bytes=2 * 10**6, max_memory_bytes=5 * 10**7)
    assert asked == [limited]
    assert (done.exit_code, read(tmp_path / "run").budget_met) == (1, False)
    assert done.stderr.startswith(f"error: The budget is not met: {limited.words}. All files are in ")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--name", "int4"], 1, "no file called int4 was measured"),
        (["--name", "int8", "--max-latency", "5ms"], 2, "--name chooses by itself: --max-latency would not count"),
        (["--max-latency", "5"], 2, "'5' has no unit"),
    ],
)
def test_what_cannot_be_selected_changes_nothing(run: Path, arguments: list[str], status: int, sentence: str) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    done = tlc(run, *arguments)

    assert (done.exit_code, sentence in done.stderr) == (status, True), done.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"} == before


def test_a_file_that_was_changed_since_is_not_shipped(run: Path) -> None:
    write_net(run / "student.onnx", bias=9.0)

    with pytest.raises(TlcError, match=r"student\.onnx is not the file that was measured as student"):
        select(run, {}, name="student")

    assert read(run).chosen == "int8"


def test_what_is_no_finished_run_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TlcError, match=r"empty is not the folder of a run") as caught:
        select(tmp_path / "empty", {})
    assert "--out" in caught.value.hint

    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text("{}")
    with pytest.raises(TlcError, match=r"manifest\.json is missing or not what this version of tlc writes"):
        select(run, {})
    (run / "manifest.json").write_text(manifest)

    (run / "report.json").write_text('{"chosen": "int8"}')
    with pytest.raises(TlcError, match=r"report\.json is not what this version of tlc writes: tlc_version"):
        select(run, {})
    (run / "report.json").unlink()
    with pytest.raises(TlcError, match=r"holds no finished run: report\.json is not there"):
        select(run, {})


def test_a_limit_on_a_latency_that_the_run_has_not_measured_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "run", not_measured="TensorRT is not installed.")

    with pytest.raises(TlcError, match=r"p50 of original was not measured"):
        select(run, {"max_latency_ms": 5.0})
