"""How noisy each layer is in INT8: quantised alone, judged by what it does to the predicted probabilities."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from tlc.runtime.tensor import Feeds, Samples

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class LayerNoise(BaseModel):
    """What one layer's quantisation alone does to the logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the ONNX node."""
    module: str
    """Of the PyTorch module, as far as the weight kept its name; else the name of the tensor."""
    divergence: float
    """Kullback-Leibler divergence of the softmax from that of the float network, nats, mean over the samples, or over
    their tokens where each is answered. Large logits that a range cuts off do not count, as they decide nothing."""


def layer_noise(float_onnx: Path, quantized_onnx: Path, samples: Samples) -> tuple[LayerNoise, ...]:
    """Rank the quantised layers, noisiest first.

    Each layer in turn gets its INT8 weights, corrected bias and quantised input inside the float network. Cost: as many
    sessions as layers, each run once per sample; samples are held in memory.

    Args:
        float_onnx: the float network.
        quantized_onnx: the same network quantised, with the nodes' names kept.
        samples: few.

    """
    model = onnx.load(float_onnx)
    quantized = QuantizedLayers(onnx.load(quantized_onnx))
    batch = list(samples)
    truth = _log_softmax(_logits(model, batch))
    found = []
    for node in model.graph.node:
        if node.op_type in _LAYERS and quantized.holds(node.name):
            rounded = _log_softmax(_logits(quantized.alone(model, [node.name]), batch))
            divergence = float((np.exp(truth) * (truth - rounded)).sum(1).mean())
            found.append(
                LayerNoise(name=node.name, module=node.input[1].removesuffix(".weight"), divergence=divergence)
            )
    return tuple(sorted(found, key=lambda layer: (-layer.divergence, layer.name)))


def tensor_ranges(
    model: onnx.ModelProto,
    names: Sequence[str],
    samples: Samples,
    *,
    over_samples: Literal["mean", "extreme"],
) -> dict[str, tuple[float, float]]:
    """Return (lowest, highest) value of each inner tensor: the mean over the samples, as in NNCF's default, or of all.

    One pass; memory does not grow with the number of samples.
    """
    if not names:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = _session(probe)
    sums = np.zeros((len(names), 2))
    extremes = np.full((len(names), 2), (np.inf, -np.inf))
    count = 0
    for sample in samples:
        values = session.run(list(names), dict(sample))
        found = np.array([(value.min(), value.max()) for value in values], np.float64)
        sums += found
        extremes = np.column_stack((np.minimum(extremes[:, 0], found[:, 0]), np.maximum(extremes[:, 1], found[:, 1])))
        count += 1
    ranges = sums / count if over_samples == "mean" else extremes
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, ranges, strict=True)}


class QuantizedLayers:
    """Access to the weighted nodes of a Q/DQ graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self._writers = {name: node for node in model.graph.node for name in node.output}
        self._nodes = {node.name: node for node in model.graph.node if node.op_type in _LAYERS}
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in self._constants:
                self._constants[node.output[0]] = self._quantized(node)

    def holds(self, name: str) -> bool:
        """Return whether the node of that name has quantised weights and a quantised input."""
        node = self._nodes.get(name)
        return node is not None and node.input[1] in self._dequantizers and node.input[0] in self._dequantizers

    def alone(self, model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
        """Return the float model with only the nodes `names` quantised: weights, corrected biases and inputs."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        there: set[str] = set()
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            own = onnx.NodeProto()
            own.CopyFrom(node)
            if node.name in names:
                nodes += self._rounding(copy, own, there)
            nodes.append(own)
        del copy.graph.node[:]
        copy.graph.node.extend(nodes)
        return copy

    def _rounding(self, model: onnx.ModelProto, node: onnx.NodeProto, there: set[str]) -> list[onnx.NodeProto]:
        """Give `node` what its quantised twin reads, and return the nodes to put in front; `there` are those put."""
        layer = self._nodes[node.name]
        activation = self._dequantizers[layer.input[0]]
        source, smoothing = self._smoothed(model, node.input[0], activation)
        parameters = [self._add(model, name) for name in activation.input[1:3]]
        integer, rounded = (self._named(f"{layer.input[0]}_{what}") for what in ("integer", "rounded"))
        node.input[0] = rounded
        weight = self._dequantizers[layer.input[1]]
        node.input[1] = self._add(model, weight.input[0], self._dequantized(weight))
        if len(layer.input) > 2 and layer.input[2] in self._constants:
            name = self._add(model, layer.input[2])
            if len(node.input) > 2:
                node.input[2] = name
            else:
                node.input.append(name)
        inserted = [
            *smoothing,
            helper.make_node("QuantizeLinear", [source, *parameters], [integer]),
            helper.make_node("DequantizeLinear", [integer, *parameters], [rounded]),
        ]
        new = [extra for extra in inserted if extra.output[0] not in there]  # two layers may read one quantiser
        there.update(extra.output[0] for extra in new)
        return new

    def _smoothed(
        self, model: onnx.ModelProto, source: str, activation: onnx.NodeProto
    ) -> tuple[str, list[onnx.NodeProto]]:
        """Return what the quantiser of `source` reads, and the Mul that SmoothQuant put between, if it did."""
        quantizer = self._writers[activation.input[0]]
        multiplier = self._writers.get(quantizer.input[0])
        if multiplier is None or multiplier.op_type != "Mul" or list(multiplier.input)[:1] != [source]:
            return source, []
        factor = multiplier.input[1]
        if factor not in self._constants:
            return source, []
        smoothed = self._named(str(multiplier.output[0]))
        return smoothed, [helper.make_node("Mul", [source, self._add(model, factor)], [smoothed])]

    @staticmethod
    def _named(name: str) -> str:
        return f"alone/{name}"

    def _add(self, model: onnx.ModelProto, name: str, value: NDArray[np.generic] | None = None) -> str:
        """Add the quantised graph's constant `name`, or `value` instead of it, under a name of its own."""
        tensor = self._constants[name] if value is None else value
        if all(constant.name != self._named(name) for constant in model.graph.initializer):
            model.graph.initializer.append(numpy_helper.from_array(tensor, self._named(name)))
        return self._named(name)

    def _quantized(self, node: onnx.NodeProto) -> NDArray[np.int8]:
        weight, scale, zero_point = self._along_axis(node)
        integers: NDArray[np.int8] = np.clip(np.rint(weight / scale) + zero_point, -128, 127).astype(np.int8)
        return integers

    def _dequantized(self, node: onnx.NodeProto) -> NDArray[np.float32]:
        values, scale, zero_point = self._along_axis(node)
        weight: NDArray[np.float32] = (values - zero_point) * scale
        return weight

    def _along_axis(self, node: onnx.NodeProto) -> list[NDArray[np.float32]]:
        """Return a quantiser's values, scale and zero point, the latter two shaped to broadcast along its axis."""
        values, *grid = (self._constants[name].astype(np.float32) for name in node.input[:3])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if grid[0].ndim:
            shape = [1] * values.ndim
            shape[axis] = -1
            grid = [entry.reshape(shape) for entry in grid]
        return [values, *grid]


def _logits(model: onnx.ModelProto, batch: list[Feeds]) -> NDArray[np.float64]:
    """Return all logits in rows, (M, K): one per sample, or one per token where every token is answered."""
    session = _session(model)
    found = [session.run(None, dict(sample))[0] for sample in batch]
    return np.concatenate([logits.reshape(-1, logits.shape[-1]) for logits in found]).astype(np.float64)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs


def _session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order: the same result everywhere
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
