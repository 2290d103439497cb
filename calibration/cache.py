"""Prepared images: decoded and resized once, then served as model input."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from tlc.calibration.augment import Pixel, Samples, Views, augmented_batch
from tlc.calibration.images import MAX_IMAGE_PIXELS, ImageSet, in_threads
from tlc.calibration.preprocess import Preprocess
from tlc.runtime.artifact import require_free_space, sha256_file, sha256_json, write_bytes, write_text
from tlc.runtime.errors import TlcError

MEMORY_LIMIT_BYTES = 2 << 30
_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """The images of one split as a model with `preprocess` sees them."""

    images: ImageSet
    preprocess: Preprocess
    store: Samples | None = field(repr=False)
    """The resized images (H', W', C), one array (N, H', W', C) where their shapes are equal; None where they do not fit
    into memory and are decoded when asked for."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,)"""
        return self.images.labels

    def batch(self, indices: NDArray[np.int64] | Sequence[int]) -> NDArray[np.float32]:
        """Return the samples at `indices` as evaluation sees them: (n, C, H, W) float32."""
        samples = self._samples(np.asarray(indices, np.int64))
        if isinstance(samples, np.ndarray):
            return self.preprocess.normalised(self.preprocess.cropped(samples))
        return self.preprocess.normalised(np.stack([self.preprocess.cropped(sample) for sample in samples]))

    def augmented(self, indices: NDArray[np.int64] | Sequence[int], views: Views) -> NDArray[np.float32]:
        """Return the samples at `indices` as training sees them in one pass: (n, C, H, W) float32."""
        if len(views) != len(self):
            raise ValueError(f"views of {len(views)} samples for {len(self)}")
        chosen = np.asarray(indices, np.int64)
        return augmented_batch(self._samples(chosen), chosen, views, self.preprocess)

    def iterate(self, batch_size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield (inputs (n, C, H, W) float32, labels (n,)) in order, in constant memory; the last n may be smaller."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield self.batch(indices), self.labels[indices]

    def _samples(self, indices: NDArray[np.int64]) -> Samples:
        """Return the resized images (H', W', C) at `indices`."""
        if self.store is None:
            return in_threads(lambda i: _resized(self.images, self.preprocess, i), indices.tolist())
        if isinstance(self.store, np.ndarray):
            return self.store[indices]
        return [self.store[i] for i in indices.tolist()]


def prepare(
    images: ImageSet,
    preprocess: Preprocess,
    *,
    cache: Path | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> Pixels:
    """Decode and resize `images` once, if that fits into `memory_limit_bytes`; otherwise batches are decoded anew.

    With `cache`, a folder, the resized pixels are kept there and memory-mapped, also by later runs. They are found by
    the images' digest and the resizing, and made again when their own hash is wrong.

    Raises TlcError when the disk is full or an image becomes too large by resizing.
    """
    shapes = np.array([preprocess.resized_size(w, h)[::-1] for w, h in images.sizes.tolist()], np.int64).reshape(-1, 2)
    areas = shapes.prod(axis=1)
    if len(areas) and areas.max() > MAX_IMAGE_PIXELS:
        worst = int(areas.argmax())
        raise TlcError(
            f"{images.keys[worst]} has {areas[worst]:,} pixels after resizing, the limit is {MAX_IMAGE_PIXELS:,}",
            hint="Crop or remove that image.",
        )
    dtype = np.dtype(np.float32 if images.floating else np.uint8)
    size_bytes = int(areas.sum()) * preprocess.channel_count * dtype.itemsize
    if size_bytes > memory_limit_bytes:
        return Pixels(images, preprocess, None)
    if cache is None:
        flat = _decoded(images, preprocess, areas, dtype)
    else:
        key = _key(images, preprocess)
        path = cache / f"pixels-{key[:16]}.bin"
        if not _intact(path, key, size_bytes):
            cache.mkdir(parents=True, exist_ok=True)
            require_free_space(path, size_bytes)
            write_bytes(path, _decoded(images, preprocess, areas, dtype).view(np.uint8).data)
            write_text(path.with_suffix(".json"), json.dumps({"key": key, "sha256": sha256_file(path)}))
        flat = np.asarray(np.memmap(path, dtype, mode="r"))
    return Pixels(images, preprocess, _split(flat, shapes, preprocess.channel_count))


def _split(flat: Pixel, shapes: NDArray[np.int64], channels: int) -> Samples:
    """Return `flat` as images of `shapes` (N, 2), without copying."""
    if (shapes == shapes[:1]).all():
        height, width = shapes[0].tolist() if len(shapes) else (0, 0)
        return flat.reshape(len(shapes), height, width, channels)
    ends = np.cumsum(shapes.prod(axis=1) * channels)[:-1]
    parts = np.split(flat, ends)
    return tuple(part.reshape(h, w, channels) for part, (h, w) in zip(parts, shapes.tolist(), strict=True))


def _resized(images: ImageSet, preprocess: Preprocess, index: int) -> Pixel:
    sample = images.image(index)
    return preprocess.resized_values(sample) if isinstance(sample, np.ndarray) else preprocess.resized(sample)


def _decoded(images: ImageSet, preprocess: Preprocess, areas: NDArray[np.int64], dtype: np.dtype[np.generic]) -> Pixel:
    """Return all resized images one after another."""
    lengths = areas * preprocess.channel_count
    ends = np.cumsum(lengths).tolist()
    store = np.empty(ends[-1] if ends else 0, dtype)

    def fill(index: int) -> None:
        store[ends[index] - lengths[index] : ends[index]] = _resized(images, preprocess, index).reshape(-1)

    in_threads(fill, range(len(images)))
    return store


def _key(images: ImageSet, preprocess: Preprocess) -> str:
    """Return what the resized pixels depend on, as a hash; Pillow's versions decode and resize a little differently."""
    gray = preprocess.channels == "gray"
    return sha256_json([_VERSION, PIL.__version__, images.digest, preprocess.resize, preprocess.interpolation, gray])


def _intact(path: Path, key: str, size: int) -> bool:
    """Whether the cached pixels are there, whole, and those of `key`."""
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return path.stat().st_size == size and bool(note == {"key": key, "sha256": sha256_file(path)})
    except (OSError, ValueError):
        return False
