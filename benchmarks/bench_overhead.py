"""What the harness adds to the latency of a model of about 1 ms.

    OMP_NUM_THREADS=1 python benchmarks/bench_overhead.py --table benchmarks/results/bench_overhead.md

`tlc.runtime.worker`, with its session, its checks of the inputs and its clock, and a bare loop around ONNX Runtime
(`bare_worker.py`) run the same file on one thread, a process each, in turns block by block. The ratio is the median of
paired blocks, with 99 % bounds over launches and blocks. A difference between two processes of the same program is in
it, 0.5 % (standard deviation) each, and averages out over launches.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from gate_networks import Network, write_network

from tlc.runtime.artifact import write_text
from tlc.runtime.bench_report import NS_PER_MS, Launch
from tlc.runtime.environment import environment
from tlc.runtime.launch import launch
from tlc.runtime.process import Case
from tlc.runtime.statistics import ratio_interval

NETWORK, LAYERS = Network(32, 16), 40


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--table", type=Path, help="Markdown file to write; printed in any case")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where the workers find bare_worker
    found: dict[str, list[Launch]] = {"bare": [], "tlc": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_network(NETWORK, LAYERS, path)
        cases = [Case("bare", path, worker="bare_worker"), Case("tlc", path)]
        for number in range(options.launches):
            for name, one in launch(cases, rounds=options.rounds, seed=number).items():
                if not isinstance(one, Launch):
                    raise SystemExit(f"{name}: {one.problem}")
                found[name].append(one)
            print(f"launch {number + 1} of {options.launches}", file=sys.stderr, flush=True)
    ratio = ratio_interval(found["bare"], found["tlc"])
    p50_ms = {name: np.median([one.samples_ns for one in own]) / NS_PER_MS for name, own in found.items()}
    said_ns = np.median([one.overhead_ns for one in found["tlc"]])
    facts = environment()
    page = "\n".join(
        (
            "# What the harness adds\n",
            f"Written by `benchmarks/bench_overhead.py`, which says how: {options.launches} launches of "
            f"{options.rounds} rounds. Machine: {facts['usable_cores']} cores of {facts['cpu_model']}, onnxruntime "
            f"{facts['versions']['onnxruntime']}.\n",
            "| p50 of a bare loop, ms | p50 of tlc's worker, ms | ratio, 99 % | a call that does nothing, ns |",
            "|--:|--:|--:|--:|",
            f"| {p50_ms['bare']:.4f} | {p50_ms['tlc']:.4f} "
            f"| {ratio.estimate:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] | {said_ns:.0f} |",
            "",
        )
    )
    print(page)
    if options.table is not None:
        write_text(options.table, page)


if __name__ == "__main__":
    main()
