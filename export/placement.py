"""Where QuantizeLinear and DequantizeLinear belong so that TensorRT fuses what it can, and the writing of them there.

TensorRT runs a layer in INT8 where its inputs come out of DequantizeLinear, and moves the pairs by itself over layers
that only move values. The rules, from NVIDIA's "Working with quantized types" and Model-Optimizer
(modelopt/onnx/quantization: partitioning.py, graph_utils.py):

- inputs and weights of Conv, ConvTranspose, Gemm and MatMul are quantised, their outputs are not: Conv, batch norm and
  activation stay in one kernel;
- where a convolution is added to a skip branch, the skip branch is quantised and the convolution's is not;
- so are inputs of pooling that stands between quantised layers, and of the multiplication in squeeze-and-excitation;
- tensors that only move between quantised readers (Concat, MaxPool, Reshape, Split, ...) share one scale;
- small layers and products with a vector gain nothing and stay in float, like the products inside attention;
- every reader has a pair of its own.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tlc.export.graph import shapes_at_batch_one
from tlc.export.grid_rules import output_axis
from tlc.export.placement_rules import too_small
from tlc.export.view import ACTIVATIONS, MOVING, WEIGHTED, View, attribute
from tlc.runtime.errors import TlcError
from tlc.runtime.target import Target

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_MOVING = (*MOVING, "Concat", "MaxPool")
"""Operators whose outputs are values of their first input (Concat: of all inputs)."""
_POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool")
_LARGEST = 127
_OPEN_SIZE = 16
"""Tokens in a text: more than 1, for which every layer would be a product with a vector."""

Edge = tuple[int, int]
"""Index of a node, index of its input."""


def place(
    model: onnx.ModelProto, target: Target, ranges: Mapping[str, tuple[float, float]], *, ignored: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return the float `model` with Q/DQ pairs where `target`'s TensorRT wants them.

    INT8, symmetric: activations with one scale of max(|low|, |high|) / 127, weights with one per output channel (one
    in all for ConvTranspose) and in float32 in front of their pair, biases in float32. Zero points and axes are
    written even where they are the default: releases before 10 need them.

    Args:
        model: float32, with nodes in topological order, batch norms folded where they can be.
        target: one with INT8 arithmetic and the contract "tensorrt".
        ranges: (lowest, highest) value of each of `quantized_tensors(model)`.
        ignored: names of nodes that stay in float.

    Raises:
        TlcError: the target has no INT8 arithmetic.

    """
    if "int8" not in target.precisions:
        raise TlcError(f"target {target.name} has no INT8 arithmetic", hint="Use its float16 file.")
    graph = _Graph(model)
    layers, edges = _edges(graph, ignored)
    grids = _shared_ranges(graph, edges, ranges)
    placed = onnx.ModelProto()
    placed.CopyFrom(model)
    writer = _Writer(placed.graph)
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(placed.graph.node):
        for position in range(len(node.input)):
            label = f"{node.name or index}_{position}"
            if (index, position) in edges:
                scale = writer.activation_scale(node.input[position], grids[node.input[position]])
                nodes += writer.pair(node, position, label, scale, axis=None)
            elif position == 1 and index in layers:
                weight = numpy_helper.to_array(graph.view.constants[node.input[1]])
                axis = output_axis(node, weight.ndim)
                scale = writer.weight_scale(label, weight, axis)
                nodes += writer.pair(node, position, label, scale, axis)
        nodes.append(node)
    del placed.graph.node[:]
    placed.graph.node.extend(nodes)
    return placed


def quantized_tensors(model: onnx.ModelProto, *, ignored: Sequence[str] = ()) -> list[str]:
    """Return the activations that `place` quantises: those whose ranges it needs."""
    graph = _Graph(model)
    _, edges = _edges(graph, ignored)
    return sorted({graph.source(edge) for edge in edges})


class _Graph:
    """What reads and writes each tensor, by the nodes' indices."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.view = View(model)
        self.nodes = self.view.nodes
        self.writer = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        sized = [node for node in self.nodes if node.op_type in (*WEIGHTED, "ReduceMean")]
        names = {name for node in sized for name in (node.input[0], node.output[0])}
        self.shapes = shapes_at_batch_one(model, names, _open_sizes(model))

    def source(self, edge: Edge) -> str:
        name: str = self.nodes[edge[0]].input[edge[1]]
        return name

    def variable_inputs(self, node: onnx.NodeProto) -> list[int]:
        return [position for position, name in enumerate(node.input) if name and not self.view.is_constant(name)]


def _open_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Return a size for every open dimension of the inputs but the batch, such as the length of texts."""
    dims = [list(value.type.tensor_type.shape.dim) for value in model.graph.input]
    batch = {sizes[0].dim_param for sizes in dims if sizes}
    return {dim.dim_param: _OPEN_SIZE for sizes in dims for dim in sizes[1:] if dim.dim_param} | dict.fromkeys(batch, 1)


