"""Embeddings of a text encoder that do not depend on the tokens, added up beforehand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tlc.export.edit import Editor
from tlc.export.match import constant_value
from tlc.export.view import View, attribute


def add_up_embeddings(editor: Editor, words: str, max_length: int) -> int:
    """Add rows that every token gets to the table of positions, and cut out the rows of positions 0 to T."""
    view, count = editor.view, 0
    for node in view.nodes:
        if node.op_type != "LayerNormalization":
            continue
        terms = list(_terms(view, node.input[0]))
        lookups = {name: _lookup(view, name) for name in terms}
        if not any(_is_made_of(view, name, words) for name in terms):
            continue
        rows: list[NDArray[Any]] = []
        tables: dict[str, onnx.NodeProto] = {}
        for name, lookup in lookups.items():
            row = None if lookup is None else _uniform(view, lookup.input[1])
            if lookup is not None and row is not None:
                rows.append(constant_value(view, lookup.input[0])[int(row)])
            elif lookup is not None and lookup.input[0] != words:
                tables[name] = lookup
        positions = next((name for name in tables if _leading(view, tables[name].input[1]) is not None), None)
        into = positions or next(iter(tables), None)
        if into is None:
            continue
        kept = [name for name in terms if (lookup := lookups[name]) is None or _uniform(view, lookup.input[1]) is None]
        kept[kept.index(into)] = _summed_table(editor, tables[into], rows, max_length)
        total = editor.unused("embeddings")
        editor.node("Sum", kept, total)
        node.input[0] = total
        count += len(rows) + (positions is not None)
    editor.refresh()
    return count


def _summed_table(editor: Editor, lookup: onnx.NodeProto, rows: list[NDArray[Any]], max_length: int) -> str:
    """Write a look-up with `rows` added to its table; a slice where it asks for the first T rows of a part."""
    table = constant_value(editor.view, lookup.input[0])
    if rows:
        table = table + np.sum(rows, axis=0, dtype=np.float32)
    leading = _leading(editor.view, lookup.input[1])
    output = editor.unused("position_embeddings")
    if leading is None:
        editor.node("Gather", [editor.constant(table, "position_table"), lookup.input[1]], output, axis=0)
        return output
    start, end = leading
    name = editor.constant(table[start : start + max_length], "position_table")
    zero = editor.constant(np.zeros(1, np.int64), "position_start")
    editor.node("Slice", [name, zero, end, zero], output)
    return output


def _terms(view: View, name: str) -> Iterator[str]:
    """Yield what a tree of additions adds up."""
    node = view.producer(name)
    if node is not None and node.op_type == "Add" and len(view.readers(name)) == 1:
        for part in node.input:
            yield from _terms(view, part)
    else:
        yield name


def _lookup(view: View, name: str) -> onnx.NodeProto | None:
    """Return the Gather that looks rows of a constant table up."""
    node = view.producer(name)
    if node is None or node.op_type != "Gather" or attribute(node, "axis", 0) != 0:
        return None
    table = view.value(node.input[0])
    return node if table is not None and table.ndim == 2 else None


def _is_made_of(view: View, name: str, words: str) -> bool:
    """Whether a tensor holds rows of the table of tokens, as they are or, of a factorised table, through a MatMul."""
    while (node := view.producer(name)) is not None and node.op_type in ("Add", "MatMul"):
        name = node.input[0]
    return node is not None and node.op_type == "Gather" and bool(node.input[0] == words)


def _uniform(view: View, name: str) -> int | None:
    """Return the one value that all elements of a tensor of indices have, whatever its shape."""
    while (value := view.value(name)) is None:
        node = view.producer(name)
        if node is None or node.op_type not in ("GatherElements", "Expand", "Slice"):
            return None
        name = node.input[0]
    return int(value.flat[0]) if value.size and (value == value.flat[0]).all() else None


def _leading(view: View, name: str) -> tuple[int, str] | None:
    """Return (first row, name of the count) where indices are the first elements of a constant row of successors."""
    node = view.producer(name)
    if node is None or node.op_type != "Slice":
        return None
    indices, start, axes = (view.value(node.input[place]) for place in (0, 1, 3))
    if indices is None or start is None or axes is None or indices.ndim != 2 or len(indices) != 1:
        return None
    in_order = (np.diff(indices[0]) == 1).all() and start.tolist() == [0] and axes.tolist() == [1]
    return (int(indices[0][0]), str(node.input[2])) if in_order else None
