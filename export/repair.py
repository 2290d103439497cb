"""Turn a quantised graph that breaks a target's rules into one that does not, and say what is left.

Every step answers to rules of `tlc.export.contract`. Afterwards `check_model` judges the result.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto
from onnx.inliner import inline_local_functions
from pydantic import BaseModel, ConfigDict

from tlc.export import repair_grids, repair_placement
from tlc.export.contract import Violation, check_model
from tlc.export.edit import Change, Editor
from tlc.export.opset import lower_opset, opset_of
from tlc.export.qdq import carry_through, float_convolution_outputs, quantize_tensors, set_activation_type
from tlc.export.view import label
from tlc.runtime.errors import TlcError
from tlc.runtime.target import Target, TensorRT

Ranges = Mapping[str, tuple[float, float]]

_INT32 = np.iinfo(np.int32)
_ROUNDS = 3


class Repaired(BaseModel):
    """The outcome of a repair."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)

    model: onnx.ModelProto
    """The repaired copy."""
    changes: tuple[Change, ...]
    """What was done, in order."""
    left: tuple[Violation, ...]
    """What `check_model` finds in the copy."""
    unknown_ranges: tuple[str, ...]
    """Tensors of the source that need a Q/DQ pair and whose range neither the file nor `ranges` tells."""


def repair(
    model: onnx.ModelProto,
    target: Target,
    ranges: Ranges | None = None,
    reference: onnx.ModelProto | None = None,
) -> Repaired:
    """Return a copy of `model` in which every repairable rule of `target` holds.

    Args:
        model: with its weights inside; it is not changed.
        target: whose rules.
        ranges: (lowest, highest) value by tensor, from calibration data. Where it has a tensor, that decides its scale;
            otherwise the scale and zero point in the file do.
        reference: the float model, if there is one: weights are quantised again from its values.

    Raises:
        TlcError: the graph is not valid ONNX after the repair.

    """
    copy = onnx.ModelProto()
    copy.CopyFrom(inline_local_functions(model) if model.functions else model)
    copy.graph.ClearField("value_info")  # holds the old types; runtimes infer them
    changes: list[Change] = []
    unknown: list[str] = []
    for _ in range(_ROUNDS):
        edit = Editor(copy)
        if target.tensorrt is None:
            unknown = _for_cpu(edit, target, ranges or {})
        else:
            unknown = _for_tensorrt(edit, target, target.tensorrt, ranges or {}, reference)
        changes += edit.changes
        if not edit.changes:
            break
    problem = _problem(copy)
    if problem is not None and _problem(model) is None:
        raise TlcError(
            f"the repaired graph is not valid: {problem}",
            hint="Keep the source as it is, and report the file's exporter and this message.",
        )
    left = tuple(check_model(copy, target))
    return Repaired(model=copy, changes=tuple(changes), left=left, unknown_ranges=tuple(dict.fromkeys(unknown)))


def _problem(model: onnx.ModelProto) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return str(error).splitlines()[0]
    return None


def _for_tensorrt(
    edit: Editor, target: Target, device: TensorRT, ranges: Ranges, reference: onnx.ModelProto | None
) -> list[str]:
    unknown: list[str] = []
    repair_grids.symmetric_activations(edit, ranges)
    if "int8" not in target.precisions:
        _to_float(edit)
    else:
        repair_grids.float_biases(edit)
        repair_grids.symmetric_weights(edit, {} if reference is None else repair_grids.float_weights(reference))
        repair_placement.float_small_layers(edit)
        repair_placement.behind_activations(edit)
        repair_placement.float_branches(edit)
        unknown += repair_placement.round_skips_and_pools(edit, ranges)
        unknown += repair_placement.share_scales(edit, ranges)
        repair_placement.drop_unread_pairs(edit)
        repair_placement.own_pairs(edit)
        repair_grids.float32_scales(edit, device)
        repair_grids.weight_pairs(edit, device)
    _clamp_bounds(edit, device)
    if any(found.rule in ("opset", "unsupported-operator") for found in check_model(edit.model, target)):
        _lower(edit, target)
    return unknown


