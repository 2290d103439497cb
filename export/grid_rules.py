"""Rules about the grids of Q/DQ nodes, scales and zero points: what TensorRT's parser and builder accept.

Facts: IQuantizeLayer and IDequantizeLayer in TensorRT's NvInfer.h, QuantDequantLinearHelper in onnx-tensorrt's
importer (branches 8.2-GA to 10.1-GA), and the threads named beside a rule.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from tlc.export.view import WEIGHTED, View, attribute
from tlc.export.violation import Violation, broken
from tlc.runtime.target import TensorRT

HALF_RANGE = 64
_TYPES_FROM: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (8, 2),
    TensorProto.FLOAT8E4M3FN: (8, 6),
    TensorProto.INT4: (10, 0),
    TensorProto.FLOAT4E2M1: (10, 8),
}


def zero_points(view: View, _device: TensorRT) -> Iterator[Violation]:
    """Zero points: written, constant, as many as scales, int8, and 0."""
    for node in view.quantizers():
        if len(node.input) < 3 or not node.input[2]:
            yield broken(
                node, "missing-zero-point", "refused",
                "it has no zero point: up to TensorRT 8.6 the parser needs one, and a QuantizeLinear without it "
                "writes uint8",
                "Write a zero point of int8 zeros, as many as scales.",
            )  # fmt: skip
            continue
        zero_point, scale = view.value(node.input[2]), view.value(node.input[1])
        if zero_point is None:
            yield broken(
                node, "dynamic-zero-point", "refused", "its zero point is computed at run time",
                "Quantise statically, with symmetric int8.", repairable=False,
            )  # fmt: skip
            continue
        if scale is not None and zero_point.size != scale.size:
            yield broken(
                node, "grid-size", "refused", f"it has {scale.size} scales and {zero_point.size} zero points",
                "Write one zero point per scale.",
            )  # fmt: skip
        if np.any(np.asarray(zero_point, np.int64) != 0):
            worst = int(np.asarray(zero_point, np.int64).reshape(-1)[np.abs(zero_point.astype(np.int64)).argmax()])
            yield broken(
                node, "nonzero-zero-point", "refused", f"its zero point is {worst}; TensorRT only takes 0",
                "Quantise symmetrically: range -T to T with T the larger end.",
            )  # fmt: skip


def types(view: View, device: TensorRT) -> Iterator[Violation]:
    """Types: int8, on releases that have them float8 and int4; float32 scales before TensorRT 10."""
    for node in view.quantizers():
        kind = view.grid_type(node)
        if kind == TensorProto.INT32:
            continue  # a bias: has its own rule
        if kind == TensorProto.UINT8 and len(node.input) > 2 and node.input[2]:
            yield broken(
                node, "uint8-zero-point", "refused",
                "its integers are uint8; TensorRT rejects them, or takes the bits for int8 with the same scale",
                "Use int8: the scale times 255/127 where the zero point is 0.",
            )  # fmt: skip
        elif kind and kind != TensorProto.UINT8 and device.release < _TYPES_FROM.get(kind, (999, 0)):
            yield broken(
                node, "grid-type", "refused",
                f"its integers are {TensorProto.DataType.Name(kind)}, which TensorRT {device.version} does not have",
                "Quantise to int8.", repairable=False,
            )  # fmt: skip
        scale = view.value(node.input[1])
        if device.release < (10, 0) and scale is not None and scale.dtype != np.float32:
            yield broken(
                node, "float16-scale", "wrong",
                f"its scale is {scale.dtype}; before TensorRT 10 the parser reads the bytes as float32",
                "Write the scale as float32, with casts around the pair.",
            )  # fmt: skip


def scales(view: View, _device: TensorRT) -> Iterator[Violation]:
    """Scales: constant, finite, above 0; one per tensor for activations."""
    for node in view.quantizers():
        scale = view.value(node.input[1])
        constant = view.stored(node) is not None
        if scale is None:
            yield broken(
                node, "dynamic-scale", "refused", "its scale is computed at run time", "Quantise statically.",
                repairable=False,
            )  # fmt: skip
            continue
        values = np.asarray(scale, np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            yield broken(
                node, "scale-not-positive", "refused",
                f"{int((~(values > 0)).sum()) or 'some'} of its {values.size} scales are not above 0",
                "Calibrate again; a channel of zeros takes any positive scale.",
                repairable=constant and bool(np.isfinite(values).all()),
            )  # fmt: skip
        if values.size > 1 and not constant:
            yield broken(
                node, "per-channel-activation", "refused",
                f"it rounds an activation with {values.size} scales; TensorRT takes one per activation",
                "Use one scale: the largest.",
            )  # fmt: skip


def weights(view: View, device: TensorRT) -> Iterator[Violation]:
    """Weights: an axis that is written and is that of the output channels; pairs before TensorRT 10; all 8 bits."""
    for node in view.quantizers():
        stored = view.stored(node)
        scale = view.value(node.input[1])
        if stored is None or scale is None or view.grid_type(node) not in (TensorProto.INT8, TensorProto.UINT8):
            continue
        if scale.size > 1:
            yield from _axis(view, node)
        if node.op_type == "DequantizeLinear" and view.quantizer(node) is None and device.release < (10, 0):
            yield broken(
                node, "int8-weights", "refused",
                f"it reads stored int8 weights; TensorRT {device.version} takes float32 weights through a "
                "QuantizeLinear and a DequantizeLinear",
                "Store float32 weights and put a QuantizeLinear in front.",
            )  # fmt: skip
        if node.op_type == "DequantizeLinear" and _largest(view, node) <= HALF_RANGE:
            yield broken(
                node, "half-range-weights", "wrong",
                f"its weights use {int(_largest(view, node))} of 127 steps, a guard against 16-bit sums on old CPUs "
                "that a GPU does not need",
                "Quantise the weights to -127 to 127 from the float file.",
            )  # fmt: skip


def _axis(view: View, node: onnx.NodeProto) -> Iterator[Violation]:
    consumer = weight_reader(view, node)
    if consumer is not None and consumer.op_type == "ConvTranspose":
        yield broken(
            node, "per-channel-transposed-conv", "refused",
            "it gives the weights of a ConvTranspose a scale per channel, which TensorRT's releases read along "
            "different axes",
            "Use one scale for the tensor.",
        )  # fmt: skip
        return
    axis = attribute(node, "axis", None)
    if axis is None:
        yield broken(
            node, "missing-axis", "wrong",
            "it has a scale per channel and no axis: ONNX then means axis 1, TensorRT 0",
            "Write the axis.",
        )  # fmt: skip
        return
    shape = view.shape(str(view.stored(node)))
    expected = None if consumer is None or shape is None else output_axis(consumer, len(shape))
    if consumer is not None and shape is not None and expected is not None and axis % len(shape) != expected:
        yield broken(
            node, "weight-axis", "refused",
            f"its scales run along axis {axis}, the output channels of the {consumer.op_type} along {expected}",
            f"Quantise the weights along axis {expected}.",
        )  # fmt: skip


def biases(view: View, _device: TensorRT) -> Iterator[Violation]:
    """Biases stay in float (microsoft/onnxruntime#14229, NVIDIA/TensorRT#3360)."""
    for node in view.quantizers():
        if node.op_type != "DequantizeLinear" or view.stored(node) is None:
            continue
        as_bias = any(
            reader.op_type in ("Conv", "ConvTranspose", "Gemm") and node.output[0] in reader.input[2:]
            for reader in view.readers(node.output[0])
        )
        if as_bias or view.grid_type(node) == TensorProto.INT32:
            yield broken(
                node, "quantised-bias", "refused",
                'it dequantises a bias; TensorRT refuses with "only activation types allowed as input to this layer"',
                "Store the bias as float32.",
            )  # fmt: skip


def weight_reader(view: View, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the weighted operator that reads the weights that a (De)QuantizeLinear makes, if one directly does."""
    name = node.output[0]
    if node.op_type == "QuantizeLinear":
        following = [reader for reader in view.readers(name) if reader.op_type == "DequantizeLinear"]
        return weight_reader(view, following[0]) if following else None
    for reader in view.readers(name):
        if reader.op_type in WEIGHTED and reader.input[1] == name:
            return reader
    return None


def output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """Return the axis of a layer's weights along which its output channels run; None for ConvTranspose."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1 if node.op_type == "MatMul" else None


def integers(view: View, node: onnx.NodeProto) -> "np.typing.NDArray[np.float64] | None":
    """Return the integers, as float64, of the weights that a DequantizeLinear makes; None if it makes none."""
    stored, scale = view.stored(node), view.value(node.input[1])
    value = None if stored is None else view.value(stored)
    if value is None or scale is None:
        return None
    if value.dtype.kind in "iu":
        return value.astype(np.float64)
    shape = [1] * value.ndim
    if scale.size > 1:
        axis = attribute(node, "axis", 1)
        if scale.size != value.shape[axis]:
            return None
        shape[axis] = -1
    with np.errstate(divide="ignore", invalid="ignore"):
        # In float32, as the operator divides: a quotient near a half may round the other way in float64.
        rounded: np.typing.NDArray[np.float64] = np.clip(np.rint(value / scale.reshape(shape)), -128, 127)
        return rounded.astype(np.float64)


def _largest(view: View, node: onnx.NodeProto) -> float:
    """Return the largest absolute integer of the weights; infinity where the question does not arise."""
    values = integers(view, node)
    if values is None or view.grid_type(node) != TensorProto.INT8 or weight_reader(view, node) is None:
        return np.inf
    largest = float(np.abs(values).max(initial=0.0))
    return largest if largest > 0 else np.inf
