"""Repairs of where Q/DQ pairs stand, rule by rule: the counterpart of `tlc.export.placement_rules`."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tlc.export.edit import Editor
from tlc.export.placement_rules import (
    activations_behind,
    concatenated_scales,
    float_pool,
    rounded_branch,
    serves_integers,
    skip_branch,
    too_small,
)
from tlc.export.repair_grids import float_value
from tlc.export.view import WEIGHTED, View, label

Ranges = Mapping[str, tuple[float, float]]


def float_small_layers(edit: Editor) -> None:
    """Take layers that gain nothing from INT8 back to float."""
    view = edit.view
    for node in view.nodes:
        if not view.is_quantised(node) or (reason := too_small(view, node)) is None:
            continue
        for index in (0, 1):
            name = node.input[index]
            dequantizer = view.dequantizer(view.behind(name))
            if dequantizer is None:
                continue
            if (value := float_value(view, dequantizer)) is None:
                if (source := view.rounded(name)) is not None:
                    node.input[index] = source
            elif view.behind(name) == name:
                node.input[index] = edit.constant(value, f"{name}_float")
            else:
                edit.rewire(view.readers(dequantizer.output[0]), dequantizer.output[0], edit.constant(value, name))
        edit.note("small-layer", label(node), f"back to float: {reason}")
    edit.refresh()


def behind_activations(edit: Editor) -> None:
    """Let activations read what their layer writes, and round behind them where something there runs on integers."""
    view = edit.view
    for quantizer, dequantizer in view.pairs():
        if not (readers := activations_behind(view, dequantizer)):
            continue
        rounded = dequantizer.output[0]
        edit.rewire(readers, rounded, str(quantizer.input[0]))
        last = readers[-1]
        result = last.output[0]
        following = view.readers(result)
        edit.note("pair-before-activation", label(dequantizer), f"the {last.op_type} reads the unrounded tensor")
        if any(reader.op_type == "QuantizeLinear" for reader in following) or not _wants_integers(view, result):
            continue
        scale = view.value(dequantizer.input[1])
        if scale is None or (behind := _largest_behind(view, last, scale)) is None:
            continue
        pair = edit.symmetric_pair(result, behind / 127, result)
        edit.rewire(following, result, pair)
        edit.note("pair-before-activation", label(dequantizer), f"a pair behind the {last.op_type}")
    edit.refresh()


def _wants_integers(view: View, name: str) -> bool:
    """Whether an operator behind the tensor runs on integers, or would if the tensor were rounded."""
    return serves_integers(view, name) or any(
        reader.op_type in WEIGHTED and reader.input[0] == name and view.dequantizer(reader.input[1]) is not None
        for reader in view.readers(name)
    )


def _largest_behind(view: View, node: onnx.NodeProto, scale: "np.typing.NDArray[np.generic]") -> float | None:
    """Return the largest absolute value that an activation makes of the grid -128 to 127 steps; None if unknown."""
    constants = {name: view.value(name) for name in node.input[1:] if name}
    if node.op_type in ("Mul", "PRelu") or any(value is None for value in constants.values()):
        return None
    steps = np.arange(-128, 128, dtype=np.float32) * np.float32(scale.reshape(-1).max())
    graph = helper.make_graph([node], "activation", [], [helper.make_empty_tensor_value_info(node.output[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", view.opset)])
    (values,) = ReferenceEvaluator(model).run(None, {node.input[0]: steps, **constants})
    largest = float(np.abs(values).max())
    return largest if largest > 0 else None


def float_branches(edit: Editor) -> None:
    """Let residual additions read the output of a convolution unrounded."""
    view = edit.view
    for node in view.nodes:
        if (branch := rounded_branch(view, node)) is not None:
            edit.rewire([node], branch.output[0], str(view.rounded(branch.output[0])))
            edit.note("rounded-residual-branch", label(node), f"reads {view.rounded(branch.output[0])} unrounded")
    edit.refresh()


def round_skips_and_pools(edit: Editor, ranges: Ranges) -> list[str]:
    """Put a pair on skip branches and in front of pooling; return the tensors whose range is not known."""
    view = edit.view
    unknown = []
    for node in view.nodes:
        rule = "float-skip-branch"
        name = skip_branch(view, node)
        if name is None and float_pool(view, node):
            rule, name = "float-pooling-input", str(node.input[0])
        if name is None:
            continue
        if (grid := _grid_of(edit, name, ranges)) is None:
            unknown.append(name)
            continue
        edit.rewire([node], name, edit.pair(name, *grid, name))
        edit.note(rule, label(node), f"a pair on {name}")
    edit.refresh()
    return unknown


def _grid_of(edit: Editor, name: str, ranges: Ranges) -> tuple[str, str] | None:
    """Return scale and zero point for a tensor: those of another pair on it, or of its range."""
    for reader in edit.view.readers(name):
        if reader.op_type == "QuantizeLinear" and len(reader.input) == 3:
            return reader.input[1], reader.input[2]
    if name in ranges and max(map(abs, ranges[name])) > 0:
        return edit.symmetric_grid(max(map(abs, ranges[name])) / 127, name)
    return None


def share_scales(edit: Editor, ranges: Ranges) -> list[str]:
    """Give the inputs of each Concat one scale; return the tensors whose range is not known.

    Where everything behind the Concat is rounded anyway, that rounding stands for its inputs, and their pairs go.
    Otherwise the largest scale wins; pairs that several Concats share end up equal.
    """
    view = edit.view
    unknown: list[str] = []
    for result in [node.output[0] for node in view.nodes if node.op_type == "Concat"]:
        node = _writer(view, result)
        if not any(view.dequantizer(name) for name in node.input):
            continue
        scales = concatenated_scales(view, node)
        if None not in scales and len(set(scales)) == 1:
            continue
        readers = view.readers(node.output[0])
        if readers and all(reader.op_type == "QuantizeLinear" for reader in readers):
            node.input[:] = [view.rounded(name) or name for name in node.input]
            edit.note("concat-scales", label(node), "its inputs are not rounded before their concatenation is")
            continue
        missing = [name for name, scale in zip(node.input, scales, strict=True) if scale is None]
        grids = {name: _grid_of(edit, name, ranges) for name in missing}
        unknown += [name for name, grid in grids.items() if grid is None]
        if None in grids.values():
            continue
        for name, grid in grids.items():
            if grid is not None:
                edit.rewire([node], name, edit.pair(name, *grid, name))
        view = edit.refresh()
        node = _writer(view, result)
        largest = max(scale for scale in concatenated_scales(view, node) if scale is not None)
        for name in node.input:
            _set_scale(edit, name, largest)
        view = edit.refresh()
        edit.note("concat-scales", label(node), f"its inputs share the scale {largest:.4g}")
    edit.refresh()
    return unknown


def _writer(view: View, name: str) -> onnx.NodeProto:
    node = view.producer(name)
    assert node is not None
    return node


def _set_scale(edit: Editor, name: str, scale: float) -> None:
    """Give the pair that writes the tensor, and other readers of its quantiser, a scale."""
    view = edit.view
    dequantizer = view.dequantizer(name)
    quantizer = None if dequantizer is None else view.quantizer(dequantizer)
    if quantizer is None:
        return
    old = np.asarray(view.value(quantizer.input[1]))
    scale_name = edit.constant(np.asarray(scale, old.dtype), f"{name}_shared_scale")
    for part in (quantizer, *view.readers(quantizer.output[0])):
        if part.op_type in ("QuantizeLinear", "DequantizeLinear"):
            part.input[1] = scale_name


def drop_unread_pairs(edit: Editor) -> None:
    """Remove pairs behind which nothing runs on integers."""
    for _ in range(len(edit.graph.node)):
        view = edit.view
        found = next(
            (pair for pair in view.pairs() if not serves_integers(view, pair[1].output[0])),
            None,
        )
        if found is None:
            return
        edit.note("pair-without-reader", label(found[1]), "removed")
        edit.bypass(found[1])
        edit.refresh()


def own_pairs(edit: Editor) -> None:
    """Give each layer a Q/DQ pair of its own; exact."""
    view = edit.view
    for quantizer, dequantizer in view.pairs():
        if len(quantizer.input) < 3:
            continue
        rounded = dequantizer.output[0]
        layers = [reader for reader in view.readers(rounded) if reader.op_type in WEIGHTED]
        for layer in layers[1:]:
            own = edit.pair(quantizer.input[0], quantizer.input[1], quantizer.input[2], quantizer.input[0])
            edit.rewire([layer], rounded, own)
            edit.note("shared-pair", label(layer), "a pair of its own")
    edit.refresh()


def to_float(edit: Editor) -> None:
    """Take all Q/DQ nodes out: weights in float, activations unrounded."""
    while (node := next((node for node in edit.view.nodes if _removable(edit.view, node)), None)) is not None:
        if (value := float_value(edit.view, node)) is not None:
            constant = edit.constant(value, f"{node.output[0]}_float")
            edit.rewire(edit.view.readers(node.output[0]), node.output[0], constant)
        else:
            edit.bypass(node)
        edit.refresh()
    edit.note("precision", edit.graph.name, "all Q/DQ nodes removed")


def _removable(view: View, node: onnx.NodeProto) -> bool:
    if node.op_type != "DequantizeLinear":
        return False
    return view.quantizer(node) is not None or float_value(view, node) is not None
