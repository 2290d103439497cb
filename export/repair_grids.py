"""Repairs of scales and zero points, rule by rule: the counterpart of `tlc.export.grid_rules`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from tlc.export.edit import Editor, set_attribute, spread
from tlc.export.grid_rules import HALF_RANGE, integers, output_axis, weight_reader
from tlc.export.view import MOVING, View, attribute, label
from tlc.runtime.target import TensorRT

Ranges = Mapping[str, tuple[float, float]]

_BITS: dict[int, tuple[int, int]] = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127)}
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Softplus")
_KEEP_SIGN = (*MOVING, "AveragePool", "Concat", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean", "Resize")


def symmetric_activations(edit: Editor, ranges: Ranges) -> None:
    """Give every rounded activation one int8 scale and the zero point 0.

    The scale is the smallest whose grid, -128 to 127 steps, holds the range: `ranges[tensor]`, or what the old grid
    represents. uint8 with zero point 0 gets 255/127 of its scale. A grid that started at 0 also cut off what is below,
    which quantisers use to leave a Relu out: it is put back where negative values could come.
    """
    view = edit.view
    broken = [found for node in view.nodes if (found := _asymmetric(view, node, ranges)) is not None]
    clipped = [found.low >= 0 and not _never_negative(view, found.quantizer.input[0]) for found in broken]
    for found, clip in zip(broken, clipped, strict=True):
        quantizer, source = found.quantizer, found.quantizer.input[0]
        if clip:
            edit.node("Relu", [source], positive := edit.unused(f"{source}_clipped"))
            quantizer.input[0] = positive
            edit.note("implied-activation", label(quantizer), "a Relu in front, for the negative values that 0 cut off")
        dtype = np.asarray(view.value(quantizer.input[1])).dtype
        scale_name = edit.constant(np.asarray(found.scale, dtype), f"{source}_scale")
        zero_name = edit.constant(np.asarray(0, np.int8), f"{source}_zero_point")
        for node in (quantizer, *found.dequantizers):
            node.input[:] = [node.input[0], scale_name, zero_name]
            _drop_attributes(node, "axis", "output_dtype")
        edit.note(found.rule, label(quantizer), f"int8 with zero point 0 and one scale, {found.scale:.4g}")
    edit.refresh()


class _Asymmetric(NamedTuple):
    """A quantiser of an activation that breaks a rule, what reads its integers, and its new scale."""

    quantizer: onnx.NodeProto
    dequantizers: list[onnx.NodeProto]
    rule: str
    low: float
    scale: float


def _asymmetric(view: View, node: onnx.NodeProto, ranges: Ranges) -> _Asymmetric | None:
    if node.op_type != "QuantizeLinear" or view.is_constant(node.input[0]) or (grid := _grid(view, node)) is None:
        return None
    readers = view.readers(node.output[0])
    low, high, rule = grid
    if rule is None or not all(_same_grid(view, node, reader) for reader in readers):
        return None  # something else reads the integers, by a scale of its own
    lowest, highest = ranges.get(node.input[0]) or (float(low.min()), float(high.max()))
    scale = max(highest / 127, -lowest / 128)
    return _Asymmetric(node, readers, rule, float(low.min()), scale) if scale > 0 else None


def _grid(view: View, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any], str | None] | None:
    """Return lowest and highest values that a grid represents, per scale, and the first rule it breaks."""
    scale = view.value(node.input[1])
    kind = view.grid_type(node)
    if scale is None or kind not in _BITS or not (np.isfinite(scale) & (scale > 0)).all():
        return None
    named = len(node.input) > 2 and bool(node.input[2])
    zero_point = view.value(node.input[2]) if named else np.zeros(1, np.int64)
    if zero_point is None:
        return None
    rule: str | None
    zeros, scales = zero_point.astype(np.float64).reshape(-1), scale.astype(np.float64).reshape(-1)
    if zeros.size != scales.size and zeros.any():
        return None
    if kind == TensorProto.UINT8:
        rule = "uint8-zero-point" if named else "missing-zero-point"
    elif zeros.any():
        rule = "nonzero-zero-point"
    elif scales.size > 1:
        rule = "per-channel-activation"
    else:
        rule = None if named and zeros.size == scales.size else "missing-zero-point"
    zeros = zeros if zeros.size == scales.size else np.zeros_like(scales)
    lowest, highest = _BITS[kind]
    return scales * (lowest - zeros), scales * (highest - zeros), rule


def represented(view: View, node: onnx.NodeProto) -> tuple[float, float] | None:
    """Return the lowest and highest value that an 8-bit grid represents, over all its scales; None if it is no such."""
    grid = _grid(view, node)
    return None if grid is None else (min(0.0, float(grid[0].min())), max(0.0, float(grid[1].max())))


def _same_grid(view: View, quantizer: onnx.NodeProto, dequantizer: onnx.NodeProto) -> bool:
    if dequantizer.op_type != "DequantizeLinear":
        return False
    grids = [_grid(view, quantizer), _grid(view, dequantizer)]
    if grids[0] is None or grids[1] is None:
        return False
    return all(np.array_equal(a, b) for a, b in zip(grids[0][:2], grids[1][:2], strict=True))


def _never_negative(view: View, name: str) -> bool:
    node = view.producer(name)
    if node is None:
        return False
    if node.op_type in _NEVER_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low = view.value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        return low is not None and float(low) >= 0
    if node.op_type == "DequantizeLinear" and (grid := _grid(view, node)) is not None and grid[0].min() >= 0:
        return True
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _never_negative(view, node.input[0])
    if node.op_type == "Concat" or (node.op_type in ("Add", "Mul") and not any(map(view.is_constant, node.input))):
        return all(_never_negative(view, source) for source in node.input)
    return node.op_type in _KEEP_SIGN and _never_negative(view, node.input[0])


def float32_scales(edit: Editor, device: TensorRT) -> None:
    """Write float16 scales as float32 before TensorRT 10, with casts around the pair."""
    if device.release >= (10, 0):
        return
    view = edit.view
    for node in list(view.quantizers()):
        scale = view.value(node.input[1])
        if scale is None or scale.dtype != np.float16:
            continue
        node.input[1] = edit.constant(scale.astype(np.float32), f"{node.input[1]}_float32")
        if node.op_type == "QuantizeLinear":
            edit.node("Cast", [node.input[0]], wide := edit.unused(f"{node.input[0]}_float32"), to=TensorProto.FLOAT)
            node.input[0] = wide
        else:
            result = node.output[0]
            node.output[0] = edit.unused(f"{result}_float32")
            edit.node("Cast", [node.output[0]], result, to=TensorProto.FLOAT16)
        edit.note("float16-scale", label(node), "scale in float32, with a cast")
    edit.refresh()


def float_biases(edit: Editor) -> None:
    """Store dequantised biases as float."""
    view = edit.view
    for node in [node for node in view.nodes if node.op_type == "DequantizeLinear"]:
        name = node.output[0]
        as_bias = any(name in reader.input[2:] for reader in view.readers(name) if reader.op_type != "DequantizeLinear")
        if view.grid_type(node) != TensorProto.INT32 and not as_bias:
            continue
        if (value := float_value(view, node)) is None:
            continue
        edit.rewire(view.readers(name), name, edit.constant(value, name))
        edit.note("quantised-bias", label(node), "stored as float")
    edit.refresh()


def float_value(view: View, node: onnx.NodeProto) -> NDArray[Any] | None:
    """Return the float constant that a DequantizeLinear writes, unrounded where the file has it so; None if none."""
    stored, scale = view.stored(node), view.value(node.input[1])
    value = None if stored is None else view.value(stored)
    if value is None or scale is None:
        return None
    if value.dtype.kind == "f":
        return value
    zero_point = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if zero_point is None:
        return None
    shifted = value.astype(np.float64) - spread(zero_point.astype(np.float64), value.shape, node)
    return np.asarray(shifted * spread(scale.astype(np.float64), value.shape, node), scale.dtype)


def symmetric_weights(edit: Editor, reference: Mapping[str, NDArray[Any]]) -> None:
    """Quantise weights again whose grid breaks a rule: symmetric int8, all steps, along the output channels.

    From the float values where the file, or `reference` (values by node name), has them; else from the dequantised
    ones. Half-range weights that are only there as integers get twice the integer and half the scale, which is exact,
    where that fits into int8.
    """
    view = edit.view
    for node in [node for node in view.nodes if node.op_type == "DequantizeLinear"]:
        reader, values = weight_reader(view, node), float_value(view, node)
        rule = _weight_rule(view, node)
        if values is None or rule is None:
            continue
        if reader is None:
            edit.rewire(view.readers(node.output[0]), node.output[0], edit.constant(values, node.output[0]))
            edit.note(rule, label(node), "the constant is no layer's weights: stored as float")
            continue
        known = _close(reference.get(label(reader)), values, view, node)
        scale = np.asarray(view.value(node.input[1]))
        axis = output_axis(reader, values.ndim) if scale.size > 1 else None
        if rule == "missing-axis" and axis == 1:
            for part in filter(None, (view.quantizer(node), node)):
                set_attribute(part, "axis", 1)
            edit.note(rule, label(node), "axis 1 written, which is what ONNX means without")
            continue
        if rule in ("missing-zero-point", "grid-size"):
            _write_zero_points(edit, node, scale)
            edit.note(rule, label(node), f"{scale.size} zero points of 0 written")
            continue
        if rule == "half-range-weights" and known is None and view.quantizer(node) is None:
            stored = np.asarray(view.value(node.input[0])).astype(np.int64)
            if stored.min() >= -HALF_RANGE and stored.max() < HALF_RANGE:
                doubled = edit.constant((2 * stored).astype(np.int8), f"{node.input[0]}_doubled")
                node.input[0] = doubled
                node.input[1] = edit.constant((scale / 2).astype(scale.dtype), f"{node.input[1]}_halved")
                edit.note(rule, label(node), "integers doubled, scales halved: the same values")
                continue
        _quantise_weights(edit, node, values if known is None else known, axis, scale.dtype)
        origin = "float values" if known is not None or view.quantizer(node) is not None else "dequantised values"
        edit.note(rule, label(node), f"quantised again from the {origin}, symmetric, axis {axis}")
    edit.refresh()


def _weight_rule(view: View, node: onnx.NodeProto) -> str | None:
    """Return the first rule that the grid of a layer's weights breaks, in an order in which repairs do not meet."""
    reader, scale, kind = weight_reader(view, node), view.value(node.input[1]), view.grid_type(node)
    stored = view.stored(node)
    if scale is None or stored is None or kind not in _BITS:
        return None
    named = len(node.input) > 2 and bool(node.input[2])
    zero_point = view.value(node.input[2]) if named else np.zeros(scale.shape, np.int8)
    if zero_point is None:
        return None
    rank = len(view.shape(stored) or ())
    if not (scale > 0).all():
        return "scale-not-positive"
    if zero_point.any():
        return "nonzero-zero-point"
    if kind == TensorProto.UINT8 and (named or view.quantizer(node) is None):
        return "uint8-zero-point"
    axis = attribute(node, "axis", None)
    if scale.size > 1 and axis is None:
        return "missing-axis"
    if reader is not None and scale.size > 1 and reader.op_type == "ConvTranspose":
        return "per-channel-transposed-conv"
    if reader is not None and scale.size > 1 and axis % rank != output_axis(reader, rank):
        return "weight-axis"
    if not named:
        return "missing-zero-point"
    if zero_point.size != scale.size:
        return "grid-size"
    values = integers(view, node)
    if values is not None and 0 < np.abs(values).max(initial=0) <= HALF_RANGE:
        return "half-range-weights"
    return None


