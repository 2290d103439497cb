"""Reports that were measured elsewhere, such as in CI, into the history."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlc.runtime.errors import TlcError
from tlc.runtime.history import History
from tlc.runtime.history_facts import Facts, facts_of

MAX_REPORT_BYTES = 256 * 2**20
"""Of one file, unpacked: a day of samples at a millisecond each is 1 GB, a usual report less than 1 MB."""


@dataclass(frozen=True, slots=True)
class Import:
    """What became of the files."""

    added: tuple[int, ...]
    """Numbers of the new runs."""
    duplicates: int
    """Reports that the history had, or that were given twice."""
    skipped: tuple[str, ...]
    """Of folders and archives: JSON files that are no reports, each with the reason."""


def import_files(history: History, paths: Sequence[Path], *, label: str = "") -> Import:
    """Append the reports in `paths`: .json files, folders with such files at any depth, .zip archives with such files.

    Reports are told by their content, whatever their names; one that is in the history already is left out. All are
    appended, or none. Raises TlcError for a path that is not there, and for a file given by name that is no report or
    no archive.
    """
    reports: list[tuple[Mapping[str, Any], str, Facts]] = []
    skipped: list[str] = []
    for path in paths:
        for where, data, by_name in _candidates(path):
            try:
                report = _parsed(data, where)
                facts = facts_of(report, where=where)
            except TlcError as error:
                if by_name:
                    raise
                skipped.append(error.message)
            else:
                reports.append((report, label, facts))
    found = history.append_all(reports)
    added = tuple(run for run, new in found if new)
    return Import(added, len(found) - len(added), tuple(skipped))


def _candidates(path: Path) -> Iterator[tuple[str, bytes | None, bool]]:
    """Yield (what errors call it, content or None where it is too large, whether it was given by name)."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".json", ".zip") and file.is_file())
        for file in files:
            for where, data, _ in _candidates(file):
                yield where, data, False
    elif not path.is_file():
        raise TlcError(f"there is no file or folder {path}", hint="Check the path.")
    elif path.suffix == ".zip":
        yield from _members(path)
    else:
        size_bytes = path.stat().st_size
        yield str(path), path.read_bytes() if size_bytes <= MAX_REPORT_BYTES else None, True


def _members(path: Path) -> Iterator[tuple[str, bytes | None, bool]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".json"):
                    # What the entry says of its size is checked while it is read: zipfile reads no more than that.
                    small = entry.file_size <= MAX_REPORT_BYTES
                    yield f"{entry.filename} in {path}", archive.read(entry) if small else None, False
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:  # RuntimeError: encrypted
        raise TlcError(f"{path} cannot be read as a .zip: {error}", hint="Download it again.") from error


def _parsed(data: bytes | None, where: str) -> Mapping[str, Any]:
    if data is None:
        raise TlcError(
            f"{where} is larger than {MAX_REPORT_BYTES:,} bytes", hint="No report is as large: leave it out."
        )
    try:
        report = json.loads(data, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise TlcError(f"{where} is not JSON: {error}", hint="Copy it again, or leave it out.") from error
    if not isinstance(report, dict):
        raise TlcError(
            f"{where} is not a report of tlc bench, tlc gate or tlc compress",
            hint="Give the JSON that one of them wrote.",
        )
    return report


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")
