"""The history keeps what it is given, refuses what is none of its own, and takes reports from elsewhere once."""

import json
import os
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import pytest
from benches import MACHINE, bench_of

from tlc.runtime.bench_report import BenchWarning
from tlc.runtime.errors import TlcError
from tlc.runtime.gate_report import Check, GateReport
from tlc.runtime.history import History, append_to_history, history_path
from tlc.runtime.history_facts import METRICS, facts_of, metric
from tlc.runtime.history_import import import_files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "history.sqlite"


def bench_json(day: float = 0, **options: Any) -> dict[str, Any]:
    return bench_of(day, **options).model_dump(mode="json")


def gate_json(verdict: Any = "fail") -> dict[str, Any]:
    check = Check(
        name="max-slowdown", limit=5, value=9.1, low=8, high=10, unit="%", verdict=verdict, reason="It is slower."
    )
    gate = GateReport(
        tlc_version="0.0.0+invented",
        command="tlc gate b.onnx --baseline a.onnx",
        seed=0,
        candidate="b.onnx",
        baseline="a.onnx",
        stored_baseline=None,
        verdict=verdict,
        checks=[check],
        confidence=0.99,
        tail=0.003,
        looks=1,
        bench=bench_of(ms={"a.onnx": 1.0, "b.onnx": 1.1}),
    )
    return gate.model_dump(mode="json")


def test_a_report_comes_back_as_it_was_appended(path: Path) -> None:
    report = bench_json(warnings=(BenchWarning(code="throttled", model=None, message="Hot."),))

    with History(path) as history:
        number = history.append(report, label="commit 1a2b")
    with History(path, must_exist=True) as history:
        assert history.report(number) == report
        (run,) = history.runs()

    assert (run.run, run.kind, run.label, run.outcome, run.warnings) == (1, "bench", "commit 1a2b", "ok", "throttled")
    assert run.time_utc == "2026-01-02T03:04:05+00:00"
    assert run.models == "model.onnx"


def test_the_numbers_of_a_report_are_rows(path: Path) -> None:
    report = bench_of(ms={"a.onnx": 1.0, "b.onnx": 2.0})
    with History(path) as history:
        history.append(report.model_dump(mode="json"))
        rows = {(row.model, row.metric): row.value for row in history.rows()}

    latency = report.models[1].latency
    assert latency is not None
    assert rows["b.onnx", "p50_ms"] == latency.quantile(50).ms
    assert rows["b.onnx", "p99_ms"] == latency.quantile(99).ms
    assert rows["b.onnx", "throughput_per_s"] == latency.throughput_per_s
    assert rows["b.onnx", "latency_ratio over a.onnx"] == 2.0
    assert rows["b.onnx", "peak_memory_bytes"] == 50_000_000
    assert rows["b.onnx", "size_bytes"] == 1_000_000
    assert ("a.onnx", "latency_ratio over a.onnx") not in rows
    assert {name for _, name in rows} - {"latency_ratio over a.onnx"} <= METRICS.keys()
    assert metric("latency_ratio over a.onnx").better == "lower"


def test_a_model_that_failed_has_no_numbers_but_shows_in_the_outcome(path: Path) -> None:
    with History(path) as history:
        history.append(bench_json(failed="bad.onnx"))
        assert history.runs()[0].outcome == "crashed: bad.onnx"
        assert {row.model for row in history.rows()} == {"model.onnx"}


def test_a_gate_is_kept_with_its_verdict_and_its_measurements(path: Path) -> None:
    with History(path) as history:
        history.append(gate_json("inconclusive"))
        (run,) = history.runs(model="b.onnx")

        assert (run.kind, run.outcome) == ("gate", "inconclusive")
        assert len(history.rows(model="b.onnx", metric="p50_ms")) == 1


