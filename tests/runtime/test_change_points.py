"""Change points against series whose levels are known, two other implementations, and noise without any change."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from tlc.runtime.change_points import _Parts, change_points


def latencies(seed: int, *levels: tuple[float, int]) -> NDArray[np.float64]:
    """Return logarithms of latencies with 2 % of noise: for each of `levels` (ms, count)."""
    noise = np.random.default_rng(seed)
    return np.concatenate([np.log(ms) + 0.02 * noise.standard_normal(count) for ms, count in levels])


@pytest.mark.parametrize(
    ("seed", "levels", "expected"),
    [
        (0, [(8.0, 60)], []),
        (1, [(8.0, 30), (8.8, 30)], [30]),
        (2, [(8.0, 40), (7.2, 20)], [40]),
        (3, [(8.0, 25), (8.8, 25), (10.0, 25), (7.5, 25)], [25, 50, 75]),
        (4, [(8.0, 40), (9.0, 10), (8.0, 40)], [40, 50]),
        (5, [(8.0, 50), (8.16, 50)], [50]),
        (6, [(8.0, 80), (9.0, 6)], [80]),
        (7, [(8.0, 20), (8.4, 20), (8.8, 20), (9.2, 20), (9.7, 20)], [21, 40, 60, 79]),
    ],
    ids=["none", "slower", "faster", "steps", "and-back", "small", "recent", "stairs"],
)
def test_points_are_those_of_two_other_implementations(
    seed: int, levels: list[tuple[float, int]], expected: list[int]
) -> None:
    # Each list is what apache-otava 0.8.0 (compute_change_points_orig, p 0.01) and ruptures 1.1.10 (Pelt, l2, jump 1,
    # penalty 3 * 0.02^2 * log n) gave for the same values. At the stairs noise moved two of the true 20, 40, 60, 80.
    assert change_points(latencies(seed, *levels)) == expected


def test_every_pair_of_parts_diverges_as_defined() -> None:
    # Matteson and James, section 2: m k / (m + k) times the energy distance with the mean over pairs within a part.
    values = np.random.default_rng(12).standard_cauchy(13)
    wanted = {}
    for middle in range(3, 11):
        for stop in range(middle + 3, 14):
            first, second = values[:middle], values[middle:stop]
            across = np.mean([abs(x - y) for x in first for y in second])
            within = [np.mean([abs(x - y) for x, y in itertools.combinations(part, 2)]) for part in (first, second)]
            wanted[middle, stop] = middle * (stop - middle) / stop * (2 * across - sum(within))
    parts = _Parts(13, 3)
    found = dict(
        zip(zip(parts.middle, parts.stop, strict=True), parts.divergence(np.abs(values[:, None] - values)), strict=True)
    )
    assert found == pytest.approx(wanted)


def test_orders_that_only_rounding_tells_apart_are_equal() -> None:
    # Two of the 20 ways to divide six values are the given one and its mirror: the p-value is 0.1.
    for seed in range(20):
        series = latencies(seed, (8.0, 3), (16.0, 3))
        assert change_points(series, alpha=0.07) == []
        assert change_points(series, alpha=0.14) == [3]


def test_noise_without_a_change_rarely_makes_a_point() -> None:
    # At most 1 % by the test's construction, whatever the distribution; 8 of 300 has a probability of 1 % then.
    for draw in (np.random.Generator.standard_normal, np.random.Generator.standard_cauchy):
        noise = np.random.default_rng(0)
        assert sum(bool(change_points(draw(noise, 30), seed=seed)) for seed in range(300)) < 8


def test_a_single_outlier_makes_no_level_wherever_it_is() -> None:
    noise = latencies(8, (8.0, 30 * 124)).reshape(124, 30)
    series = [np.insert(values, index % 31, np.log(80.0)) for index, values in enumerate(noise)]
    # 6 of 124 has a probability of 0.2 % at a share of 1 %.
    assert sum(bool(change_points(values)) for values in series) < 6


def test_an_outlier_does_not_hide_a_level() -> None:
    series = latencies(9, (8.0, 30), (8.8, 30))
    series[[5, 50]] += 0.5
    assert change_points(series) == [30]


def test_the_latest_runs_show_a_level_once_there_are_three() -> None:
    series = latencies(10, (8.0, 20), (9.2, 3))
    assert change_points(series[:-1]) == []
    assert change_points(series) == [20]


def test_sizes_without_any_noise_step_where_they_step() -> None:
    assert change_points([4_000_000.0] * 8 + [3_900_000.0] * 8) == [8]
    assert change_points([4_000_000.1] * 30) == []


def test_scale_and_offset_change_nothing() -> None:
    series = latencies(3, (8.0, 25), (8.8, 25), (10.0, 25), (7.5, 25))
    assert change_points(series * 1e6 + 123) == change_points(series) == [25, 50, 75]


@pytest.mark.parametrize("count", range(6))
def test_a_short_series_has_no_points(count: int) -> None:
    assert change_points([1.0, 1.0, 1.0, 9.0, 9.0][:count]) == []


def test_the_same_seed_gives_the_same_points() -> None:
    series = latencies(11, (8.0, 9), (8.3, 4))
    assert [change_points(series, seed=seed) for seed in range(9)] == [change_points(series, seed=s) for s in range(9)]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        change_points([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match="one series"):
        change_points(np.ones((2, 9)))
    with pytest.raises(ValueError, match="min_size 1"):
        change_points([1.0] * 9, min_size=1)
    with pytest.raises(ValueError, match=r"98 permutations cannot show a p-value of 0\.01"):
        change_points([1.0] * 9, permutations=98)
    assert change_points([1.0] * 9 + [2.0] * 9, permutations=99) == [9]
