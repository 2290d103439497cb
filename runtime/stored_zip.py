"""Zip files in one layout only, so that the same members are the same bytes: see `write_stored_zip`.

A reader that takes any zip meets names that leave the folder, members on top of each other, and parts that two programs
read differently. Here a file is what this module would have written, or it is refused.
"""

import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tlc.runtime.artifact import replacing_file
from tlc.runtime.errors import TlcError

_NAME = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_CHUNK_BYTES = 1 << 20
_END_BYTES = 22  # the record at the end, without a comment
_NEEDED = 20  # zip 2.0
_MADE_BY = 3 << 8 | _NEEDED  # on Unix
_DATE = 1 << 5 | 1  # 1980-01-01
_MODE = 0o100644
MAX_BYTES = 2_000_000_000
"""A little above it, zip files need the extensions of zip64, and protobuf does not hold a model."""

Content = bytes | Path
"""Of a member: itself, or the file that holds it."""


def is_member_name(name: str) -> bool:
    """Whether `name` is of letters, digits and `._-`, in parts between slashes of which none is `.` or `..`.

    >>> is_member_name("golden/0/input-0.npy"), is_member_name("../x"), is_member_name("/x"), is_member_name("a b")
    (True, False, False, False)
    """
    return _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def write_stored_zip(path: Path, members: Mapping[str, Content]) -> None:
    """Write `members` to `path` in their order, replacing what was there in one step.

    Nothing is compressed, every date is 1980-01-01, every mode 0644, and there are no comments and extra fields: the
    bytes are a function of names, order and contents. Raises TlcError when the whole would have more than 2 GB.
    """
    for name in members:
        if not is_member_name(name):
            raise ValueError(f"{name!r} is no name of a member")
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in members.items()}
    total = _END_BYTES + sum(size + 2 * len(name) + 30 + 46 for name, size in sizes.items())
    if total > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise TlcError(
            f"{path} would have {total:,} bytes, {largest} alone {sizes[largest]:,}; the limit is {MAX_BYTES:,}",
            hint="Leave parts out, or compress the model further.",
        )
    with replacing_file(path, total) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            with archive.open(_info(name, sizes[name]), "w") as member:
                for chunk in _chunks(content):
                    member.write(chunk)


def _info(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = _MADE_BY >> 8
    info.external_attr = _MODE << 16
    info.file_size = size
    return info


def _chunks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


class StoredZip:
    """A zip as `write_stored_zip` writes it. Closes at the end of a `with`.

    Raises TlcError for a file that is missing, no zip, or differs from that in layout: cut short, compressed,
    encrypted, commented, with bytes before, between or after its members, or with a name twice or one that could leave
    a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except OSError as error:
            raise TlcError(f"cannot read {path}: {error.strerror or error}", hint="Check the path.") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise TlcError(
                f"{path} is not a whole zip file: {error}", hint="It was cut short or replaced: copy it again."
            ) from error
        try:
            self._infos = {info.filename: info for info in self._archive.infolist()}
            self._check_layout()
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members in their order."""
        return tuple(self._infos)

    def size_bytes(self, name: str) -> int:
        """Return the size of a member."""
        return self._infos[name].file_size

    def read(self, name: str) -> bytes:
        """Return the content of a member; KeyError without it, TlcError where its checksum is wrong."""
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a member piece by piece, as `read` does."""
        try:
            with self._archive.open(self._infos[name]) as member:
                while chunk := member.read(_CHUNK_BYTES):
                    yield chunk
        except (zipfile.BadZipFile, EOFError) as error:
            raise self._error(f"{name} is damaged: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def __enter__(self) -> "StoredZip":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _error(self, what: str) -> TlcError:
        return TlcError(f"{self.path}: {what}", hint="It was damaged or altered: get the file again from its origin.")

    def _check_layout(self) -> None:
        infos = self._archive.infolist()
        place = 0
        with self.path.open("rb") as file:
            for info in infos:
                name = info.orig_filename
                if not is_member_name(name):
                    raise self._error(f"a member is named {name!r}, which could lead out of a folder")
                if len(infos) != len(self._infos) and sum(name == other.filename for other in infos) > 1:
                    raise self._error(f"{name} is there twice")
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    raise self._error(f"{name} is compressed")
                if info.flag_bits or info.extra or info.comment:
                    raise self._error(f"{name} is encrypted, or has a comment or extra field")
                file.seek(place)
                header = info.FileHeader()
                if info.header_offset != place or file.read(len(header)) != header:
                    raise self._error(
                        f"{name} does not begin where the member before it ends, or is not what its entry says"
                    )
                place += len(header) + info.file_size
            file.seek(place)
            directory = _directory(infos, place)
            if file.read(len(directory) + 1) != directory:
                raise self._error("there are bytes before, between or after its members, or its directory is another")


def _directory(infos: list[zipfile.ZipInfo], place: int) -> bytes:
    """Return the central directory at `place` and the record after it, as `write_stored_zip` writes them."""
    entries = b"".join(
        struct.pack(
            "<4s6H3L5H2L",
            *(b"PK\x01\x02", _MADE_BY, _NEEDED, 0, 0, 0, _DATE, info.CRC, info.file_size, info.file_size),
            *(len(info.filename), 0, 0, 0, 0, _MODE << 16, info.header_offset),
        )
        + info.filename.encode()
        for info in infos
    )
    return entries + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(infos), len(infos), len(entries), place, 0)