def _edges(graph: _Graph, ignored: Sequence[str]) -> tuple[set[int], set[Edge]]:
    """Return the layers in INT8, and every activation input that gets a pair."""
    candidates = [(index, node) for index, node in enumerate(graph.nodes) if node.name not in ignored]
    layers = {index for index, node in candidates if _has_weights(graph, node) and not _is_small(graph, node)}
    edges = {(index, 0) for index in layers}
    kernels = {index for index in layers if graph.nodes[index].op_type in _CONVOLUTIONS}
    for index, node in candidates:
        if node.op_type == "Add" and (skip := _skip_branch(graph, node, kernels)) is not None:
            edges.add((index, skip))
            kernels.add(index)
    edges |= _pools_and_concats(graph, candidates, kernels, edges)
    return layers, edges | _scalings(graph, candidates, kernels, edges)


def _pools_and_concats(
    graph: _Graph, candidates: Sequence[tuple[int, onnx.NodeProto]], kernels: set[int], edges: set[Edge]
) -> set[Edge]:
    """Return the inputs of pooling beside quantised layers, and those of Concat in front of them."""
    found: set[Edge] = set()
    quantized = {graph.source(edge) for edge in edges}  # by a reader, or by one behind operators that move values
    for index, node in reversed(candidates):
        feeds_integers = not quantized.isdisjoint(node.output)
        if _is_pool(graph, node) and (feeds_integers or _backbone(graph, node.input[0], kernels) is not None):
            found.add((index, 0))
            quantized.add(node.input[0])
        elif node.op_type == "Concat" and feeds_integers:
            found.update((index, position) for position in graph.variable_inputs(node))
            quantized.update(node.input)
        elif node.op_type in _MOVING and feeds_integers:
            quantized.add(node.input[0])
    return found


