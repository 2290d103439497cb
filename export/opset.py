"""Lower an ONNX graph to an older opset. torch's exporter writes 18 or newer; devices often stop at 17 or 13.

onnx's own version converter loses initialisers and leaves attributes behind that the older operator does not have
(`noop_with_empty_axes` of ReduceMean). Here the operator schemas decide. An operator that the older opset lacks is
decomposed (`tlc.export.decompose`), or replaced by the function that onnx defines it with. Of the others, what the
older schema lacks is dropped where it holds the newer schema's default, rewritten by a rule where one is known, and
refused by name otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner, numpy_helper

from tlc.export.decompose import Tensors, Writer, instead_of
from tlc.runtime.errors import TlcError

Constants = Mapping[str, NDArray[np.generic]]

# IR version that came with each opset; an older reader refuses a newer IR version.
_IR_VERSION = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}
_DOMAINS = ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int:
    """Opset of the default domain."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in _DOMAINS)


def lower_opset(model: onnx.ModelProto, opset: int) -> None:
    """Rewrite `model` in place for `opset` (13 or newer); nothing happens when it is that old already.

    Raises:
        TlcError: an operator or one of its attributes cannot be expressed there.

    """
    current = opset_of(model)
    if current <= opset:
        return
    _replace_by_functions(model, current, opset)
    _decompose(model, current, opset)
    constants = _constants(model.graph)
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain in _DOMAINS:
                _lower_node(node, constants, current, opset)
    for entry in model.opset_import:
        if entry.domain in _DOMAINS:
            entry.version = opset
    model.ir_version = min(model.ir_version, _IR_VERSION.get(opset, model.ir_version))
    _drop_unread_initializers(model.graph)


def _replace_by_functions(model: onnx.ModelProto, current: int, opset: int) -> None:
    """Replace operators that `opset` lacks by their function bodies, where onnx has one and we have nothing better."""
    while True:
        found = []
        for graph in _graphs(model.graph):
            for node in graph.node:
                if node.domain not in _DOMAINS or _exists(node.op_type, opset):
                    continue
                schema: Any = onnx.defs.get_schema(node.op_type, current, "")
                has_body = schema.has_function or schema.has_context_dependent_function
                if has_body and instead_of(node.op_type, current=current, opset=opset) is None:
                    _write_defaults(node, schema)
                    found.append(("", node.op_type))
        if not found:
            return
        inlined = _inlined(model, sorted(set(found)))
        if inlined is None:
            return  # types that a body depends on are not known; `_lower_node` refuses the operator by name
        model.CopyFrom(inlined)


def _inlined(model: onnx.ModelProto, functions: list[tuple[str, str]]) -> onnx.ModelProto | None:
    """Return the model with these operators replaced; the inliner looks types up among the notes of inner values."""
    annotated = onnx.shape_inference.infer_shapes(model)
    annotated.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    )
    try:
        inlined: onnx.ModelProto = inliner.inline_selected_functions(annotated, functions, inline_schema_functions=True)
    except RuntimeError:
        return None
    inlined.graph.ClearField("value_info")
    left = {node.op_type for graph in _graphs(inlined.graph) for node in graph.node}
    return None if left & {name for _, name in functions} else inlined


def _write_defaults(node: onnx.NodeProto, schema: Any) -> None:
    """Write attributes out that have a default: function bodies refer to them."""
    present = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in present and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            node.attribute.append(attribute.default_value)


