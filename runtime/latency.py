"""Functions of this process timed in turns: what is not a file that a process of its own could load.

Everything else is measured by `tlc.runtime.bench`.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.statistics import nearest_rank

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

    @property
    def p50_ms(self) -> float:
        """Median by nearest rank: of an even number of samples, the lower of the middle two."""
        return nearest_rank(self.samples_ns, 50) / _NS_PER_MS

    def block_medians_ns(self) -> NDArray[np.float64]:
        """Return the ordinary median of each block, shape (rounds,), float64, nanoseconds."""
        return np.median(np.asarray(self.samples_ns, np.float64).reshape(-1, self.block), axis=1)


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
