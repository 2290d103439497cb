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

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that `resized` gives to an image of `width` x `height` pixels."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short = min(width, height)
        # torchvision's rule: the long side is truncated, not rounded.
        return int(self.resize * width / short), int(self.resize * height / short)

    def resized(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return `image` converted and resized but not cropped: (H', W', C) uint8, RGB or gray."""
        image = image.convert(_PIL_MODE[self.channels])
        size = self.resized_size(*image.size)
        if size != image.size:
            image = image.resize(size, _PIL_FILTER[self.interpolation])
        pixels = np.asarray(image)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def resized_values(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return floating values (H, W, C), C = 1 or 3 (RGB), as `resized` does: (H', W', C') float32."""
        count = self.channel_count
        if values.shape[2] > count:
            # ITU-R 601-2 luma, as Pillow's conversion of RGB to gray.
            values = values @ np.array([[0.299], [0.587], [0.114]], np.float32)
        size = self.resized_size(values.shape[1], values.shape[0])
        if size != (values.shape[1], values.shape[0]):
            planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in values.transpose(2, 0, 1)]
            values = np.stack([np.asarray(p.resize(size, _PIL_FILTER[self.interpolation])) for p in planes], axis=-1)
        return np.repeat(values, count, axis=2) if values.shape[2] < count else values

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
        """Turn (N, H, W, C), uint8 in [0, 255] or floats as they are, into model input (N, C, H, W) float32."""
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        divisor = np.float32(255 if pixels.dtype == np.uint8 else 1)
        std = np.asarray(self.std, np.float32)[:, None, None]
        shift: NDArray[np.float32] = np.asarray(self.mean, np.float32)[:, None, None] / std
        # Channels move to the front while the type changes: one pass over memory in place of three.
        values = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        values *= 1 / (std * divisor)
        values -= shift
        return values

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the model input (1, C, H, W) float32 for one image."""
        return self.normalised(self.cropped(self.resized(image))[None])
