"""Small data sets on disk."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]
Make = Callable[[Mapping[str, int]], Path]


def _encoded(seed: int, size: tuple[int, int] = (12, 10), kind: str = "PNG") -> bytes:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def encode() -> Encode:
    """Return a function (seed, size, kind) -> an image file of random pixels, different for each seed."""
    return _encoded


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes `counts[folder]` different images into each folder of a new data set."""

    def write(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "data"
        for start, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True)
            for number in range(count):
                (root / folder / f"{number:03d}.png").write_bytes(_encoded(1000 * start + number))
        return root

    return write
