"""Where the series of the history moved to a new level."""

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from tlc.runtime.change_points import change_points
from tlc.runtime.history import Row, Series
from tlc.runtime.history_facts import metric

MAX_POINTS = 300
"""The last points of a series that are searched: time grows with the square of the length."""


@dataclass(frozen=True, slots=True)
class Level:
    """Neighbouring points between which nothing changed: start to stop - 1."""

    start: int
    stop: int
    value: float
    """Their median."""


@dataclass(frozen=True, slots=True)
class Change:
    """A new level of a series."""

    first: Row
    """The first point of the new level."""
    before: float
    """Value of the level before."""
    after: float
    better: bool
    file_changed: bool
    """Whether the model's file is another one than at the point before; if not, the cause is around it."""

    @property
    def ratio(self) -> float | None:
        """New level over old; None where the old one is 0."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True, slots=True)
class Trend:
    """A series, its levels, and the changes between them."""

    series: Series
    levels: tuple[Level, ...]
    """Of the last MAX_POINTS points."""
    changes: tuple[Change, ...]


def trend(series: Series, *, alpha: float = 0.01, seed: int = 0) -> Trend:
    """Return the levels of a series; of one without any change, there is a change in a share `alpha` at most.

    Where all values are positive their logarithms are searched: the noise of what is measured is a share of the value.
    """
    points = series.points
    offset = max(0, len(points) - MAX_POINTS)
    values = np.array([point.value for point in points[offset:]])
    searched = np.log(values) if (values > 0).all() else values
    starts = [offset, *(offset + place for place in change_points(searched, alpha=alpha, seed=seed))]
    levels = tuple(
        Level(start, stop, median(point.value for point in points[start:stop]))
        for start, stop in zip(starts, [*starts[1:], len(points)], strict=True)
    )
    lower_is_better = metric(series.metric).better == "lower"
    changes = tuple(
        Change(
            first=points[level.start],
            before=old.value,
            after=level.value,
            better=(level.value < old.value) == lower_is_better,
            file_changed=points[level.start].sha256 != points[level.start - 1].sha256,
        )
        for old, level in pairwise(levels)
    )
    return Trend(series, levels, changes)
