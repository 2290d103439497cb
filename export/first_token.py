"""The last layer of a text classifier, run on the one token that its head reads."""

import numpy as np
import onnx

from tlc.export.edit import Editor
from tlc.export.view import View, attribute

_ELEMENTWISE = ("Add", "Div", "Erf", "Identity", "Mul", "Pow", "Relu", "Sigmoid", "Sub", "Sum", "Tanh")


def run_on_first_token(editor: Editor) -> bool:
    """Cut the first token out in front of the operators that treat each token by itself, not behind them.

    For graphs whose head reads the first token of (N, T, width) and nothing else. Returns whether anything moved.
    """
    view = editor.view
    picks = [node for node in view.nodes if node.op_type == "Gather" and attribute(node, "axis", 0) == 1]
    picks = [node for node in picks if (index := view.value(node.input[1])) is not None and index.tolist() == 0]
    if len(picks) != 1:
        return False
    behind = {id(picks[0])}
    cut: list[onnx.NodeProto] = []
    for node in reversed(view.nodes):
        readers = [reader for name in node.output for reader in view.readers(name)]
        private = readers and not view.outputs & set(node.output) and all(id(reader) in behind for reader in readers)
        if private and _tokenwise(view, node):
            behind.add(id(node))
            cut.append(node)
    inside = {name for node in cut for name in node.output}
    for node in cut:
        for place, name in enumerate(node.input):
            if name and name not in inside and not view.is_constant(name):
                node.input[place] = first_token(editor, name)
    editor.refresh()
    return bool(cut)


def _tokenwise(view: View, node: onnx.NodeProto) -> bool:
    """Whether each token (N, T, width) of the output depends on that token of the inputs alone."""
    if node.op_type == "MatMul":
        return (
            _has_tokens(view, node.input[0]) and (weight := view.value(node.input[1])) is not None and weight.ndim == 2
        )
    if node.op_type == "LayerNormalization":
        return attribute(node, "axis", -1) in (-1, 2) and _has_tokens(view, node.input[0])
    if node.op_type == "Split":
        return attribute(node, "axis", 0) in (-1, 2) and _has_tokens(view, node.input[0])
    if node.op_type not in _ELEMENTWISE:
        return False
    values = [(name, view.value(name)) for name in node.input]
    return all(_has_tokens(view, name) if value is None else value.ndim <= 1 for name, value in values)


def _has_tokens(view: View, name: str) -> bool:
    """Whether the tensor is (N, T, width)."""
    shape = view.shape(name)
    return shape is not None and len(shape) == 3


def first_token(editor: Editor, name: str) -> str:
    """Return the name of the first token of (N, T, width), as (N, 1, width)."""
    cut = f"{name}/first"
    if all(node.output[0] != cut for node in editor.graph.node):
        bounds = []
        for value, what in ((0, "zero"), (1, "one")):
            constant = f"first_token/{what}"
            if all(tensor.name != constant for tensor in editor.graph.initializer):
                editor.constant(np.full(1, value, np.int64), constant)
            bounds.append(constant)
        editor.node("Slice", [name, *bounds, bounds[1]], cut)
    return cut
