"""Random views of training images: every random number is drawn ahead, as a function of seed, view and sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tlc.calibration.images import in_threads
from tlc.calibration.preprocess import Preprocess
from tlc.runtime.errors import TlcError

_SMALL = 64
_LOG_RATIO = math.log(4 / 3)
_COLUMNS = ("top", "left", "scale", "ratio", "flip", "brightness", "contrast", "saturation")

Pixel = NDArray[np.generic]
"""uint8 or float32."""
Samples = Pixel | Sequence[Pixel]
"""Images (H, W, C), in one array (n, H, W, C) where their shapes are equal."""


class Augment(BaseModel):
    """How training images are varied."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    crop: Literal["pad", "resized", "none"]
    """`pad`: zero-pad the evaluation image and crop at random (He et al. 2016, for small images). `resized`: a random
    part, resized (Szegedy et al. 2015, for photographs). `none`: the evaluation crop."""
    padding: int = Field(4, ge=0)
    """Pixels on each side, for `pad`."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Range of the part's share of the area, for `resized`; its aspect ratio is log-uniform in [3/4, 4/3]."""
    flip: bool = True
    """Mirror left to right, half of the time. Wrong where left and right matter, as for digits and letters."""
    color: float = Field(0.0, ge=0.0, lt=1.0)
    """Brightness, contrast and saturation each change by a factor in [1 - color, 1 + color]; 8-bit images only."""
    mixup: float = Field(0.0, ge=0.0)
    """Alpha of mixup (Zhang et al. 2018), which the trainer applies; 0 for none."""

    @model_validator(mode="after")
    def _consistent(self) -> "Augment":
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be two rising numbers above 0 and at most 1, got {self.scale}")
        return self

    @staticmethod
    def for_input(size: tuple[int, int]) -> "Augment":
        """Return the usual augmentation for a model with input (H, W).

        >>> Augment.for_input((32, 32)).padding, Augment.for_input((224, 224)).crop
        (4, 'resized')
        """
        if max(size) <= _SMALL:
            return Augment(crop="pad", padding=max(1, max(size) // 8))
        return Augment(crop="resized")


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """The random numbers of one pass over `count` samples."""

    augment: Augment
    uniform: NDArray[np.float64]
    """(count, 8) in [0, 1): top, left, scale, ratio, flip, brightness, contrast, saturation."""

    def __len__(self) -> int:
        return len(self.uniform)

    def column(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the numbers called `name` of the samples at `indices`, (n,)."""
        drawn: NDArray[np.float64] = self.uniform[indices, _COLUMNS.index(name)]
        return drawn


def draw_views(augment: Augment, count: int, *, seed: int, view: int) -> Views:
    """Draw pass number `view` over `count` samples. Sample i's numbers depend on seed, view and i alone."""
    return Views(augment, np.random.default_rng([seed, view]).random((count, len(_COLUMNS))))


def augmented_batch(
    samples: Samples, indices: NDArray[np.int64], views: Views, preprocess: Preprocess
) -> NDArray[np.float32]:
    """Return model input (n, C, H, W) float32 for `samples`, resized images (H', W', C), the `indices` of `views`."""
    augment = views.augment
    if augment.color and samples[0].dtype != np.uint8:
        raise TlcError(
            "colour augmentation needs 8-bit images, these are floating-point arrays", hint="Set its strength to 0."
        )
    flips = views.column("flip", indices) < (0.5 if augment.flip else 0.0)
    if augment.crop == "resized":
        pixels = _resized_crops(samples, _boxes(samples, indices, views), preprocess.size)
    else:
        padding = augment.padding if augment.crop == "pad" else 0
        offsets = np.stack([views.column("top", indices), views.column("left", indices)], axis=1)
        shifts = padding - np.floor(offsets * (2 * padding + 1)).astype(np.int64)
        pixels = _shifted(samples, shifts, preprocess)
    pixels[flips] = pixels[flips, :, ::-1]
    if augment.color:
        pixels = _jittered(pixels, indices, views)
    return preprocess.normalised(pixels)


def _shifted(samples: Samples, shifts: NDArray[np.int64], preprocess: Preprocess) -> Pixel:
    """Return the evaluation crops (n, H, W, C), each moved by its (rows, columns) with zeros moving in."""
    height, width = preprocess.size
    out = np.zeros((len(samples), height, width, samples[0].shape[2]), samples[0].dtype)
    for target, sample, (down, right) in zip(out, samples, shifts.tolist(), strict=True):
        if sample.shape[:2] != preprocess.size:
            sample = preprocess.cropped(sample)
        top, left, bottom, end = max(0, down), max(0, right), height + min(0, down), width + min(0, right)
        target[top:bottom, left:end] = sample[top - down : bottom - down, left - right : end - right]
    return out


def _boxes(samples: Samples, indices: NDArray[np.int64], views: Views) -> NDArray[np.int64]:
    """Return (n, 4): top, left, height, width of a random part of each sample, in pixels.

    A part that would stick out of the image is cut to its width or height, in place of another draw.
    """
    sizes = np.array([sample.shape[:2] for sample in samples], np.float64)
    low, high = views.augment.scale
    area = sizes.prod(axis=1) * (low + (high - low) * views.column("scale", indices))
    ratio = np.exp((2 * views.column("ratio", indices) - 1) * _LOG_RATIO)
    parts = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1)
    parts = np.clip(np.rint(parts), 1, sizes)
    corner = np.stack([views.column("top", indices), views.column("left", indices)], axis=1)
    return np.concatenate([np.floor(corner * (sizes - parts + 1)), parts], axis=1).astype(np.int64)


def _resized_crops(samples: Samples, boxes: NDArray[np.int64], size: tuple[int, int]) -> Pixel:
    """Return (n, H, W, C): the boxes of the samples, resized by Pillow's antialiased bilinear filter."""

    def cut(job: tuple[Pixel, list[int]]) -> Pixel:
        sample, (top, left, height, width) = job
        part = sample[top : top + height, left : left + width]
        if part.dtype == np.uint8:
            planes = [part if part.shape[2] == 3 else part[:, :, 0]]
        else:
            planes = [part[:, :, channel] for channel in range(part.shape[2])]
        images = [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes]
        resized = [np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)) for image in images]
        return np.stack(resized, axis=-1) if resized[0].ndim == 2 else resized[0]

    return np.stack(in_threads(cut, list(zip(samples, boxes.tolist(), strict=True))))


