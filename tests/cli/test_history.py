"""`tlc history` lists runs, finds changes, draws them, and takes reports in and out."""

import csv
import io
import json
import re
import runpy
import sys
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest
from benches import bench_of
from click.testing import CliRunner, Result

from tlc.cli.history import history_command, keep
from tlc.cli.main import TlcGroup
from tlc.cli.report import write_report
from tlc.runtime.bench_report import BenchReport, BenchWarning
from tlc.runtime.history import History, Row, Series, append_to_history
from tlc.runtime.history_trend import trend
from tlc.runtime.report import Report

make_report: Callable[..., Report] = runpy.run_path(str(Path(__file__).with_name("make_report.py")))["make_report"]
HOSTILE = "<script>alert(1)</script>\n|::error::\x1b[31m.onnx"
HOT = (BenchWarning(code="throttled", model=None, message="Hot."),)


def slower_from(changed: int, runs: int) -> list[BenchReport]:
    """Return a report a day: 1.0 ms, one outlier of 3 ms, then 1.2 ms from number `changed` on, of another file."""
    return [
        bench_of(
            day,
            ms={"model.onnx": 3.0 if day == 4 else 1.0 if day < changed else 1.2, HOSTILE: 0.5},
            sha256=("a" if day < changed else "b") * 64,
            warnings=HOT if day == 4 else (),
        )
        for day in range(runs)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "history.sqlite"
    with History(path) as history:
        for day, report in enumerate(slower_from(14, 24)):
            history.append(report.model_dump(mode="json"), label=f"commit {day}")
    return path


def tlc(*arguments: object) -> Result:
    group = TlcGroup(commands={"history": history_command})
    result = CliRunner().invoke(group, ["history", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_last_runs_are_listed_the_newest_at_the_end(store: Path) -> None:
    lines = tlc("--last", 2, "--store", store).stdout.splitlines()
    runs = json.loads(tlc("list", "--last", 3, "--json", "--store", store).stdout)

    assert len(lines) == 3
    assert re.fullmatch(r"24 +2026-01-25 03:04 +bench +ok +model\.onnx, .* +[0-9a-f]{12} +commit 23", lines[2])
    assert [run["run"] for run in runs] == [22, 23, 24]
    assert "\x1b" not in "".join(lines)


def test_a_change_is_told_with_its_step_its_run_and_whether_the_file_changed(store: Path) -> None:
    answer = json.loads(tlc("trend", "--metric", "p50_ms", "--model", "model.onnx", "--json", "--store", store).stdout)
    text = tlc("trend", "--metric", "p50_ms", "--store", store).stdout

    (series,) = answer
    (change,) = series["changes"]
    assert (change["run"], change["better"], change["file_changed"]) == (15, False, True)
    assert change["after"] / change["before"] == pytest.approx(1.2, rel=0.02)
    assert len(series["points"]) == 24
    assert re.search(r"p50 latency +1\.\d+ ms +24 runs", text)
    assert re.search(r"\+\d+\.\d % \(worse\) at run 15 of 2026-01-16, commit 14: 1\.\d+ ms to 1\.\d+ ms, another", text)
    assert "no change" in text, "the other model did not change"
    assert "\x1b" not in text


def test_few_runs_are_said_to_be_too_few(tmp_path: Path) -> None:
    with History(tmp_path / "h.sqlite") as history:
        history.append(bench_of().model_dump(mode="json"))

    text = tlc("trend", "--store", tmp_path / "h.sqlite").stdout

    assert "too few to tell a change" in text
    assert "no change" not in text


def test_higher_is_better_where_it_is() -> None:
    def series(metric: str) -> Series:
        points = [
            Row(day, f"2026-01-{day + 1:02}", "bench", "", "ok", "", "m", "0", "a", "s", "x", metric, value)
            for day, value in enumerate([10 + 0.01 * (day % 3) for day in range(10)] + [12.0] * 10)
        ]
        return Series("a", "x", "m", metric, tuple(points))

    (faster,) = trend(series("throughput_per_s")).changes
    (slower,) = trend(series("p50_ms")).changes

    assert faster.first.run == slower.first.run == 10
    assert (faster.better, slower.better) == (True, False)
    assert not faster.file_changed
    assert faster.ratio == pytest.approx(1.2, rel=0.01)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [
            value for key, value in attrs if key in ("src", "href") and value and not value.startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_runs_nothing(store: Path, tmp_path: Path) -> None:
    done = tlc("trend", "--html", tmp_path / "trend.html", "--store", store)
    page = Page((tmp_path / "trend.html").read_text())

    assert done.exit_code == 0
    assert page.tags.count("svg") == 8, "p50, p99, memory and size of two models"
    assert "script" not in page.tags
    assert page.outside == []
    assert "2 changes of level in 8 series" in page.text
    assert "<script>alert(1)</script> |::error::" in page.text
    assert "(worse)" in page.text
    assert "var(--bad)" in (tmp_path / "trend.html").read_text(), "the change is drawn"


def test_the_page_is_the_same_for_the_same_history(store: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        tlc("trend", "--metric", "p50_ms", "--html", tmp_path / name, "--store", store)

    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_without_plots_the_page_is_refused_before_the_work(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else object())

    done = tlc("trend", "--html", tmp_path / "trend.html", "--store", store)

    assert done.exit_code == 1
    assert "error: --html needs matplotlib\nhint: Install tlc with its extra" in done.stderr


def test_exported_numbers_are_those_of_the_store(store: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    with History(store) as history:
        rows = [row._asdict() for row in history.rows(metric="p50_ms")]
    for name in ("n.csv", "n.parquet"):
        assert tlc("export", tmp_path / name, "--metric", "p50_ms", "--store", store).exit_code == 0
    table = list(csv.DictReader(io.StringIO((tmp_path / "n.csv").read_text(), newline="")))

    assert pq.read_table(tmp_path / "n.parquet").to_pylist() == rows
    assert [{**row, "run": int(row["run"]), "value": float(row["value"])} for row in table] == rows
    assert len(rows) == 48


def test_parquet_without_pyarrow_names_the_way_out(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    done = tlc("export", tmp_path / "n.parquet", "--store", store)

    assert (done.exit_code, done.stderr) == (
        1,
        "error: .parquet needs pyarrow\nhint: pip install pyarrow, or export to .csv.\n",
    )


def test_a_shown_report_reads_back(store: Path, tmp_path: Path) -> None:
    tlc("show", 3, "-o", tmp_path / "baseline.json", "--store", store)

    report = BenchReport.model_validate_json(tlc("show", 3, "--store", store).stdout)
    assert report == BenchReport.model_validate_json((tmp_path / "baseline.json").read_text()) == slower_from(14, 3)[2]


def test_artifacts_are_imported_and_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ci.zip", "w") as archive:
        archive.writestr("bench.json", bench_of().model_dump_json())
        archive.writestr("other.json", "{}")

    first = tlc("import", tmp_path / "ci.zip", "--label", "ci", "--store", tmp_path / "new" / "h.sqlite")
    again = tlc("import", tmp_path / "ci.zip", "--store", tmp_path / "new" / "h.sqlite", "--json")

    assert first.stdout == "1 added, 0 there already, 1 skipped\n"
    assert re.match(r"skipped: other\.json in .*ci\.zip is not a report of tlc", first.stderr)
    assert json.loads(again.stdout)["duplicates"] == 1


def test_the_report_of_a_compress_run_is_the_run_that_was_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = make_report(samples=200, latency_samples=8)
    environment = {"time_utc": "2026-01-02T03:04:05+00:00", "cpu_model": "Invented CPU"}
    report = report.model_copy(update={"environment": environment})
    latency = report.measurements[1].latency
    assert latency is not None
    precise = latency.model_copy(update={"samples_ms": [0.123456789, *latency.samples_ms[1:]]})
    student = report.measurements[1].model_copy(update={"latency": precise})
    report = report.model_copy(update={"measurements": [report.measurements[0], student, *report.measurements[2:]]})
    monkeypatch.setenv("TLC_HISTORY", str(tmp_path / "h.sqlite"))

    append_to_history(report)
    write_report(report, tmp_path)
    done = tlc("import", tmp_path / "report.json")
    (run,) = json.loads(tlc("--json").stdout)
    top1 = json.loads(tlc("trend", "--metric", "top1_ratio", "--model", "resnet56.pt int8", "--json").stdout)

    assert done.stdout == "0 added, 1 there already, 0 skipped\n"
    assert (run["kind"], run["outcome"]) == ("compress", "ok" if report.budget_met else "over budget")
    assert [point["value"] for point in top1[0]["points"]] == [report.measurements[-1].accuracy.top1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "n.xlsx"], "error: n.xlsx is neither .csv nor .parquet\nhint: Name the file so.\n"),
        (["trend", "--metric", "speed"], "error: there is no metric 'speed'\nhint: One of: p50_ms, p90_ms,"),
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: list[str], message: str) -> None:
    done = tlc(*arguments)

    assert done.exit_code == 2
    assert done.stderr.startswith(message)


@pytest.mark.parametrize("command", [["list"], ["trend"], ["show", "1"], ["export", "n.csv"]])
def test_a_history_that_is_not_there_or_switched_off_is_an_error(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLC_HISTORY", "")
    off = tlc(*command)
    monkeypatch.setenv("TLC_HISTORY", "none.sqlite")
    absent = tlc(*command)

    assert off.exit_code == 2
    assert 'switched off by TLC_HISTORY=""\nhint: Unset it, or give --store FILE' in off.stderr
    assert absent.exit_code == 1
    assert "there is no history at none.sqlite" in absent.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_kept_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TLC_HISTORY", str(tmp_path))
    keep(bench_of())
    monkeypatch.setenv("TLC_HISTORY", str(tmp_path / "h.sqlite"))
    keep(bench_of(), label="kept")

    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(
        r"warning: this run is not kept: the history .* cannot be used: .*\nhint: Name a file.*\n", said.err
    )
    assert [run["label"] for run in json.loads(tlc("--json").stdout)] == ["kept"]


def test_every_command_ends_its_help_with_an_example() -> None:
    commands: list[Any] = [history_command, *history_command.commands.values()]
    for command in commands:
        assert isinstance(command, click.Command)
        assert re.search(r"Examples?: ?\n?.*tlc history", command.help or "", re.DOTALL), command.name
