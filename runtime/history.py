"""The history: a local SQLite file to which every measurement is appended, whole.

Any number of processes may append at once. Each append is one transaction, on disk when it returns, and a process
killed in the middle of it leaves what was there before. SQLite's rollback journal is used and not its write-ahead log:
that one does not work on network file systems, where home folders may lie, and its releases before 3.51.3 can, rarely,
corrupt a file that several processes write at once (https://www.sqlite.org/wal.html, sections 1 and 11). With a
transaction a measurement there is nothing to gain by it.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pydantic import BaseModel

from tlc.runtime.artifact import sha256_json
from tlc.runtime.errors import TlcError
from tlc.runtime.history_facts import Facts, facts_of

SCHEMA_VERSION = 1
MACHINE_DIGITS = 12
_APPLICATION_ID = 0x746C6368  # "tlch": tells the file from those of other programs
_WAIT_S = 60
_SCHEMA = """
CREATE TABLE machines (id TEXT PRIMARY KEY, identity TEXT NOT NULL);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 TEXT NOT NULL UNIQUE,
    time_utc TEXT NOT NULL,
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    outcome TEXT NOT NULL,
    warnings TEXT NOT NULL,
    machine TEXT NOT NULL REFERENCES machines (id),
    tlc_version TEXT NOT NULL,
    models TEXT NOT NULL,
    report TEXT NOT NULL
);
CREATE TABLE metrics (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    model TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    setting TEXT NOT NULL,
    metric TEXT NOT NULL,
    value REAL NOT NULL
);
CREATE INDEX metrics_by_series ON metrics (model, setting, metric);
CREATE INDEX metrics_by_run ON metrics (run);
"""
_IDENTITY = """
SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
FROM pragma_application_id, pragma_user_version
"""  # one statement: between two, another process may make the file
_RUNS = "SELECT id AS run, time_utc, kind, label, outcome, warnings, machine, tlc_version, models FROM runs"
_ROWS = """
SELECT runs.id AS run, time_utc, kind, label, outcome, warnings, machine, tlc_version,
       model, metrics.sha256, setting, metric, value
FROM metrics JOIN runs ON runs.id = metrics.run
"""


class Row(NamedTuple):
    """One number with everything that says what it is of."""

    run: int
    time_utc: str
    kind: str
    label: str
    outcome: str
    warnings: str
    machine: str
    tlc_version: str
    model: str
    sha256: str
    """Of the model's file."""
    setting: str
    metric: str
    value: float


