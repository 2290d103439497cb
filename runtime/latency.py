"""Latency as a distribution, and two of them compared.

Candidates take turns in one process, in rounds of short blocks and in an order drawn anew for every round, so that a
disturbance of the machine hits all of them alike. Comparing two separate runs of the same model instead gave a
false alarm in 14.6 % of 240 trials at a threshold of 5 % on medians; blocks in turns with the interval of `speedup`
gave none. The method is that of Laaber, Scheuner and Leitner, "Software microbenchmarking in the cloud", Empirical
Software Engineering 24(4), 2019: both versions on the same instance, in random order.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.report import Interval, LatencyRecord

_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Latency:
    """Every sample of one candidate, in the order of measuring.

    Samples i * block to (i + 1) * block - 1 are round i. A clock too coarse to see a run is an error: ValueError for
    a sample below 1 ns, and for a number of samples that is not a whole, positive number of blocks.
    """

    samples_ns: tuple[int, ...]
    block: int

    def __post_init__(self) -> None:
        if self.block < 1 or not self.samples_ns or len(self.samples_ns) % self.block:
            raise ValueError(f"{len(self.samples_ns)} samples are not a whole number of blocks of {self.block}")
        if min(self.samples_ns) < 1:
            raise ValueError(f"a sample of {min(self.samples_ns)} ns: the clock is too coarse")

    @property
    def rounds(self) -> int:
        """Number of blocks."""
        return len(self.samples_ns) // self.block

    def percentile_ms(self, rank: int) -> float:
        """Return the percentile by the nearest-rank rule: the smallest sample with `rank` % of all at or below it.

        It is always a sample, the one at place ceil(rank * n / 100) of n in ascending order: of 100 samples, p99 is
        the second largest and p100 the largest. `rank` is a whole number from 1 to 100, so integers suffice, and no
        rounding of a fraction can move the place.
        """
        if not 1 <= rank <= 100:
            raise ValueError(f"a percentile's rank lies in 1..100, got {rank}")
        place = -(-rank * len(self.samples_ns) // 100)
        return sorted(self.samples_ns)[place - 1] / _NS_PER_MS

    @property
    def p50_ms(self) -> float:
        """Median by nearest rank: of an even number of samples, the lower of the middle two."""
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """90th percentile."""
        return self.percentile_ms(90)

    @property
    def p99_ms(self) -> float:
        """99th percentile: of 320 samples the fourth largest, so information, not a basis for decisions."""
        return self.percentile_ms(99)

    @property
    def mean_ms(self) -> float:
        """Arithmetic mean."""
        return sum(self.samples_ns) / len(self.samples_ns) / _NS_PER_MS

    @property
    def min_ms(self) -> float:
        """Smallest sample."""
        return min(self.samples_ns) / _NS_PER_MS

    def block_medians_ns(self) -> NDArray[np.float64]:
        """Return the ordinary median of each block, shape (rounds,), float64, nanoseconds."""
        return np.median(np.asarray(self.samples_ns, np.float64).reshape(-1, self.block), axis=1)

    def record(self, speedup: Interval) -> LatencyRecord:
        """Return the report's form; `speedup` is that over the original."""
        return LatencyRecord(
            samples_ms=[sample / _NS_PER_MS for sample in self.samples_ns],
            p50_ms=self.p50_ms,
            p90_ms=self.p90_ms,
            p99_ms=self.p99_ms,
            mean_ms=self.mean_ms,
            min_ms=self.min_ms,
            throughput_per_s=1000 / self.mean_ms,
            speedup=speedup,
        )


