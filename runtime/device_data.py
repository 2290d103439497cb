"""Labelled data for a device: one file that travels by content, unpacked there once."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tlc.runtime.artifact import sha256_file
from tlc.runtime.device_job import script
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.remote import OnBytes, Remote

_PICTURES = (".jpg", ".jpeg", ".png")

_PRESENT = 'if [ -e "$1" ]; then echo yes; fi'
_UNPACK = r"""
set -e
cd "$1"
rm -rf files.part
mkdir files.part
tar -xf data.tar -C files.part
mv files.part files
rm -f data.tar
"""


@dataclass(frozen=True, slots=True)
class Data:
    """What is sent: an .npz as it is, a folder as an archive."""

    file: Path
    sha256: str
    archive: bool

    def place(self, base: str) -> str:
        """Return where it lies on the device, for tlc-run."""
        return f"{base}/data/{self.sha256[:16]}/{'files' if self.archive else 'data.npz'}"

    def needed_bytes(self) -> int:
        """Return the space that sending it takes."""
        return self.file.stat().st_size * (2 if self.archive else 1)


@contextmanager
def packed(path: Path | None) -> Iterator[Data | None]:
    """Yield the data at `path` as one file; None for None.

    A folder has one folder per class, with .jpg, .jpeg and .png in it; the same pictures give the same archive. Raises
    UsageError for what is neither that nor an .npz.
    """
    if path is None:
        yield None
    elif path.is_file() and path.suffix.lower() == ".npz":
        yield Data(path, sha256_file(path), archive=False)
    else:
        pictures = _pictures(path)
        with TemporaryDirectory(prefix="tlc-data-") as folder:
            archive = Path(folder) / "data.tar"
            with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
                for picture in pictures:
                    _add(tar, picture, path)
            yield Data(archive, sha256_file(archive), archive=True)


def is_there(remote: Remote, data: Data, base: str) -> bool:
    """Whether the device has the data, whole."""
    return remote.check(script(_PRESENT, data.place(base))).strip() == "yes"


def send(remote: Remote, data: Data, base: str, *, on_bytes: OnBytes | None = None) -> None:
    """Send the data, unless it is there, and unpack it. Raises TlcError where the device cannot."""
    if is_there(remote, data, base):
        return
    if not data.archive:
        remote.push(data.file, data.place(base), on_bytes=on_bytes)
        return
    folder = f"{base}/data/{data.sha256[:16]}"
    remote.push(data.file, f"{folder}/data.tar", on_bytes=on_bytes)
    remote.check(script(_UNPACK, folder), timeout_s=1800)


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UsageError(
            f"data {path} is neither a folder nor an .npz", hint="Give a folder with one folder of pictures per class."
        )
    found = sorted(file for file in path.glob("*/*") if file.suffix.lower() in _PICTURES and file.is_file())
    if not found:
        raise UsageError(
            f"data {path} has no .jpg, .jpeg or .png in folders of classes",
            hint="Put the pictures of each class into a folder of its name.",
        )
    return found


def _add(tar: tarfile.TarFile, picture: Path, root: Path) -> None:
    """Add a picture without its time, owner and mode, which say nothing of its content."""
    name = picture.relative_to(root).as_posix()
    info = tarfile.TarInfo(name)
    info.size = picture.stat().st_size
    info.mode = 0o644
    try:
        with picture.open("rb") as file:
            tar.addfile(info, file)
    except ValueError as error:  # a name that is too long for the format
        raise TlcError(f"{picture} cannot be sent: {error}", hint="Give it a shorter name.") from error
