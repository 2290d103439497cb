"""Time of each layer of a model, as the runtime that runs it says.

A runtime that times its layers works longer, and counts in whole microseconds, rounded down, so that the sum over
layers is not the latency: `layer_share` says how far it is from it.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tlc.runtime.bench_report import LayerTime
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.inspector import read_layers
from tlc.runtime.openvino import OpenVinoSession
from tlc.runtime.session import OrtSession
from tlc.runtime.sessions import ENGINES
from tlc.runtime.target import Target
from tlc.runtime.tensor import Feeds
from tlc.runtime.tensorrt import TensorRTSession

WARM_RUNS = 10
"""Runs that go before those that count."""
_WITH_GRAPHS = ("If", "Loop", "Scan")
"""Operators whose time includes that of nodes inside them."""


def layer_times(path: Path, target: Target | None = None, *, threads: int, feeds: Feeds, runs: int) -> list[LayerTime]:
    """Return the time of each layer over `runs` runs of `feeds` after ten others, in the order of execution.

    The model is opened as `open_session` does, once more. ONNX Runtime: its profiler's time of each node of the
    optimised graph, mean of the middle half of the runs; a node with a graph inside counts as a whole. OpenVINO: its
    performance counters, which are means over all runs. TensorRT: its `IProfiler`, the median; the shape of the
    inputs is that of `feeds`.

    Raises UsageError below one run, TlcError for a file that no runtime here times by layer and for ONNX Runtime's
    CUDA and TensorRT providers, whose kernels it launches but does not time, and what the session raises.
    """
    if runs < 1:
        raise UsageError(f"a profile takes at least 1 run, got {runs}", hint="Give the number of runs.")
    suffix = path.suffix.lower()
    if suffix in ENGINES:
        return _tensorrt(path, feeds, runs)
    if suffix != ".onnx":
        raise TlcError(
            f"{path} has no time by layer: only .onnx, .plan and .engine files have",
            hint="Export it to ONNX and profile that file.",
        )
    if target is not None and target.runtime == "openvino":
        return _openvino(path, threads, feeds, runs)
    if target is not None and (target.runtime == "tensorrt" or target.provider in ("cuda", "tensorrt")):
        raise TlcError(
            f"ONNX Runtime does not time what runs on the GPU, and target {target.name} runs {path} there",
            hint="Profile an engine (tlc build), or use NVIDIA's Nsight Systems.",
        )
    return _onnxruntime(path, target, threads, feeds, runs)


def layer_share(layers: Sequence[LayerTime], p50_ms: float) -> str:
    """Return a sentence that compares the sum over layers with the latency of the whole model, unprofiled."""
    total = sum(layer.ms for layer in layers)
    return f"{len(layers)} layers take {total:.3f} ms together, {total / p50_ms:.0%} of p50 {p50_ms:.3f} ms."


def _onnxruntime(path: Path, target: Target | None, threads: int, feeds: Feeds, runs: int) -> list[LayerTime]:
    provider = "cpu" if target is None else target.provider
    with TemporaryDirectory(prefix="tlc-profile-") as folder:
        with OrtSession(path, threads=threads, provider=provider, profile=Path(folder, "run")) as session:
            for _ in range(WARM_RUNS + runs):
                session.run(feeds)
            text = session.end_profiling().read_text(encoding="utf-8")
        return read_events(json.loads(text), runs)


def read_events(events: Iterable[dict[str, Any]], runs: int) -> list[LayerTime]:
    """Return the layers of ONNX Runtime's profile, whose last `runs` runs count.

    `events` are those of Chrome's trace format that it writes: `cat`, `name`, `ts` and `dur` in microseconds, `args`.
    https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
    """
    kinds: dict[tuple[str, str], str] = {}
    times_us: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    inside_until = -1
    kernels = (entry for entry in events if entry["cat"] == "Node" and entry["name"].endswith(_KERNEL))
    # Of two that begin in the same microsecond, the one around the other is the longer one.
    for entry in sorted(kernels, key=lambda entry: (entry["ts"], -entry["dur"])):
        end = entry["ts"] + entry["dur"]
        if entry["ts"] < inside_until and end <= inside_until:
            continue
        kind = entry["args"]["op_name"]
        if kind in _WITH_GRAPHS:
            inside_until = end
        key = (str(entry["args"].get("node_index", "")), entry["name"].removesuffix(_KERNEL))
        kinds[key] = kind
        times_us[key].append(entry["dur"])
    return _layers((key[1], kinds[key], _middle(times[-runs:])) for key, times in times_us.items())


_KERNEL = "_kernel_time"


def _openvino(path: Path, threads: int, feeds: Feeds, runs: int) -> list[LayerTime]:
    with OpenVinoSession(path, threads=threads, profile=True) as session:
        for _ in range(WARM_RUNS):
            session.run(feeds)
        before = session.node_times_us()
        for _ in range(runs):
            session.run(feeds)
        after = session.node_times_us()
    # Counters are means since the session opened: take the first runs out again.
    early = {name: us for name, _, us in before}
    share = WARM_RUNS / runs
    return _layers((name, kind, max(0.0, us + share * (us - early.get(name, us)))) for name, kind, us in after)


def _tensorrt(path: Path, feeds: Feeds, runs: int) -> list[LayerTime]:
    with TensorRTSession(path) as session:
        for _ in range(WARM_RUNS):
            session.run(feeds)
        times_ms = session.layer_times_ms(feeds, runs=runs)
        kinds = {layer.name: layer.kind for layer in read_layers(session.inspect())}
    return _layers((name, kinds.get(name, ""), 1000 * ms) for name, ms in times_ms.items())


def _middle(times_us: Sequence[int]) -> float:
    """Return the mean of the middle half: as robust as a median, and finer than whole microseconds."""
    cut = len(times_us) // 4
    return float(np.mean(sorted(times_us)[cut : len(times_us) - cut]))


def _layers(found: Iterable[tuple[str, str, float]]) -> list[LayerTime]:
    """Return layers of (name, kind, microseconds)."""
    rows = list(found)
    total = sum(us for _, _, us in rows) or 1.0
    return [LayerTime(name=name, kind=kind, ms=us / 1000, ratio=us / total) for name, kind, us in rows]
