"""Self-attention of an ONNX graph, found by its form and written as one operator of ONNX Runtime."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tlc.export.edit import Editor
from tlc.export.first_token import first_token
from tlc.export.match import MICROSOFT, constant_value, number, only_reader, scaled
from tlc.export.view import View, attribute


@dataclass(frozen=True)
class _Linear:
    """x W + b."""

    x: str
    weight: str
    bias: str | None


@dataclass(frozen=True)
class _Attention:
    """Softmax(Q K^T * scale + mask) V over heads, between a linear layer each and (N, T, heads * width)."""

    linears: tuple[_Linear, _Linear, _Linear]
    heads: int
    scale: float
    """Over the usual one, 1 / sqrt(width of a head)."""
    mask: str | None
    """Name of the (N, T) input that is 0 for padding."""
    masked: float
    output: onnx.NodeProto
    """The Reshape that writes (N, T, heads * width)."""


def fuse_attention(editor: Editor) -> int:
    """Replace every self-attention by com.microsoft Attention, with its weights packed into one matrix.

    Where only the first token of the result is read, com.microsoft MultiHeadAttention with that token's query stands
    instead. Attention with more between the linear layers and the products (rotations, relative positions) stays.
    Returns how many were replaced.
    """
    view = editor.view
    packed: dict[tuple[object, ...], str] = {}
    count = 0
    for softmax in view.nodes:
        found = _attention(view, softmax) if softmax.op_type == "Softmax" else None
        if found is None:
            continue
        _write_attention(editor, found, packed)
        count += 1
    editor.refresh()
    return count


def _write_attention(editor: Editor, found: _Attention, packed: dict[tuple[object, ...], str]) -> None:
    view, output = editor.view, found.output.output[0]
    mask = "" if found.mask is None else _integer_mask(editor, found.mask)
    common: dict[str, Any] = {"domain": MICROSOFT, "num_heads": found.heads}
    if mask:
        common["mask_filter_value"] = found.masked
    weights = [constant_value(view, linear.weight) for linear in found.linears]
    biases = [
        np.zeros(weight.shape[1], np.float32) if linear.bias is None else constant_value(view, linear.bias)
        for linear, weight in zip(found.linears, weights, strict=True)
    ]
    if found.scale != 1:
        weights[0], biases[0] = (part * np.float32(found.scale) for part in (weights[0], biases[0]))

    def constant(values: list[NDArray[Any]], what: str) -> str:
        key = (what, found.scale, *((linear.weight, linear.bias) for linear in found.linears))
        if key not in packed:
            packed[key] = editor.constant(np.concatenate(values, axis=-1), f"attention/{what}")
        return packed[key]

    x, bias = found.linears[0].x, constant(biases, "qkv_bias")
    first = f"{output}/first"
    if [node.output[0] for node in view.readers(output)] != [first]:
        editor.node("Attention", [x, constant(weights, "qkv"), bias, mask], output, **common)
        found.output.output[0] = editor.unused(f"{output}_unread")
        return
    # Queries of the first token alone.
    names = [editor.unused(f"{output}/{part}") for part in ("query", "key_value", "key", "value")]
    editor.node("MatMul", [first_token(editor, x), constant(weights[:1], "q")], names[0])
    editor.node("MatMul", [x, constant(weights[1:], "kv")], names[1])
    split = editor.node("Split", [names[1]], names[2], axis=2, num_outputs=2)
    split.output.append(names[3])
    editor.node("MultiHeadAttention", [names[0], names[2], names[3], bias, mask], first, **common)
    (cut,) = view.readers(output)
    cut.output[0] = editor.unused(f"{first}_unread")


def _integer_mask(editor: Editor, mask: str) -> str:
    name = f"{mask}/int32"
    if all(node.output[0] != name for node in editor.graph.node):
        editor.node("Cast", [mask], name, to=onnx.TensorProto.INT32)
    return name


def _attention(view: View, softmax: onnx.NodeProto) -> _Attention | None:
    """Return the attention around a Softmax over keys; None where it is of another form."""
    scores = view.producer(softmax.input[0])
    mask, masked = None, 0.0
    if scores is not None and scores.op_type == "Add":
        for place in (0, 1):
            padding = _padding_bias(view, scores.input[1 - place])
            if padding is not None:
                mask, masked = padding
                scores = view.producer(scores.input[place])
                break
    if scores is None:
        return None
    products, scale = scaled(view, scores)
    product = view.producer(products)
    context = only_reader(view, softmax.output[0], "MatMul")
    merged = None if context is None else only_reader(view, context.output[0], "Transpose")
    output = None if merged is None else only_reader(view, merged.output[0], "Reshape")
    if product is None or product.op_type != "MatMul" or context is None or merged is None or output is None:
        return None
    if context.input[0] != softmax.output[0] or attribute(merged, "perm", None) != [0, 2, 1, 3]:
        return None
    wanted = ((product.input[0], [0, 2, 1, 3]), (product.input[1], [0, 2, 3, 1]), (context.input[1], [0, 2, 1, 3]))
    parts = [_heads(view, name, perm) for name, perm in wanted]
    linears = [part[0] for part in parts if part is not None]
    if len(linears) < 3 or len({linear.x for linear in linears}) > 1:
        return None
    shapes = {constant_value(view, linear.weight).shape for linear in linears}
    widths = {part[1] for part in parts if part is not None}
    if len(shapes) > 1 or len(widths) > 1:
        return None
    (width,), ((_, channels),) = widths, shapes
    ratio = scale * math.sqrt(width)
    return _Attention(
        linears=(linears[0], linears[1], linears[2]),
        heads=channels // width,
        scale=1.0 if math.isclose(ratio, 1, rel_tol=1e-5) else ratio,
        mask=mask,
        masked=masked,
        output=output,
    )


def _heads(view: View, name: str, perm: list[int]) -> tuple[_Linear, int] | None:
    """Return the linear layer and the width of a head behind Reshape to (N, T, heads, width) and Transpose."""
    node = view.producer(name)
    if node is None or node.op_type != "Transpose" or attribute(node, "perm", None) != perm:
        return None
    reshape = view.producer(node.input[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    width = _last_size(view, reshape.input[1])
    linear = _linear(view, reshape.input[0])
    return (linear, width) if linear is not None and width is not None else None


def _last_size(view: View, shape: str) -> int | None:
    """Return the last of four sizes of a shape, constant or concatenated."""
    value = view.value(shape)
    node = view.producer(shape)
    if value is None and node is not None and node.op_type == "Concat" and len(node.input) == 4:
        value = view.value(node.input[-1])
    elif value is None or value.size != 4:
        return None
    return int(value.flat[-1]) if value is not None and value.flat[-1] > 0 else None


def _linear(view: View, name: str) -> _Linear | None:
    node, bias = view.producer(name), None
    if node is not None and node.op_type == "Add":
        constants = [part for part in node.input if view.is_constant(part)]
        others = [part for part in node.input if not view.is_constant(part)]
        if len(constants) != 1 or constant_value(view, constants[0]).ndim != 1:
            return None
        bias, node = constants[0], view.producer(others[0])
    if node is None or node.op_type != "MatMul":
        return None
    weight = view.value(node.input[1])
    return _Linear(node.input[0], node.input[1], bias) if weight is not None and weight.ndim == 2 else None


def _padding_bias(view: View, name: str) -> tuple[str, float] | None:
    """Return (mask, value) where a bias is (1 - mask) * value, with mask an input (N, T) laid out as (N, 1, 1, T)."""
    node = view.producer(name)
    if node is None or node.op_type != "Mul":
        return None
    inverse, value = scaled(view, node)
    node = view.producer(inverse)
    if node is None or node.op_type != "Sub" or number(view, node.input[0]) != 1 or value > -1e3:
        return None
    name, axes = node.input[1], None
    while (node := view.producer(name)) is not None and node.op_type in ("Cast", "Unsqueeze"):
        if node.op_type == "Unsqueeze" and (axes is not None or (axes := view.value(node.input[1])) is None):
            return None
        name = node.input[0]
    return (name, value) if name in view.inputs and axes is not None and axes.tolist() == [1, 2] else None