def _for_cpu(edit: Editor, target: Target, ranges: Ranges) -> list[str]:
    if "int8" not in target.precisions:
        _to_float(edit)
    unknown: list[str] = []
    if target.contract in ("ort-u8s8", "ort-s8s8"):
        _one_scale(edit)
        wanted = float_convolution_outputs(edit.model)
        unknown = [name for name in wanted if name not in ranges]
        if known := [name for name in wanted if name in ranges]:
            quantize_tensors(edit.model, {name: ranges[name] for name in known})
            for name in known:
                edit.note("float-convolution-output", name, "a pair on it")
        broken = [found for found in check_model(edit.model, target) if found.rule == "activation-type"]
        if broken:
            set_activation_type(edit.model, "uint8" if target.contract == "ort-u8s8" else "int8")
            for found in broken:
                edit.note(found.rule, found.node, "type and zero point moved by 128: the same values")
        if edit.changes:
            carry_through(edit.model)
    if opset_of(edit.model) > target.opset:
        _lower(edit, target)
    return unknown


def _one_scale(edit: Editor) -> None:
    """Give activations with a scale per channel the largest one, which covers all of them."""
    view = edit.view
    for quantizer in [node for node in view.nodes if node.op_type == "QuantizeLinear" and len(node.input) == 3]:
        scale, zero_point = view.value(quantizer.input[1]), view.value(quantizer.input[2])
        if scale is None or zero_point is None or scale.size == 1 or view.is_constant(quantizer.input[0]):
            continue
        if (represented := repair_grids.represented(view, quantizer)) is None:
            continue
        if len(np.unique(zero_point)) == 1:
            one_scale, one_zero = np.asarray(scale.max()), np.asarray(zero_point.reshape(-1)[0])
        else:
            low, high = represented
            one_scale = np.asarray((high - low) / 255, scale.dtype)
            one_zero = np.asarray(round(-low / float(one_scale)), np.uint8)
        names = [
            edit.constant(one_scale, f"{quantizer.input[0]}_scale"),
            edit.constant(one_zero, f"{quantizer.input[0]}_zero_point"),
        ]
        for part in (quantizer, *view.readers(quantizer.output[0])):
            part.input[1:] = names
        edit.note("per-channel-activation", label(quantizer), f"one scale, {float(one_scale):.4g}")
    edit.refresh()


def _to_float(edit: Editor) -> None:
    if any(edit.view.quantizers()):
        repair_placement.to_float(edit)


def _clamp_bounds(edit: Editor, device: TensorRT) -> None:
    """Narrow bounds of Slice that mean "to the end" to 32 bits, as the parser would with a warning; exact."""
    if device.release >= (10, 0):
        return
    view = edit.view
    for node in [node for node in view.nodes if node.op_type == "Slice"]:
        for index in (1, 2):
            value = view.value(node.input[index]) if view.type_of(node.input[index]) == TensorProto.INT64 else None
            if value is not None and value.size and (value.max() > _INT32.max or value.min() < _INT32.min):
                narrow = np.clip(value, _INT32.min, _INT32.max)
                node.input[index] = edit.constant(narrow, f"{node.input[index]}_int32")
                edit.note("int64-range", label(node), "bound narrowed to 32 bits")
    edit.refresh()


def _lower(edit: Editor, target: Target) -> None:
    before = opset_of(edit.model)
    lowered = onnx.ModelProto()
    lowered.CopyFrom(edit.model)
    try:
        lower_opset(lowered, target.opset)
    except TlcError:
        return  # what cannot be lowered stays in `left`
    if opset_of(lowered) < before and _problem(lowered) is None:
        edit.model.CopyFrom(lowered)
        edit.note("opset", edit.graph.name, f"lowered from {before} to {target.opset}")


__all__ = ["Change", "Repaired", "repair"]
