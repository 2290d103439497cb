"""Where QuantizeLinear and DequantizeLinear stand decides what ONNX Runtime can fuse. These passes add and change them.

`carry_through`, `dequantize_rows` and `set_activation_type` are exact. The others round one tensor more, which is what
makes the operation that writes it an integer one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tlc.export.grid_rules import integers
from tlc.export.view import View, attribute

# Operators whose outputs are values of their first input (Concat: of all inputs), so the same scale represents them.
_VALUE_PRESERVING = (
    *("Concat", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Reshape"),
    *("Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
_SHIFT = 128


class _Grid(NamedTuple):
    """Scale and zero point of a quantised activation: the names of the initialisers, and their values."""

    scale_name: str
    zero_point_name: str
    scale: float
    zero_point: int
    dtype: str

    @property
    def values(self) -> tuple[float, int, str]:
        return self.scale, self.zero_point, self.dtype


def carry_through(model: onnx.ModelProto) -> int:
    """Repeat the Q/DQ pair of a tensor behind operators that only move its values; return how many were added.

    A quantiser in front of Concat or MaxPool leaves a float tensor behind it, and the convolution that reads it runs in
    float: ONNX Runtime fuses only what stands between DequantizeLinear and QuantizeLinear. The values are already on
    the grid, so the second rounding changes nothing. (SqueezeNet on a CPU with VNNI: 8 of 26 convolutions ran in float
    before, none after; 1.31x -> 2.38x over FP32.)
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    outputs = {value.name for value in graph.output}
    grids: dict[str, _Grid] = {}
    nodes: list[onnx.NodeProto] = []
    added = 0
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "DequantizeLinear" and (grid := _grid(node, constants)):
            grids[node.output[0]] = grid
        if node.op_type not in _VALUE_PRESERVING:
            continue
        moved = node.input if node.op_type == "Concat" else node.input[:1]
        sources = [grids.get(name) for name in moved]
        if (first := sources[0]) is None or any(grid is None or grid.values != first.values for grid in sources):
            continue
        for index in range(1 if node.op_type == "MaxPool" else len(node.output)):
            name = node.output[index]
            if name in outputs or all(reader.op_type == "QuantizeLinear" for reader in readers[name]):
                continue
            node.output[index] = f"{name}_moved"
            nodes.extend(_pair(f"{name}_moved", name, first))
            grids[name] = first
            added += 1
    if added:
        del graph.node[:]
        graph.node.extend(nodes)
    return added


def dequantize_rows(model: onnx.ModelProto) -> int:
    """Dequantise only the rows that a Gather picks from an INT8 table; return how many Gathers changed.

    ONNX Runtime dequantises a whole table of embeddings anew in every run, which took more than half of the time of a
    BERT with 6 layers, 384 wide (8.0 ms with it, 2.3 ms without; one thread, ONNX Runtime 1.31). Exact: the same
    integer times the same scale.
    """
    view = View(model)
    nodes: list[onnx.NodeProto] = []
    changed = 0
    for node in view.nodes:
        table = view.dequantizer(node.input[0]) if node.op_type == "Gather" and not attribute(node, "axis", 0) else None
        if table is None or view.value(table.input[0]) is None or (scale := view.value(table.input[1])) is None:
            nodes.append(node)
            continue
        zero_point = view.value(table.input[2]) if len(table.input) > 2 and table.input[2] else np.zeros(1)
        if zero_point is None or np.any(zero_point) or (scale.size > 1 and attribute(table, "axis", 1) != 0):
            nodes.append(node)
            continue
        nodes += _rows_dequantized(model.graph, node, table, scale)
        changed += 1
    del model.graph.node[:]
    read = {name for node in nodes for name in node.input} | view.outputs
    model.graph.node.extend(node for node in nodes if not read.isdisjoint(node.output))
    return changed


def _rows_dequantized(
    graph: onnx.GraphProto, gather: onnx.NodeProto, table: onnx.NodeProto, scale: NDArray[np.float32]
) -> list[onnx.NodeProto]:
    """Return what replaces the Gather: it picks integers, and each row's scale where there is one per row."""
    ids, out = gather.input[1], gather.output[0]
    column = f"{out}_scales"
    graph.initializer.append(numpy_helper.from_array(scale.reshape(-1, 1) if scale.size > 1 else scale, column))
    nodes = [
        helper.make_node("Gather", [table.input[0], ids], [f"{out}_integers"], name=f"{gather.name or out}_integers"),
        helper.make_node("Cast", [f"{out}_integers"], [f"{out}_cast"], name=f"{out}_cast", to=TensorProto.FLOAT),
    ]
    if scale.size > 1:
        nodes.append(helper.make_node("Gather", [column, ids], [f"{out}_scale"], name=f"{out}_scale"))
        column = f"{out}_scale"
    return [*nodes, helper.make_node("Mul", [f"{out}_cast", column], [out], name=f"{out}_dequantized")]


