"""One model in a process of its own, run in blocks when asked: `python -m tlc.runtime.worker`.

Requests come as JSON objects, one a line, on stdin; each is answered by one on what was stdout, which belongs to nobody
else: whatever a library prints goes to stderr. The first request says what to open (`Request`), every other has a key
`do`: `warm`, `block`, `run_for`, `profile`. The process ends with its stdin. `tlc.runtime.process` is the other side.
"""

import gc
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tlc.runtime.errors import TlcError
from tlc.runtime.memory import own_peak_bytes, resident_bytes
from tlc.runtime.session import Session, assumed_sizes, sample_feeds
from tlc.runtime.sessions import import_runtime, open_session
from tlc.runtime.target import Target

WARM_MS = 200
WARM_RUNS = 20
WARM_LONGEST_MS = 1000
STABLE_RATIO = 0.02
"""Two windows of `WARM_RUNS` runs whose medians differ by less are a stable model."""
BLOCK_RUNS = 8
BLOCK_SHORTEST_MS = 4
BLOCK_LONGEST_MS = 200
"""A block has `BLOCK_RUNS` runs, more where those take less than the one, fewer where more than the other."""
LEAD_IN_LONGEST_MS = 50
"""A block begins with an untimed run, which brings code and weights back into the caches, unless runs are longer."""
_WATCH_S = 0.1
_ANSWERING = threading.Lock()
_OUT_OF_MEMORY = re.compile(r"allocate memory|bad[_ ]alloc|out of memory|std::length_error", re.IGNORECASE)

Feeds = dict[str, NDArray[Any]]


class Request(BaseModel):
    """What to open, and how to feed it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    target: Target | None
    threads: int
    streams: int
    batch: int
    sizes: dict[str, int]
    shapes: dict[str, list[int]]
    feeds: Path | None
    options: dict[str, Any]
    memory_bytes: int | None = None
    """Resident memory at which this process gives up by itself; None: whoever started it watches."""


Profile = Callable[[Request, Feeds, int], list[dict[str, Any]]]


def open_model(request: Request) -> Session:
    """Open the file in the target's runtime."""
    return open_session(request.path, request.target, threads=request.threads)


def import_for(request: Request) -> None:
    """Import what `open_model` will need, so that a model's memory is counted without it."""
    import_runtime(request.path, request.target)


def profile(request: Request, feeds: Feeds, runs: int) -> list[dict[str, Any]]:
    """Return the time of each layer, as the runtime says."""
    from tlc.runtime.profile import layer_times

    layers = layer_times(request.path, request.target, threads=request.threads, feeds=feeds, runs=runs)
    return [layer.model_dump() for layer in layers]


