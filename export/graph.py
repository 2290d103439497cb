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

from tlc.export.view import View
from tlc.runtime.errors import TlcError
from tlc.runtime.session import zero_feeds
from tlc.runtime.tensor import Feeds, TensorSpec

_FACTORS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("FusedConv", "FusedGemm", "FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (0, 3)),
}
"""Operators that sum products, with the places of the two tensors that they multiply."""
_ATTENTION = ("Attention", "MultiHeadAttention", "QAttention")
_INTEGER = ("ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearConv",
            "QLinearMatMul", "QGemm", "QAttention")  # fmt: skip
_BYTES = (TensorProto.INT8, TensorProto.UINT8)

Shapes = Mapping[str, tuple[int, ...]]
Sizes = Mapping[str, int]

_WEIGHT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates by what they are computed in."""

    floating: int
    int8: int


@dataclass(frozen=True, slots=True)
class GraphStats:
    """Size and cost of a graph."""

    parameters: int
    """Elements of the weights and biases; INT8 weights count like float ones, their scales and zero points do not."""
    macs: int
    """Multiply-accumulates for one sample: see `macs`."""
    ops: dict[str, int]
    """Nodes by operator, most frequent first."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def graph_stats(path: Path, sizes: Sizes | None = None) -> GraphStats:
    """Read the file, run it once on zeros at batch 1 for the shapes, and count.

    `sizes` says how long open dimensions are, by name; 1 if it does not.
    """
    model = onnx.load(path)
    cost = macs(model, zero_feeds(input_specs(model), sizes))
    ops = Counter(node.op_type for node in model.graph.node).most_common()
    return GraphStats(
        parameters=_parameters(model.graph),
        macs=cost.floating + cost.int8,
        ops=dict(sorted(ops, key=lambda entry: (-entry[1], entry[0]))),
        inputs=tuple(_spec(value) for value in model.graph.input),
        outputs=output_specs(model),
    )


def _parameters(graph: onnx.GraphProto) -> int:
    """Count constants of weight types, apart from the grids of quantisers and what only shapes and axes read."""
    grids = {
        name for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") for name in node.input[1:]
    }
    tensors = [tensor for tensor in graph.initializer if tensor.name not in grids]
    constants = [node.attribute[0].t for node in graph.node if node.op_type == "Constant" and node.attribute[0].t.dims]
    return sum(math.prod(tensor.dims) for tensor in (*tensors, *constants) if tensor.data_type in _WEIGHT_TYPES)


def macs(model: onnx.ModelProto, feeds: Feeds) -> Macs:
    """Count the multiply-accumulates of one run on `feeds`.

    Counted are convolutions, matrix products and attention, in ONNX's operators and in those to which ONNX Runtime
    fuses them; recurrent layers are not. INT8 are operators that take integers, and those that read both factors from
    DequantizeLinear of 8 bits, which runtimes compute in integers.
    """
    view = View(model)
    nodes = [node for node in view.nodes if node.op_type in _FACTORS or node.op_type in _ATTENTION]
    shapes = shapes_in_run(model, {name for node in nodes for name in (*_factors(node), node.output[0])}, feeds)
    floating = int8 = 0
    for node in nodes:
        between_activations = _attention_macs(node, shapes) if node.op_type in _ATTENTION else 0
        weighted = _node_macs(node, shapes)
        if node.op_type in _INTEGER or _is_int8_pair(view, node):
            int8 += weighted
        else:
            floating += weighted
        floating += between_activations
    return Macs(floating, int8)


def _is_int8_pair(view: View, node: onnx.NodeProto) -> bool:
    if not view.is_quantised(node):
        return False
    dequantizers = [view.dequantizer(view.behind(name)) for name in node.input[:2]]
    return all(found is not None and view.grid_type(found) in _BYTES for found in dequantizers)


def _factors(node: onnx.NodeProto) -> list[str]:
    """Return the names of the tensors that are multiplied."""
    places = _FACTORS.get(node.op_type, (0, 1))
    return [node.input[place] for place in places if place < len(node.input) and node.input[place]]


def _node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """One multiply-accumulate per output value and per input value that it sums over (bias not counted)."""
    if node.op_type not in _FACTORS:
        if _is_projected(node):
            return 0
        x, weight = (shapes[name] for name in _factors(node))
        return math.prod(x) * weight[-1]
    left, right = (shapes[name] for name in _factors(node))
    out = shapes[node.output[0]]
    if "ConvTranspose" in node.op_type:  # weight (in, out / groups, *kernel): each input value is spread
        return math.prod(left) * math.prod(right[1:])
    if "Conv" in node.op_type:  # weight (out, in / groups, *kernel)
        return math.prod(out) * math.prod(right[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * left[-2 if transposed else -1]


def _is_projected(node: onnx.NodeProto) -> bool:
    """Whether an attention takes queries, keys and values: ONNX's own, unlike that of ONNX Runtime, does."""
    return node.op_type == "MultiHeadAttention" or not node.domain


def _attention_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Queries by keys, and the weights that come of it by values; (..., positions, width) each."""
    out = shapes[node.output[0]]
    left, right = (shapes[name] for name in _factors(node))
    if _is_projected(node):  # queries, keys
        return right[-2] * (math.prod(left) + math.prod(out))
    # Queries are as wide as keys; (input, queries + keys + values) is the shape of the weights.
    positions, width = out[-2], (right[-1] - out[-1]) // 2
    return positions * math.prod(out[:-1]) * (width + out[-1])


def shapes_at_batch_one(
    model: onnx.ModelProto, names: Iterable[str], sizes: Sizes | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the named tensors, from one run on zeros with open dimensions as `sizes` says, else at 1."""
    return shapes_in_run(model, names, zero_feeds(input_specs(model), sizes))


def shapes_in_run(model: onnx.ModelProto, names: Iterable[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the named tensors, of all initialisers and of `feeds`, from one run on `feeds`.

    Shape inference gives up behind reshapes that compute with the batch size, as Swin's windows do.
    Raises TlcError where ONNX Runtime's CPU provider cannot run the graph as it stands, or not on `feeds`.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes |= {name: array.shape for name, array in feeds.items()}
    wanted = sorted(set(names) - shapes.keys())
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session: Any = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(wanted, dict(feeds)) if wanted else []
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise TlcError(
            f"ONNX Runtime cannot run the graph for the shapes in it: {' '.join(str(error).split())}",
            hint="Operators of another runtime cannot be counted: give the file that it was made from.",
        ) from error
    return shapes | {name: value.shape for name, value in zip(wanted, found, strict=True)}


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the inputs that a run needs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in constants)


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the outputs of a run."""
    return tuple(_spec(value) for value in model.graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim)
    return TensorSpec(value.name, shape, str(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