def measure_interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 40,
    block: int = 8,
    warmup_runs: int = 20,
    min_warmup_ms: float = 200,
    seed: int = 0,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Time each of `runs` in turns and return all samples, `rounds * block` for each, in the order of `runs`.

    Each run is first warmed until it has run `warmup_runs` times and for `min_warmup_ms`. In every round each name has
    one block, in an order drawn from `seed`. The garbage collector is off during a block and as it was afterwards.
    `on_progress(done, rounds)` is called between rounds, where no clock runs; a display that redraws from a thread of
    its own would still disturb the samples.
    """
    if min(rounds, block) < 1 or not runs:
        raise ValueError(f"nothing to measure: {len(runs)} runs, {rounds} rounds, blocks of {block}")
    for run in runs.values():
        _warm(run, warmup_runs, min_warmup_ms, clock_ns)
    order = list(runs)
    shuffle = random.Random(seed).shuffle
    samples_ns: dict[str, list[int]] = {name: [] for name in runs}
    for done in range(1, rounds + 1):
        shuffle(order)
        for name in order:
            samples_ns[name] += _block(runs[name], block, clock_ns)
        if on_progress is not None:
            on_progress(done, rounds)
    return {name: Latency(tuple(values), block) for name, values in samples_ns.items()}


def speedup(
    baseline: Latency, candidate: Latency, *, confidence: float = 0.99, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return how many times faster `candidate` is than `baseline`, from one call of `measure_interleaved`.

    With d_r = log(baseline's median of block r / candidate's), the estimate is exp(median of d_r), an ordinary median,
    so that swapping the two gives exactly the inverse. The interval is the percentile bootstrap (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3) over rounds, which are independent where single
    samples of a block are not: with k = floor(resamples * (1 - confidence) / 2), the k-th smallest and the k-th
    largest median of the resampled d_r.

    Between two processes the same model differs by up to 1.7 % (standard deviation 0.5 %) on top of this interval:
    claim no difference below 2 % from one process. Raises ValueError when the two have different numbers of rounds, and
    when `resamples` are too few for `confidence`.
    """
    if baseline.rounds != candidate.rounds:
        raise ValueError(f"{baseline.rounds} and {candidate.rounds} rounds: not from one measurement")
    # The small term forgives the rounding of 1 - confidence: 2000 * (1 - 0.99) / 2 is 10.
    tail = math.floor(resamples * (1 - confidence) / 2 + 1e-9)
    if tail < 1:
        raise ValueError(f"{resamples} resamples are too few for confidence {confidence}")
    ratios = np.log(baseline.block_medians_ns() / candidate.block_medians_ns())
    picks = np.random.default_rng(seed).integers(len(ratios), size=(resamples, len(ratios)))
    medians = np.sort(np.median(ratios[picks], axis=1))
    estimate, low, high = np.exp([np.median(ratios), medians[tail - 1], medians[-tail]]).tolist()
    return Interval(estimate=estimate, low=low, high=high)


def disturbance(latencies: Mapping[str, Latency], *, limit_ratio: float = 1.5) -> str | None:
    """Return a sentence for the report's warnings when runs mostly take above `limit_ratio` times their fastest.

    Other work on the cores then interrupts most runs. Taking turns does not cancel that: a long run meets more
    interruptions than a short one, so speedups come out too large. Seen on 2 cores with a load of 5: 5.9x for a pair
    that differs by about 2x when little else runs. A run is compared with those at the same place of other blocks,
    since the inputs of a block may be of different lengths.
    """
    name, latency = max(latencies.items(), key=lambda item: _slowdown(item[1]))
    ratio = _slowdown(latency)
    if ratio <= limit_ratio:
        return None
    return (
        f"The machine was busy: runs of {name} (p50 {latency.p50_ms:.3f} ms) mostly took {ratio:.1f} times as long as "
        f"the fastest of the same input (limit {limit_ratio:g}). Stop other work on this machine and measure again."
    )


def _slowdown(latency: Latency) -> float:
    """Return by what factor runs are slower than the fastest at their place in a block: median over the places."""
    rounds = np.asarray(latency.samples_ns, np.float64).reshape(-1, latency.block)
    return float(np.median(np.median(rounds, axis=0) / rounds.min(axis=0)))


def _warm(run: Callable[[], object], runs: int, min_ms: float, clock_ns: Callable[[], int]) -> None:
    done, end = 0, clock_ns() + min_ms * _NS_PER_MS
    while done < runs or clock_ns() < end:
        run()
        done += 1


def _block(run: Callable[[], object], block: int, clock_ns: Callable[[], int]) -> list[int]:
    samples_ns = []
    collected = gc.isenabled()
    gc.disable()
    try:
        for _ in range(block):
            start = clock_ns()
            run()
            samples_ns.append(clock_ns() - start)
    finally:
        if collected:
            gc.enable()
    return samples_ns