def _close(known: NDArray[Any] | None, values: NDArray[Any], view: View, node: onnx.NodeProto) -> NDArray[Any] | None:
    """Return `known` if `values` are its rounding: at most one step away."""
    if known is None or known.shape != values.shape:
        return None
    step = spread(np.abs(np.asarray(view.value(node.input[1]), np.float64)), values.shape, node)
    return known if (np.abs(known.astype(np.float64) - values) <= step).all() else None


def _quantise_weights(
    edit: Editor, node: onnx.NodeProto, values: NDArray[Any], axis: int | None, dtype: np.dtype[Any]
) -> None:
    others = tuple(index for index in range(values.ndim) if index != axis) if axis is not None else None
    largest = np.abs(values.astype(np.float64)).max(axis=others)
    scale = np.where(largest > 0, largest / 127, 1.0).astype(dtype)
    base = node.output[0]
    scale_name = edit.constant(scale, f"{base}_scale")
    zero_name = edit.constant(np.zeros(scale.shape, np.int8), f"{base}_zero_point")
    quantizer = edit.view.quantizer(node)
    parts = [node]
    if quantizer is not None:
        quantizer.input[0] = edit.constant(values.astype(dtype), f"{base}_float")
        parts.append(quantizer)
    else:
        shape = [1] * values.ndim
        if axis is not None:
            shape[axis] = -1
        steps = np.rint(values.astype(np.float64) / scale.astype(np.float64).reshape(shape))
        node.input[0] = edit.constant(np.clip(steps, -127, 127).astype(np.int8), f"{base}_int8")
    for part in parts:
        part.input[:] = [part.input[0], scale_name, zero_name]
        _drop_attributes(part, "axis", "output_dtype")
        if axis is not None:
            set_attribute(part, "axis", axis)


