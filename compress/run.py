"""The run's folder: one run at a time, stages memoised by content, partial work that survives a kill."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlc.compress.events import Emit, StageStarted
from tlc.compress.lock import hold
from tlc.compress.processes import leads, wait_for_all
from tlc.runtime.artifact import sha256_file, sha256_json, write_text
from tlc.runtime.errors import TlcError

MARKER = "tlc-run.json"
STAGE_FILE = "stage.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage: its folder, what it found, and how long its last process worked on it."""

    path: Path
    key: str
    found: dict[str, Any]
    """JSON values that the stage returned."""
    seconds: float
    reused: bool


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that holds one run. Made by `open_run`, which also holds the lock."""

    path: Path
    emit: Emit
    cache: Path
    """Folder for what is worth keeping between stages, such as decoded images and teacher logits."""

    def stage(
        self,
        name: str,
        inputs: Mapping[str, object],
        make: Callable[[Path], dict[str, Any]],
        *,
        resumable: bool = False,
    ) -> StageResult:
        """Return the result of stage `name` for `inputs`, made by `make(folder)` unless this run already has it.

        The key is the sha256 of name and inputs, so a changed input makes a new result and leaves the old one.
        `make` writes its files into the folder it is given and returns what it found. A `resumable` stage finds there
        what it had written before a kill; any other starts from an empty folder.
        """
        key = sha256_json({"stage": name, "format": _FORMAT, "inputs": inputs})
        final = self.path / "stages" / f"{name}-{key[:16]}"
        known = _read_stage(final, key)
        wait_for_all()  # before the first process changes what the others have just looked for
        if known is not None:
            self.emit(StageStarted(name, reused=True))
            return StageResult(final, key, known["found"], known["seconds"], reused=True)
        if not leads():
            return self._followed(name, key, final, make if resumable else None)
        self.emit(StageStarted(name))
        partial = self.path / "partial" / f"{name}-{key[:16]}"
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        start = time.monotonic()
        found = make(partial)
        seconds = round(time.monotonic() - start, 3)
        record = {
            "name": name,
            "key": key,
            "inputs": inputs,
            "seconds": seconds,
            "found": found,
            "files": {str(f.relative_to(partial)): sha256_file(f) for f in _files(partial)},
        }
        write_text(partial / STAGE_FILE, json.dumps(record, indent=1, sort_keys=True) + "\n")
        if final.exists():
            shutil.rmtree(final)
        final.parent.mkdir(exist_ok=True)
        partial.replace(final)
        wait_for_all()
        return StageResult(final, key, found, seconds, reused=False)

    def _followed(
        self, name: str, key: str, final: Path, train: Callable[[Path], dict[str, Any]] | None
    ) -> StageResult:
        """Return what the first process found; where it trains, train along in a folder that nobody reads."""
        wait_for_all()
        if train is not None:
            with tempfile.TemporaryDirectory(prefix=f"tlc-{name}-") as folder:
                shutil.copytree(self.path / "partial" / final.name, folder, dirs_exist_ok=True)
                train(Path(folder))
        wait_for_all()
        known = _read_stage(final, key)
        if known is None:
            raise TlcError(
                f"The first process left no result of stage {name} in {self.path}.",
                hint="All processes need the same --out; on several machines it must be a shared folder.",
            )
        return StageResult(final, key, known["found"], known["seconds"], reused=False)


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name != STAGE_FILE)


def _read_stage(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the record of a finished stage whose files are all unchanged, else None."""
    try:
        record: dict[str, Any] = json.loads((folder / STAGE_FILE).read_text())
    except (OSError, ValueError):
        return None
    unchanged = record.get("key") == key and all(
        (folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in record["files"].items()
    )
    return record if unchanged else None


@contextmanager
def open_run(
    path: Path, identity: Mapping[str, str], *, resume: bool, emit: Emit, cache: Path | None = None
) -> Iterator[RunFolder]:
    """Open `path` for a run of the model and data that `identity` names, and hold it until the block ends.

    Runs may share a `cache`; otherwise it is in the run's folder.

    Raises:
        TlcError: the folder holds something else, holds a run and `resume` is False, holds a run of another model or
            data, or another process is running in it.

    """
    if not leads():
        wait_for_all()
        yield RunFolder(path, emit, cache or path / "cache")
        return
    marker = path / MARKER
    if path.is_file():
        raise TlcError(f"--out {path} is a file.", hint="Name a folder that does not exist yet.")
    # Dot files are the lock and what a kill left of a write.
    if path.exists() and not marker.exists() and any(not file.name.startswith(".") for file in path.iterdir()):
        raise TlcError(
            f"--out {path} is not empty and was not made by tlc, so nothing in it is touched.",
            hint="Name a new or empty folder.",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TlcError(f"Cannot make the folder {path}: {error.strerror}.", hint="Choose another --out.") from error
    with hold(path):
        for leftover in path.glob(".*.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if marker.exists():
            _check_marker(marker, identity, resume=resume)
        else:
            write_text(marker, json.dumps({"format": _FORMAT, **identity}, indent=1, sort_keys=True) + "\n")
        wait_for_all()
        yield RunFolder(path, emit, cache or path / "cache")


@contextmanager
def hold_run(path: Path) -> Iterator[None]:
    """Hold the run in folder `path`, so that no other process changes it until the block ends.

    Raises TlcError where there is none, or another process is running in it.
    """
    if not (path / MARKER).is_file():
        raise TlcError(f"{path} is not the folder of a run.", hint="Give the --out of tlc compress.")
    with hold(path):
        yield


def _check_marker(marker: Path, identity: Mapping[str, str], *, resume: bool) -> None:
    try:
        known = json.loads(marker.read_text())
    except ValueError as error:
        raise TlcError(f"{marker} is damaged: {error}.", hint="Choose another --out.") from error
    if known.get("format") != _FORMAT:
        raise TlcError(
            f"{marker.parent} was written in format {known.get('format')}, this tlc writes {_FORMAT}.",
            hint="Choose another --out.",
        )
    for what, value in identity.items():
        if known.get(what) != value:
            raise TlcError(
                f"{marker.parent} holds the run of another {what}: {str(known.get(what))[:60]}, not {value[:60]}.",
                hint="Choose another --out; one folder belongs to one model and one data set.",
            )
    if not resume:
        raise TlcError(
            f"{marker.parent} already holds a run of this model.",
            hint="Add --resume to go on with it (finished stages are reused), or choose another --out.",
        )
