"""Paired statistics against published examples and brute force."""

import math

import pytest

from tlc.runtime.statistics import difference_interval, mcnemar_p


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
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    for loss, gain in [(0, 0), (1, 0), (0, 5), (3, 9), (7, 1), (40, 25), (500, 430), (5000, 5300)]:
        wanted = binomtest(loss, loss + gain).pvalue if loss + gain else 1.0
        assert mcnemar_p(loss, gain) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_of_the_published_example() -> None:
    # Fagerland, Lydersen and Laake 2013, airway hyper-responsiveness: exact conditional p = 0.070.
    assert mcnemar_p(7, 1) == pytest.approx(0.0703, abs=5e-5)
