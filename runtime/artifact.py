"""Files that appear whole or not at all, and what identifies their content.

Everything is written beside its destination under a hidden `.NAME.<random>.tmp` and renamed at the end, so a killed
process leaves at most such a temporary, never half a file.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tlc.runtime.errors import TlcError

_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as 64 hex digits, reading it in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """Return the SHA-256 of a JSON value, 64 hex digits, independent of the order of its keys.

    A tuple counts as a list. Raises TypeError for what JSON cannot hold and ValueError for NaN and infinities.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require_free_space(path: Path, needed_bytes: int) -> None:
    """Raise TlcError unless the file system that holds `path`, which need not exist yet, has `needed_bytes` free."""
    free_bytes = shutil.disk_usage(_existing_parent(path)).free
    if free_bytes < needed_bytes:
        raise TlcError(
            f"not enough disk space for {path}: {needed_bytes:,} bytes needed, {free_bytes:,} bytes free",
            hint="Free space on that disk, or choose a folder on another one, and run again.",
        )


@contextmanager
def replacing_file(path: Path, needed_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Yield a file to write; on success it takes the place of `path` in one step, on any error it is removed.

    `needed_bytes` is how much will be written, for the message where the disk is full. Raises TlcError when it is, or
    the place cannot be written.
    """
    temporary = _temporary(path)
    try:
        with _explained(path, needed_bytes):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_dir(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, replacing what was there in one step; `path` is untouched when anything fails.

    Raises TlcError when the disk is full or the place cannot be written.
    """
    with replacing_file(path, len(data)) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    r"""Write `text` to `path` as UTF-8 with `\n` line ends, as `write_bytes` does."""
    write_bytes(path, text.encode())


@contextmanager
def replacing_dir(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; on success it takes the place of `path`, on any error it is removed.

    A process killed between the two renames at the end leaves no `path`, but never a mixture of old and new. Raises
    TlcError when the disk is full, also for a full disk inside the `with` block.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise TlcError(f"{path} is a file where a folder is to be written", hint="Move it away, or choose another one.")
    temporary = _temporary(path)
    with _explained(path):
        temporary.mkdir()
    try:
        with _explained(path, only_full=True):
            yield temporary
        with _explained(path):
            _sync_dir(temporary)
            _swap_dirs(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap_dirs(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        _sync_dir(path.parent)
        return
    old = _temporary(path)
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    _sync_dir(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Return an unused hidden name beside `path`; the prefix is cut so that long names stay within 255 bytes."""
    return path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.tmp")


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def _explained(path: Path, needed_bytes: int | None = None, *, only_full: bool = False) -> Iterator[None]:
    """Turn an OSError while writing `path` into a TlcError; with `only_full`, just those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free_bytes = shutil.disk_usage(_existing_parent(path.parent)).free
            needed = "" if needed_bytes is None else f"{needed_bytes:,} bytes to write, "
            raise TlcError(
                f"no space left while writing {path}: {needed}{free_bytes:,} bytes free",
                hint="Free space on that disk (or raise your quota), or choose a folder on another one, and run again.",
            ) from error
        if only_full:
            raise
        raise TlcError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Choose a folder that exists and that you can write.",
        ) from error


def _sync_dir(path: Path) -> None:
    """Make a rename in `path` survive a power cut; Windows cannot open directories, and some mounts refuse."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
