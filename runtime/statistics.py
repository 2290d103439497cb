"""Statistics of repeated measurements: quantiles and bounds, bootstrap, paired proportions, several tests at once.

Latency is neither normal nor independent, so nothing here assumes a distribution of it: quantiles are bounded by order
statistics, ratios by a bootstrap over whole blocks and launches. Wrong arguments are a ValueError.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tlc.runtime.bench_report import Launch
from tlc.runtime.report import Interval

_ROUNDING = 1e-9  # relative; what 1 - 0.99 and sums of floating-point numbers lack or have too much


def nearest_rank(values: ArrayLike, percentile: float) -> float:
    """Return the smallest of `values` that has `percentile` % of them at or below it.

    It is always one of them, the one at place ceil(percentile * n / 100) of n in ascending order: of 100 samples, p99
    is the second largest and p100 the largest. This is the inverse of the empirical distribution function: definition
    1 of Hyndman and Fan, "Sample quantiles in statistical packages", The American Statistician 50(4), 1996.

    >>> nearest_rank([15, 20, 35, 40, 50], 40)
    20.0
    """
    ordered = _ordered(values)
    # The decimal number that was written, not its binary neighbour, so that no rounding moves the place.
    return float(ordered[math.ceil(_share(percentile) * len(ordered)) - 1])


def quantile_bounds(
    values: ArrayLike, percentile: float, *, confidence: float = 0.99
) -> tuple[float | None, float | None]:
    """Return the lower and upper bound of a distribution's `percentile` from independent samples of it.

    Each is one of `values` and is missed with probability (1 - confidence) / 2 at most, whatever the distribution; None
    where the samples are too few for that side. At or below the quantile q lie Binomial(n, q) of n samples, so that the
    bounds are the order statistics l and u with P(X <= l - 1) and P(X >= u) within that probability: H. A. David,
    H. N. Nagaraja, "Order Statistics", third edition, 2003, section 7.1.

    >>> quantile_bounds(range(1, 21), 50, confidence=0.95), quantile_bounds(range(1, 21), 99, confidence=0.95)
    ((6.0, 15.0), (19.0, None))
    """
    _check_confidence(confidence)
    tail = (1 - confidence) / 2
    return _lower_bound(values, percentile, tail), _upper_bound(values, percentile, tail)


def lower_quantile_bound(values: ArrayLike, percentile: float, *, confidence: float = 0.99) -> float | None:
    """Return what the `percentile` is not below, missed with probability 1 - confidence at most; see `quantile_bounds`.

    >>> lower_quantile_bound(range(1, 101), 50, confidence=0.95)
    42.0
    """
    _check_confidence(confidence)
    return _lower_bound(values, percentile, 1 - confidence)


def upper_quantile_bound(values: ArrayLike, percentile: float, *, confidence: float = 0.99) -> float | None:
    """Return what the `percentile` is not above, missed with probability 1 - confidence at most; see `quantile_bounds`.

    None with fewer than `samples_needed`.

    >>> upper_quantile_bound(range(1, 460), 99), upper_quantile_bound(range(1, 459), 99)
    (459.0, None)
    """
    _check_confidence(confidence)
    return _upper_bound(values, percentile, 1 - confidence)


def samples_needed(percentile: float, *, confidence: float = 0.99) -> int:
    """Return the smallest n with `upper_quantile_bound`: the largest of n is below the quantile q with probability q^n.

    S. S. Wilks, "Determination of sample sizes for setting tolerance limits", Annals of Mathematical Statistics 12(1),
    1941. Raises ValueError for the maximum, which no number of samples bounds.

    >>> [samples_needed(percentile) for percentile in (50, 90, 95, 99)]
    [7, 44, 90, 459]
    """
    _check_confidence(confidence)
    share = float(_share(percentile))
    if share == 1:
        raise ValueError("no number of samples bounds the maximum")
    return max(1, math.ceil(math.log(1 - confidence) / math.log(share) * (1 - _ROUNDING)))


def bootstrap_median(
    groups: Sequence[NDArray[Any]], *, tail: float = 0.005, resamples: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the ordinary median of all values of `groups` and its lower and upper bound, each missed with `tail`.

    `groups` are float arrays of shape (members,), of any lengths: launches of rounds. Two-level percentile bootstrap:
    groups are drawn with replacement, then members within each drawn group, and with k = floor(resamples * tail) the
    bounds are the k-th smallest and the k-th largest of the medians. Resampling at the level at which the variation
    arises: T. Kalibera, R. Jones, "Rigorous benchmarking in reasonable time", ISMM 2013; the percentile interval:
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3. One group is resampled plainly.

    What differs between groups is covered as far as the given ones span it: three launches do not tell what the worst
    of a hundred would do.

    >>> bootstrap_median([np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0])])
    (2.0, 1.0, 3.0)
    """
    _place(resamples, tail)
    medians = _resampled_medians(groups, resamples, np.random.default_rng(seed))
    return float(np.median(np.concatenate(groups))), *_bounds(medians, tail)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], n: int, *, tail: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return `statistic` of all n samples and its lower and upper bound, each missed with probability `tail`.

    `statistic` takes the samples' indices, shape (n,), int64, some of them repeated. Percentile bootstrap, see
    `bootstrap_median`. Raises ValueError where `statistic` is not finite.

    >>> right = np.array([True] * 90 + [False] * 10)
    >>> bootstrap_interval(lambda picks: float(right[picks].mean()), 100, tail=0.025, resamples=1000, seed=0)
    (0.9, 0.84, 0.96)
    """
    if n < 1:
        raise ValueError(f"{n} samples say nothing")
    _place(resamples, tail)
    generator = np.random.default_rng(seed)
    found = np.array([statistic(generator.integers(n, size=n)) for _ in range(resamples)])
    estimate = float(statistic(np.arange(n)))
    if not (math.isfinite(estimate) and np.isfinite(found).all()):
        raise ValueError("the statistic is not finite on every resample")
    return estimate, *_bounds(found, tail)


def ratio_interval(
    a_launches: Sequence[Launch],
    b_launches: Sequence[Launch],
    *,
    tail: float = 0.005,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Return the latency of b over that of a, which ran in turns: launch i of one with launch i of the other.

    With d = log(median of b's block / median of a's) of each round, the estimate is exp(median of all d), so that
    swapping the two gives the inverse, and the bounds are exp of those of `bootstrap_median` over launches of rounds:
    each is missed with probability `tail`. From one launch of each, claim no difference below 2 %: processes of the
    same model differ by up to 1.7 % (standard deviation 0.5 %), which one launch cannot show. Raises ValueError where
    launches or their rounds do not match.
    """
    rounds = [launch.rounds for launch in a_launches], [launch.rounds for launch in b_launches]
    if rounds[0] != rounds[1]:
        raise ValueError(f"launches of {rounds[0]} and of {rounds[1]} rounds did not run in turns")
    groups = [np.log(b.block_medians_ns() / a.block_medians_ns()) for a, b in zip(a_launches, b_launches, strict=True)]
    estimate, low, high = np.exp(bootstrap_median(groups, tail=tail, resamples=resamples, seed=seed)).tolist()
    return Interval(estimate=estimate, low=low, high=high)