def serve(
    open_model: Callable[[Request], Session] = open_model,
    import_for: Callable[[Request], None] = import_for,
    profile: Profile = profile,
) -> int:
    """Answer requests until stdin ends; the model is opened by `open_model`. Returns the exit status."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _die_with_parent()
    try:
        first = sys.stdin.readline()
        if not first:
            return 0
        request = Request.model_validate_json(first)
        if request.memory_bytes is not None:
            watch = threading.Thread(target=_watch, args=(request.memory_bytes, answers), daemon=True)
            watch.start()
        import_for(request)
        model = _Model(request, open_model)
        _answer(answers, model.opened)
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["do"] == "warm":
                _answer(answers, model.warm())
            elif asked["do"] == "block":
                _answer(answers, model.block(asked["runs"], lead_in=asked["lead_in"]))
            elif asked["do"] == "run_for":
                _answer(answers, model.run_for(asked["seconds"]))
            elif asked["do"] == "profile":
                _answer(answers, {"layers": profile(request, model.feeds[0], asked["runs"])})
            else:
                raise ValueError(f"unknown request {asked['do']!r}")
    except TlcError as error:
        status = "out_of_memory" if _OUT_OF_MEMORY.search(error.message) else "failed"
        _answer(answers, {"status": status, "error": error.message, "hint": error.hint})
    except MemoryError:
        _answer(answers, {"status": "out_of_memory", "error": "memory ran out", "hint": ""})
    except Exception as error:
        traceback.print_exc()
        status = "out_of_memory" if _OUT_OF_MEMORY.search(str(error)) else "failed"
        _answer(answers, {"status": status, "error": f"{type(error).__name__}: {error}", "hint": ""})
    return 0


class _Model:
    """The sessions of one model, one per stream, with their feeds."""

    def __init__(self, request: Request, open_model: Callable[[Request], Session]) -> None:
        empty_bytes, empty_peak_bytes = resident_bytes(), own_peak_bytes()
        start = time.perf_counter_ns()
        self._sessions = [open_model(request)]
        load_ns = time.perf_counter_ns() - start
        self._sessions += [open_model(request) for _ in range(request.streams - 1)]
        loaded_bytes = resident_bytes()
        self.feeds = _feeds(request, self._sessions[0])
        self._turn = 0
        start = time.perf_counter_ns()
        self._sessions[0].run(self.feeds[0])
        first_ns = time.perf_counter_ns() - start
        for session in self._sessions[1:]:
            session.run(self.feeds[0])
        self.opened = {
            "load_ns": load_ns,
            "first_ns": first_ns,
            "empty_bytes": empty_bytes,
            "empty_peak_bytes": empty_peak_bytes,
            "loaded_bytes": loaded_bytes,
            "runtime": self._sessions[0].runtime,
            "shapes": {name: list(array.shape) for name, array in self.feeds[0].items()},
            "assumed": [] if request.feeds else assumed_sizes(self._sessions[0].inputs, request.sizes, request.shapes),
            "overhead_ns": _overhead_ns(),
        }

    def warm(self) -> dict[str, Any]:
        """Run until the time of a run no longer changes; say how many runs make a block."""
        run = self._runs(self._sessions[0])
        samples_ns: list[int] = []
        start = time.perf_counter_ns()
        while True:
            samples_ns += _timed(run, 1)
            past_ms = (time.perf_counter_ns() - start) / 1e6
            stable = _stable(samples_ns)
            enough = len(samples_ns) >= 2 * WARM_RUNS and past_ms >= WARM_MS and stable
            if enough or (past_ms >= WARM_LONGEST_MS and len(samples_ns) >= 2):
                break
        p50_ms = float(np.median(samples_ns[-WARM_RUNS:])) / 1e6
        block = block_runs(p50_ms, len(self.feeds))
        lead_in = p50_ms <= LEAD_IN_LONGEST_MS
        return {"runs": len(samples_ns), "stable": stable, "block": block, "lead_in": lead_in}

    def block(self, runs: int, *, lead_in: bool) -> dict[str, Any]:
        """Time `runs` runs on every stream at once, feeds in turns from the first on."""
        samples_ns: list[list[int]] = [[] for _ in self._sessions]
        loops = [self._runs(session) for session in self._sessions]
        if lead_in:
            for session in self._sessions:
                session.run(self.feeds[-1])
        cpu_ns, start = time.process_time_ns(), time.perf_counter_ns()
        if len(loops) == 1:
            samples_ns[0] = _timed(loops[0], runs)
        else:
            _at_once(loops, runs, samples_ns)
        wall_ns = time.perf_counter_ns() - start
        cpu_ns = time.process_time_ns() - cpu_ns
        flat = [sample for own in samples_ns for sample in own]
        return {"samples_ns": flat, "wall_ns": wall_ns, "cpu_ns": cpu_ns, **_memory()}

    def run_for(self, seconds: float) -> dict[str, Any]:
        """Run on one stream for some seconds, in which a counter of energy is read outside."""
        run = self._runs(self._sessions[0])
        start = time.perf_counter_ns()
        runs = 0
        while time.perf_counter_ns() - start < seconds * 1e9:
            run()
            runs += 1
        return {"runs": runs, "seconds": (time.perf_counter_ns() - start) / 1e9}

    def _runs(self, session: Session) -> Callable[[], object]:
        """Return a call that runs the feeds in turns, from the first on."""
        if len(self.feeds) == 1:
            feeds, run = self.feeds[0], session.run
            return lambda: run(feeds)
        turns = iter(_forever(self.feeds))
        return lambda: session.run(next(turns))


def block_runs(p50_ms: float, feeds: int) -> int:
    """Return how many runs of `p50_ms` make a block: a multiple of the number of feeds, so that each has its place."""
    fewest = max(1, min(BLOCK_RUNS, int(BLOCK_LONGEST_MS / p50_ms)))
    runs = max(fewest, int(np.ceil(BLOCK_SHORTEST_MS / p50_ms)))
    return -(-runs // feeds) * feeds


def _forever(feeds: Sequence[Feeds]) -> Any:
    while True:
        yield from feeds


def _feeds(request: Request, session: Session) -> list[Feeds]:
    if request.feeds is None:
        feeds = sample_feeds(session.inputs, batch=request.batch, sizes=request.sizes, shapes=request.shapes)
        return [feeds]
    names = {spec.name for spec in session.inputs}
    return [{name: feeds[name] for name in feeds if name in names} for feeds in read_feeds(request.feeds)]


def write_feeds(path: Path, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Write inputs as a `Case` takes them: an .npz with the keys "0/NAME", "1/NAME" and so on."""
    arrays = {f"{place}/{name}": array for place, one in enumerate(feeds) for name, array in one.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub takes `allow_pickle` for one of them


def read_feeds(path: Path) -> list[Feeds]:
    """Return what `write_feeds` wrote; keys without a number are one sample. Raises TlcError for another file."""
    found: dict[int, Feeds] = {}
    try:
        with np.load(path) as arrays:
            for key in arrays.files:
                place, _, name = key.partition("/") if re.match(r"\d+/", key) else ("0", "", key)
                found.setdefault(int(place), {})[name] = arrays[key]
    except (OSError, ValueError) as error:
        raise TlcError(
            f"{path} does not hold inputs: {error}",
            hint='Write them with numpy.savez(path, **{"0/NAME": array, "1/NAME": array, ...}).',
        ) from error
    return [found[place] for place in sorted(found)]


def _timed(run: Callable[[], object], runs: int) -> list[int]:
    """Return the time of each run, ns; the garbage collector is off meanwhile."""
    clock_ns, samples_ns = time.perf_counter_ns, []
    gc.disable()
    try:
        for _ in range(runs):
            start = clock_ns()
            run()
            samples_ns.append(clock_ns() - start)
    finally:
        gc.enable()
    return samples_ns


def _at_once(loops: Sequence[Callable[[], object]], runs: int, samples_ns: list[list[int]]) -> None:
    """Time all loops at once, a thread each; an error in one of them is raised here."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(loops))

    def work(place: int) -> None:
        try:
            barrier.wait()
            samples_ns[place] = _timed(loops[place], runs)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(loops))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _overhead_ns() -> int:
    """Return what timing adds to a sample: median time of a call that does nothing."""
    feeds: Mapping[str, object] = {}
    nothing: Callable[[Mapping[str, object]], None] = lambda _feeds: None  # noqa: E731 - a call as deep as a run's
    return int(np.median(_timed(lambda: nothing(feeds), 1000)))


def _stable(samples_ns: Sequence[int]) -> bool:
    """Whether the medians of the last two windows agree."""
    if len(samples_ns) < 2 * WARM_RUNS:
        return False
    before, after = np.median(np.reshape(samples_ns[-2 * WARM_RUNS :], (2, WARM_RUNS)), axis=1)
    return bool(abs(after - before) < STABLE_RATIO * before)


def _memory() -> dict[str, Any]:
    return {"resident_bytes": resident_bytes(), "peak_bytes": own_peak_bytes()}


def _answer(answers: IO[str], answer: Mapping[str, Any]) -> None:
    with _ANSWERING:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _watch(limit_bytes: int, answers: IO[str]) -> None:
    """End this process, with an answer, once it holds more than it may."""
    while (held := resident_bytes()) <= limit_bytes:
        time.sleep(_WATCH_S)
    error = f"it took {held / 1e6:,.0f} MB of memory, the limit is {limit_bytes / 1e6:,.0f} MB"
    hint = "Allow more, free some, or run a smaller batch."
    _answer(answers, {"status": "out_of_memory", "error": error, "hint": hint})
    os._exit(0)  # whatever the model is doing


def _die_with_parent() -> None:
    """Let the kernel end this process with its parent, and end this one first when memory runs out (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
    with suppress(OSError):  # no /proc in this container
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # proc(5): raising it is always allowed


if __name__ == "__main__":
    sys.exit(serve())
