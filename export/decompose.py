"""Newer ONNX operators in terms of older ones, exactly: the formulas of the operators' own specifications.

`lower_opset` uses these where onnx has no function body, or one that computes shapes at run time, which devices run
slowly or not at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from tlc.runtime.errors import TlcError


@dataclass
class Tensors:
    """What is known about the tensors of a model."""

    types: Mapping[str, int]
    """ONNX element types by name; float32 where absent."""
    ranks: Mapping[str, int]


@dataclass
class Writer:
    """Collects the nodes and constants that replace one node."""

    node: onnx.NodeProto
    tensors: Tensors
    opset: int
    """The one to write for."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def attribute(self, name: str, default: Any) -> Any:
        """Return the value of the node's attribute; a string as str."""
        for entry in self.node.attribute:
            if entry.name == name:
                value = helper.get_attribute_value(entry)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of what it writes."""
        name = output or f"{self.node.output[0]}/{op_type}_{len(self.nodes)}"
        label = self.node.name or self.node.output[0]
        self.nodes.append(
            helper.make_node(op_type, inputs, [name], f"{label}/{op_type}_{len(self.nodes)}", **attributes)
        )
        return name

    def constant(self, value: ArrayLike, dtype: type[np.generic] | np.dtype[Any]) -> str:
        """Append a constant and return its name."""
        name = f"{self.node.output[0]}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def mean(self, name: str, axes: list[int]) -> str:
        """Append a mean over `axes`, an attribute before opset 18; return its name."""
        if self.opset < 18:
            return self.add("ReduceMean", name, axes=axes, keepdims=1)
        return self.add("ReduceMean", name, self.constant(axes, np.int64), keepdims=1)

    def scalar(self, value: float) -> str:
        """Return a constant of the element type of the node's first input."""
        return self.constant(value, helper.tensor_dtype_to_np_dtype(self.type))

    @property
    def type(self) -> int:
        """Element type of the first input."""
        return self.tensors.types.get(self.node.input[0], TensorProto.FLOAT)

    def rank(self, name: str) -> int:
        """Return the number of dimensions; TlcError where shape inference does not find it."""
        if name not in self.tensors.ranks:
            raise TlcError(
                f"{self.node.op_type} (node {self.node.name or '?'}) cannot be written with older operators: "
                f"the number of dimensions of {name} is not known",
                hint="Export the model with shapes, or choose a target with a newer opset.",
            )
        return self.tensors.ranks[name]


