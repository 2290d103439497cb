"""What an ONNX file holds and costs: parameters, multiply-accumulates, operators."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from tlc.runtime.session import zero_feeds
from tlc.runtime.tensor import TensorSpec

_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Shapes = Mapping[str, tuple[int, ...]]
Sizes = Mapping[str, int]

_WEIGHT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True, slots=True)
class GraphStats:
    """Size and cost of a graph."""

    parameters: int
    """Elements of the weights and biases; INT8 weights count like float ones, their scales and zero points do not."""
    macs: int
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul (attention's too) for one sample."""
    ops: dict[str, int]
    """Nodes by operator, most frequent first."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def graph_stats(path: Path, sizes: Sizes | None = None) -> GraphStats:
    """Read the file, run it once on zeros at batch 1 for the shapes, and count.

    `sizes` says how long open dimensions are, by name; 1 if it does not.
    """
    model = onnx.load(path)
    specs = [tuple(_spec(value) for value in values) for values in (model.graph.input, model.graph.output)]
    ops = Counter(node.op_type for node in model.graph.node).most_common()
    return GraphStats(
        parameters=_parameters(model.graph),
        macs=_macs(model, sizes or {}),
        ops=dict(sorted(ops, key=lambda entry: (-entry[1], entry[0]))),
        inputs=specs[0],
        outputs=specs[1],
    )


def _parameters(graph: onnx.GraphProto) -> int:
    """Count constants of weight types, apart from the grids of quantisers and what only shapes and axes read."""
    grids = {
        name for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") for name in node.input[1:]
    }
    tensors = [tensor for tensor in graph.initializer if tensor.name not in grids]
    constants = [node.attribute[0].t for node in graph.node if node.op_type == "Constant" and node.attribute[0].t.dims]
    return sum(math.prod(tensor.dims) for tensor in (*tensors, *constants) if tensor.data_type in _WEIGHT_TYPES)


def _macs(model: onnx.ModelProto, sizes: Sizes) -> int:
    nodes = [node for node in model.graph.node if node.op_type in _COUNTED]
    shapes = shapes_at_batch_one(model, {name for node in nodes for name in (*node.input[:2], node.output[0])}, sizes)
    return sum(_node_macs(node, shapes) for node in nodes)


def _node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """One multiply-accumulate per output value and per input value that it sums over (bias not counted)."""
    left, right, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":  # weight (out, in / groups, *kernel)
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, *kernel): each input value is spread
        return math.prod(left) * math.prod(right[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * left[-2 if transposed else -1]


def shapes_at_batch_one(
    model: onnx.ModelProto, names: Iterable[str], sizes: Sizes | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the named tensors, from one run on zeros with open dimensions as `sizes` says, else at 1.

    Shape inference gives up behind reshapes that compute with the batch size, as Swin's windows do.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = [_spec(value) for value in model.graph.input]
    shapes |= {name: zeros.shape for name, zeros in zero_feeds(inputs, sizes).items()}
    wanted = sorted(set(names) - shapes.keys())
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session: Any = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(wanted, zero_feeds(inputs, sizes)) if wanted else []
    return shapes | {name: value.shape for name, value in zip(wanted, found, strict=True)}


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or int(dim.dim_value) for dim in kind.shape.dim)
    return TensorSpec(value.name, shape, str(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
