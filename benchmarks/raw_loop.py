"""A bare loop around ONNX Runtime, nothing of tlc: what other measurements are compared with.

    python benchmarks/raw_loop.py --seconds 3 MODEL.onnx [MODEL.onnx ...]

Loads every model as onnxruntime_perf_test does with `-x 1 -y 1 -o 99 -I`: one thread, all optimisations, operators one
after the other, random inputs (open dimensions are 1, integers 0, masks 1). One untimed run each, then runs for so many
seconds: of one model without a pause, of several in turns of 8 runs, in random order. Prints one JSON list with the
latencies of each model in nanoseconds, in the order of measuring.
"""

import argparse
import json
import random
import sys
import time
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

BLOCK = 8

Feeds = dict[str, NDArray[Any]]


def opened(path: str) -> tuple[onnxruntime.InferenceSession, Feeds]:
    """Return a session and random inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for given in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        if given.type == "tensor(float)":
            feeds[given.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[given.name] = np.full(shape, "mask" in given.name, np.int64)
    session.run(None, feeds)
    return session, feeds


def main() -> None:
    """Print the latencies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    models = [opened(path) for path in options.models]
    shuffle = random.Random(options.seed).shuffle
    order = list(range(len(models)))
    samples_ns: list[list[int]] = [[] for _ in models]
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        shuffle(order)
        for place in order:
            session, feeds = models[place]
            for _ in range(BLOCK):
                start = time.perf_counter_ns()
                session.run(None, feeds)
                samples_ns[place].append(time.perf_counter_ns() - start)
    json.dump(samples_ns, sys.stdout)


if __name__ == "__main__":
    main()
