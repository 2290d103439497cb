import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tlc.runtime.latency import Latency, measure_interleaved

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


@pytest.mark.parametrize(("samples", "block"), [((), 1), ((1, 2, 3), 2), ((1,), 0)])
def test_samples_that_are_no_whole_number_of_blocks_are_refused(samples: tuple[int, ...], block: int) -> None:
    with pytest.raises(ValueError, match="whole number of blocks"):
        Latency(samples, block)


def test_a_clock_that_sees_no_time_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="clock is too coarse"):
        Latency((5, 0), block=1)


def test_the_median_is_a_sample_and_of_an_even_number_the_lower_one() -> None:
    assert Latency(tuple(i * _MS for i in range(100, 0, -1)), block=10).p50_ms == 50


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
