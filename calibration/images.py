"""Labelled images: one split of a data set, and how its samples are read and checked."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tlc.calibration.archive import Archive
from tlc.runtime.artifact import sha256_json
from tlc.runtime.errors import TlcError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for an image."""
MAX_IMAGE_PIXELS = 90_000_000
"""About Pillow's own limit: a larger picture is taken for a decompression bomb."""

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # Never EPS: Pillow would start Ghostscript.
_SMALL_PIXELS = 64 * 64
_KEPT_BYTES = 512 << 20
_CHUNK = 64
_T = TypeVar("_T")
_R = TypeVar("_R")

Sample = Image.Image | NDArray[np.float32]


class Reader(Protocol):
    """Gives the samples of a data set by row. May be called from several threads."""

    def sample(self, row: int) -> Sample:
        """Return a PIL image, or float32 values (H, W, C)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images with labels, in a fixed order. Nothing is held in memory but what is small.

    EXIF orientation is ignored, as torchvision's ImageFolder does: pixels are taken as they are stored.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,), positions in `classes`."""
    keys: tuple[str, ...]
    """Name of each sample: its path in the folder or archive, or `x_train[7]`."""
    digests: tuple[str, ...]
    """SHA-256 of each sample's stored bytes, hex."""
    sizes: NDArray[np.int64]
    """(N, 2): width and height in pixels."""
    reader: Reader = field(repr=False)
    rows: NDArray[np.int64]
    """(N,): where the reader has each sample."""
    floating: bool = False
    """Whether samples are float32 arrays, used as they are, rather than 8-bit images."""

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> Sample:
        """Return sample `index`: a PIL image, or float32 values (H, W, C) where `floating`."""
        return self.reader.sample(int(self.rows[index]))

    def subset(self, indices: NDArray[np.int64] | Sequence[int]) -> "ImageSet":
        """Return the samples at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            labels=self.labels[chosen],
            keys=tuple(self.keys[i] for i in chosen),
            digests=tuple(self.digests[i] for i in chosen),
            sizes=self.sizes[chosen],
            rows=self.rows[chosen],
        )

    def joined(self, other: "ImageSet") -> "ImageSet":
        """Return these samples followed by those of `other`, another subset of the same set."""
        if other.reader is not self.reader:
            raise ValueError("only subsets of one set can be joined")
        return replace(
            self,
            labels=np.concatenate([self.labels, other.labels]),
            keys=self.keys + other.keys,
            digests=self.digests + other.digests,
            sizes=np.concatenate([self.sizes, other.sizes]),
            rows=np.concatenate([self.rows, other.rows]),
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the samples' contents, labels and class names, in order."""
        return sha256_json([list(self.classes), self.labels.tolist(), list(self.digests)])


@dataclass(frozen=True, slots=True, eq=False)
class CheckedFiles:
    """What reading and decoding every file once has shown, and the reader of the good ones."""

    names: tuple[str, ...]
    digests: tuple[str, ...]
    sizes: NDArray[np.int64]
    reader: Reader
    bad: tuple[str, ...]
    """`name: reason` of each file that cannot be used."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Reads image files; the pixels of small ones were kept when they were checked."""

    archive: Archive
    names: tuple[str, ...]
    kept: tuple[NDArray[np.uint8] | None, ...]

    def sample(self, row: int) -> Sample:
        pixels = self.kept[row]
        if pixels is not None:
            return Image.fromarray(pixels)
        try:
            return decode(self.archive.read(self.names[row]))
        except OSError as error:  # It was whole when it was checked.
            raise TlcError(
                f"{self.names[row]} can no longer be read: {error}", hint="Leave the data alone while a run reads it."
            ) from error


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Reads rows of an array (N, H, W, C), uint8 or float32."""

    values: NDArray[np.generic]

    def sample(self, row: int) -> Sample:
        """Return a PIL image of uint8 values, or the float32 values."""
        values = self.values[row]
        if values.dtype == np.uint8:
            return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
        return np.asarray(values, np.float32)


def decode(data: bytes) -> Image.Image:
    """Return the decoded image of a file's bytes.

    Raises OSError with the reason for everything that is not a whole image of a sane size.
    """
    with _damage_as_os_error():
        image = _opened(data)
        image.load()
    return image


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise OSError(f"{width:,} x {height:,} pixels are more than the limit of {MAX_IMAGE_PIXELS:,}")
    return image


@contextmanager
def _damage_as_os_error() -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise OSError("not an image of a known format") from error
    except OSError:
        raise
    except Exception as error:  # Damaged files make Pillow's plugins raise almost any type.
        raise OSError(str(error) or type(error).__name__) from error


def check_files(archive: Archive, names: Sequence[str]) -> CheckedFiles:
    """Read, hash and decode every file once, and keep the pixels of small images, up to half a gigabyte."""
    kept_bytes = 0

    def check(name: str) -> tuple[str, tuple[int, int], NDArray[np.uint8] | None] | str:
        nonlocal kept_bytes
        try:
            data = archive.read(name)
            with _damage_as_os_error():
                image = _opened(data)
                size = image.size
                small = size[0] * size[1] <= _SMALL_PIXELS
                if not small:
                    # JPEGs at an eighth of their size: the whole stream is still read, at a third of the time.
                    image.draft(None, (size[0] // 8, size[1] // 8))
                image.load()
        except OSError as error:
            return f"{name}: {error}"
        keep = small and image.mode in ("RGB", "L") and kept_bytes < _KEPT_BYTES
        pixels = np.asarray(image) if keep else None
        kept_bytes += 0 if pixels is None else pixels.nbytes
        return hashlib.sha256(data).hexdigest(), size, pixels

    good, bad = [], []
    for name, result in zip(names, in_threads(check, names), strict=True):
        if isinstance(result, str):
            bad.append(result)
        else:
            good.append((name, *result))
    kept = tuple(pixels for *_, pixels in good)
    good_names = tuple(name for name, *_ in good)
    return CheckedFiles(
        names=good_names,
        digests=tuple(digest for _, digest, _, _ in good),
        sizes=np.array([size for _, _, size, _ in good], np.int64).reshape(-1, 2),
        reader=_Files(archive, good_names, kept),
        bad=tuple(bad),
    )


def in_threads(function: Callable[[_T], _R], values: Sequence[_T]) -> list[_R]:
    """Return [function(v) for v in values], worked on by two threads: Pillow and hashlib release the lock."""
    if len(values) < 2:
        return [function(value) for value in values]
    # Few values are large photographs of one batch, many are small files, where handing over one by one would cost.
    chunk = max(1, min(_CHUNK, len(values) // 8))
    chunks = [values[start : start + chunk] for start in range(0, len(values), chunk)]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return [result for part in pool.map(lambda c: [function(v) for v in c], chunks) for result in part]