def test_only_one_machine_and_one_setting_form_a_series(path: Path) -> None:
    other = {**MACHINE, "cpu_model": "Another CPU"}
    with History(path) as history:
        for report in (bench_json(2), bench_json(0), bench_json(1, batch=8), bench_json(3, machine=other)):
            history.append(report)
        series = history.series(metric="p50_ms")
        machines = history.machines()
        of_other = history.series(metric="p50_ms", machine=series[-1].machine[:5], setting="batch 1")

    assert sorted(len(each.points) for each in series) == [1, 1, 2]
    longest = max(series, key=lambda each: len(each.points))
    assert [point.run for point in longest.points] == [2, 1], "in the order of time, not of appending"
    assert {identity["cpu_model"] for identity in machines.values()} == {"Invented CPU", "Another CPU"}
    assert of_other
    assert {each.machine for each in of_other} == {series[-1].machine}


def test_the_same_report_is_kept_once(path: Path) -> None:
    with History(path) as history:
        assert history.append(bench_json()) == history.append(dict(reversed(bench_json().items())), label="again") == 1
        assert len(history.runs()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "samples"}, r"this is not a report of tlc bench, tlc gate or tlc compress"),
        ({"kind": ["bench"]}, r"this is not a report"),
        ({"schema_version": 2}, r"this has schema version 2, and this tlc reads 1\nhint: Upgrade tlc"),
        ({"models": [{}]}, r"not a complete report of tlc bench: models\.0\.name: Field required"),
        (
            {"environment": bench_json()["environment"] | {"load": float("inf")}},
            r"this holds a number that is",
        ),
        ({"environment": {}}, r"does not say when it was measured: environment.time_utc is None"),
        ({"environment": {"time_utc": "yesterday"}}, r"environment.time_utc is 'yesterday'"),
    ],
)
def test_what_is_no_report_is_refused_and_leaves_nothing(path: Path, change: dict[str, Any], message: str) -> None:
    with History(path) as history:
        with pytest.raises(TlcError, match=message):
            history.append({**bench_json(), **change})
        assert history.runs() == []


def test_times_are_brought_to_utc() -> None:
    report = bench_json() | {"environment": {"time_utc": "2026-03-01T01:00:00+02:00"}}

    assert facts_of(report).time_utc == "2026-02-28T23:00:00+00:00"
    assert facts_of(report | {"environment": {"time_utc": "2026-03-01T01:00:00Z"}}).time_utc.startswith("2026-03-01T01")


def test_a_file_that_is_not_sqlite_is_refused_by_name_and_untouched(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("run,value\n" * 100)

    with pytest.raises(TlcError, match=r"history\.sqlite cannot be used: file is not a database"):
        History(path)
    assert path.read_text() == "run,value\n" * 100


def test_a_file_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (id INTEGER)")
    database.close()

    with pytest.raises(TlcError, match=r"history\.sqlite is a SQLite file of another program"):
        History(path)


@pytest.mark.parametrize("before", range(5))
def test_a_file_that_another_process_makes_while_it_is_looked_at_is_a_history(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    connect = sqlite3.connect

    class Interrupted(sqlite3.Connection):
        statements = 0

        def execute(self, *statement: Any) -> sqlite3.Cursor:
            if self.statements == before and not self.in_transaction:
                monkeypatch.setattr(sqlite3, "connect", connect)
                History(path).close()
            self.statements += 1
            return super().execute(*statement)

    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, factory=Interrupted, **options))
    with History(path) as history:
        assert history.append(bench_json()) == 1