def _has_weights(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Tell whether it is a layer with constant weights and variable input; attention's products are not."""
    if node.op_type not in WEIGHTED or graph.view.is_constant(node.input[0]) or attribute(node, "transA", 0):
        return False
    weight = graph.view.constants.get(node.input[1])
    return weight is not None and (node.op_type in _CONVOLUTIONS or len(weight.dims) == 2)


def _is_small(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Tell whether INT8 gains nothing; a convolution on a 1x1 image is the product of a matrix and a vector, too."""
    shape = graph.shapes[node.output[0]]
    positions = shape[2:] if node.op_type in _CONVOLUTIONS else shape[:-1]
    return math.prod(positions) == 1 or too_small(graph.view, node) is not None


def _skip_branch(graph: _Graph, node: onnx.NodeProto, kernels: set[int]) -> int | None:
    """Return which input of an Add is the skip branch of a residual block: the one that its convolution is not in."""
    if len(graph.variable_inputs(node)) < 2:
        return None
    backbones = [_backbone(graph, name, kernels) for name in node.input]
    if backbones[0] == backbones[1]:
        return None  # neither is a convolution, or both are the same one
    if None in backbones:
        skip = backbones.index(None)
        layer = backbones[1 - skip]
        return None if layer in _ancestors(graph, node.input[skip]) else skip
    depths = [_ancestors(graph, name) for name in node.input]
    shared = depths[0].keys() & depths[1].keys()
    if not shared:
        return 0
    meeting = min(shared, key=lambda index: (depths[0][index] + depths[1][index], -index))
    return 1 if depths[0][meeting] > depths[1][meeting] else 0


def _backbone(graph: _Graph, name: str, kernels: set[int]) -> int | None:
    """Return the one of `kernels`, quantised convolutions and their sums, that writes the tensor.

    Between them lies only what is fused with them or moves values.
    """
    index = graph.writer.get(name)
    if index is None or index in kernels:
        return index
    node = graph.nodes[index]
    inputs = graph.variable_inputs(node)
    fused = (*ACTIVATIONS, *_MOVING, "Add", "BatchNormalization", "Mul")
    if node.op_type not in fused or (node.op_type in ("Add", "Mul") and len(inputs) > 1 and not _is_swish(graph, node)):
        return None
    found = (_backbone(graph, node.input[position], kernels) for position in inputs)
    return next((backbone for backbone in found if backbone is not None), None)


def _is_swish(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Tell whether the node is x * sigmoid(x)."""
    if node.op_type != "Mul":
        return False
    for name, other in (node.input, reversed(node.input)):
        writer = graph.writer.get(name)
        if writer is not None and graph.nodes[writer].op_type == "Sigmoid" and graph.nodes[writer].input[0] == other:
            return True
    return False


def _ancestors(graph: _Graph, name: str) -> dict[int, int]:
    """Return every node that the tensor depends on, with the number of nodes in between."""
    found: dict[int, int] = {}
    frontier = {name}
    distance = 0
    while frontier:
        indices = {graph.writer[name] for name in frontier if name in graph.writer} - found.keys()
        found.update(dict.fromkeys(indices, distance))
        frontier = {name for index in indices for name in graph.nodes[index].input}
        distance += 1
    return found


def _is_pool(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Tell whether the node pools an image. TensorRT's parser makes GlobalAveragePool a reduction, like ReduceMean."""
    if node.op_type != "ReduceMean":
        return node.op_type in _POOLS and len(node.output) == 1
    axes = graph.view.value(node.input[1]) if len(node.input) > 1 else attribute(node, "axes", None)
    rank = len(graph.shapes[node.input[0]])
    return axes is not None and rank == 4 and {int(axis) % rank for axis in axes} == {2, 3}


def _scalings(
    graph: _Graph, candidates: Sequence[tuple[int, onnx.NodeProto]], kernels: set[int], edges: set[Edge]
) -> set[Edge]:
    """Return the Mul inputs that squeeze-and-excitation scales, where their tensor is quantised for its pooling."""
    quantized = {graph.source(edge) for edge in edges}
    return {
        (index, position)
        for index, node in candidates
        if node.op_type == "Mul" and len(graph.variable_inputs(node)) > 1
        for position, name in enumerate(node.input)
        if name in quantized and _backbone(graph, name, kernels) is not None
    }


def _shared_ranges(
    graph: _Graph, edges: set[Edge], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Return each quantised tensor's range, the widest of all tensors that its values move from or to."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.get(name, name) != name:
            name = parents[name]
        return name

    for node in graph.nodes:
        if node.op_type in _MOVING:
            moved = node.input if node.op_type == "Concat" else node.input[:1]
            for name in (*moved, *node.output):
                if name and not graph.view.is_constant(name):
                    parents[root(name)] = root(node.output[0])
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted({graph.source(edge) for edge in edges}):
        members[root(name)].append(name)
    shared = {}
    for names in members.values():
        low, high = min(ranges[name][0] for name in names), max(ranges[name][1] for name in names)
        shared.update(dict.fromkeys(names, (low, high)))
    return shared


@dataclass(slots=True)
class _Writer:
    """Adds grids and pairs to a graph."""

    graph: onnx.GraphProto
    written: dict[str, str] = field(default_factory=dict)

    def activation_scale(self, name: str, bounds: tuple[float, float]) -> str:
        if name not in self.written:
            self.written[name] = self._grid(name, np.float32(max(abs(bound) for bound in bounds) / _LARGEST))
        return self.written[name]

    def weight_scale(self, label: str, weight: NDArray[np.float32], axis: int | None) -> str:
        others = tuple(other for other in range(weight.ndim) if other != axis)
        largest = np.abs(weight).max(others if axis is not None else None)
        return self._grid(label, (largest / _LARGEST).astype(np.float32))

    def _grid(self, name: str, scale: NDArray[np.float32] | np.float32) -> str:
        """Write scale and zero points; a range of nothing, which has no scale, gets 1."""
        positive = np.where(np.asarray(scale) > np.finfo(np.float32).tiny, scale, np.float32(1))
        zero_points = np.zeros(positive.shape, np.int8)
        self.graph.initializer.append(numpy_helper.from_array(positive.astype(np.float32), f"{name}_scale"))
        self.graph.initializer.append(numpy_helper.from_array(zero_points, f"{name}_zero_point"))
        return name

    def pair(
        self, node: onnx.NodeProto, position: int, label: str, grid: str, axis: int | None
    ) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        """Return the pair in front of an input of `node`, which now reads it."""
        source, parameters = node.input[position], [f"{grid}_scale", f"{grid}_zero_point"]
        node.input[position] = f"{label}_dequantized"
        written = f"{label}_quantized"
        pair = (
            helper.make_node("QuantizeLinear", [source, *parameters], [written], name=f"{label}_q"),
            helper.make_node("DequantizeLinear", [written, *parameters], [f"{label}_dequantized"], name=f"{label}_dq"),
        )
        if axis is not None:
            for half in pair:
                half.attribute.append(helper.make_attribute("axis", axis))
        return pair
