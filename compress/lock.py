"""Locks of folders, which die with their process, however it ends: a killed run never blocks the next."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tlc.runtime.errors import TlcError

_LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make `folder` and wait until no other process works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def wait_for(folder: Path) -> None:
    """Wait until no other process works in `folder`; one that is not there any more needs no waiting."""
    with suppress(FileNotFoundError), (folder / _LOCK).open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Work in `folder` while no other process does; raises TlcError, with the other's number, where one does."""
    with (folder / _LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise TlcError(
                f"Another tlc (process {holder}) is running in {folder}.",
                hint="Wait for it to end, or choose another --out.",
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
