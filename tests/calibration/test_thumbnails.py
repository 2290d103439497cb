"""Thumbnails of everything that a sample may be."""

import io

import numpy as np
import pytest
from PIL import Image

from tlc.calibration.images import Sample
from tlc.calibration.thumbnails import thumbnail


@pytest.mark.parametrize(
    ("sample", "size"),
    [
        (Image.new("RGB", (400, 200), "red"), (96, 48)),
        (Image.new("RGBA", (30, 20)), (30, 20)),
        (Image.new("P", (30, 20)), (30, 20)),
        (Image.new("L", (8, 8)), (8, 8)),
        (np.linspace(-3, 3, 192, dtype=np.float32).reshape(8, 8, 3), (8, 8)),
        (np.zeros((8, 9, 1), np.float32), (9, 8)),
        (np.ones((100, 200, 5), np.float32), (96, 48)),
    ],
)
def test_it_is_a_small_jpeg(sample: Sample, size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(thumbnail(sample))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)


def test_float_values_are_scaled_to_what_a_picture_holds() -> None:
    values = np.zeros((16, 16, 1), np.float32)
    values[:, 8:] = 1e4

    with Image.open(io.BytesIO(thumbnail(values))) as image:
        pixels = np.asarray(image, np.int64)

    assert pixels[:, :7].max() < 8
    assert pixels[:, 9:].min() > 247
