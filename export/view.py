"""Look-ups over an ONNX graph that rules about Q/DQ need: who writes a tensor, who reads it, what is constant."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tlc.export.opset import opset_of

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with integer kernels that sum products; their second input holds the weights."""

ACTIVATIONS = ("Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh")
"""Element-wise operators that runtimes fuse into the layer before them."""

MOVING = ("DepthToSpace", "Flatten", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose",
          "Unsqueeze")  # fmt: skip
"""Operators whose outputs are values of their first input."""

QUANTISED_TYPES = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.UINT16, TensorProto.INT16)


class View:
    """Look-ups in one graph, as it was when the view was made."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = opset_of(model)
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {value.name for value in model.graph.input} - self.constants.keys()
        self.outputs = {value.name for value in model.graph.output}
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._readers[name].append(node)
        self._values: dict[str, NDArray[Any] | None] = {}
        self._shapes: dict[str, tuple[int | None, ...]] | None = None

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that writes the tensor; None for inputs and initialisers."""
        return self._producers.get(name)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read the tensor, each once."""
        return self._readers.get(name, [])

    def value(self, name: str) -> NDArray[Any] | None:
        """Return the constant of that name: an initialiser, a Constant node, or either behind Identity or Cast."""
        if name not in self._values:
            self._values[name] = self._evaluated(name)
        return self._values[name]

    def _evaluated(self, name: str) -> NDArray[Any] | None:
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.producer(name)
        if node is None:
            return None
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        if node.op_type == "Constant" and node.attribute[0].name.startswith(("value_int", "value_float")):
            kind = np.int64 if node.attribute[0].name.startswith("value_int") else np.float32
            return np.asarray(helper.get_attribute_value(node.attribute[0]), kind)
        if node.op_type in ("Identity", "Cast") and (value := self.value(node.input[0])) is not None:
            kind = attribute(node, "to", None)
            return value if kind is None else value.astype(helper.tensor_dtype_to_np_dtype(kind))
        return None

    def is_constant(self, name: str) -> bool:
        """Whether the tensor has the same value in every run, as far as `value` can tell."""
        return name in self.constants or self.value(name) is not None

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Return the tensor's shape, None for each dimension that is not fixed; None where the rank is not known."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        if self._shapes is None:
            self._shapes = _inferred_shapes(self.model)
        return self._shapes.get(name)

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        """Yield every QuantizeLinear and DequantizeLinear."""
        return (node for node in self.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))

    def dequantizer(self, name: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear that writes the tensor."""
        return self._written_by(name, "DequantizeLinear")

    def quantizer(self, dequantizer: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the QuantizeLinear in front of a DequantizeLinear; None where integers are stored."""
        return self._written_by(dequantizer.input[0], "QuantizeLinear")

    def pairs(self) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """Yield each (QuantizeLinear, DequantizeLinear) that rounds an activation, in the graph's order."""
        for node in self.nodes:
            if node.op_type != "DequantizeLinear" or (quantizer := self.quantizer(node)) is None:
                continue
            if not self.is_constant(quantizer.input[0]):
                yield quantizer, node

    def rounded(self, name: str) -> str | None:
        """Return the tensor in front of the Q/DQ pair that writes `name`; None where there is no pair."""
        node = self.dequantizer(name)
        quantizer = None if node is None else self.quantizer(node)
        return None if quantizer is None else str(quantizer.input[0])

    def stored(self, node: onnx.NodeProto) -> str | None:
        """Return the constant that a (De)QuantizeLinear rounds or reads, at the far end of its pair; None if none."""
        name = node.input[0]
        if node.op_type == "DequantizeLinear" and (quantizer := self.quantizer(node)) is not None:
            name = quantizer.input[0]
        return str(name) if self.is_constant(name) else None

    def is_quantised(self, node: onnx.NodeProto) -> bool:
        """Whether a weighted operator reads both factors from DequantizeLinear."""
        return node.op_type in WEIGHTED and all(self.dequantizer(self.behind(name)) for name in node.input[:2])

    def behind(self, name: str) -> str:
        """Return the tensor from which operators that only move values made `name`."""
        while (node := self.producer(name)) is not None and node.op_type in MOVING:
            name = node.input[0]
        return name

    def weight(self, node: onnx.NodeProto) -> str | None:
        """Return the constant that holds a weighted operator's weights, behind a Q/DQ pair or not."""
        name = self.behind(node.input[1])
        dequantizer = self.dequantizer(name)
        if dequantizer is not None:
            return self.stored(dequantizer)
        return name if self.is_constant(name) else None

    def layer_behind(self, name: str) -> onnx.NodeProto | None:
        """Return the weighted operator that writes the tensor, by itself or through a BatchNormalization."""
        node = self.producer(name)
        if node is not None and node.op_type == "BatchNormalization":
            node = self.producer(node.input[0])
        return node if node is not None and node.op_type in WEIGHTED else None

    def grid_type(self, node: onnx.NodeProto) -> int:
        """Return the ONNX type of the integers of a (De)QuantizeLinear."""
        if len(node.input) > 2 and node.input[2]:
            return self.type_of(node.input[2])
        if node.op_type == "QuantizeLinear":
            return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8
        quantizer = self.quantizer(node)
        return self.type_of(node.input[0]) if quantizer is None else self.grid_type(quantizer)

    def type_of(self, name: str) -> int:
        """Return the ONNX type of a constant; 0 for another tensor."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        value = self.value(name)
        return 0 if value is None else int(helper.np_dtype_to_tensor_dtype(value.dtype))

    def _written_by(self, name: str, op_type: str) -> onnx.NodeProto | None:
        node = self.producer(name)
        return node if node is not None and node.op_type == op_type else None


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return the value of the node's attribute, or `default`."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def label(node: onnx.NodeProto) -> str:
    """Return the node's name, or the name of what it writes."""
    return str(node.name or (node.output[0] if node.output else "?"))


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return found