def _jittered(pixels: Pixel, indices: NDArray[np.int64], views: Views) -> NDArray[np.float32]:
    """Return (n, H, W, C) in [0, 1] float32 with brightness, contrast and saturation changed, in this order.

    Factors as torchvision's ColorJitter; there, each step rounds to 8 bits and the order is random.
    """
    strength = views.augment.color

    def factor(name: str) -> NDArray[np.float32]:
        uniform = views.column(name, indices)[:, None, None, None]
        return (1 + strength * (2 * uniform - 1)).astype(np.float32)

    # Channels first in memory: whole planes are added, not every third value.
    values = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    values *= np.float32(1 / 255) * factor("brightness")
    np.clip(values, 0, 1, out=values)
    mean, contrast = _luma(values).mean(axis=(1, 2, 3), keepdims=True), factor("contrast")
    values *= contrast
    values += mean * (1 - contrast)
    np.clip(values, 0, 1, out=values)
    if values.shape[1] == 3:
        saturation = factor("saturation")
        gray = _luma(values) * (1 - saturation)
        values *= saturation
        values += gray
        np.clip(values, 0, 1, out=values)
    return values.transpose(0, 2, 3, 1)


def _luma(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the gray (n, 1, H, W) of values (n, C, H, W), by ITU-R 601-2 as Pillow."""
    if values.shape[1] == 1:
        return values
    luma: NDArray[np.float32] = values[:, 0:1] * np.float32(0.299)
    luma += values[:, 1:2] * np.float32(0.587)
    luma += values[:, 2:3] * np.float32(0.114)
    return luma
