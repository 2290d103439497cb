"""Statistics of two classifiers on the same samples: only the pairs on which they disagree count."""

import math
from statistics import NormalDist


def difference_interval(
    only_before: int, only_after: int, pairs: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the confidence interval of p_after - p_before for paired proportions: Tango's score interval.

    `only_before` and `only_after` are the pairs that only one of them has right. The interval is the set of D that the
    score test T(D) = (after - before - n D) / sqrt(n (2 q + D (1 - D))) does not reject, with q the
    maximum-likelihood share of pairs that only `before` has right, given D. T falls with D, so both ends are found by
    bisection. Unlike Wald's interval it keeps a width without any disagreement: +-z^2 / (n + z^2).

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998) 891-908.

    >>> [round(bound, 3) for bound in difference_interval(3, 9, 32)]  # ibid., 0.188 (-0.027, 0.390)
    [-0.027, 0.39]
    """
    if pairs == 0:
        return -1.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return _lower(only_before, only_after, pairs, z), -_lower(only_after, only_before, pairs, z)


def _lower(loss: int, gain: int, pairs: int, z: float) -> float:
    """Return the smallest difference whose score statistic is at most z."""
    low, high = -1.0, (gain - loss) / pairs
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(middle, loss, gain, pairs) > z else (low, middle)
    return high


def _score(difference: float, loss: int, gain: int, pairs: int) -> float:
    """Return Tango's statistic T(difference), positive where the observed difference is larger."""
    a = 2 * pairs
    b = (2 * pairs - gain + loss) * difference - gain - loss
    c = -loss * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = pairs * (2 * q + difference * (1 - difference))
    return (gain - loss - pairs * difference) / math.sqrt(variance) if variance > 0 else math.inf


def mcnemar_p(only_before: int, only_after: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: both kinds of disagreement are equally likely.

    2 sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c), at most 1, in integers and so exact for any count.

    >>> mcnemar_p(0, 6), mcnemar_p(5, 5)
    (0.03125, 1.0)
    """
    total, fewer = only_before + only_after, min(only_before, only_after)
    term = tail = 1
    for k in range(fewer):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << total))
