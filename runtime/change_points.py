"""Where a series of measurements moves to a new level: E-divisive means with a permutation test.

A threshold on single points cries wolf at every outlier and misses a slow sum of small steps; what matters over time is
whether all that follows differs from what was before. Method: D. S. Matteson, N. A. James, "A nonparametric approach
for multiple change point analysis of multivariate data", Journal of the American Statistical Association 109, 2014
(arXiv 1306.4933); used on performance tests: M. Fleming et al., "Hunter: using change point detection to hunt for
performance regressions", ICPE 2023 (arXiv 2301.03034).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def change_points(
    values: ArrayLike, *, alpha: float = 0.01, min_size: int = 3, permutations: int = 999, seed: int = 0
) -> list[int]:
    """Return the indices at which a new level begins, ascending; `values` are in the order of time.

    Pass logarithms of latencies: their noise is a share of the value, and so is a change. The series is divided where
    the energy distance of two neighbouring parts of at least `min_size` values is largest, if at most a share `alpha`
    of random orders reaches that distance; then each part likewise. So a series without any change gets a point with
    probability `alpha` at most. A single outlier adds as much to the distances within its part as to those between the
    parts, and so makes no level. A level shows once orders of its kind are rare: at 0.01 from six values on each side,
    or from three after fifteen, be the step ever so high.

    Time and memory grow with the square of the length: a change in 200 values takes about half a second. Raises
    ValueError for a value that is not finite, and for `permutations` that cannot show `alpha`.

    >>> change_points([8.0, 8.1, 7.9, 8.2, 8.0, 7.8, 8.1, 9.3, 9.1, 9.4, 9.2, 9.0, 9.2])
    [7]
    """
    series = np.asarray(values, np.float64)
    if series.ndim != 1 or not np.isfinite(series).all():
        raise ValueError("change points need one series of finite values")
    if min_size < 2:
        raise ValueError(f"a level needs at least 2 values, got min_size {min_size}")
    allowed = math.floor(alpha * (permutations + 1) + 1e-9) - 1  # of the orders: the given one counts as well
    if allowed < 0:
        raise ValueError(f"{permutations} permutations cannot show a p-value of {alpha}")
    generator = np.random.default_rng(seed)
    found, parts = [], [(0, len(series))]
    while parts:
        start, stop = parts.pop()
        split = _split(series[start:stop], min_size, permutations, allowed, generator)
        if split is not None:
            found.append(start + split)
            parts += [(start, start + split), (start + split, stop)]
    return sorted(found)


def _split(
    series: NDArray[np.float64], min_size: int, permutations: int, allowed: int, generator: np.random.Generator
) -> int | None:
    """Return where the second part of `series` begins; None if more than `allowed` of the orders diverge as much.

    It stops as soon as they do, which changes nothing in the answer: Besag and Clifford, "Sequential Monte Carlo
    p-values", Biometrika 78(2), 1991.
    """
    n = len(series)
    if n < 2 * min_size:
        return None
    parts = _Parts(n, min_size)
    distances = np.abs(series[:, None] - series)
    divergence = parts.divergence(distances)
    largest = divergence.max()
    largest -= 1e-9 * abs(largest)  # the same parts in another order diverge as much, whatever the rounding
    reached = 0
    for _ in range(permutations):
        order = generator.permutation(n)
        reached += bool(parts.divergence(distances[np.ix_(order, order)]).max() >= largest)
        if reached > allowed:
            return None
    return int(parts.middle[divergence.argmax()])


class _Parts:
    """All pairs of neighbouring parts [0, middle) and [middle, stop) of n values, and how far each pair diverges."""

    def __init__(self, n: int, min_size: int) -> None:
        middle, stop = (index + min_size for index in np.triu_indices(n + 1 - min_size, k=min_size))
        m, k = middle, stop - middle
        # The divergence, m k / (m + k) times (twice the mean distance between the parts less the mean distances
        # within them), in sums over the squares [0, middle) and [0, stop) of the distances and over what is across.
        within_first, within_second = k / ((m - 1) * stop), m / ((k - 1) * stop)
        self.middle, self.stop = middle, stop
        self._places = middle * (n + 2), stop * (n + 2), middle * (n + 1) + stop
        self._weights = -2 / stop - within_first - within_second, -within_second, 2 / stop + 2 * within_second

    def divergence(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the statistic Q of section 2 of the paper for each pair, from all distances, shape (n, n)."""
        sums = np.zeros((len(distances) + 1,) * 2)
        np.cumsum(np.cumsum(distances, axis=0), axis=1, out=sums[1:, 1:])
        found: NDArray[np.float64] = sum(
            (weight * sums.take(place) for weight, place in zip(self._weights, self._places, strict=True)),
            start=np.zeros(len(self.middle)),
        )
        return found