def _write_zero_points(edit: Editor, node: onnx.NodeProto, scale: NDArray[Any]) -> None:
    name = edit.constant(np.zeros(scale.shape, np.int8), f"{node.output[0]}_zero_point")
    for part in filter(None, (node, edit.view.quantizer(node))):
        part.input[:] = [*part.input[:2], name]
        _drop_attributes(part, "output_dtype")


def weight_pairs(edit: Editor, device: TensorRT) -> None:
    """Store float32 weights and a QuantizeLinear in front of the DequantizeLinear, before TensorRT 10; exact."""
    if device.release >= (10, 0):
        return
    view = edit.view
    for node in [node for node in view.nodes if node.op_type == "DequantizeLinear"]:
        if view.type_of(node.input[0]) != TensorProto.INT8 or (value := float_value(view, node)) is None:
            continue
        source = edit.constant(value.astype(np.float32), f"{node.input[0]}_float")
        integers_name = edit.unused(f"{node.output[0]}_quantized")
        quantizer = edit.node("QuantizeLinear", [source, *node.input[1:3]], integers_name)
        if (axis := attribute(node, "axis", None)) is not None:
            set_attribute(quantizer, "axis", axis)
        node.input[0] = integers_name
        edit.note("int8-weights", label(node), "float32 weights and a QuantizeLinear in front")
    edit.refresh()


def float_weights(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return the float weights of a model by the name of the layer that reads them."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        label(node): numpy_helper.to_array(tensors[node.input[1]])
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in tensors
    }


def _drop_attributes(node: onnx.NodeProto, *names: str) -> None:
    kept = [entry for entry in node.attribute if entry.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
