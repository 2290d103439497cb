"""Statistics against SciPy, published examples, brute force, and how often their intervals hold the truth."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from tlc.runtime.bench_report import Launch
from tlc.runtime.statistics import (
    bootstrap_interval,
    bootstrap_median,
    difference_interval,
    holm,
    lower_quantile_bound,
    mcnemar_loss_p,
    mcnemar_p,
    nearest_rank,
    quantile_bounds,
    ratio_interval,
    samples_needed,
    unpaired_ratio_interval,
    upper_quantile_bound,
)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 101, 320, 1000])
def test_nearest_rank_is_numpys_inverted_distribution(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    for percentile in (1, 10, 25, 50, 66, 90, 95, 99, 100):
        wanted = np.sort(values)[-(-percentile * count // 100) - 1]
        assert nearest_rank(values, percentile) == wanted
        if percentile * count % 100:  # at a place that is a whole number NumPy is at the mercy of rounding
            assert wanted == np.percentile(values, percentile, method="inverted_cdf")


def test_no_rounding_moves_the_place() -> None:
    # 0.999 * 1000 and 0.07 * 100 are above 999 and 7 in floating-point numbers, or may be.
    assert nearest_rank(range(1, 1001), 99.9) == 999
    assert nearest_rank(range(1, 101), 7) == 7
    assert nearest_rank(range(1, 1001), 14.3) == 143


def test_quantile_bounds_are_scipys() -> None:
    random = np.random.default_rng(1)
    missing = 0
    for _ in range(150):
        values = random.lognormal(size=int(random.integers(2, 500)))
        percentile, confidence = random.choice([5, 50, 90, 95, 99]), random.choice([0.9, 0.95, 0.99])
        # SciPy's bounds are for the quantile itself and conservative likewise; NaN where there is none.
        tests = (
            stats.quantile_test(values, p=percentile / 100, alternative=side)
            for side in ("two-sided", "greater", "less")
        )
        both, greater, less = (test.confidence_interval(confidence) for test in tests)
        found = (
            *quantile_bounds(values, percentile, confidence=confidence),
            lower_quantile_bound(values, percentile, confidence=confidence),
            upper_quantile_bound(values, percentile, confidence=confidence),
        )
        wanted = [both.low, both.high, greater.low, less.high]
        assert found == tuple(None if math.isnan(bound) else bound for bound in wanted)
        missing += found.count(None)
    assert 30 < missing < 300  # both kinds were compared


@pytest.mark.parametrize("count", [600, 7_001, 100_000])
@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9])
def test_places_of_many_samples_are_the_binomial_ones(count: int, percentile: float) -> None:
    low, high = quantile_bounds(np.arange(1, count + 1), percentile)
    share = percentile / 100
    assert low is not None
    assert stats.binom.cdf(low - 1, count, share) <= 0.005 < stats.binom.cdf(low, count, share)
    if high is None:
        assert stats.binom.sf(count - 1, count, share) > 0.005
    else:
        assert stats.binom.sf(high - 1, count, share) <= 0.005 < stats.binom.sf(high - 2, count, share)


@pytest.mark.parametrize("percentile", [1, 50, 75, 90, 95, 99, 99.9])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_samples_needed_is_where_the_bound_begins(percentile: float, confidence: float) -> None:
    needed = samples_needed(percentile, confidence=confidence)
    assert upper_quantile_bound(np.ones(needed), percentile, confidence=confidence) == 1
    if needed > 1:
        assert upper_quantile_bound(np.ones(needed - 1), percentile, confidence=confidence) is None


def test_samples_needed_are_the_known_ones() -> None:
    # 59 and 299 are Wilks's numbers for 95 % and 99 % of a population at 95 % and 95 % confidence.
    assert [samples_needed(percentile, confidence=0.95) for percentile in (95, 99)] == [59, 299]
    assert [samples_needed(percentile) for percentile in (50, 90, 95, 99)] == [7, 44, 90, 459]


def test_a_confidence_means_the_decimal_number() -> None:
    # 1 - 0.9 is a little less than 0.1 in floating-point numbers, the probability that one sample is below the p10.
    assert samples_needed(10, confidence=0.9) == 1
    assert upper_quantile_bound([5.0], 10, confidence=0.9) == 5


def test_the_maximum_has_a_lower_bound_only() -> None:
    assert quantile_bounds([3, 1, 2], 100) == (3, None)
    with pytest.raises(ValueError, match="bounds the maximum"):
        samples_needed(100)


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_quantile_bounds_hold_the_truth(percentile: int) -> None:
    random, held = np.random.default_rng(percentile), 0
    truth = math.exp(stats.norm.ppf(percentile / 100))
    for _ in range(2000):
        low, high = quantile_bounds(random.lognormal(size=600), percentile)
        held += low is not None and high is not None and low <= truth <= high
    assert held >= 0.98 * 2000


def test_quantile_bounds_hold_the_truth_of_a_coarse_clock() -> None:
    # A quarter of all samples are equal, as with a clock of few ticks.
    random = np.random.default_rng(0)
    bounds = [quantile_bounds(random.integers(0, 4, size=300), 50) for _ in range(1000)]
    assert sum(low is not None and high is not None and low <= 1 <= high for low, high in bounds) >= 990


@pytest.mark.parametrize("percentile", [0, -5, 100.5, float("nan")])
def test_a_percentile_outside_is_refused(percentile: float) -> None:
    for function in (nearest_rank, quantile_bounds, lower_quantile_bound, upper_quantile_bound):
        with pytest.raises(ValueError, match="above 0 and at most at 100"):
            function([1.0, 2.0], percentile)


def test_no_samples_and_no_numbers_are_refused() -> None:
    for values in ([], [1.0, float("nan")], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="at least one number"):
            nearest_rank(values, 50)
        with pytest.raises(ValueError, match="at least one number"):
            quantile_bounds(values, 50)
    for confidence in (0, 1, 99):
        with pytest.raises(ValueError, match=f"between 0 and 1, got {confidence}"):
            quantile_bounds([1.0], 50, confidence=confidence)


def test_one_group_is_the_plain_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(0).lognormal(size=40)
    estimate, low, high = bootstrap_median([values], tail=0.025, resamples=20_000)
    wanted = stats.bootstrap(
        (values,), np.median, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert estimate == np.median(values)
    assert (low, high) == pytest.approx(wanted, rel=0.02)  # two sets of resamples


def test_two_levels_give_the_distribution_that_can_be_counted() -> None:
    # Both groups twice (1/4 each) or each once (1/2): medians 0, 5 and 10.
    groups = [np.zeros(3), np.full(3, 10.0)]
    assert bootstrap_median(groups, tail=0.23) == (5, 0, 10)
    assert bootstrap_median(groups, tail=0.27) == (5, 5, 5)
    # Two or three zeros of three members drawn: the median is 0 in 7 of 27 cases, and 2 likewise.
    one = [np.array([0.0, 1.0, 2.0])]
    assert bootstrap_median(one, tail=0.24) == (1, 0, 2)
    assert bootstrap_median(one, tail=0.28) == (1, 1, 1)


def test_groups_of_any_lengths_are_all_drawn() -> None:
    groups = [np.array([1.0]), np.array([2.0, 2.0]), np.array([3.0] * 5)]
    assert bootstrap_median(groups) == (3, 1, 3)


def test_the_two_level_interval_holds_what_a_plain_one_misses() -> None:
    # Launches differ by 2 %, rounds within them by 1 %: the plain bootstrap takes 120 rounds for independent.
    random, two_levels, plain = np.random.default_rng(5), 0, 0
    for seed in range(100):
        launches = [random.normal(random.normal(0, 0.02), 0.01, 12) for _ in range(10)]
        _, low, high = bootstrap_median(launches, tail=0.025, resamples=200, seed=seed)
        two_levels += low <= 0 <= high
        _, low, high = bootstrap_median([np.concatenate(launches)], tail=0.025, resamples=200, seed=seed)
        plain += low <= 0 <= high
    assert two_levels >= 88  # nominal: 95
    assert plain < 70


def test_bootstraps_repeat_under_one_seed() -> None:
    values = [np.random.default_rng(0).normal(size=30)]
    found = [[bootstrap_median(values, resamples=200, seed=seed) for seed in range(5)] for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


def test_bootstrap_interval_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    before, after = random.random(200) < 0.9, random.random(200) < 0.85

    def drop(picks: NDArray[np.int64]) -> float:
        return float(before[picks].mean() - after[picks].mean())

    estimate, low, high = bootstrap_interval(drop, 200, tail=0.025, resamples=5000, seed=0)
    wanted = stats.bootstrap(
        (before, after),
        lambda b, a: b.mean() - a.mean(),
        paired=True,
        vectorized=False,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert estimate == before.mean() - after.mean()
    assert (low, high) == pytest.approx(wanted, abs=0.006)  # two sets of resamples; steps of 0.005


@pytest.mark.parametrize(("tail", "resamples", "place"), [(0.005, 200, 1), (0.005, 1399, 6), (0.29, 100, 29)])
def test_bounds_are_the_resamples_at_these_places(tail: float, resamples: int, place: int) -> None:
    # 0.29 * 100 is below 29 in floating-point numbers.
    numbers = itertools.count(1)
    _, low, high = bootstrap_interval(lambda _: float(next(numbers)), 5, tail=tail, resamples=resamples, seed=0)
    assert (low, high) == (place, resamples + 1 - place)


def test_what_cannot_be_resampled_is_refused() -> None:
    for tail, resamples in [(0.005, 199), (0.0, 4000), (0.5, 4000)]:
        with pytest.raises(ValueError, match=f"{resamples} resamples are too few for a tail of {tail}"):
            bootstrap_median([np.ones(3)], tail=tail, resamples=resamples)
        with pytest.raises(ValueError, match="too few"):
            bootstrap_interval(lambda _: 1.0, 3, tail=tail, resamples=resamples, seed=0)
    assert bootstrap_median([np.ones(3)], tail=0.005, resamples=200) == (1, 1, 1)
    for groups in ([], [np.ones(3), np.ones(0)]):
        with pytest.raises(ValueError, match="nothing to resample"):
            bootstrap_median(groups)
    with pytest.raises(ValueError, match="0 samples"):
        bootstrap_interval(lambda _: 1.0, 0, tail=0.01, resamples=1000, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_interval(lambda picks: math.nan if 0 in picks else 1.0, 3, tail=0.01, resamples=1000, seed=0)


def launch(blocks_ms: NDArray[np.float64]) -> Launch:
    """Return a launch of equal runs in each block: the fields that ratios read."""
    fields: dict[str, Any] = {"block": 2, "samples_ns": [round(1e6 * ms) for ms in blocks_ms for _ in range(2)]}
    return Launch.model_construct(**fields)


def machine_ms(seed: int, launches: int = 3, rounds: int = 14) -> list[NDArray[np.float64]]:
    """Return latencies of a machine that is up to twice as slow at some times as at others."""
    return list(np.random.default_rng(seed).uniform(1, 2, (launches, rounds)))


def test_what_slows_both_alike_is_not_in_the_paired_ratio() -> None:
    disturbed = machine_ms(0)
    a, b = [launch(ms) for ms in disturbed], [launch(1.1 * ms) for ms in disturbed]
    paired, unpaired = ratio_interval(a, b), unpaired_ratio_interval(a, b)
    assert (paired.estimate, paired.low, paired.high) == pytest.approx((1.1, 1.1, 1.1), rel=1e-5)
    assert unpaired.estimate == pytest.approx(1.1, rel=1e-5)
    assert unpaired.low < 1 < 1.2 < unpaired.high


def test_swapping_gives_the_inverse() -> None:
    a, b = ([launch(ms) for ms in machine_ms(seed)] for seed in (1, 2))
    for function in (ratio_interval, unpaired_ratio_interval):
        assert function(a, b).estimate == pytest.approx(1 / function(b, a).estimate)
    there, back = ratio_interval(a, b), ratio_interval(b, a)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))


def test_one_launch_is_resampled_as_rounds_in_turns() -> None:
    (a,), (b,) = machine_ms(3, launches=1, rounds=40), machine_ms(4, launches=1, rounds=40)
    found = ratio_interval([launch(a)], [launch(b)], resamples=2000, tail=0.005, seed=7)
    picks = np.random.default_rng(7).integers(40, size=(2000, 40))
    medians = np.sort(np.exp(np.median(np.log(b / a)[picks], axis=1)))
    assert (found.low, found.high) == pytest.approx((medians[9], medians[-10]), rel=1e-5)
    assert found.estimate == pytest.approx(math.exp(np.median(np.log(b / a))), rel=1e-5)


def test_equal_models_have_a_ratio_around_one() -> None:
    random, paired, unpaired = np.random.default_rng(8), 0, 0
    for seed in range(60):
        a, b = ([launch(random.lognormal(0, 0.05, 14)) for _ in range(3)] for _ in range(2))
        first = ratio_interval(a, b, resamples=400, seed=seed)
        second = unpaired_ratio_interval(a, b, resamples=400, seed=seed)
        assert first.low <= first.estimate <= first.high
        assert second.low <= second.estimate <= second.high
        paired += first.low <= 1 <= first.high
        unpaired += second.low <= 1 <= second.high
    assert paired >= 57  # of 60 at 99 %: fewer has a probability of 0.3 %
    assert unpaired >= 57


def test_ratios_of_what_did_not_run_in_turns_are_refused() -> None:
    long, short = ([launch(ms) for ms in machine_ms(5, rounds=rounds)] for rounds in (14, 13))
    with pytest.raises(ValueError, match=r"launches of \[14, 14, 14\] and of \[13, 13, 13\] rounds"):
        ratio_interval(long, short)
    with pytest.raises(ValueError, match="rounds did not run in turns"):
        ratio_interval(long, long[:2])
    assert unpaired_ratio_interval(long, short[:2]).estimate > 0
    for function in (ratio_interval, unpaired_ratio_interval):
        with pytest.raises(ValueError, match="nothing to resample"):
            function([], [])
        with pytest.raises(ValueError, match="too few for a tail"):
            function(long, long, tail=0.0001)


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    # Adjusted by definition: the worst Bonferroni p-value over all sets of hypotheses that hold this one.
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 6):
        for _ in range(20):
            p = np.round(random.random(count) ** 3, 2)  # ties and zeros among them
            sets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
            wanted = [max(min(1, len(s) * min(p[list(s)])) for s in sets if index in s) for index in range(count)]
            assert holm(p.tolist()) == pytest.approx(wanted)


def test_holm_lies_between_nothing_and_bonferroni_and_above_false_discovery() -> None:
    p = np.random.default_rng(1).random(50) ** 4
    adjusted = np.array(holm(p.tolist()))
    assert (adjusted >= stats.false_discovery_control(p)).all()
    assert (adjusted <= np.minimum(1, 50 * p)).all()
    assert adjusted[p.argmin()] == 50 * p.min()


def test_holm_of_none_and_of_what_is_no_p_value() -> None:
    assert holm([]) == []
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"a p-value lies in 0\.\.1"):
            holm([0.5, wrong])


@pytest.mark.parametrize(
    ("gain", "loss", "pairs", "confidence", "low", "high"),
    [
        # Tango 1998, section 5: cross-over study, and the soft lens study with its 90 % interval.
        (9, 3, 32, 0.95, -0.027, 0.390),
        (0, 1, 44, 0.90, -0.096, 0.037),
        # Agresti and Min 2005, table 1.
        (16, 8, 86, 0.95, -0.020, 0.207),
        # Fagerland, Lydersen and Laake 2014: airway hyper-responsiveness, Tango's interval.
        (1, 7, 21, 0.95, -0.517, -0.026),
    ],
)
def test_published_intervals(gain: int, loss: int, pairs: int, confidence: float, low: float, high: float) -> None:
    interval = difference_interval(loss, gain, pairs, confidence=confidence)
    assert interval == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize("pairs", [1, 10, 153, 10_000])
def test_no_disagreement_still_leaves_doubt(pairs: int) -> None:
    z2 = 1.959963984540054**2
    low, high = difference_interval(0, 0, pairs)
    assert high == -low == pytest.approx(z2 / (pairs + z2))


def test_the_interval_holds_the_estimate_is_antisymmetric_and_inside_one() -> None:
    for pairs in (1, 2, 7, 30):
        for loss in range(pairs + 1):
            for gain in range(pairs + 1 - loss):
                low, high = difference_interval(loss, gain, pairs)
                assert -1 <= low <= (gain - loss) / pairs <= high <= 1
                assert difference_interval(gain, loss, pairs) == (-high, -low)


def test_large_samples_approach_walds_interval() -> None:
    loss, gain, pairs = 400, 300, 100_000
    error = 1.96 * math.sqrt(loss + gain - (gain - loss) ** 2 / pairs) / pairs
    low, high = difference_interval(loss, gain, pairs)
    assert low == pytest.approx(-0.001 - error, rel=0.01)
    assert high == pytest.approx(-0.001 + error, rel=0.03)


def test_no_pairs_say_nothing() -> None:
    assert difference_interval(0, 0, 0) == (-1.0, 1.0)


def test_mcnemar_equals_the_binomial_test() -> None:
    for loss, gain in [(0, 0), (1, 0), (0, 5), (3, 9), (7, 1), (40, 25), (500, 430), (5000, 5300)]:
        wanted = stats.binomtest(loss, loss + gain).pvalue if loss + gain else 1.0
        assert mcnemar_p(loss, gain) == pytest.approx(wanted, rel=1e-9)
        one_sided = stats.binomtest(loss, loss + gain, alternative="greater").pvalue if loss + gain else 1.0
        assert mcnemar_loss_p(loss, gain) == pytest.approx(one_sided, rel=1e-9)


def test_mcnemar_of_the_published_example() -> None:
    # Fagerland, Lydersen and Laake 2013, airway hyper-responsiveness: exact conditional p = 0.070.
    assert mcnemar_p(7, 1) == pytest.approx(0.0703, abs=5e-5)
