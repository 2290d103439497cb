"""Preprocessing, recorded once and used in training, calibration, evaluation and on the device. No torch."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, model_validator

_PIL_FILTER = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_PIL_MODE = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}


class Preprocess(BaseModel):
    """Image -> model input: resize, centre crop, scale to [0, 1] (uint8 only), normalise, channel order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int]
    """(H, W) of the model's input, reached by a centre crop."""
    resize: int | tuple[int, int] | None
    """Before the crop: length of the short side, or exactly (H, W), in pixels; None leaves the image as it is."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, ...]
    """Per channel in the model's order, of values scaled to [0, 1]."""
    std: tuple[float, ...]
    channels: Literal["rgb", "bgr", "gray"] = "rgb"

    @model_validator(mode="after")
    def _consistent(self) -> "Preprocess":
        count = self.channel_count
        if len(self.mean) != count or len(self.std) != count:
            raise ValueError(f"{self.channels} needs {count} means and stds, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be > 0, got {min(self.std)}")
        if min(self.size) < 1:
            raise ValueError(f"size must be at least 1x1, got {self.size}")
        return self

    @property
    def channel_count(self) -> int:
        """1 for gray, else 3."""
        return 1 if self.channels == "gray" else 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return (self.channel_count, *self.size)

    def resized(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return `image` converted and resized but not cropped: (H', W', C) uint8, RGB or gray."""
        image = image.convert(_PIL_MODE[self.channels])
        if self.resize is not None:
            width, height = image.size
            if isinstance(self.resize, int):
                short = min(width, height)
                # torchvision's rule: the long side is truncated, not rounded.
                new_height, new_width = int(self.resize * height / short), int(self.resize * width / short)
            else:
                new_height, new_width = self.resize
            if (new_width, new_height) != image.size:
                image = image.resize((new_width, new_height), _PIL_FILTER[self.interpolation])
        pixels = np.asarray(image)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def cropped(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the centre (size) of pixels (..., H', W', C); smaller images are padded with zeros, as torchvision."""
        height, width = self.size
        pad_h, pad_w = max(0, height - pixels.shape[-3]), max(0, width - pixels.shape[-2])
        if pad_h or pad_w:
            pad = [(0, 0)] * (pixels.ndim - 3) + [(pad_h // 2, pad_h - pad_h // 2), (pad_w // 2, pad_w - pad_w // 2)]
            pixels = np.pad(pixels, [*pad, (0, 0)])
        top = round((pixels.shape[-3] - height) / 2)
        left = round((pixels.shape[-2] - width) / 2)
        return pixels[..., top : top + height, left : left + width, :]

    def normalised(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Turn (N, H, W, C) uint8 in [0, 255], or floating values as they are, into (N, C, H, W) float32 model input."""
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        divisor = np.float32(255 if pixels.dtype == np.uint8 else 1)
        scale = 1 / (np.asarray(self.std, np.float32) * divisor)
        shift = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        values = pixels.astype(np.float32) * scale - shift
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the model input (1, C, H, W) float32 for one image."""
        return self.normalised(self.cropped(self.resized(image))[None])
