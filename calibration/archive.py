"""Where the files of a data set lie: a folder, a zip or a tar, read in place and never extracted."""

import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, Protocol

from tlc.runtime.errors import TlcError

MAX_FILE_BYTES = 256 << 20
"""Largest file that is read from a data set: far above any photograph, far below what fills a machine's memory."""

_COPY_BYTES = 1 << 20
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError)
_TAR_ERRORS = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


class Archive(Protocol):
    """Named files. `read` may be called from several threads."""

    names: tuple[str, ...]
    """Relative POSIX paths of all files, sorted, without hidden ones."""
    folders: tuple[str, ...]
    """Relative POSIX paths of all folders that are listed by themselves: an empty folder shows up only here."""

    def read(self, name: str) -> bytes:
        """Return the file's bytes; raises OSError when they cannot be had."""
        ...


def open_archive(path: Path) -> Archive:
    """Return the files of a folder, `.zip`, `.tar`, `.tar.gz` or `.tgz`. Raises TlcError for anything else."""
    if path.is_dir():
        return FolderArchive(path)
    if not path.exists():
        raise TlcError(f"{path} does not exist", hint="Check the path given as --data.")
    try:
        if zipfile.is_zipfile(path):
            return ZipArchive(path)
        if tarfile.is_tarfile(path):
            return TarArchive(path)
    except (*_ZIP_ERRORS, *_TAR_ERRORS, OSError) as error:
        raise TlcError(f"{path} cannot be read: {error}", hint="Download or pack it again; it is damaged.") from error
    if path.name.lower().endswith(_SUFFIXES):
        raise TlcError(
            f"{path} is not a readable archive, or is cut short ({path.stat().st_size:,} bytes)",
            hint="Download or pack it again.",
        )
    raise TlcError(
        f"{path} is not a data set",
        hint="Give a folder, a .zip, .tar, .tar.gz or .tgz of folders of images, or an .npz of arrays.",
    )


class FolderArchive:
    """The files under a directory. Links are followed, as torchvision does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        names: list[str] = []
        folders: list[str] = []
        for directory, subfolders, files in os.walk(path, followlinks=True, onerror=_cannot_list):
            subfolders[:] = [name for name in subfolders if not _hidden(name)]
            prefix = Path(directory).relative_to(path)
            folders += [(prefix / name).as_posix() for name in subfolders]
            names += [(prefix / name).as_posix() for name in files if not _hidden(name)]
        self.names = tuple(sorted(names))
        self.folders = tuple(sorted(folders))

    def read(self, name: str) -> bytes:
        """Return the file's bytes."""
        path = self.path / name
        if path.stat().st_size > MAX_FILE_BYTES:
            raise OSError(_too_large(path.stat().st_size))
        return path.read_bytes()


class ZipArchive:
    """The members of a zip file."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        folders: list[str] = []
        for member in self._zip.infolist():
            name = _safe(member.filename.replace("\\", "/"), path)
            if _hidden(name):
                continue
            if member.is_dir():
                folders.append(name)
            else:
                self._members[name] = member
        self.names = tuple(sorted(self._members))
        self.folders = tuple(sorted(folders))

    def read(self, name: str) -> bytes:
        """Return the member's bytes, checked against its CRC. Reading is locked inside zipfile."""
        member = self._members[name]
        if member.file_size > MAX_FILE_BYTES:
            raise OSError(_too_large(member.file_size))
        try:
            return self._zip.read(member)
        except _ZIP_ERRORS as error:
            raise OSError(str(error)) from error


class TarArchive:
    """The regular members of a tar file; a compressed one is unpacked once to an anonymous temporary file."""

    def __init__(self, path: Path) -> None:
        self._file = _plain_tar(path)
        self._lock = threading.Lock()
        self._members: dict[str, tuple[int, int]] = {}
        folders: list[str] = []
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for member in tar:
                name = _safe(member.name, path)
                if _hidden(name):
                    continue
                if member.isdir():
                    folders.append(name)
                elif member.isreg() and not member.issparse():
                    self._members[name] = (member.offset_data, member.size)
                else:
                    raise TlcError(
                        f"{path} holds {member.name!r}, which is a link or a special file",
                        hint="Pack the files themselves: tar --dereference --hard-dereference.",
                    )
        self.names = tuple(sorted(self._members))
        self.folders = tuple(sorted(folders))

    def read(self, name: str) -> bytes:
        """Return the member's bytes."""
        offset, size = self._members[name]
        if size > MAX_FILE_BYTES:
            raise OSError(_too_large(size))
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) != size:
            raise OSError(f"the archive ends {size - len(data):,} bytes too early")
        return data


def _plain_tar(path: Path) -> IO[bytes]:
    """Return an open, seekable, uncompressed tar file."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path.open("rb")
    limit_bytes = shutil.disk_usage(tempfile.gettempdir()).free * 9 // 10
    # Random access in a gzip stream would decompress it from the start for every image.
    plain = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the archive)
    with gzip.open(path) as packed:
        while chunk := packed.read(_COPY_BYTES):
            if plain.tell() + len(chunk) > limit_bytes:
                plain.close()
                raise TlcError(
                    f"{path} unpacks to more than the {limit_bytes:,} bytes that {tempfile.gettempdir()} can take",
                    hint="Set TMPDIR to a larger disk, or give the unpacked folder.",
                )
            plain.write(chunk)
    plain.seek(0)
    return plain


def _safe(name: str, path: Path) -> str:
    """Return the member's relative path; names are only labels here, but such an archive was made to do harm."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise TlcError(f"{path} holds {name!r}, a path outside the archive", hint="Pack it again from its own folder.")
    return "/".join(part for part in parts if part not in ("", "."))


def _hidden(name: str) -> bool:
    """Whether the file was put there by an operating system or tool rather than by a person."""
    return not name or name.startswith((".", "__MACOSX")) or "/." in name or "/__MACOSX" in name


def _cannot_list(error: OSError) -> None:
    raise TlcError(f"cannot list {error.filename}: {error.strerror}", hint="Make the folder readable.") from error


def _too_large(size: int) -> str:
    return f"{size:,} bytes are more than the limit of {MAX_FILE_BYTES:,}"


class Folder:
    """A node of the tree of folders and files, built from an archive's names."""

    def __init__(self) -> None:
        self.folders: dict[str, Folder] = {}
        self.files: list[str] = []
        """Full names, as `Archive.read` takes them."""

    def all_files(self) -> list[str]:
        """Return the full names of all files below, sorted."""
        return sorted(self.files + [name for folder in self.folders.values() for name in folder.all_files()])


def tree(archive: Archive) -> Folder:
    """Return the root folder of an archive."""
    root = Folder()
    nodes: dict[tuple[str, ...], Folder] = {(): root}

    def node(parts: tuple[str, ...]) -> Folder:
        if parts not in nodes:
            nodes[parts] = node(parts[:-1]).folders[parts[-1]] = Folder()
        return nodes[parts]

    for folder in archive.folders:
        node(tuple(folder.split("/")))
    for name in archive.names:
        node(tuple(name.split("/")[:-1])).files.append(name)
    return root
