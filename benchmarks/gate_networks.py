"""What gate_trials.py tries the gate on: networks of equal layers, slower ones with more of them, and neighbours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tlc.runtime.artifact import write_text
from tlc.runtime.statistics import bootstrap_median

HERE = Path(__file__).parent
LAYERS = 80
SLOWDOWNS = (1.10, 1.05)
TRIED = 4
"""Layer counts measured for each slowdown; the first that is slow enough is taken."""
PROCESSES = 5
BLOCK = 8  # of raw_loop.py


@dataclass(frozen=True)
class Network:
    """Square inputs of `channels`, through 3x3 convolutions with ReLU that keep the shape."""

    channels: int
    side: int


NETWORKS = {"0.5 ms": Network(16, 12), "2 ms": Network(32, 16)}


def write_network(network: Network, layers: int, path: Path) -> None:
    """Write `layers` of the network; the first ones are the same whatever their number."""
    rng = np.random.default_rng(0)
    shape: list[str | int | None] = ["N", network.channels, network.side, network.side]
    nodes, weights, name = [], [], "x"
    scale = (2 / (9 * network.channels)) ** 0.5  # He et al. 2015: activations keep their size
    for layer in range(layers):
        weight = rng.standard_normal((network.channels, network.channels, 3, 3)) * scale
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        name = f"r{layer}"
    ends = [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, shape) for end in ("x", name)]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def raw_ratios(base: Path, others: list[Path], seconds: float) -> list[tuple[float, float, float]]:
    """Return the latency of each of `others` over that of `base` with 99 % bounds, from raw loops that run them all.

    Several processes, each running all models in turns for so many seconds; ratios of paired blocks.
    """
    groups: list[list[np.ndarray]] = [[] for _ in others]
    for seed in range(PROCESSES):
        options = ["--seconds", str(seconds), "--seed", str(seed)]
        command: list[str | Path] = [sys.executable, HERE / "raw_loop.py", *options, base, *others]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        blocks = [np.median(np.reshape(samples, (-1, BLOCK)), axis=1) for samples in found]
        for group, own in zip(groups, blocks[1:], strict=True):
            group.append(np.log(own / blocks[0]))
    return [tuple(np.exp(bootstrap_median(group)).tolist()) for group in groups]


def make_networks(folder: Path, seconds: float) -> dict[str, list[dict[str, float | str]]]:
    """Write each network as `SIZE.onnx`, an equal `SIZE-same.onnx`, and slower ones; return these by size.

    A slower one has the fewest further layers with which a raw loop takes at least the slowdown longer. What was found
    is kept in networks.json: a second call returns it.
    """
    record = folder / "networks.json"
    if record.exists():
        known: dict[str, list[dict[str, float | str]]] = json.loads(record.read_text())
        return known
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[dict[str, float | str]]] = {}
    for size, network in NETWORKS.items():
        base = folder / f"{size.replace(' ', '')}.onnx"
        write_network(network, LAYERS, base)
        write_network(network, LAYERS, base.with_stem(base.stem + "-same"))
        made[size] = []
        for slowdown in SLOWDOWNS:
            fewest = round(LAYERS * slowdown)
            tried = {layers: base.with_stem(f"{base.stem}-{layers}") for layers in range(fewest, fewest + TRIED)}
            for layers, path in tried.items():
                write_network(network, layers, path)
            found = zip(tried, raw_ratios(base, list(tried.values()), seconds), strict=True)
            enough = [(layers, ratio) for layers, ratio in found if ratio[0] >= slowdown]
            if not enough:
                raise SystemExit(f"{size}: {TRIED} layer counts from {fewest} on, none of them {slowdown:.2f}x as slow")
            layers, (estimate, low, high) = enough[0]
            slow: dict[str, float | str] = {"slowdown": slowdown, "file": tried[layers].name, "layers": layers}
            made[size].append({**slow, "true_ratio": estimate, "low": low, "high": high})
    write_text(record, json.dumps(made, indent=1))
    return made


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Disturb the machine meanwhile with so many processes of neighbour.py."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with ExitStack() as stack:
        children = []
        for _ in range(count):
            command: list[str | Path] = [sys.executable, HERE / "neighbour.py"]
            children.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=alone)))
            stack.callback(children[-1].kill)
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        yield
