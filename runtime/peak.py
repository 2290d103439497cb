"""What the cores of this machine reach at best: products in float32 and INT8, and traffic with memory.

`python -m tlc.runtime.peak --threads N` measures in this process and prints one JSON object to stdout; `measure_peaks`
starts it and reads the answer, so that neither memory nor threads of the caller matter.

Products are matrix products in ONNX Runtime, whose kernels run the models too: (M, K) by a constant (K, N), which is
packed when the session opens. The graphs lie beside this module (`benchmarks/peak_graphs.py` writes them); their
weights are handed over at run time. Memory is read (the largest value of an array, as weights are) and copied (the Copy
of STREAM: McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers", IEEE TCCA Newsletter,
1995); STREAM's Triad would be two passes in numpy. The best of all repetitions counts, as in STREAM.
"""

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.bench_report import Peaks
from tlc.runtime.errors import TlcError, UsageError

_MODULE = "tlc.runtime.peak"  # not __name__, which is __main__ in the child
WEIGHT_SHAPE = (2048, 256)
"""(K, N): long sums, so that little is written; 0.5 MB as INT8, which fits the second cache of a server's core."""
ROWS = (256, 1024)
"""M: the fewer rows suit a single core, the more many of them."""
_TYPES: dict[str, tuple[Any, Any]] = {"fp32": (np.float32, np.float32), "int8": (np.uint8, np.int8)}
_FEWEST_REPEATS = 5
_CACHES = 4
"""Arrays take this many times the last-level caches together."""
_LEAST_BYTES = 256 * 2**20
_LONGEST_S = 300.0


def measure_peaks(threads: int, *, seconds: float = 0.4) -> Peaks:
    """Return what `threads` cores reach, measured in a process of its own for some eight times `seconds`.

    Arrays for memory are four times as large as the last-level caches together and at least 256 MiB, but take no more
    than a quarter of the memory that is available.

    Raises UsageError below one thread, and TlcError when the process fails or takes more than five minutes.
    """
    if threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}", hint="Give the number of cores to use.")
    command = [sys.executable, "-m", _MODULE, "--threads", str(threads), "--seconds", str(seconds)]
    # Safe path: a file in the working directory must not stand in for a module (Python 3.11 and later).
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        child = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, env=env, timeout=_LONGEST_S
        )
    except subprocess.TimeoutExpired:
        raise TlcError(
            f"measuring this machine's peaks took more than {_LONGEST_S:g} s",
            hint="Stop other work on this machine, or leave the roofline out.",
        ) from None
    if child.returncode:
        raise TlcError(
            f"the process that measures this machine's peaks {_end(child.returncode)}{_last_line(child.stderr)}",
            hint="SIGKILL mostly means that memory ran out: free some, or leave the roofline out.",
        )
    return Peaks.model_validate_json(child.stdout)


def products_per_s(name: str, threads: int, *, seconds: float) -> float:
    """Return operations a second, two for each multiply-accumulate, of the graph `name`: "fp32" or "int8"."""
    rng = np.random.default_rng(0)
    left, right = _TYPES[name]
    session = _session(name, threads, rng.integers(-127, 128, WEIGHT_SHAPE).astype(right))
    best = 0.0
    for rows in ROWS:
        feeds = {"x": rng.integers(0, 128, (rows, WEIGHT_SHAPE[0])).astype(left)}
        shortest_s = _shortest_s(partial(session.run, None, feeds), seconds)
        best = max(best, 2 * rows * math.prod(WEIGHT_SHAPE) / shortest_s)
    return best


def memory_bytes_per_s(threads: int, size_bytes: int, *, seconds: float) -> float:
    """Return bytes read and written a second by `threads` at once, on two arrays of `size_bytes` together."""
    length = size_bytes // (2 * threads * 4)
    # Each thread has pages of its own, which it touches first.
    with ThreadPoolExecutor(threads) as pool:
        arrays = list(pool.map(lambda _: np.ones((2, length), np.float32), range(threads)))
        reading_s = _shortest_s(lambda: list(pool.map(lambda pair: float(pair[0].max()), arrays)), seconds)
        copying_s = _shortest_s(lambda: list(pool.map(lambda pair: np.copyto(*pair), arrays)), seconds)
    one_bytes = length * threads * 4
    return max(one_bytes / reading_s, 2 * one_bytes / copying_s)


def array_bytes(root: Path = Path("/")) -> int:
    """Return how large the arrays together have to be, and may be; `root` is where proc/ and sys/ lie."""
    from tlc.runtime.environment import environment

    found = environment(root=root, libraries=())
    free: list[int] = [found[name] for name in ("memory_available_bytes", "memory_limit_bytes") if found.get(name)]
    return min(max(_CACHES * cache_bytes(root), _LEAST_BYTES), *(limit // 4 for limit in free), 2**36)


def cache_bytes(root: Path = Path("/")) -> int:
    """Return the size of all last-level caches together; 0 where the system does not tell."""
    sizes: dict[int, dict[str, int]] = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size, cores = (_text(index / name) for name in ("level", "size", "shared_cpu_list"))
        kib = re.fullmatch(r"(\d+)K", size)
        if kib and level.isdecimal():
            sizes.setdefault(int(level), {})[cores] = int(kib[1]) * 1024
    return sum(sizes[max(sizes)].values()) if sizes else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure in this process and print a `Peaks` as JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(arguments)
    threads, seconds = options.threads, options.seconds
    peaks = Peaks(
        threads=threads,
        fp32_per_s=products_per_s("fp32", threads, seconds=seconds),
        int8_per_s=products_per_s("int8", threads, seconds=seconds),
        bytes_per_s=memory_bytes_per_s(threads, array_bytes(), seconds=2 * seconds),
    )
    sys.stdout.write(peaks.model_dump_json() + "\n")
    return 0


def _session(name: str, threads: int, weight: NDArray[Any]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_external_initializers(["w"], [ort.OrtValue.ortvalue_from_numpy(weight)])
    graph = files("tlc.runtime").joinpath(f"peak_{name}.onnx").read_bytes()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _shortest_s(run: Callable[[], object], seconds: float) -> float:
    """Return the shortest of the runs that fit into `seconds`, at least five of them; one goes before."""
    run()
    return min(_times_s(run, seconds))


def _times_s(run: Callable[[], object], seconds: float) -> Iterator[float]:
    begin = time.perf_counter()
    done = 0
    while done < _FEWEST_REPEATS or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        yield time.perf_counter() - start
        done += 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _end(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"failed with status {returncode}"


def _last_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return f": {lines[-1]}" if lines else ""


if __name__ == "__main__":
    sys.exit(main())
