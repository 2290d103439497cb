"""How far a changed ONNX file is from another one, output by output, on the same inputs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from tlc.calibration.metrics import sqnr_db
from tlc.runtime.tensor import Feeds


def output_sqnr_db(
    reference: onnx.ModelProto, candidates: Sequence[onnx.ModelProto], feeds: Iterable[Feeds]
) -> list[dict[str, float]]:
    """Return, for each candidate, the signal-to-noise ratio of every output against the reference, in dB.

    All are run node by node in float32, as their Q/DQ nodes define it: fused integer kernels may saturate on CPUs
    without VNNI. Outputs are matched by position, and signal and noise are summed over all feeds. Infinite where two
    outputs are equal.
    """
    runs = [plain_run(model) for model in (reference, *candidates)]
    collected: list[list[list[NDArray[Any]]]] = [[] for _ in runs]
    for feed in feeds:
        for run, values in zip(runs, collected, strict=True):
            values.append(run(feed))
    names = [value.name for value in reference.graph.output]
    truth = [np.concatenate([sample[index].ravel() for sample in collected[0]]) for index in range(len(names))]
    return [
        {
            name: sqnr_db(truth[index], np.concatenate([sample[index].ravel() for sample in values]))
            for index, name in enumerate(names)
        }
        for values in collected[1:]
    ]


def measured_ranges(
    model: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feeds]
) -> dict[str, tuple[float, float]]:
    """Return (lowest, highest) value of inner tensors over all feeds."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    run = plain_run(probe)
    found = dict.fromkeys(names, (np.inf, -np.inf))
    for feed in feeds:
        for name, value in zip(names, run(feed), strict=True):
            low, high = found[name]
            found[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return found


def plain_run(model: onnx.ModelProto) -> Callable[[Feeds], list[NDArray[Any]]]:
    """Return a function from feeds to the outputs in their order, computed node by node as the graph defines them."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1  # sums in one order: the same result everywhere
    options.log_severity_level = 3
    session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return lambda feed: session.run(None, {name: value for name, value in feed.items() if name in wanted})
