"""The budget of a run: what the file that ships may lose and cost, and what it is to be best at within that."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Objective = Literal["fastest", "smallest", "most-accurate"]


class Budget(BaseModel):
    """What the file that ships may lose and cost, and what it is to be best at within that."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_drop_points: float = Field(1.0, ge=0, le=100)
    """Largest loss of top-1 accuracy against the original, in percentage points."""
    confident: bool = False
    """Whether the whole 95 % interval of that loss has to be within it, not its estimate alone."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Largest p50 on the target at batch 1, in milliseconds."""
    max_size_bytes: int | None = Field(None, gt=0)
    """Largest file, in bytes."""
    max_memory_bytes: int | None = Field(None, gt=0)
    """Largest peak memory of a process that runs the file, over that of an empty one, in bytes."""
    objective: Objective = "fastest"
    """What to choose within the limits: fastest (lowest p50), smallest (file) or most-accurate (highest top-1)."""

    @property
    def words(self) -> str:
        """What is allowed and wanted: `1 point of accuracy, p50 5 ms, file 2 MB; the fastest`."""
        limits = [f"{points_words(self.max_drop_points)} of accuracy{' at 95 % confidence' if self.confident else ''}"]
        if self.max_latency_ms is not None:
            limits.append(f"p50 {self.max_latency_ms:g} ms")
        if self.max_size_bytes is not None:
            limits.append(f"file {bytes_words(self.max_size_bytes)}")
        if self.max_memory_bytes is not None:
            limits.append(f"peak memory {bytes_words(self.max_memory_bytes)}")
        return f"{', '.join(limits)}; the {self.objective.replace('-', ' ')}"


def points_words(value: float) -> str:
    """Return `1 point` or `0.5 points`."""
    return f"{value:g} point{'' if value == 1 else 's'}"


def bytes_words(value: float) -> str:
    """Return bytes in decimal units with three significant digits.

    >>> bytes_words(999_600), bytes_words(2_000_000), bytes_words(12)
    ('1 MB', '2 MB', '12 B')
    """
    units = ["B", "kB", "MB", "GB"]
    while len(units) > 1 and float(f"{value:.2e}") >= 1000:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
