"""What a search found: the schema of `tlc search --json`, version 1, and of the search in `report.json`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrialRecord(_Record):
    """One shape that was tried."""

    number: int
    student: str
    """As `--student` spells it; empty for the original itself in INT8."""
    worker: str
    status: Literal["finished", "stopped", "failed", "running"]
    """Failed: its worker was killed, or the shape could not be trained."""
    why: str
    """Why it was stopped; else empty."""
    speedup: float | None
    """Over the original: of the untrained shape in INT8, and of what became of it once it is finished."""
    drops_points: list[float]
    """Accuracy lost on the held-out part after each portion of training, in points."""
    drop_points: float | None
    """Of the file that would ship."""
    value: float | None
    """What it was ranked by: see `tlc.compress.trials.merit`."""
    began_s: float
    """After the first trial of the study."""
    ended_s: float | None


class SearchRecord(_Record):
    """The trials of a study."""

    schema_version: Literal[1] = 1
    study: str
    shapes: int
    """How many there are to choose from."""
    epochs: int
    """Of the longest training."""
    trials: list[TrialRecord]
