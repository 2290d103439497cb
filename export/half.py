"""Write a float32 graph with float16 inside, node by node; casts stand only where the two meet.

Own code, because the converter in onnxruntime.transformers sends what passes between two float32 nodes through float16,
where it overflows, and writes one cast twice when two float32 nodes read a tensor.
"""

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

from tlc.runtime.errors import TlcError

LARGEST = float(np.finfo(np.float16).max)
_FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that stay float32 by the operator's definition."""
_TYPED_BY_ATTRIBUTE = {"Cast": "to", "EyeLike": "dtype", "RandomNormalLike": "dtype"}


def half_model(model: onnx.ModelProto, keep: Collection[str]) -> onnx.ModelProto:
    """Return the model in float16, except for the nodes named in `keep`, the inputs and the outputs.

    Operators without float16 kernels (those that ONNX Runtime's converter leaves out, such as Range and TopK) stay in
    float32 too. Weights are rounded to nearest; finite ones beyond 65,504 are refused unless only kept nodes read them.

    Raises:
        TlcError: the graph has branches or loops, or a tensor's type cannot be inferred.

    """
    source = onnx.shape_inference.infer_shapes(constants_as_initializers(model), strict_mode=True)
    _refuse_control_flow(source)
    graph = source.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kinds |= {name: tensor.data_type for name, tensor in constants.items()}
    writer = _Writer(kinds, constants, {value.name for value in graph.output})
    for node in graph.node:
        writer.write(node, half=node.name not in keep and node.op_type not in DEFAULT_OP_BLOCK_LIST)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(writer.nodes)
    graph.initializer.extend(writer.initializers.values())
    graph.ClearField("value_info")
    return source


class _Writer:
    """Writes nodes in the graph's order, each in its type."""

    def __init__(self, kinds: dict[str, int], constants: dict[str, onnx.TensorProto], outputs: Collection[str]) -> None:
        self._kinds = kinds
        self._constants = constants
        self._outputs = outputs
        self._half: dict[str, str] = {}
        """Name under which each float32 tensor is there in float16."""
        self._single: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def write(self, node: onnx.NodeProto, *, half: bool) -> None:
        for name in (*node.input, *node.output):
            if name and not self._kinds.get(name):
                raise TlcError(
                    f"the graph cannot be float16: the type of {name} ({node.op_type} {node.name or '?'}) is not known",
                    hint="Leave the float16 file out.",
                )
        kept = _FLOAT_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name:
                node.input[index] = self._as_half(name) if half and index not in kept else self._as_single(name)
        casts = []
        for index, name in enumerate(node.output):
            if not half or not name or self._kinds[name] != TensorProto.FLOAT:
                self._single[name] = name
                continue
            inner = f"{name}_half" if name in self._outputs else name
            node.output[index] = inner
            self._half[name] = inner
            if name in self._outputs:
                self._single[name] = name
                casts.append(_cast(inner, name, TensorProto.FLOAT))
        if half:
            _retype(node)
        self.nodes += [node, *casts]

    def _as_half(self, name: str) -> str:
        if self._kinds[name] != TensorProto.FLOAT:
            return self._as_single(name)
        if name not in self._half:
            if name in self._constants:
                self._half[name] = self._add(_rounded(self._constants[name]))
            else:
                self._half[name] = f"{name}_half"
                self.nodes.append(_cast(name, self._half[name], TensorProto.FLOAT16))
        return self._half[name]

    def _as_single(self, name: str) -> str:
        if name in self._constants:
            return self._add(self._constants[name])
        if name not in self._single and name in self._half:
            self._single[name] = f"{name}_single"
            self.nodes.append(_cast(self._half[name], self._single[name], TensorProto.FLOAT))
        return self._single.get(name, name)

    def _add(self, tensor: onnx.TensorProto) -> str:
        self.initializers.setdefault(tensor.name, tensor)
        return str(tensor.name)


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}_cast", to=kind)


def _retype(node: onnx.NodeProto) -> None:
    """Make attributes that name or hold float32 say float16."""
    wanted = _TYPED_BY_ATTRIBUTE.get(node.op_type)
    for attribute in node.attribute:
        if attribute.name == wanted and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
    if node.op_type == "ConstantOfShape":
        values = [attribute for attribute in node.attribute if attribute.name == "value"]
        tensor = values[0].t if values else numpy_helper.from_array(np.zeros(1, np.float32))
        if tensor.data_type == TensorProto.FLOAT:
            del node.attribute[:]
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16))
            node.attribute.append(helper.make_attribute("value", half))


def _rounded(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = largest_finite(values)
    if not largest <= LARGEST:
        raise TlcError(
            f"the graph cannot be float16: {tensor.name} holds {largest:.6g}, the limit is {LARGEST:.6g}",
            hint="Leave the float16 file out.",
        )
    return numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_half")


def largest_finite(values: NDArray[np.generic]) -> float:
    """Return the largest magnitude apart from infinity, which float16 has too; NaN where there is one."""
    return float(np.abs(values[~np.isinf(values)]).max(initial=0))


def constants_as_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with Constant nodes as initialisers and without notes on inner values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and (value := _constant(node.attribute[0])) is not None:
            copy.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        else:
            nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    copy.graph.ClearField("value_info")
    return copy


def _constant(attribute: onnx.AttributeProto) -> NDArray[np.generic] | None:
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    return np.asarray(value, np.int64) if attribute.name in ("value_int", "value_ints") else None


def _refuse_control_flow(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise TlcError(
                f"the graph cannot be float16: {node.op_type} {node.name or '?'} holds a graph of its own",
                hint="Export without branches and loops, or leave the float16 file out.",
            )
