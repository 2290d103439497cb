"""Look-ups over a float graph that fusions need, beside those of `tlc.export.view`."""

from typing import Any

import onnx
from numpy.typing import NDArray

from tlc.export.view import View

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators (docs/ContribOperators.md there)."""


def declare_microsoft(model: onnx.ModelProto) -> None:
    """Let the model use ONNX Runtime's own operators."""
    if not any(entry.domain == MICROSOFT for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))


def constant_value(view: View, name: str) -> NDArray[Any]:
    """Return the constant of that name, which must be one."""
    value = view.value(name)
    assert value is not None
    return value


def number(view: View, name: str) -> float | None:
    """Return the constant of that name if it is a single number."""
    value = view.value(name)
    return float(value.flat[0]) if value is not None and value.size == 1 else None


def scaled(view: View, node: onnx.NodeProto) -> tuple[str, float]:
    """Return what a Mul or Div with a number scales, and by what; (the output, 1) for another node."""
    for place, name in enumerate(node.input if node.op_type in ("Mul", "Div") else ()):
        factor = number(view, name)
        if factor and (node.op_type == "Mul" or place == 1):
            return str(node.input[1 - place]), factor if node.op_type == "Mul" else 1 / factor
    return str(node.output[0]), 1.0


def only_reader(view: View, name: str, op_type: str) -> onnx.NodeProto | None:
    """Return the only node that reads the tensor, if it is of that type."""
    readers = view.readers(name)
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type and name not in view.outputs else None