def set_activation_type(model: onnx.ModelProto, dtype: Literal["uint8", "int8"]) -> int:
    """Give every quantised activation that type; return how many tensors changed.

    A zero point moved by 128 with the type leaves every represented value as it is. ONNX Runtime fuses INT8
    convolutions behind uint8 activations on x86 and behind either on ARM.
    """
    graph = model.graph
    wanted = np.dtype(dtype)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    touched = {
        node.input[2]
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and len(node.input) == 3
        and node.input[2] in constants
        and node.input[0] not in constants
    }
    changed = 0
    for name in sorted(touched):
        zero_point = numpy_helper.to_array(constants[name])
        if zero_point.dtype == wanted or zero_point.dtype not in (np.uint8, np.int8):
            continue
        shift = _SHIFT if dtype == "uint8" else -_SHIFT
        moved: NDArray[np.generic] = (zero_point.astype(np.int16) + shift).astype(wanted)
        constants[name].CopyFrom(numpy_helper.from_array(moved, name))
        changed += 1
    graph.ClearField("value_info")  # it still says the old types; runtimes infer them
    return changed


def float_convolution_outputs(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that keep a convolution with quantised inputs in float, because they are not quantised.

    NNCF places quantisers for OpenVINO, which fuses a convolution with the Swish behind it; ONNX Runtime fuses it with
    Relu or Clip only, and otherwise dequantises input and weights in every run and convolves in float.
    """
    graph = model.graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    readers = _readers(graph)
    outputs = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if node.op_type != "Conv" or not {node.input[0], node.input[1]} <= dequantized:
            continue
        name = node.output[0]
        if [reader.op_type for reader in readers[name]] in (["Relu"], ["Clip"]):
            name = readers[name][0].output[0]
        if name not in outputs and not all(reader.op_type == "QuantizeLinear" for reader in readers[name]):
            found.append(name)
    return found


def quantize_tensors(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Put a uint8 Q/DQ pair on each tensor, between it and all its readers; `ranges` are its (lowest, highest) values.

    A reader that is a quantiser already lends its grid to the others.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        nodes.append(node)
        for name in node.output:
            if name not in ranges:
                continue
            grid = next((grid for reader in readers[name] if (grid := _quantizer_grid(reader, constants))), None)
            if grid is None:
                grid = _new_grid(graph, name, *ranges[name])
            nodes.extend(_pair(name, f"{name}_rounded", grid))
            for reader in readers[name]:
                reader.input[:] = [f"{name}_rounded" if source == name else source for source in reader.input]
    del graph.node[:]
    graph.node.extend(nodes)


def quantize_sigmoids(model: onnx.ModelProto) -> int:
    """Quantise the output of each Sigmoid of a quantised tensor to steps of 1/255; return how many.

    ONNX Runtime then looks all of it up in a table of 256 entries, and the product of a Swish becomes integer too.
    """
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    readers = _readers(model.graph)
    ranges = {
        node.output[0]: (0.0, 1.0)
        for node in model.graph.node
        if node.op_type == "Sigmoid"
        and node.input[0] in dequantized
        and not all(reader.op_type == "QuantizeLinear" for reader in readers[node.output[0]])
    }
    quantize_tensors(model, ranges)
    return len(ranges)


def _quantizer_grid(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> _Grid | None:
    return _grid(node, constants) if node.op_type == "QuantizeLinear" else None


def _new_grid(graph: onnx.GraphProto, name: str, low: float, high: float) -> _Grid:
    """uint8 grid that represents `low`, `high` and exactly 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    zero_point = np.uint8(round(-low / float(scale)))
    scale_name, zero_point_name = f"{name}_scale", f"{name}_zero_point"
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale), scale_name))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero_point), zero_point_name))
    return _Grid(scale_name, zero_point_name, float(scale), int(zero_point), "uint8")


def _grid(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> _Grid | None:
    """Per-tensor grid of a dequantised activation; None for weights and per-channel scales."""
    if len(node.input) < 3 or node.input[0] in constants or not {node.input[1], node.input[2]} <= constants.keys():
        return None
    scale, zero_point = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if scale.size != 1:
        return None
    return _Grid(node.input[1], node.input[2], float(scale.item()), int(zero_point.item()), str(zero_point.dtype))


def _pair(source: str, result: str, grid: _Grid) -> Sequence[onnx.NodeProto]:
    parameters = [grid.scale_name, grid.zero_point_name]
    return (
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{result}_q"], name=f"{result}_q"),
        helper.make_node("DequantizeLinear", [f"{result}_q", *parameters], [result], name=f"{result}_dq"),
    )


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def store_int8_weights(model: onnx.ModelProto) -> int:
    """Store weights as the INT8 that their QuantizeLinear would make of them, a quarter of the bytes; return how many.

    Exact: QuantizeLinear rounds half to even and saturates, and so does this. TensorRT reads such weights from
    release 10 on; releases before want the pair.
    """
    view = View(model)
    stored = {}
    for node in view.quantizers():
        quantizer = view.quantizer(node) if node.op_type == "DequantizeLinear" else None
        if quantizer is None or view.stored(quantizer) is None or (values := integers(view, node)) is None:
            continue
        stored[quantizer.output[0]] = numpy_helper.from_array(values.astype(np.int8), quantizer.output[0])
    graph = model.graph
    kept = [node for node in graph.node if node.output[0] not in stored]
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend([*constants, *stored.values()])
    return len(stored)
