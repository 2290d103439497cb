import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from tlc.runtime.latency import Latency, disturbance, measure_interleaved, speedup
from tlc.runtime.report import Interval

_MS = 1_000_000


@dataclass
class FakeClock:
    """Time passes only inside runs, which take what `takes_ns` says, in turn."""

    now_ns: int = 0
    log: list[str] = field(default_factory=list)

    def __call__(self) -> int:
        return self.now_ns

    def run(self, name: str, takes_ns: Callable[[], int]) -> Callable[[], None]:
        def step() -> None:
            self.log.append(name)
            self.now_ns += takes_ns()

        return step


def _noisy(median_ns: float, seed: int, spread: float = 0.1) -> Callable[[], int]:
    rng = np.random.default_rng(seed)
    return lambda: round(median_ns * math.exp(rng.normal(0, spread)))


def _measured(first_ns: Callable[[], int], second_ns: Callable[[], int]) -> tuple[Latency, Latency]:
    clock = FakeClock()
    runs = {"a": clock.run("a", first_ns), "b": clock.run("b", second_ns)}
    found = measure_interleaved(runs, clock_ns=clock, min_warmup_ms=0)
    return found["a"], found["b"]


def test_percentiles_of_a_hundred_samples_are_the_samples_of_that_place() -> None:
    latency = Latency(tuple(i * _MS for i in range(100, 0, -1)), block=10)
    assert [latency.percentile_ms(rank) for rank in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.min_ms) == (50, 90, 99, 1)
    assert latency.mean_ms == 50.5


@pytest.mark.parametrize(("count", "rank", "place"), [(1, 1, 1), (1, 99, 1), (3, 50, 2), (8, 50, 4), (320, 99, 317)])
def test_a_percentile_is_the_smallest_sample_with_that_share_at_or_below(count: int, rank: int, place: int) -> None:
    latency = Latency(tuple(i * _MS for i in range(1, count + 1)), block=1)
    assert latency.percentile_ms(rank) == place
    assert 100 * place >= rank * count > 100 * (place - 1)


def test_one_slow_sample_in_a_hundred_is_forgiven_by_p99_and_two_are_not() -> None:
    assert Latency((*[_MS] * 99, 50 * _MS), block=1).p99_ms == 1
    assert Latency((*[_MS] * 98, 50 * _MS, 50 * _MS), block=1).p99_ms == 50


@pytest.mark.parametrize("rank", [0, -1, 101])
def test_a_rank_outside_1_to_100_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"lies in 1\.\.100, got {rank}"):
        Latency((1,), block=1).percentile_ms(rank)


@pytest.mark.parametrize(("samples", "block"), [((), 1), ((1, 2, 3), 2), ((1,), 0)])
def test_samples_that_are_no_whole_number_of_blocks_are_refused(samples: tuple[int, ...], block: int) -> None:
    with pytest.raises(ValueError, match="whole number of blocks"):
        Latency(samples, block)


def test_a_clock_that_sees_no_time_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="clock is too coarse"):
        Latency((5, 0), block=1)


def test_the_record_keeps_every_sample_in_order_and_its_numbers_agree() -> None:
    record = Latency((4 * _MS, 1 * _MS, 2 * _MS, 3 * _MS), block=2).record(Interval(estimate=2, low=1.5, high=2.5))
    assert record.samples_ms == [4, 1, 2, 3]
    assert (record.p50_ms, record.p90_ms, record.p99_ms, record.min_ms, record.mean_ms) == (2, 4, 4, 1, 2.5)
    assert record.throughput_per_s == 400
    assert record.speedup.estimate == 2


def test_every_sample_is_kept_in_order_and_is_what_the_clock_saw() -> None:
    ticks = iter(range(1, 1000))
    clock = FakeClock()
    found = measure_interleaved(
        {"a": clock.run("a", lambda: next(ticks))}, rounds=3, block=4, warmup_runs=5, min_warmup_ms=0, clock_ns=clock
    )
    assert found["a"] == Latency(tuple(range(6, 18)), block=4)