def layer_normalization(writer: Writer) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias, in the nodes that runtimes fuse again."""
    node = writer.node
    if any(node.output[1:]):
        raise TlcError(
            f"LayerNormalization (node {node.name or '?'}) cannot be written with older operators: "
            "its mean and deviation are outputs too",
            hint="Export the model for inference.",
        )
    source, axes = _float32(writer), _last_axes(writer)
    difference = writer.add("Sub", source, writer.mean(source, axes))
    _divided_by_deviation(writer, difference, axes)


def rms_normalization(writer: Writer) -> None:
    """Layer normalisation without the mean: x / sqrt(mean(x^2) + epsilon) * scale."""
    _divided_by_deviation(writer, _float32(writer), _last_axes(writer))


def _float32(writer: Writer) -> str:
    """As the specification says, all before the scale is float32: float16 squares overflow from 256 on."""
    source: str = writer.node.input[0]
    return source if writer.type == TensorProto.FLOAT else writer.add("Cast", source, to=TensorProto.FLOAT)


def _last_axes(writer: Writer) -> list[int]:
    axis: int = writer.attribute("axis", -1)
    return list(range(axis - writer.rank(writer.node.input[0]) if axis >= 0 else axis, 0))


def _divided_by_deviation(writer: Writer, x: str, axes: list[int]) -> None:
    """Divide by the root of the mean square, then scale and shift."""
    node = writer.node
    mean = writer.mean(writer.add("Pow", x, writer.constant(2, np.float32)), axes)
    epsilon = writer.constant(writer.attribute("epsilon", 1e-5), np.float32)
    result = writer.add("Div", x, writer.add("Sqrt", writer.add("Add", mean, epsilon)))
    if writer.type != TensorProto.FLOAT:
        result = writer.add("Cast", result, to=writer.type)
    if len(node.input) > 2 and node.input[2]:
        writer.add("Add", writer.add("Mul", result, node.input[1]), node.input[2], output=node.output[0])
    else:
        writer.add("Mul", result, node.input[1], output=node.output[0])


def group_normalization(writer: Writer, opset: int) -> None:
    """InstanceNormalization over groups of channels; scale and bias are per group before opset 21, then per channel."""
    node = writer.node
    groups, epsilon = writer.attribute("num_groups", 0), writer.attribute("epsilon", 1e-5)
    kind = helper.tensor_dtype_to_np_dtype(writer.type)
    shape = writer.add("Shape", node.input[0])
    grouped = writer.add("Reshape", node.input[0], writer.constant([0, groups, -1], np.int64))
    if opset < 21:
        result = writer.add("InstanceNormalization", grouped, *node.input[1:3], epsilon=epsilon)
        writer.add("Reshape", result, shape, output=node.output[0])
        return
    ones, zeros = writer.constant(np.ones(groups), kind), writer.constant(np.zeros(groups), kind)
    result = writer.add("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    result = writer.add("Reshape", result, shape)
    per_channel = writer.constant([-1, *[1] * (writer.rank(node.input[0]) - 2)], np.int64)
    scale, bias = (writer.add("Reshape", name, per_channel) for name in node.input[1:3])
    writer.add("Add", writer.add("Mul", result, scale), bias, output=node.output[0])


def gelu(writer: Writer) -> None:
    """Half of x * (1 + erf(x / sqrt(2))), or its tanh approximation."""
    (x,) = writer.node.input
    if writer.attribute("approximate", "none") == "tanh":
        cube = writer.add("Mul", writer.add("Mul", x, x), x)
        inner = writer.add("Add", x, writer.add("Mul", cube, writer.scalar(0.044715)))
        bend = writer.add("Tanh", writer.add("Mul", inner, writer.scalar(np.sqrt(2 / np.pi))))
    else:
        bend = writer.add("Erf", writer.add("Div", x, writer.scalar(np.sqrt(2))))
    product = writer.add("Mul", x, writer.add("Add", bend, writer.scalar(1)))
    writer.add("Mul", product, writer.scalar(0.5), output=writer.node.output[0])


def shape(writer: Writer) -> None:
    """A slice of the whole shape."""
    (x,) = writer.node.input
    start, end = writer.attribute("start", 0), writer.attribute("end", None)
    if start == 0 and end is None:
        writer.add("Shape", x, output=writer.node.output[0])
        return
    whole = writer.add("Shape", x)
    bounds = [writer.constant([bound], np.int64) for bound in (start, np.iinfo(np.int32).max if end is None else end)]
    writer.add("Slice", whole, *bounds, writer.constant([0], np.int64), output=writer.node.output[0])


def trilu(writer: Writer) -> None:
    """Zero where column - row is below k (upper part), or above it (lower part)."""
    node = writer.node
    size = writer.add("Shape", node.input[0])
    zero, one = writer.constant(0, np.int64), writer.constant(1, np.int64)

    def counted(place: int) -> str:
        return writer.add("Range", zero, writer.add("Gather", size, writer.constant(place, np.int64), axis=0), one)

    rank = writer.rank(node.input[0])
    rows = writer.add("Unsqueeze", counted(rank - 2), writer.constant([1], np.int64))
    diagonal = writer.add("Sub", counted(rank - 1), rows)
    k = node.input[1] if len(node.input) > 1 and node.input[1] else zero
    upper = writer.attribute("upper", 1)
    dropped = writer.add("Less" if upper else "Greater", diagonal, k)
    writer.add("Where", dropped, writer.scalar(0), node.input[0], output=node.output[0])


def instead_of(op_type: str, *, current: int, opset: int) -> Callable[[Writer], None] | None:
    """Return what replaces the operator on the way from opset `current` to `opset`; None where nothing here does."""
    rules: dict[str, tuple[int, Callable[[Writer], None]]] = {
        "Shape": (15, shape),
        "Trilu": (14, trilu),
        "LayerNormalization": (17, layer_normalization),
        "RMSNormalization": (23, rms_normalization),
        "Gelu": (20, gelu),
        "GroupNormalization": (
            21 if current >= 21 else 18,
            lambda writer: group_normalization(writer, current),
        ),
    }
    since, rule = rules.get(op_type, (0, None))
    return rule if opset < since else None
