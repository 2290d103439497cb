"""A model's boundary."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
"""One array per input, by name."""
Samples = Iterable[Feeds]
"""Feeds of one sample each: a batch of 1."""

INPUT_NAME = "input"
"""Images, in a file that tlc exported."""
OUTPUT_NAME = "logits"
"""What comes out of such a file."""
BATCH_NAME = "N"
"""Its open batch size."""
LENGTH_NAME = "T"
"""The open number of tokens, where it takes texts."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of one input or output.

    A string in `shape` is a symbolic dimension (`"N"`); `dtype` is a numpy name (`"float32"`).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
