"""The budget: what the file that ships may lose and cost, and what it is to be best at within that."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Budget(BaseModel):
    """What ships may lose and cost, and what it is to be best at."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_drop_points: float = Field(1.0, ge=0, le=100)
    """Largest loss of top-1 accuracy against the original, in percentage points."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Largest p50 on the target at batch 1, in milliseconds."""
    max_size_bytes: int | None = Field(None, gt=0)
    """Largest file, in bytes."""
    max_memory_bytes: int | None = Field(None, gt=0)
    """Largest peak memory of a process that runs the file, over that of an empty one, in bytes."""
    objective: Literal["fastest", "smallest", "most-accurate"] = "fastest"
    """What to choose within the limits: the lowest p50, the smallest file, or the highest top-1 accuracy."""
