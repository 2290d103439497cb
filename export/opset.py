"""Lower an ONNX graph to an older opset. torch's exporter writes 18 or newer; devices often stop at 17 or 13.

onnx's own version converter loses initialisers and leaves attributes behind that the older operator does not have
(`noop_with_empty_axes` of ReduceMean). Here the operator schemas decide: what the older schema lacks is dropped where
it holds the newer schema's default, rewritten by a rule where one is known, and refused by name otherwise.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tlc.runtime.errors import TlcError

Constants = Mapping[str, NDArray[np.generic]]

# IR version that came with each opset; an older reader refuses a newer IR version.
_IR_VERSION = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}


def opset_of(model: onnx.ModelProto) -> int:
    """Opset of the default domain."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def lower_opset(model: onnx.ModelProto, opset: int) -> None:
    """Rewrite `model` in place for `opset` (13 or newer); nothing happens when it is that old already.

    Raises:
        TlcError: an operator or one of its attributes cannot be expressed there.

    """
    current = opset_of(model)
    if current <= opset:
        return
    constants = _constants(model.graph)
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx"):
            _lower_node(node, constants, current, opset)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    model.ir_version = min(model.ir_version, _IR_VERSION.get(opset, model.ir_version))
    _drop_unread_initializers(model.graph)


def _lower_node(node: onnx.NodeProto, constants: Constants, current: int, opset: int) -> None:
    new = onnx.defs.get_schema(node.op_type, current, "")
    try:
        old = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise _refusal(node, f"the operator exists from opset {_first_opset(node.op_type)} on", opset) from None
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
    if 0 in constants.get(node.input[1], np.ones(1)):
        raise _refusal(node, "it reshapes to an empty tensor", opset)
    _drop_attributes(node, "allowzero")


def _drop_attributes(node: onnx.NodeProto, *names: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


_RULES: dict[str, Callable[[onnx.NodeProto, Constants, int], None]] = {
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


def _first_opset(op_type: str) -> int:
    versions = [schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == op_type]
    return min(versions)


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