def _decompose(model: onnx.ModelProto, current: int, opset: int) -> None:
    tensors: Tensors | None = None
    for graph in _graphs(model.graph):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            rule = instead_of(node.op_type, current=current, opset=opset) if node.domain in _DOMAINS else None
            if rule is None:
                nodes.append(node)
                continue
            tensors = tensors or _tensors(model)
            writer = Writer(node, tensors, opset)
            rule(writer)
            nodes.extend(writer.nodes)
            graph.initializer.extend(writer.constants)
        if len(nodes) != len(graph.node):
            _set_nodes(graph, nodes)


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and those inside its nodes (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _tensors(model: onnx.ModelProto) -> Tensors:
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    types |= {name: kind.elem_type for name, kind in kinds.items() if kind.elem_type}
    ranks |= {name: len(kind.shape.dim) for name, kind in kinds.items() if kind.HasField("shape")}
    return Tensors(types, ranks)


def _lower_node(node: onnx.NodeProto, constants: Constants, current: int, opset: int) -> None:
    try:
        new = onnx.defs.get_schema(node.op_type, current, "")
        old = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        first = _first_opset(node.op_type)
        reason = f"the operator exists from opset {first} on" if first else "ONNX has no such operator"
        raise _refusal(node, reason, opset) from None
    if new.since_version == old.since_version:
        return
    rule = _RULES.get(node.op_type)
    if rule is not None:
        rule(node, constants, opset)
    for attribute in [attribute for attribute in node.attribute if attribute.name not in old.attributes]:
        default = new.attributes[attribute.name].default_value
        if default.type == onnx.AttributeProto.UNDEFINED or _value(attribute) != _value(default):
            raise _refusal(node, f"its attribute {attribute.name} does not exist there", opset)
        _drop_attributes(node, attribute.name)
    if len(node.input) > old.max_input:
        raise _refusal(node, f"it takes at most {old.max_input} inputs there, not {len(node.input)}", opset)


def _axes_to_attribute(node: onnx.NodeProto, constants: Constants, opset: int) -> None:
    """Turn the input `axes` (opset 18) of a reduction into the attribute that it was before."""
    if len(node.input) < 2 or not node.input[1]:
        return
    if node.input[1] not in constants:
        raise _refusal(node, "its axes are computed at run time", opset)
    axes = [int(axis) for axis in constants[node.input[1]]]
    del node.input[1:]
    if axes:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))


def _drop_num_outputs(node: onnx.NodeProto, _constants: Constants, _opset: int) -> None:
    """Before opset 18, Split without sizes splits evenly among its outputs; verification finds the uneven case."""
    _drop_attributes(node, "num_outputs")


def _drop_allowzero(node: onnx.NodeProto, constants: Constants, opset: int) -> None:
    """Without `allowzero` (opset 14), 0 in the shape means "as in the input": the same unless the shape holds a 0."""
    allowed = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
    if allowed and 0 in constants.get(node.input[1], np.zeros(1)):
        raise _refusal(node, "it reshapes to an empty tensor", opset)
    _drop_attributes(node, "allowzero")


def _rename_grid_modes(node: onnx.NodeProto, _constants: Constants, _opset: int) -> None:
    """Write GridSample's modes under their names before opset 20."""
    for attribute in node.attribute:
        if attribute.name == "mode":
            attribute.s = {b"linear": b"bilinear", b"cubic": b"bicubic"}.get(attribute.s, attribute.s)


def _refuse_wrap(node: onnx.NodeProto, _constants: Constants, opset: int) -> None:
    """Refuse Pad's mode of opset 19."""
    if any(attribute.name == "mode" and attribute.s == b"wrap" for attribute in node.attribute):
        raise _refusal(node, "its mode 'wrap' does not exist there", opset)


def _drop_attributes(node: onnx.NodeProto, *names: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


_RULES: dict[str, Callable[[onnx.NodeProto, Constants, int], None]] = {
    "GridSample": _rename_grid_modes,
    "Pad": _refuse_wrap,
    "Reshape": _drop_allowzero,
    "Split": _drop_num_outputs,
    **{
        f"Reduce{kind}": _axes_to_attribute
        for kind in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
}


def _value(attribute: onnx.AttributeProto) -> object:
    value: object = onnx.helper.get_attribute_value(attribute)
    return value


def _refusal(node: onnx.NodeProto, reason: str, opset: int) -> TlcError:
    return TlcError(
        f"{node.op_type} (node {node.name or '?'}) cannot be written in ONNX opset {opset}: {reason}",
        hint="Choose a target with a newer opset.",
    )


@cache
def _first_opset(op_type: str) -> int:
    versions = [
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == op_type and schema.domain == ""
    ]
    return min(versions, default=0)


def _exists(op_type: str, opset: int) -> bool:
    """Whether the operator is in `opset`; an unknown one is left for the checker to name."""
    return _first_opset(op_type) <= opset


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    """Small constant tensors by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) <= 1}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _drop_unread_initializers(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
