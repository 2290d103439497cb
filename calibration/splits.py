"""Which samples are kept apart: seeded, stratified, and never with a twin on the other side."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.errors import UsageError

HOLDOUT_RATIO = 0.05
"""Share of train that is held out where that is enough."""
EVALUATION_RATIO = 0.2
"""Share of a folder without a split of its own that becomes the evaluation split."""

_SHOWN = 5
_HOLDOUT_ENOUGH = 200  # One image is half a point: fewer cannot tell two networks apart.
_HOLDOUT_MOST = 2_500
_HOLDOUT_MOST_RATIO = 0.2


def holdout_count(train_count: int, ratio: float = HOLDOUT_RATIO) -> int:
    """Return how many of `train_count` samples to hold out.

    The larger of `ratio` and 200 samples, but at most a fifth of train (or `ratio`, if that is more) and 2,500.

    >>> [holdout_count(n) for n in (245, 1437, 10_000, 50_000, 1_000_000)]
    [49, 200, 500, 2500, 2500]
    """
    wanted = max(ratio * train_count, _HOLDOUT_ENOUGH)
    return int(min(wanted, max(_HOLDOUT_MOST_RATIO, ratio) * train_count, _HOLDOUT_MOST))


def stratified(labels: NDArray[np.int64], digests: Sequence[str], count: int, *, seed: int) -> NDArray[np.bool_]:
    """Return a mask (N,) of about `count` samples, each class in proportion, chosen by `seed`.

    A class with at least two different samples gives at least one and keeps at least one. Samples of the same digest
    are chosen together, so that none of them tests what another one taught.
    """
    rng = np.random.default_rng(seed)
    groups = np.unique(np.asarray(digests), return_inverse=True)[1].reshape(-1)
    chosen = np.zeros(len(labels), bool)
    classes, sizes = np.unique(labels, return_counts=True)
    for label, quota in zip(classes, _quotas(sizes, count), strict=True):
        members = np.flatnonzero(labels == label)
        distinct, copies = np.unique(groups[members], return_counts=True)
        order = rng.permutation(len(distinct))
        distinct, copies = distinct[order][:-1], copies[order][:-1]  # The last group always stays.
        take = np.cumsum(copies) <= quota
        take[:1] = True
        chosen |= np.isin(groups, distinct[take])
    return chosen


def _quotas(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return how many of each class to take: in proportion, largest remainders first, at least one of each."""
    exact = sizes * (count / sizes.sum())
    quotas: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = max(0, count - int(quotas.sum()))
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    quotas[quotas < 1] = 1
    return quotas


def require_ratio(name: str, value: float) -> None:
    """Raise UsageError unless `value` is a share of the data that can be split off."""
    if not 0 < value <= 0.5:
        raise UsageError(f"{name} is {value}, it must be above 0 and at most 0.5", hint=f"Leave {name} at its default.")


def listed_names(names: Sequence[str]) -> str:
    """Return the first five names and how many more there are, in one line for a message."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "") or "none"


def listed_lines(lines: Sequence[str]) -> str:
    """Return the first five lines and how many more there are, for the end of a message."""
    return "\n  ".join(lines[:_SHOWN]) + (f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")