class Run(NamedTuple):
    """One report in the history."""

    run: int
    time_utc: str
    kind: str
    label: str
    outcome: str
    warnings: str
    machine: str
    tlc_version: str
    models: str


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one model in one setting on one machine, in the order of time."""

    model: str
    setting: str
    machine: str
    metric: str
    points: tuple[Row, ...]


class History:
    """The store at `path`, opened; made if it is not there, unless `must_exist`. Closes at the end of a `with`.

    Raises TlcError for a file that is not a history, that a newer tlc wrote, or that cannot be read or written.
    """

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        self.path = path
        if must_exist and not path.is_file():
            raise TlcError(
                f"there is no history at {path}",
                hint="tlc bench and tlc gate append to it, tlc history import fills it; TLC_HISTORY says where it is.",
            )
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._database.close()

    def append(self, report: Mapping[str, Any], *, label: str = "") -> int:
        """Store the JSON object of a bench, gate or compress report, and return its number once it is on disk.

        A report that is in the history already keeps its number and its label. Raises TlcError for what is no report.
        """
        found, _ = self.append_all([(report, label, facts_of(report))])[0]
        return found

    def append_all(self, reports: list[tuple[Mapping[str, Any], str, Facts]]) -> list[tuple[int, bool]]:
        """Store all of (report, label, its facts), or none; return (number, whether it is new) of each."""
        with self._writing():
            return [self._insert(*values) for values in reports]

    def runs(self, *, last: int | None = None, model: str | None = None) -> list[Run]:
        """Return the runs in the order of time: all, or the `last` ones, or those that measured `model`."""
        query = _RUNS
        values: list[Any] = []
        if model is not None:
            query += " WHERE id IN (SELECT run FROM metrics WHERE model = ?)"
            values.append(model)
        query += " ORDER BY time_utc DESC, id DESC"
        if last is not None:
            query += " LIMIT ?"
            values.append(last)
        with self._explained():
            return [Run(*row) for row in reversed(self._database.execute(query, values).fetchall())]

    def rows(
        self,
        *,
        model: str | None = None,
        metric: str | None = None,
        setting: str | None = None,
        machine: str | None = None,
    ) -> list[Row]:
        """Return every number, in the order of time, or those of what is named; `setting` may be a part of one.

        `machine` may be the beginning of one.
        """
        wanted = {
            "model = ?": model,
            "metric = ?": metric,
            "instr(setting, ?)": setting,
            "instr(machine, ?) = 1": machine,
        }
        parts = {part: value for part, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(parts)} " if parts else ""
        query = f"{_ROWS}{where}ORDER BY time_utc, runs.id, metrics.rowid"
        with self._explained():
            return [Row(*row) for row in self._database.execute(query, list(parts.values()))]

    def series(self, **wanted: str | None) -> list[Series]:
        """Return the series of the `rows` of what is wanted, in the order of model, setting, machine and metric.

        Rows form a series where model, setting, machine and metric are the same.
        """
        found: dict[tuple[str, str, str, str], list[Row]] = {}
        for row in self.rows(**wanted):
            found.setdefault((row.model, row.setting, row.machine, row.metric), []).append(row)
        return [Series(*key, tuple(points)) for key, points in sorted(found.items())]

    def report(self, run: int) -> dict[str, Any]:
        """Return the report of a run, as it was appended. Raises TlcError where there is no such run."""
        with self._explained():
            row = self._database.execute("SELECT report FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            raise TlcError(f"there is no run {run} in {self.path}", hint="tlc history lists them.")
        report: dict[str, Any] = json.loads(row[0])
        return report

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return what identifies each machine, by the name that runs and series call it."""
        with self._explained():
            rows = self._database.execute("SELECT id, identity FROM machines ORDER BY id").fetchall()
        return {name: json.loads(identity) for name, identity in rows}

    def _insert(self, report: Mapping[str, Any], label: str, facts: Facts) -> tuple[int, bool]:
        execute = self._database.execute
        known = execute("SELECT id FROM runs WHERE sha256 = ?", (facts.sha256,)).fetchone()
        if known is not None:
            return int(known[0]), False
        machine = sha256_json(facts.machine)[:MACHINE_DIGITS]
        execute("INSERT OR IGNORE INTO machines VALUES (?, ?)", (machine, json.dumps(facts.machine, sort_keys=True)))
        values = {
            "sha256": facts.sha256,
            "time_utc": facts.time_utc,
            "kind": facts.kind,
            "label": label,
            "outcome": facts.outcome,
            "warnings": facts.warnings,
            "machine": machine,
            "tlc_version": facts.tlc_version,
            "models": facts.models,
            "report": json.dumps(report, ensure_ascii=False),
        }
        places = ", ".join("?" * len(values))
        columns = ", ".join(values)
        run = execute(f"INSERT INTO runs ({columns}) VALUES ({places})", list(values.values())).lastrowid  # noqa: S608
        assert run is not None
        self._database.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)",
            [(run, row.model, row.sha256, row.setting, row.metric, float(row.value)) for row in facts.rows],
        )
        return run, True

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA synchronous = EXTRA")  # FULL, and the folder too once the journal is gone
        if self._checked_version() == SCHEMA_VERSION:
            return
        with self._writing():
            if self._checked_version() == 0:  # else another process was faster
                for statement in _SCHEMA.split(";"):
                    execute(statement)
                execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _checked_version(self) -> int:
        """Return the file's schema version, 0 for an empty file. Raises TlcError where it is not for this tlc."""
        application, version, tables = self._database.execute(_IDENTITY).fetchone()
        if application == _APPLICATION_ID and version > SCHEMA_VERSION:
            raise TlcError(
                f"{self.path} has schema version {version}, and this tlc reads up to {SCHEMA_VERSION}",
                hint="Upgrade tlc, or name another file in TLC_HISTORY.",
            )
        if application != _APPLICATION_ID and (application or version or tables):
            raise TlcError(
                f"{self.path} is a SQLite file of another program",
                hint="Name another file in TLC_HISTORY, or with --store.",
            )
        return int(version)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make one transaction of what is written inside, on disk at its end; nothing of it remains after an error."""
        with self._explained():
            self._database.execute("BEGIN IMMEDIATE")  # waits here, not at the commit, for others that write
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            detail = str(error)
            hint = "Name a file in a folder that you can write, in TLC_HISTORY or with --store."
            if "locked" in detail:
                hint = f"Another process has been writing for {_WAIT_S} s: wait for it, or end it."
            elif "not a database" in detail or "malformed" in detail:
                hint = "It is not a history, or was cut short: move it away, or name another file in TLC_HISTORY."
            elif "full" in detail:
                hint = "Free space on that disk, or name a file on another one in TLC_HISTORY."
            raise TlcError(f"the history {self.path} cannot be used: {detail}", hint=hint) from error


def history_path() -> Path | None:
    """Return where the history is: TLC_HISTORY, or tlc/history.sqlite in the user's data folder; None if it is "".

    The data folder is XDG_DATA_HOME, or ~/.local/share (https://specifications.freedesktop.org/basedir-spec/).
    """
    given = os.environ.get("TLC_HISTORY")
    if given is not None:
        return Path(given).expanduser() if given else None
    home = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return home / "tlc" / "history.sqlite"


def append_to_history(report: BaseModel, *, label: str = "", off: bool = False) -> Path | None:
    """Append a bench, gate or compress report to the history, and return its file; None where that is switched off.

    It is with `off`, and with TLC_HISTORY="". Raises TlcError where the history cannot be written: call this when the
    result is out.
    """
    path = None if off else history_path()
    if path is None:
        return None
    with History(path) as history:
        history.append(report.model_dump(mode="json"), label=label)
    return path
