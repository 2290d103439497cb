"""INT8 Q/DQ file -> strongly typed one: float16 around the INT8 part, as TensorRT reads types from the graph alone.

From 10.12 on, TensorRT's builder flags for FP16 and INT8 are deprecated, and 11 has none: a float32 graph with Q/DQ
pairs runs in INT8 and float32 there.

ONNX Runtime 1.31 runs these files on a CPU only with the session option "session.disable_quant_qdq" = "1", or without
graph optimisation: it fuses pairs with float16 scales into QLinearConcat, which takes float32 ones alone, and then
refuses its own graph.
"""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tlc.export.fp16 import name_nodes, structural_float32
from tlc.export.half import LARGEST, constants_as_initializers, half_model
from tlc.export.opset import opset_of
from tlc.runtime.errors import TlcError

OLDEST_OPSET = 19
"""From here on, scales of QuantizeLinear and DequantizeLinear may be float16."""
SMALLEST_SCALE = 64 * 2.0**-24
"""float16's smallest steps are 2^-24: a scale of 64 of them is off by less than 0.8 %, one weight step in 127."""

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def typed_from_qdq(model: onnx.ModelProto, *, keep_float32: Collection[str] = ()) -> onnx.ModelProto:
    """Return the Q/DQ model with float16 scales, float16 layers between the pairs, and float32 inputs and outputs.

    Weights become INT8 constants in front of DequantizeLinear, rounded with the float16 scale that stands there, so
    that rounding the scale moves no weight by more than half a step. A layer with a scale that float16 cannot hold
    stays in float32 around its INT8 part, as do the nodes of `tlc.export.fp16.structural_float32`.

    Args:
        model: float32 with Q/DQ pairs, opset 19 or newer; weights and scales are constants.
        keep_float32: names of more nodes that stay in float32, such as those of `tlc.export.fp16.float32_on_data`.

    Raises:
        TlcError: the opset is older than 19, the model has no Q/DQ pair, a name is not in it, or it cannot be float16
            (see `half_model`).

    """
    if (opset := opset_of(model)) < OLDEST_OPSET:
        raise TlcError(
            f"a strongly typed INT8 file needs float16 scales: the file is in ONNX opset {opset}, "
            f"the limit is {OLDEST_OPSET}",
            hint=f"Export with opset {OLDEST_OPSET}.",
        )
    single = constants_as_initializers(model)
    name_nodes(single)
    names = {node.name for node in single.graph.node}
    if unknown := sorted(set(keep_float32) - names):
        raise TlcError(
            f"keep_float32 names {len(unknown)} nodes that the graph lacks, {unknown[0]!r} first",
            hint="Use names of nodes of this file.",
        )
    if not any(node.op_type in _PAIR for node in single.graph.node):
        raise TlcError("the graph has no Q/DQ pair to keep in INT8", hint="Quantise it, or convert it to float16.")
    keep = {node.name for node in structural_float32(single)} | set(keep_float32) | _small_scales(single)
    _store_weights(single, keep)
    half = half_model(single, keep)
    onnx.checker.check_model(half, full_check=True)
    return half


def _small_scales(model: onnx.ModelProto) -> set[str]:
    """Names of the pairs with a scale that float16 cannot hold, of the layers that read them, and of their other pairs.

    The layer goes with them: with a cast between it and a pair it would not run in INT8.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    writers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    kept: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[1] not in constants:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        if scale.min() >= SMALLEST_SCALE and scale.max() <= LARGEST:
            continue
        for layer in readers[node.output[0]]:
            kept.add(layer.name)
            for name in layer.input:
                dequantizer = writers.get(name)
                if dequantizer is not None and dequantizer.op_type == "DequantizeLinear":
                    quantizer = writers.get(dequantizer.input[0])
                    kept |= {dequantizer.name} | ({quantizer.name} if quantizer is not None else set())
    return kept


def _store_weights(model: onnx.ModelProto, keep: Collection[str]) -> None:
    """Replace constant -> QuantizeLinear by the integers, on the grid whose scale the file will hold."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or not {*node.input} <= constants.keys() or len(node.input) < 3:
            nodes.append(node)
            continue
        values, scale, zero_point = (numpy_helper.to_array(constants[name]) for name in node.input)
        if node.name not in keep:
            scale = scale.astype(np.float16)
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
        stored = _integers(values, scale.astype(np.float64), zero_point, axis)
        graph.initializer.append(numpy_helper.from_array(stored, node.output[0]))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _integers(values: NDArray[Any], scale: NDArray[np.float64], zero_point: NDArray[Any], axis: int) -> NDArray[Any]:
    if scale.ndim and scale.size > 1:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    limits = np.iinfo(zero_point.dtype)
    stored = np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max)
    rounded: NDArray[Any] = stored.astype(zero_point.dtype)
    return rounded
