"""A model's boundary."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of one input or output.

    A string in `shape` is a symbolic dimension (`"N"`); `dtype` is a numpy name (`"float32"`).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
