"""How a gate decides each of its checks, three-way: pass and fail have to be shown, everything else is inconclusive."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.bench_report import NS_PER_MS, Launch
from tlc.runtime.gate_report import Check, Verdict
from tlc.runtime.report import Interval
from tlc.runtime.statistics import (
    bootstrap_interval,
    difference_interval,
    holm,
    lower_quantile_bound,
    mcnemar_loss_p,
    nearest_rank,
    samples_needed,
    upper_quantile_bound,
)

RESAMPLES = 4000
_LOSS_P = 0.05
_POWER_Z = NormalDist().inv_cdf(0.99)
_QUIETER = "Measure on a quieter machine, or give more --rounds or --launches."


def three_way(low: float | None, high: float | None, limit: float) -> Verdict:
    """Return fail if the lower bound is above the limit, pass if the upper one is not, else inconclusive."""
    if low is not None and low > limit:
        return "fail"
    return "pass" if high is not None and high <= limit else "inconclusive"


def slowdown_check(ratio: Interval, limit_ratio: float, name: str = "max-slowdown") -> Check:
    """Judge the latency of the candidate over that of the baseline; `limit_ratio` 0.05 allows a ratio of 1.05."""
    verdict = three_way(ratio.low, ratio.high, 1 + limit_ratio)
    value, low, high, limit = (100 * (bound - 1) for bound in (ratio.estimate, ratio.low, ratio.high, 1 + limit_ratio))
    reason = f"Latency changed by {value:+.2f} % (bounds {low:+.2f} and {high:+.2f} %), the limit is {limit:+g} %."
    if verdict == "inconclusive":
        reason += f" The limit lies between the bounds. {_QUIETER}"
    return Check(
        name=name, limit=round(limit, 9), value=value, low=low, high=high, unit="%", verdict=verdict, reason=reason
    )


def quantile_check(launches: Sequence[Launch], percentile: int, limit_ms: float, *, tail: float, seed: int) -> Check:
    """Judge one percentile of the samples of all launches.

    Each bound, missed with probability `tail`, is the wider of two: the order statistic of all samples, which would be
    right if runs were independent, and the bootstrap over launches, whose runs have in common what differs from
    process to process. With fewer samples than an upper bound needs, nothing is decided.
    """
    samples = [np.asarray(launch.samples_ns, np.float64) / NS_PER_MS for launch in launches]
    pooled = np.concatenate(samples)
    value = nearest_rank(pooled, percentile)
    needed = samples_needed(percentile, confidence=1 - tail)
    low: float | None = None
    high: float | None = None
    if len(pooled) < needed:
        reason = f"{len(pooled)} runs are too few: a bound of p{percentile} needs {needed}. Give more --rounds."
    else:
        low, high = _quantile_bounds(samples, percentile, tail=tail, seed=seed)
        reason = (
            f"p{percentile} of {len(pooled)} runs is {value:.4g} ms (bounds {low:.4g} and {high:.4g} ms), "
            f"the limit is {limit_ms:g} ms."
        )
    verdict = three_way(low, high, limit_ms)
    if verdict == "inconclusive" and low is not None:
        reason += f" The limit lies between the bounds. {_QUIETER}"
    return Check(
        name=f"p{percentile}-under",
        limit=limit_ms,
        value=value,
        low=low,
        high=high,
        unit="ms",
        verdict=verdict,
        reason=reason,
    )


def _quantile_bounds(
    samples: Sequence[NDArray[np.float64]], percentile: int, *, tail: float, seed: int
) -> tuple[float, float]:
    """Return the bounds for samples of several launches, of which there are `samples_needed`."""
    pooled = np.concatenate(samples)
    upper = upper_quantile_bound(pooled, percentile, confidence=1 - tail)
    lower = lower_quantile_bound(pooled, percentile, confidence=1 - tail)
    assert upper is not None
    _, low, high = bootstrap_interval(
        lambda picks: nearest_rank(np.concatenate([samples[pick] for pick in picks]), percentile),
        len(samples),
        tail=tail,
        resamples=RESAMPLES,
        seed=seed,
    )
    return low if lower is None else min(low, lower), max(high, upper)


def bytes_check(name: str, what: str, value: int, limit: int) -> Check:
    """Judge a size, which is exact; `what` begins the sentence."""
    verdict: Verdict = "pass" if value <= limit else "fail"
    reason = f"{what} {value / 1e6:,.3f} MB, the limit is {limit / 1e6:,.3f} MB."
    return Check(
        name=name, limit=limit, value=value, low=value, high=value, unit="bytes", verdict=verdict, reason=reason
    )


@dataclass(frozen=True, slots=True)
class Disagreements:
    """Samples of one kind that both models judged, and those of them that only one had right."""

    samples: int
    regressed: int
    """Only the baseline was right."""
    improved: int
    """Only the candidate was right."""


def accuracy_checks(
    overall: Disagreements,
    per_class: Mapping[str, Disagreements],
    *,
    max_drop_points: float | None,
    per_class_drop_points: float | None,
) -> list[Check]:
    """Judge the loss of top-1 over all samples, and of each class's recall over its own; None is no limit.

    A loss within the limit passes if so many samples could have shown a larger one: without a disagreement, the upper
    99 % bound of Tango's interval is z^2 / (n + z^2) (see `difference_interval`). A loss above it fails if it is real:
    McNemar's exact test, one-sided, adjusted after Holm for all these checks, has p of at most 0.05.
    """
    judged: list[tuple[str, Disagreements, float]] = []
    if max_drop_points is not None:
        judged.append(("max-drop", overall, max_drop_points))
    if per_class_drop_points is not None:
        judged += [(f"per-class-drop {name}", found, per_class_drop_points) for name, found in per_class.items()]
    p_values = holm([mcnemar_loss_p(found.regressed, found.improved) for _, found, _ in judged])
    return [_drop_check(*one, p) for one, p in zip(judged, p_values, strict=True)]


def _drop_check(name: str, found: Disagreements, limit_points: float, p: float) -> Check:
    drop = 100 * (found.regressed - found.improved) / found.samples if found.samples else 0.0
    low, high = difference_interval(found.improved, found.regressed, found.samples, confidence=0.98)
    needed = samples_to_tell(limit_points)
    reason = (
        f"Of {found.samples} samples {found.regressed} got worse and {found.improved} better: "
        f"a drop of {drop:.2f} points, the limit is {limit_points:g}."
    )
    verdict: Verdict
    if drop > limit_points:
        verdict = "fail" if p <= _LOSS_P else "inconclusive"
        reason += f" The p-value of chance alone is {p:.2g}, the limit {_LOSS_P:g}."
        reason += "" if verdict == "fail" else " Evaluate on more samples."
    elif found.samples < needed:
        verdict = "inconclusive"
        reason += f" It takes {needed} samples to show that a drop is not larger. Evaluate on more."
    else:
        verdict = "pass"
    return Check(
        name=name,
        limit=limit_points,
        value=drop,
        low=100 * low,
        high=100 * high,
        unit="points",
        verdict=verdict,
        reason=reason,
    )


def samples_to_tell(limit_points: float) -> int:
    """Return the smallest n with 100 z^2 / (n + z^2) <= `limit_points`, z of 99 % one-sided.

    >>> samples_to_tell(1.0), samples_to_tell(5.0)
    (536, 103)
    """
    share = limit_points / 100
    return max(1, math.ceil(_POWER_Z**2 * (1 - share) / share - 1e-9))


def doubted(check: Check, doubt: str) -> Check:
    """Return the check as inconclusive because of `doubt`, a sentence."""
    return check.model_copy(update={"verdict": "inconclusive", "reason": f"{check.reason} {doubt}"})
