"""One launch: a process for each model, blocks of runs in turns, in an order drawn anew for every round.

A disturbance of the machine hits all models alike, so ratios of paired blocks hold where two separate runs of the same
model differ by 7 % (standard deviation). The method is that of Laaber, Scheuner and Leitner, "Software
microbenchmarking in the cloud", Empirical Software Engineering 24(4), 2019: both versions on the same instance, in
random order. Several launches count what differs between two processes of the same model, up to 1.7 %.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ParamSpec

import numpy as np

from tlc.runtime.bench_report import NS_PER_MS, Launch, Memory, Setting
from tlc.runtime.errors import TlcError
from tlc.runtime.host import LOCAL, Host
from tlc.runtime.process import Case, Failure, Limits, Worker, WorkerError
from tlc.runtime.remote import Dropped

_MEMORY_RUNS = 5
_SEGMENTS = 10

P = ParamSpec("P")
OnProgress = Callable[[int, int], None]


def launch(
    cases: Sequence[Case],
    *,
    rounds: int | None = None,
    duration_s: float | None = None,
    seed: int,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    on_progress: OnProgress | None = None,
    after: Callable[[str, Worker], None] | None = None,
    host: Host = LOCAL,
) -> dict[str, Launch | Failure]:
    """Start a process for each of `cases`, run them in turns, and return what each found, by its name.

    They load and warm up one after the other. Then come `rounds` rounds, or as many as give each `duration_s` of timed
    runs; in each, every case has one block, in an order drawn from `seed`. A case that fails is left out from then on.
    `on_progress(done, total)` is called between rounds, with rounds or milliseconds, and `after(name, worker)` when
    they are over, while the models are still loaded.

    The processes run on `host`. Where the connection to it breaks, everything is started and measured again, as often
    as the host allows; it raises Dropped then.
    """
    if (rounds is None) == (duration_s is None):
        raise ValueError("give rounds or duration_s, one of the two")
    total = rounds if rounds is not None else round(1000 * (duration_s or 0))
    while True:
        runs = [_Run(case) for case in cases]
        try:
            _take_turns(runs, host, limits, total, seed, on_progress, after, by_rounds=rounds is not None)
        except Dropped as error:
            host.again(error)
            continue
        return {run.case.name: run.failure or run.launch() for run in runs}


def _take_turns(
    runs: "Sequence[_Run]",
    host: Host,
    limits: Limits,
    total: int,
    seed: int,
    on_progress: OnProgress | None,
    after: Callable[[str, Worker], None] | None,
    *,
    by_rounds: bool,
) -> None:
    """Run all processes of a launch, to `total` rounds or milliseconds; `runs` hold what was found."""
    with ExitStack() as stack:
        for run in runs:
            run.attempt(run.open, stack, limits, host)
        for run in runs:
            run.attempt(run.warm)
        order = list(runs)
        shuffle = random.Random(seed).shuffle
        done = 0
        while done < total and any(run.failure is None for run in runs):
            shuffle(order)
            for run in order:
                run.attempt(run.block)
            well_ms = [run.timed_ms for run in runs if run.failure is None]
            done = done + 1 if by_rounds else min(well_ms, default=total)
            if on_progress is not None:
                on_progress(min(done, total), total)
        for run in runs:
            run.attempt(run.end, after)


def peak_memory_bytes(case: Case, *, limits: Limits = Limits()) -> int:  # noqa: B008 - frozen
    """Return the peak resident memory that loading a model and running it five times adds to an empty process.

    The process is fresh and has imported the runtime. The peak includes what loading needs for a moment, and the pages
    of the runtime's library that only a session touches; it does not include memory of a GPU of its own.
    Raises TlcError when the model cannot be loaded or run, and when the system killed it.
    """
    try:
        with Worker(case, limits) as worker:
            peak_bytes: int = worker.ask("block", runs=_MEMORY_RUNS, lead_in=False)["peak_bytes"]
            return peak_bytes - int(worker.opened["empty_bytes"])
    except WorkerError as error:
        raise TlcError(f"{case.path}: {error.failure.problem}", hint=_STATUS_HINTS[error.failure.status]) from None


_STATUS_HINTS = {
    "failed": "Check the file with `tlc bench`.",
    "crashed": "The runtime itself crashed: try another version of it, or another target.",
    "hung": "Measure it with a longer --timeout.",
    "out_of_memory": "Measure on a machine with more memory.",
}


class _Run:
    """One case on its way through a launch."""

    worker: Worker
    warmed: dict[str, Any]

    def __init__(self, case: Case) -> None:
        self.case = case
        self.failure: Failure | None = None
        self.blocks: list[dict[str, Any]] = []
        self.device_bytes: int | None = None

    def attempt(self, step: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Take one step, unless an earlier one failed; keep the failure if this one does."""
        if self.failure is None:
            try:
                step(*args, **kwargs)
            except WorkerError as error:
                self.failure = error.failure

    def open(self, stack: ExitStack, limits: Limits, host: Host) -> None:
        """Start the process, which loads the model and runs it once; it ends with `stack`."""
        self.worker = stack.enter_context(Worker(self.case, limits, host))

    def warm(self) -> None:
        """Run until the time of a run no longer changes."""
        self.warmed = self.worker.ask("warm")

    def block(self) -> None:
        """Time one block."""
        self.blocks.append(self.worker.ask("block", runs=self.warmed["block"], lead_in=self.warmed["lead_in"]))

    def end(self, after: Callable[[str, Worker], None] | None) -> None:
        """Take what is left while the model is loaded."""
        self.device_bytes = self.worker.device_memory_bytes()
        if after is not None:
            after(self.case.name, self.worker)

    @property
    def timed_ms(self) -> int:
        """Wall time of all blocks."""
        return int(sum(block["wall_ns"] for block in self.blocks)) // NS_PER_MS

    def launch(self) -> Launch:
        """Return what the process found."""
        opened = self.worker.opened
        wall_ns = sum(block["wall_ns"] for block in self.blocks)
        loaded_bytes = opened["loaded_bytes"] - opened["empty_bytes"]
        peak_bytes = self.blocks[-1]["peak_bytes"] - opened["empty_bytes"]
        resident = [block["resident_bytes"] for block in self.blocks]
        runs = self.warmed["block"] * self.case.streams
        return Launch(
            load_ms=opened["load_ns"] / NS_PER_MS,
            first_ms=opened["first_ns"] / NS_PER_MS,
            warmup_runs=self.warmed["runs"],
            warmup_stable=self.warmed["stable"],
            block=runs,
            samples_ns=[sample for block in self.blocks for sample in block["samples_ns"]],
            wall_ns=wall_ns,
            runtime=opened["runtime"],
            setting=Setting(
                batch=next(iter(opened["shapes"].values()), [1])[0] if opened["shapes"] else 1,
                threads=self.case.threads,
                streams=self.case.streams,
                shapes=opened["shapes"],
                assumed=opened["assumed"],
            ),
            cpu_ratio=sum(block["cpu_ns"] for block in self.blocks) / wall_ns,
            overhead_ns=opened["overhead_ns"],
            memory=Memory(
                loaded_bytes=loaded_bytes,
                run_bytes=max(0, max(resident) - opened["loaded_bytes"]),
                peak_bytes=peak_bytes,
                growth_bytes_per_run=growth_bytes(resident) / (runs + self.warmed["lead_in"]),
                device_bytes=self.device_bytes,
            ),
        )


def growth_bytes(resident_bytes: Sequence[int]) -> float:
    """Return the growth of resident memory per block: the median over ten segments, each taken at its least.

    A single step, such as a buffer that a longer input asks for, does not count; what every run adds does.
    """
    if len(resident_bytes) < 2 * _SEGMENTS:
        return 0.0
    segments = np.array_split(np.asarray(resident_bytes, np.float64), _SEGMENTS)
    least = np.array([segment.min() for segment in segments])
    return float(np.median(np.diff(least))) * _SEGMENTS / len(resident_bytes)