def test_each_round_has_one_block_of_every_name() -> None:
    clock = FakeClock()
    runs = {name: clock.run(name, lambda: 1) for name in "abc"}
    found = measure_interleaved(runs, rounds=20, block=2, warmup_runs=0, min_warmup_ms=0, clock_ns=clock)
    rounds = [clock.log[i : i + 6] for i in range(0, len(clock.log), 6)]
    assert len(rounds) == 20
    assert all(sorted(one) == list("aabbcc") and one[0::2] == one[1::2] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
    assert list(found) == ["a", "b", "c"]
    assert all(latency.rounds == 20 for latency in found.values())


def test_the_seed_alone_decides_the_order() -> None:
    def order(seed: int) -> list[str]:
        clock = FakeClock()
        runs = {name: clock.run(name, lambda: 1) for name in "abc"}
        measure_interleaved(runs, rounds=10, warmup_runs=0, min_warmup_ms=0, seed=seed, clock_ns=clock)
        return clock.log

    assert order(3) == order(3)
    assert order(3) != order(4)


@pytest.mark.parametrize(("takes_ms", "expected"), [(1, 200), (100, 20)])
def test_warm_up_lasts_for_both_the_runs_and_the_time(takes_ms: int, expected: int) -> None:
    clock = FakeClock()
    run = clock.run("a", lambda: takes_ms * _MS)
    measure_interleaved({"a": run}, rounds=1, block=1, warmup_runs=20, min_warmup_ms=200, clock_ns=clock)
    assert len(clock.log) == expected + 1


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_off_inside_blocks_and_then_as_before(enabled: bool) -> None:
    clock, inside, between = FakeClock(), [], []

    def takes_ns() -> int:
        inside.append(gc.isenabled())
        return 1

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        measure_interleaved(
            {"a": clock.run("a", takes_ns)},
            rounds=2,
            warmup_runs=0,
            min_warmup_ms=0,
            clock_ns=clock,
            on_progress=lambda done, total: between.append((done, total, gc.isenabled())),
        )
    finally:
        (gc.enable if before else gc.disable)()
    assert set(inside) == {False}
    assert between == [(1, 2, enabled), (2, 2, enabled)]


def test_the_garbage_collector_comes_back_after_a_failing_run() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure_interleaved({"a": lambda: 1 // 0}, warmup_runs=0, min_warmup_ms=0, clock_ns=FakeClock())
    assert gc.isenabled()


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="0 runs, 40 rounds, blocks of 8"):
        measure_interleaved({})
    with pytest.raises(ValueError, match="1 runs, 0 rounds"):
        measure_interleaved({"a": int}, rounds=0)


def test_a_constant_double_speed_is_exactly_two() -> None:
    assert speedup(*_measured(lambda: 2000, lambda: 1000)) == Interval(estimate=2.0, low=2.0, high=2.0)


def test_a_model_against_itself_is_about_one_in_99_of_100_measurements() -> None:
    missed, widest = 0, 0.0
    for seed in range(100):
        found = speedup(*_measured(_noisy(_MS, seed), _noisy(_MS, 1000 + seed)), resamples=400)
        missed += not found.low <= 1 <= found.high
        widest = max(widest, found.high / found.low)
    assert missed <= 4  # more than 4 has a probability of 0.3 % at a coverage of 99 %
    assert widest < 1.15


def test_noise_and_bursts_that_hit_both_do_not_move_a_double_speed() -> None:
    burst = np.random.default_rng(5)

    def disturbed(median_ns: float, seed: int) -> Callable[[], int]:
        noise = _noisy(median_ns, seed)
        return lambda: noise() * (20 if burst.random() < 0.05 else 1)

    found = speedup(*_measured(disturbed(2 * _MS, 1), disturbed(_MS, 2)))
    assert 1.9 < found.low < 2 < found.high < 2.1


def test_a_drift_of_the_whole_machine_cancels() -> None:
    clock = FakeClock()
    runs = {
        "a": clock.run("a", lambda: 3000 + clock.now_ns // 300),
        "b": clock.run("b", lambda: 1000 + clock.now_ns // 900),
    }
    found = measure_interleaved(runs, min_warmup_ms=0, clock_ns=clock)
    assert found["a"].samples_ns[-1] > 2 * found["a"].samples_ns[0]
    assert speedup(found["a"], found["b"]).estimate == pytest.approx(3, rel=0.03)


def test_swapping_the_two_gives_the_inverse() -> None:
    a, b = _measured(_noisy(_MS, 1), _noisy(1.3 * _MS, 2))
    there, back = speedup(a, b), speedup(b, a)
    assert there.estimate == pytest.approx(1 / back.estimate, rel=1e-12)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low), rel=1e-12)


def test_the_interval_is_a_function_of_samples_and_seed_and_grows_with_confidence() -> None:
    a, b = _measured(_noisy(_MS, 1), _noisy(_MS, 2))
    assert speedup(a, b) == speedup(a, b)
    assert speedup(a, b, seed=1) != speedup(a, b)
    narrow, wide = speedup(a, b, confidence=0.5), speedup(a, b, confidence=0.99)
    assert wide.low < narrow.low <= narrow.estimate <= narrow.high < wide.high


def test_unequal_rounds_and_too_few_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 rounds"):
        speedup(Latency((1, 1), block=1), Latency((1,), block=1))
    with pytest.raises(ValueError, match=r"100 resamples are too few for confidence 0\.99"):
        speedup(Latency((1,), block=1), Latency((1,), block=1), resamples=100)


def test_a_busy_machine_is_told_by_the_distance_of_usual_and_fastest_runs_of_an_input() -> None:
    quiet = Latency(tuple(range(1000, 1100)), block=1)
    busy = Latency((*[2 * _MS] * 10, *[5 * _MS] * 30), block=1)
    assert disturbance({"a": quiet, "b": quiet}) is None
    assert disturbance({"a": quiet, "int8": busy}) == (
        "The machine was busy: runs of int8 (p50 5.000 ms) mostly took 2.5 times as long as the fastest of the same "
        "input (limit 1.5). Stop other work on this machine and measure again."
    )
    assert disturbance({"int8": busy}, limit_ratio=2.5) is None
    lengths = Latency((_MS, 4 * _MS, 9 * _MS) * 20, block=3)  # short and long texts in turns
    assert disturbance({"texts": lengths}) is None
