"""Changes to an ONNX graph that repairs are made of: constants, Q/DQ pairs, rewired inputs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from tlc.export.view import View, attribute


class Change(BaseModel):
    """One thing that a repair did."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rule: str
    """The rule that was broken, as in `Violation.rule`."""
    node: str
    """Name of the node, or of the tensor."""
    what: str
    """What was done."""


class Editor:
    """A graph being changed in place. `view` is what it was at the last `refresh`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.changes: list[Change] = []
        self._names = {name for node in self.graph.node for name in (node.name, *node.input, *node.output)}
        self._names |= {tensor.name for tensor in self.graph.initializer}
        self.refresh()

    def refresh(self) -> View:
        """Drop what nothing reads, put nodes into an order in which they can run, and look again."""
        _sort(self.graph)
        _drop_unread(self.graph)
        self.view = View(self.model)
        return self.view

    def note(self, rule: str, node: str, what: str) -> None:
        """Record a change."""
        self.changes.append(Change(rule=rule, node=node, what=what))

    def constant(self, value: NDArray[Any], name: str) -> str:
        """Add an initialiser under `name`, or one like it if that is taken; return its name."""
        name = self.unused(name)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def unused(self, name: str) -> str:
        """Return a name like `name` that nothing has, and reserve it."""
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        """Add a node that writes `output`."""
        self.graph.node.append(
            helper.make_node(op_type, list(inputs), [output], name=self.unused(output), **attributes)
        )
        added: onnx.NodeProto = self.graph.node[-1]
        return added

    def pair(self, source: str, scale: str, zero_point: str, base: str) -> str:
        """Add a Q/DQ pair behind `source`; return what it writes."""
        integers, rounded = self.unused(f"{base}_quantized"), self.unused(f"{base}_rounded")
        self.node("QuantizeLinear", [source, scale, zero_point], integers)
        self.node("DequantizeLinear", [integers, scale, zero_point], rounded)
        return rounded

    def symmetric_pair(self, source: str, scale: float, base: str) -> str:
        """Add an int8 Q/DQ pair with zero point 0 behind `source`; return what it writes."""
        return self.pair(source, *self.symmetric_grid(scale, base), base)

    def symmetric_grid(self, scale: float, base: str) -> tuple[str, str]:
        """Add a scale and an int8 zero point of 0; return their names."""
        scale_name = self.constant(np.asarray(scale, np.float32), f"{base}_scale")
        return scale_name, self.constant(np.asarray(0, np.int8), f"{base}_zero_point")

    def rewire(self, readers: Iterable[onnx.NodeProto], old: str, new: str) -> None:
        """Let `readers` read `new` where they read `old`."""
        for reader in readers:
            reader.input[:] = [new if name == old else name for name in reader.input]

    def bypass(self, dequantizer: onnx.NodeProto) -> None:
        """Let everything behind a Q/DQ pair read what stands in front of it; an output of the graph keeps its name."""
        rounded = dequantizer.output[0]
        source = str(self.view.rounded(rounded))
        self.rewire(self.view.readers(rounded), rounded, source)
        if rounded not in self.view.outputs:
            return
        writer = self.view.producer(source)
        dequantizer.output[0] = self.unused(f"{rounded}_unread")
        if writer is None or source in self.view.outputs:
            self.node("Identity", [source], rounded)
            return
        writer.output[:] = [rounded if name == source else name for name in writer.output]
        self.rewire(self.graph.node, source, rounded)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Write an attribute, in place of one of that name."""
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def spread(values: NDArray[Any], shape: Sequence[int], node: onnx.NodeProto) -> NDArray[Any]:
    """Return the scales or zero points of a (De)QuantizeLinear in a shape that broadcasts against its tensor's.

    Without an axis ONNX means 1; where only axis 0 fits, it must be meant.
    """
    if values.size == 1:
        return values.reshape(())
    axis = attribute(node, "axis", None)
    if axis is None:
        axis = 1 if len(shape) > 1 and shape[1] == values.size else 0
    broadcast = [1] * len(shape)
    broadcast[axis] = -1
    return values.reshape(broadcast)


def _sort(graph: onnx.GraphProto) -> None:
    """Order nodes behind those that they read, otherwise as they are."""
    writers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    state = [0] * len(graph.node)
    for start in range(len(graph.node)):
        stack = [start]
        while stack:
            index = stack[-1]
            if state[index] == 0:
                state[index] = 1
                stack += [
                    writers[name]
                    for name in reversed(_read(graph.node[index]))
                    if name in writers and state[writers[name]] == 0
                ]
                continue
            stack.pop()
            if state[index] == 1:
                state[index] = 2
                order.append(index)
    if order != list(range(len(graph.node))):
        nodes = [graph.node[index] for index in order]
        copies = []
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del graph.node[:]
        graph.node.extend(copies)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if read & set(node.output):
            read |= set(_read(node))
            kept.append(node)
    if len(kept) < len(graph.node):
        copies = []
        for node in reversed(kept):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del graph.node[:]
        graph.node.extend(copies)
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(tensors) < len(graph.initializer):
        names = {tensor.name for tensor in tensors}
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in names:
                del graph.initializer[index]


def _read(node: onnx.NodeProto) -> list[str]:
    """Return what a node reads, the graphs inside it included."""
    names = [name for name in node.input if name]
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.GRAPH:
            names += [name for inner in entry.g.node for name in _read(inner)]
            names += [value.name for value in entry.g.output]
    return names
