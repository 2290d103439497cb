"""Small pictures of samples, for people to look at."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlc.calibration.images import Sample

SIDE_PIXELS = 96
_QUALITY = 80


def thumbnail(sample: Sample, *, side: int = SIDE_PIXELS) -> bytes:
    """Return a JPEG of at most `side` pixels in width and height, never larger than the sample.

    Float values (H, W, C) are scaled so that their smallest is black and their largest white; with other than three
    channels, the first is shown.
    """
    image = (_drawn(sample) if isinstance(sample, np.ndarray) else sample).convert("RGB")
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()


def _drawn(values: NDArray[np.float32]) -> Image.Image:
    shown = values if values.shape[2] == 3 else values[:, :, 0]
    low, high = float(shown.min()), float(shown.max())
    scaled = (shown - low) * (255 / (high - low)) if high > low else np.zeros_like(shown)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