def unpaired_ratio_interval(
    a_launches: Sequence[Launch],
    b_launches: Sequence[Launch],
    *,
    tail: float = 0.005,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Return the latency of b over that of a, which did not run in turns: one of them may come from a stored report.

    The ratio of the medians of all blocks, with launches and blocks of both resampled independently; see
    `bootstrap_median`. What the machine did differently at the two times is in the ratio, and no interval tells it.
    """
    _place(resamples, tail)
    generator = np.random.default_rng(seed)
    a, b = ([np.log(launch.block_medians_ns()) for launch in launches] for launches in (a_launches, b_launches))
    medians_a = _resampled_medians(a, resamples, generator)
    bounds = _bounds(_resampled_medians(b, resamples, generator) - medians_a, tail)
    estimate = float(np.median(np.concatenate(b)) - np.median(np.concatenate(a)))
    return Interval(estimate=math.exp(estimate), low=math.exp(bounds[0]), high=math.exp(bounds[1]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being looked at together, in the given order, each at most 1.

    Rejecting those at or below alpha makes any false rejection at all as rare as alpha, whatever the tests' dependence:
    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2), 1979.
    The i-th smallest of m becomes the largest of (m - j + 1) p_(j) over j <= i.

    >>> holm([0.25, 0.125, 0.5])
    [0.5, 0.375, 0.5]
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"a p-value lies in 0..1, got {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[index]))
        adjusted[index] = largest
    return adjusted


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


def share_interval(hits: int, samples: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a proportion, of which `hits` of `samples` were seen: Wilson's score interval.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927) 209-212. Unlike the plain one it keeps a width where all or none hit.

    >>> [round(bound, 4) for bound in share_interval(81, 263)]
    [0.2553, 0.3662]
    """
    if not 0 <= hits <= samples or samples == 0:
        raise ValueError(f"{hits} hits of {samples} samples")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = hits / samples, z * z / samples
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p(only_before: int, only_after: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: both kinds of disagreement are equally likely.

    2 sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c), at most 1, in integers and so exact for any count.

    >>> mcnemar_p(0, 6), mcnemar_p(5, 5)
    (0.03125, 1.0)
    """
    return min(1.0, 2 * mcnemar_loss_p(max(only_before, only_after), min(only_before, only_after)))


def mcnemar_loss_p(only_before: int, only_after: int) -> float:
    """Return the one-sided p-value of McNemar's exact test against `before` being right more often than `after`.

    sum_{k <= c} C(b + c, k) / 2^(b + c) with b = `only_before` and c = `only_after`: small where much was lost.

    >>> mcnemar_loss_p(6, 0), mcnemar_loss_p(0, 6)
    (0.015625, 1.0)
    """
    total = only_before + only_after
    term = tail = 1
    for k in range(only_after):
        term = term * (total - k) // (k + 1)
        tail += term
    return tail / (1 << total)


def _ordered(values: ArrayLike) -> NDArray[np.float64]:
    ordered = np.sort(np.asarray(values, np.float64))
    if ordered.ndim != 1 or not len(ordered) or np.isnan(ordered[-1]):
        raise ValueError(f"a quantile needs one dimension of at least one number, got shape {ordered.shape}")
    return ordered


def _share(percentile: float) -> Fraction:
    if not 0 < percentile <= 100:
        raise ValueError(f"a percentile lies above 0 and at most at 100, got {percentile}")
    return Fraction(str(percentile)) / 100


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, got {confidence}")


def _lower_bound(values: ArrayLike, percentile: float, tail: float) -> float | None:
    ordered, share = _ordered(values), _share(percentile)
    place = _lower_place(len(ordered), float(share), float(1 - share), tail)
    return float(ordered[place - 1]) if place else None


def _upper_bound(values: ArrayLike, percentile: float, tail: float) -> float | None:
    ordered, share = _ordered(values), _share(percentile)
    place = _lower_place(len(ordered), float(1 - share), float(share), tail)  # P(X >= n - k) = P(n - X <= k)
    return float(ordered[-place]) if place else None


def _lower_place(n: int, share: float, rest: float, tail: float) -> int:
    """Return the largest l with P(X <= l - 1) <= tail for X of Binomial(n, share); 0 where there is none."""
    if share in (0, 1):
        return n if share else 0  # all samples, or none, lie at or below the quantile
    k = np.arange(n)
    steps = np.log((n - k) / (k + 1)) + math.log(share / rest)  # log of P(X = k + 1) / P(X = k)
    logs = n * math.log(rest) + np.concatenate([[0.0], np.cumsum(steps)])
    return int(np.searchsorted(np.cumsum(np.exp(logs)), tail * (1 + _ROUNDING), side="right"))


def _resampled_medians(
    groups: Sequence[NDArray[Any]], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the medians of `groups` drawn with replacement, and their members likewise, shape (resamples,)."""
    if not groups or min(map(len, groups)) < 1:
        raise ValueError(f"nothing to resample: groups of {[len(group) for group in groups]} values")
    medians = np.empty(resamples)
    for done in range(resamples):
        drawn = [groups[pick] for pick in generator.integers(len(groups), size=len(groups))]
        members = [group[generator.integers(len(group), size=len(group))] for group in drawn]
        medians[done] = np.median(np.concatenate(members))
    return medians


def _place(resamples: int, tail: float) -> int:
    """Return how many resamples lie at or beyond each bound."""
    place = math.floor(resamples * tail * (1 + _ROUNDING)) if 0 < tail < 0.5 else 0
    if place < 1:
        raise ValueError(f"{resamples} resamples are too few for a tail of {tail}, which lies between 0 and 0.5")
    return place


def _bounds(found: NDArray[np.float64], tail: float) -> tuple[float, float]:
    place, ordered = _place(len(found), tail), np.sort(found)
    return float(ordered[place - 1]), float(ordered[-place])


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
