"""The rules of a search: how long a shape is trained, whether it is worth more, and how fast the next one is to be."""

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

from tlc.runtime.budget import Budget

_SETTLED_RATIO = 0.2
"""Of the drop that the budget allows: a shape that has lost no more, and is sure to keep it, is trained no further."""
_SURE_PROBABILITY = 0.8
"""Of keeping the budget, for that."""
_LEAST_PROBABILITY = 0.2
"""Of keeping the budget after all of its training: a shape with less is trained no further."""
_CLOSE = 1.1
"""Between speeds closer than this nothing more is looked for, but by the sampler."""
NEAR_RATIO = 0.08
"""How far off the speed that is looked for a shape may be, as a logarithm."""
_WHOLE_RATIO = 0.2
"""The same for shapes that keep whole blocks: some networks have few of these."""


def portions(epochs: int, factor: int, count: int) -> tuple[int, ...]:
    """Return the epochs of each of `count` portions: after one a shape has had `factor` times as many as before it.

    >>> portions(18, 3, 3)
    (2, 4, 12)
    """
    ends = [0, *(max(1, round(epochs / factor**left)) for left in reversed(range(count)))]
    return tuple(end - start for start, end in itertools.pairwise(ends) if end > start)


def fitting_epochs(portion: int, done: int, epoch_s: float, left_s: float) -> int:
    """Return how many epochs of a portion there is time for, of a network that has been trained for `done` epochs.

    0 if fewer than those: a restart that short loses more than it brings.

    >>> fitting_epochs(12, 6, 60.0, 480.0), fitting_epochs(12, 6, 60.0, 300.0)
    (8, 0)
    """
    if portion * epoch_s <= left_s:
        return portion
    possible = int(left_s / epoch_s)
    return possible if possible >= done else 0


def merit(budget: Budget, gain: float, drop_points: float, deviation_points: float) -> float:
    """Return what to expect of a network that loses `drop_points` +- `deviation_points`; more is better.

    `gain` is the logarithm of how many times it is faster than the original, or smaller, whatever the budget asks for.
    Where that is accuracy, the limits on time and size have been checked before.
    """
    if budget.objective == "most-accurate":
        return -drop_points
    return gain * NormalDist(drop_points, max(deviation_points, 1e-6)).cdf(budget.max_drop_points)


def settled(budget: Budget, drop_points: float, deviation_points: float) -> bool:
    """Return whether a network keeps the budget so well that its training may end: rounding will cost it some more.

    >>> settled(Budget(max_drop_points=1.0), 0.1, 0.5), settled(Budget(max_drop_points=1.0), 0.8, 0.1)
    (True, False)
    >>> settled(Budget(max_drop_points=1.0), 0.1, 2.0)
    False
    """
    return (
        budget.objective != "most-accurate"
        and drop_points <= _SETTLED_RATIO * budget.max_drop_points
        and merit(budget, 1.0, drop_points, deviation_points) >= _SURE_PROBABILITY
    )


def out_of_reach(budget: Budget, drop_points: float, deviation_points: float) -> bool:
    """Return whether a network that is expected to lose `drop_points` +- `deviation_points` hardly keeps the budget.

    >>> out_of_reach(Budget(max_drop_points=1.0), 2.0, 1.5), out_of_reach(Budget(max_drop_points=1.0), 2.0, 1.0)
    (False, True)
    """
    return (
        budget.objective != "most-accurate" and merit(budget, 1.0, drop_points, deviation_points) < _LEAST_PROBABILITY
    )


def may_be_best(budget: Budget, gain: float, drop_points: float, deviation_points: float, best: float) -> bool:
    """Return whether a network would be worth more than `best` if it lost a deviation less than expected.

    >>> may_be_best(Budget(max_drop_points=1.0), math.log(8), 2.0, 1.5, best=math.log(3))
    True
    """
    return merit(budget, gain, drop_points - deviation_points, deviation_points) > best


def next_speedup(fastest: float, missed: Sequence[float], stride: float) -> float | None:
    """Return how many times as fast as the original the next shape is to be; None where nothing is left between.

    `fastest` is the speed-up of the fastest that stays within the budget, at least the original's; `missed` holds those
    of what does not. Where nothing faster is known to miss it, `stride` times the fastest.

    >>> next_speedup(2.0, [1.5], 2.5)
    5.0
    >>> next_speedup(2.0, [8.0, 18.0], 2.5)
    4.0
    >>> next_speedup(2.0, [2.1], 2.5) is None
    True
    """
    above = min((speedup for speedup in missed if speedup > fastest), default=fastest * stride**2)
    return math.sqrt(fastest * above) if above / fastest > _CLOSE else None


def nearest(shapes: Sequence[tuple[float, bool]], wanted: float, reach_ratio: float) -> list[int]:
    """Return which of `shapes` (speed-up, whether its blocks are whole) are about as fast as `wanted`.

    None further off than `reach_ratio`, in logarithms. Where there are any with whole blocks, only those: some networks
    have few, so the nearest of them counts even from further off. Where there are none about as fast, the nearest.

    >>> nearest([(3.0, True), (4.0, False), (4.6, True), (8.0, True)], 4.0, 0.5)
    [2]
    >>> nearest([(3.0, True), (4.0, False), (4.6, True), (8.0, True)], 4.0, 0.1)
    [1]
    >>> nearest([(3.0, True), (5.2, False)], 4.0, 0.3), nearest([(3.0, True), (5.2, False)], 4.0, 0.2)
    ([1], [])
    """
    off = [abs(math.log(speedup / wanted)) for speedup, _whole in shapes]
    within = sorted((ratio, index) for index, ratio in enumerate(off) if ratio < reach_ratio)
    whole = [(ratio, index) for ratio, index in within if shapes[index][1] and ratio < _WHOLE_RATIO]
    found = whole or within
    limit_ratio = max(NEAR_RATIO, found[0][0]) if found else 0.0
    return [index for ratio, index in found if ratio <= limit_ratio]
