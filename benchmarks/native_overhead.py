"""How far tlc-run's latency is from that of Python, for the same file in the same ONNX Runtime.

    make native
    OMP_NUM_THREADS=1 python benchmarks/native_overhead.py --table benchmarks/results/native_overhead.md [MODEL ...]

`tlc-run worker`, `tlc.runtime.worker` and a bare Python loop (`bare_worker.py`) run every file on one thread, a process
each, in turns block by block. A ratio is the median of paired blocks, with 99 % bounds over launches and blocks: below
1, tlc-run is the faster. A difference between two processes of the same program is in it, 0.5 % (standard deviation)
each, and averages out over launches. Without MODEL, networks of 3x3 convolutions of about 0.1, 1 and 10 ms.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from gate_networks import Network, write_network

from tlc.runtime.artifact import write_text
from tlc.runtime.bench_report import NS_PER_MS, Launch
from tlc.runtime.environment import environment
from tlc.runtime.launch import launch
from tlc.runtime.process import Case
from tlc.runtime.statistics import ratio_interval

NETWORK, LAYERS = Network(32, 16), (3, 30, 300)
WORKERS = {"bare": "bare_worker", "tlc": "tlc.runtime.worker", "tlc-run": "native_worker"}
GOAL = 1.02
HERE = Path(__file__).parent


def measured(path: Path, launches: int, rounds: int) -> dict[str, list[Launch]]:
    """Return the launches of each worker, which ran in turns."""
    found: dict[str, list[Launch]] = {name: [] for name in WORKERS}
    cases = [Case(name, path, worker=worker) for name, worker in WORKERS.items()]
    for number in range(launches):
        for name, one in launch(cases, rounds=rounds, seed=number).items():
            if not isinstance(one, Launch):
                raise SystemExit(f"{name}: {one.problem}")
            found[name].append(one)
        print(f"{path.name}: launch {number + 1} of {launches}", file=sys.stderr, flush=True)
    return found


def row(path: Path, found: dict[str, list[Launch]]) -> str:
    """Return a line of the table."""
    p50_ms = {
        name: np.median(np.concatenate([one.samples_ns for one in own])) / NS_PER_MS for name, own in found.items()
    }
    ratios = [ratio_interval(found[name], found["tlc-run"]) for name in ("tlc", "bare")]
    peak_mb = {name: np.median([one.memory.peak_bytes for one in found[name]]) / 1e6 for name in ("tlc", "tlc-run")}
    return " | ".join(
        (
            f"| {path.stem}",
            *(f"{p50_ms[name]:.4f}" for name in WORKERS),
            *(f"{ratio.estimate:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]" for ratio in ratios),
            f"{peak_mb['tlc']:.1f}",
            f"{peak_mb['tlc-run']:.1f}",
            "yes |" if ratios[0].high <= GOAL else "no |",
        )
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--launches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--runner", type=Path, default=HERE.parent / "build" / "native" / "tlc-run")
    parser.add_argument("--table", type=Path, help="Markdown file to write; printed in any case")
    options = parser.parse_args()
    if not options.runner.is_file():
        raise SystemExit(f"{options.runner} is not built: run `make native`, or name one with --runner")
    os.environ["TLC_RUN"] = str(options.runner.resolve())
    os.environ["PYTHONPATH"] = str(HERE)  # where the workers find bare_worker and native_worker
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*")
    os.environ.setdefault("TLC_ORT_LIB", str(library))
    with tempfile.TemporaryDirectory() as folder:
        models = options.models
        for layers in () if models else LAYERS:
            path = Path(folder) / f"{layers} layers.onnx"
            write_network(NETWORK, layers, path)
            models = [*models, path]
        rows = [row(path, measured(path, options.launches, options.rounds)) for path in models]
    facts = environment()
    page = "\n".join(
        (
            "# tlc-run beside Python\n",
            f"Written by `benchmarks/native_overhead.py`, which says how: {options.launches} launches of "
            f"{options.rounds} rounds. Machine: {facts['usable_cores']} cores of {facts['cpu_model']}, onnxruntime "
            f"{facts['versions']['onnxruntime']}. p50 in ms; ratios of tlc-run to the others, with 99 % bounds; peak "
            "memory is what the model adds to the process.\n",
            "| model | bare loop | tlc | tlc-run | tlc-run / tlc | tlc-run / bare loop "
            f"| tlc, MB | tlc-run, MB | at most {GOAL:g} |",
            "|---|--:|--:|--:|--:|--:|--:|--:|---|",
            *rows,
            "",
        )
    )
    print(page)
    if options.table is not None:
        write_text(options.table, page)


if __name__ == "__main__":
    main()
