"""The shapes that students of a network can have, taken apart into what the time of one is a sum of.

A shape is built with the weights as they are: what it answers means nothing, how long it takes is what counts. The
terms are those of `tlc.compress.latency_table`: a constant, and blocks or layers times how many there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tlc.compress.plan import Network


@dataclass(frozen=True, slots=True)
class Open:
    """A choice that a student's name leaves open: `total` blocks go, of each kind at most so many."""

    total: int
    most: Mapping[str, int]
    """By term."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A network of which the time is wanted."""

    name: str
    """The same for shapes of one model that are built alike."""
    terms: Mapping[str, float]
    """How often each term counts in its time."""
    build: Callable[[], Network]


class Shapes(ABC):
    """The shapes of one network's students."""

    @abstractmethod
    def shape(self, spec: str) -> Shape:
        """Return the student that `spec` names; blocks that it leaves open go evenly over the network.

        An empty name is that of the network itself.

        Raises UsageError and TlcError as `check_student` and `check_text_student` do.
        """

    @abstractmethod
    def cost(self, spec: str) -> tuple[Mapping[str, float], Sequence[Open]]:
        """Return the terms of the student that `spec` names with every open block in place, and what is open.

        Raises as `shape`.
        """

    @abstractmethod
    def design(self) -> list[Shape]:
        """Return the shapes to measure from which all terms can be told apart, and a few more, to see the error."""


def indifferent(_module: object) -> float:
    """Score all networks alike: which blocks go makes no difference to the time of what is left."""
    return 0.0
