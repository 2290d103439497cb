"""Which layer suffers most from INT8: each quantised alone, judged by the noise on the logits."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class LayerNoise(BaseModel):
    """What one layer's quantisation alone does to the logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the ONNX node."""
    module: str
    """Of the PyTorch module, as far as the weight kept its name; else the name of the tensor."""
    noise_ratio: float
    """Energy of the change of the logits over the energy of the logits, over all samples."""


def layer_noise(
    float_onnx: Path, quantized_onnx: Path, samples: Iterable[NDArray[np.float32]]
) -> tuple[LayerNoise, ...]:
    """Rank the quantised layers, noisiest first.

    Each layer in turn gets its INT8 weights, corrected bias and quantised input inside the float network. Cost: as many
    sessions as layers, each run once per sample; samples are held in memory.

    Args:
        float_onnx: the float network.
        quantized_onnx: the same network quantised, with the nodes' names kept.
        samples: (1, C, H, W) float32 each.

    """
    model = onnx.load(float_onnx)
    quantized = _QuantizedLayers(onnx.load(quantized_onnx))
    batch = list(samples)
    truth = _logits(model, batch)
    energy = float(np.square(truth).sum())
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type in _LAYERS and quantized.holds(node.name):
            change = _logits(quantized.alone(model, index), batch) - truth
            ratio = float(np.square(change).sum()) / energy if energy else 0.0
            found.append(LayerNoise(name=node.name, module=node.input[1].removesuffix(".weight"), noise_ratio=ratio))
    return tuple(sorted(found, key=lambda layer: (-layer.noise_ratio, layer.name)))


class _QuantizedLayers:
    """Access to the weighted nodes of a Q/DQ graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self._nodes = {node.name: node for node in model.graph.node if node.op_type in _LAYERS}

    def holds(self, name: str) -> bool:
        node = self._nodes.get(name)
        return node is not None and node.input[1] in self._dequantizers and node.input[0] in self._dequantizers

    def alone(self, model: onnx.ModelProto, index: int) -> onnx.ModelProto:
        """Return the float model with only node `index` quantised."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        node = copy.graph.node[index]
        layer = self._nodes[node.name]
        source = node.input[0]
        activation = self._dequantizers[layer.input[0]]
        parameters = [self._add(copy, name) for name in activation.input[1:3]]
        node.input[0] = self._named(f"{source}_rounded")
        weight = self._dequantizers[layer.input[1]]
        node.input[1] = self._add(copy, weight.input[0], self._dequantized(weight))
        if len(layer.input) > 2 and layer.input[2] in self._constants:
            name = self._add(copy, layer.input[2])
            if len(node.input) > 2:
                node.input[2] = name
            else:
                node.input.append(name)
        pair = (
            helper.make_node("QuantizeLinear", [source, *parameters], [self._named(f"{source}_integer")]),
            helper.make_node(
                "DequantizeLinear", [self._named(f"{source}_integer"), *parameters], [self._named(f"{source}_rounded")]
            ),
        )
        for offset, extra in enumerate(pair):
            copy.graph.node.insert(index + offset, extra)
        return copy

    @staticmethod
    def _named(name: str) -> str:
        return f"alone/{name}"

    def _add(self, model: onnx.ModelProto, name: str, value: NDArray[np.generic] | None = None) -> str:
        """Add the quantised graph's constant `name`, or `value` instead of it, under a name of its own."""
        tensor = self._constants[name] if value is None else value
        model.graph.initializer.append(numpy_helper.from_array(tensor, self._named(name)))
        return self._named(name)

    def _dequantized(self, node: onnx.NodeProto) -> NDArray[np.float32]:
        values, scale, zero_point = (self._constants[name].astype(np.float32) for name in node.input[:3])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if scale.ndim:
            shape = [1] * values.ndim
            shape[axis] = -1
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        weight: NDArray[np.float32] = (values - zero_point) * scale
        return weight


def _logits(model: onnx.ModelProto, batch: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order: the ranking is the same everywhere
    options.log_severity_level = 3
    session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = model.graph.input[0].name
    return np.concatenate([session.run(None, {name: sample})[0] for sample in batch]).astype(np.float64)
