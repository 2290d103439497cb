"""What the pipeline says while it works. The command line renders these; tests collect them in a list."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; `reused` when its result was found in the run's folder."""

    name: str
    reused: bool = False


@dataclass(frozen=True, slots=True)
class StageDone:
    """A stage ended, with its one-sentence result."""

    name: str
    status: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of `what`, with current values such as loss and accuracy."""

    what: str
    done: int
    total: int
    values: dict[str, float] = field(default_factory=dict)


Event = StageStarted | StageDone | Progress
Emit = Callable[[Event], None]


def silent(_event: Event) -> None:
    """Discard the event."""