def test_a_history_of_a_newer_tlc_is_refused(path: Path) -> None:
    History(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()

    with pytest.raises(TlcError, match=r"has schema version 7, and this tlc reads up to 1\nhint: Upgrade tlc"):
        History(path)


def test_a_cut_file_is_refused(path: Path) -> None:
    with History(path) as history:
        for day in range(3):
            history.append(bench_json(day))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    message = r"cannot be used: database disk image is malformed\nhint: It is not a history"
    with pytest.raises(TlcError, match=message), History(path) as history:
        history.rows()


def test_reading_makes_no_file(path: Path) -> None:
    with pytest.raises(TlcError, match=r"there is no history at .*history\.sqlite\nhint: tlc bench and tlc gate"):
        History(path, must_exist=True)
    assert not path.parent.exists()


def test_a_folder_that_cannot_be_made_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(TlcError, match=r"cannot be used: .*\nhint: Name a file in a folder that you can write"):
        History(tmp_path / "file" / "history.sqlite")


def test_an_unknown_run_is_an_error(path: Path) -> None:
    with History(path) as history, pytest.raises(TlcError, match=r"no run 3 in .*\nhint: tlc history lists them"):
        history.report(3)


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("TLC_HISTORY")
    assert history_path() == tmp_path / ".local/share/tlc/history.sqlite"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert history_path() == tmp_path / "data/tlc/history.sqlite"
    monkeypatch.setenv("TLC_HISTORY", "~/own.sqlite")
    assert history_path() == tmp_path / "own.sqlite"


def test_a_run_is_appended_unless_that_is_off(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv("TLC_HISTORY", str(path))

    assert append_to_history(bench_of(), off=True) is None
    assert not path.exists()
    assert append_to_history(bench_of(), label="night") == path
    with History(path) as history:
        assert [run.label for run in history.runs()] == ["night"]
    monkeypatch.setenv("TLC_HISTORY", "")
    assert append_to_history(bench_of()) is None


def test_the_file_that_bench_writes_is_the_run_that_it_appended(path: Path, tmp_path: Path) -> None:
    report = bench_of(ms={"a.onnx": 1 / 3, "b.onnx": 2.0})
    (tmp_path / "report.json").write_text(report.model_dump_json())

    with History(path) as history:
        history.append(report.model_dump(mode="json"))
        assert import_files(history, [tmp_path / "report.json"]).duplicates == 1


def test_files_folders_and_archives_are_imported_once(path: Path, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(bench_json(1), indent=4))
    folder = tmp_path / "artifacts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "two.json").write_text(json.dumps(gate_json()))
    (folder / "copy.json").write_text(json.dumps(bench_json(1)))
    (folder / "quality.json").write_text("[]")
    (folder / "broken.json").write_text('{"kind": ')
    (folder / "endless.json").write_text(
        json.dumps(bench_json(5)).replace('"environment": {', '"environment": {"load": 1e999, ')
    )
    (folder / "notes.txt").write_text("not looked at")
    with zipfile.ZipFile(tmp_path / "ci.zip", "w") as archive:
        archive.writestr("out/three.json", json.dumps(bench_json(3)))
        archive.writestr("out/nan.json", json.dumps(bench_json(4) | {"seed": float("nan")}))

    with History(path) as history:
        paths = [tmp_path / "one.json", folder, tmp_path / "ci.zip"]
        first = import_files(history, paths, label="ci")
        second = import_files(history, paths)

        assert (len(first.added), first.duplicates, len(first.skipped)) == (3, 1, 4)
        assert any("endless.json holds a number that is not finite" in reason for reason in first.skipped)
        assert any("quality.json is not a report" in reason for reason in first.skipped)
        assert any("nan.json in " in reason and "NaN is not a number" in reason for reason in first.skipped)
        assert (second.added, second.duplicates) == ((), 4)
        assert [run.label for run in history.runs()] == ["ci"] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{}", r"a\.json is not a report of tlc bench, tlc gate or tlc compress"),
        ("a.json", b"\xff\xfe\x00", r"a\.json is not JSON: "),
        ("a.json", b"[" * 100_000, r"a\.json is not JSON: "),
        ("a.zip", b"PK", r"a\.zip cannot be read as a \.zip: File is not a zip file\nhint: Download it again"),
    ],
)
def test_a_file_given_by_name_that_is_no_report_stops_the_import(
    path: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / "good.json").write_text(json.dumps(bench_json()))
    (tmp_path / name).write_bytes(content)

    with History(path) as history:
        with pytest.raises(TlcError, match=message):
            import_files(history, [tmp_path / "good.json", tmp_path / name])
        assert history.runs() == []


def test_a_missing_path_stops_the_import(path: Path, tmp_path: Path) -> None:
    with History(path) as history, pytest.raises(TlcError, match=r"there is no file or folder .*nothing"):
        import_files(history, [tmp_path / "nothing"])


def test_the_history_of_the_tests_is_not_the_users() -> None:
    assert "pytest" in os.environ["TLC_HISTORY"]
