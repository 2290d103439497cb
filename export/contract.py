"""Which graphs a target's runtime takes and runs well: rules, each a small function over a `View`.

`check_model` runs those of the target's contract. Severity, reason and next step come with every violation.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from tlc.calibration.token_set import TextInput
from tlc.export import grid_rules, ort_rules, placement_rules
from tlc.export.metadata import fed_of
from tlc.export.view import View, attribute
from tlc.export.violation import Severity, Violation, broken
from tlc.runtime.errors import TlcError
from tlc.runtime.target import Target, TensorRT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Severity", "Violation", "check_file", "check_model", "load_onnx"]

_INT32 = np.iinfo(np.int32)
_DOMAINS = ("", "ai.onnx")
_SHAPES_FIX = "Export with fixed sizes, or give `tlc build` the smallest, usual and largest shape."


def check_file(path: Path, target: Target) -> list[Violation]:
    """Return what `check_model` finds in an ONNX file; TlcError when there is none, or it is not ONNX."""
    return check_model(load_onnx(path), target)


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return an ONNX file with its weights; TlcError when there is none, or it is not ONNX."""
    if not path.is_file():
        raise TlcError(f"no model file at {path}", hint="Check the path.")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own errors differ between its backends
        raise TlcError(f"{path} is not an ONNX file.", hint="Give a file that an exporter wrote.") from error
    if not model.graph.node or not model.opset_import:
        raise TlcError(f"{path} is not an ONNX file.", hint="Give a file that an exporter wrote.")
    return model


def check_model(model: onnx.ModelProto, target: Target) -> list[Violation]:
    """Return every violation of the target's rules, in the order of the rules and then of the graph.

    The weights have to be in `model`: loaded with its external data, if it has any.
    """
    view = View(model)
    found = list(_precisions(view, target))
    if target.tensorrt is None:
        rules = [] if found else ort_rules.RULES[target.contract]
        found += [violation for rule in rules for violation in rule(view, target)]
        return found + list(_opset(view, target, target.opset))
    device_rules = (*_GENERAL, *([] if found else _QUANTISED))
    found += _operators(view, target.tensorrt, target.opset)
    for device_rule in device_rules:
        found += device_rule(view, target.tensorrt)
    return found + list(_opset(view, target, target.tensorrt.max_opset))


def _opset(view: View, target: Target, newest: int) -> Iterator[Violation]:
    if view.opset > newest:
        yield Violation(
            node=view.graph.name, op_type="", rule="opset", severity="refused",
            why=f"the file is in ONNX opset {view.opset}; {target.name} reads up to {newest}",
            fix=f"Lower it to opset {target.opset}, or export again.", repairable=True,
        )  # fmt: skip


def _precisions(view: View, target: Target) -> Iterator[Violation]:
    """INT8 and FP16 only where the device has arithmetic for them."""
    first = next(view.quantizers(), None)
    if first is not None and "int8" not in target.precisions:
        count = sum(1 for _ in view.quantizers())
        fix = "Use the float file" + ("; this target runs it in FP16." if "fp16" in target.precisions else ".")
        yield broken(
            first, "precision", "refused", f"the graph has {count} Q/DQ nodes; {target.name} has no INT8 arithmetic",
            fix,
        )  # fmt: skip
    half = [tensor.name for tensor in view.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    if half and "fp16" not in target.precisions:
        yield Violation(
            node=half[0], op_type="", rule="precision", severity="slow",
            why=f"{len(half)} constants are float16; {target.name} has no FP16 arithmetic and converts them",
            fix="Use the float32 file.", repairable=False,
        )  # fmt: skip


def _operators(view: View, device: TensorRT, opset: int) -> Iterator[Violation]:
    """Operators that the release's parser reads."""
    first = _support()["first_release"]
    releases = {name: release for release, names in first.items() for name in names}
    for node in _all_nodes(view.graph):
        if node.domain not in _DOMAINS:
            yield broken(
                node, "custom-operator", "refused", f"{node.domain}.{node.op_type} is no operator of ONNX",
                "Export without it; TensorRT would need a plugin of that name.", repairable=False,
            )  # fmt: skip
            continue
        if node.op_type in _QOPERATORS:
            yield broken(
                node, "integer-operator", "refused", f"TensorRT does not read {node.op_type}, only Q/DQ pairs",
                "Quantise statically in the QDQ format.", repairable=False,
            )  # fmt: skip
            continue
        since = releases.get(node.op_type)
        if since is None or _release(since) > device.release:
            why = f"TensorRT {device.version} does not read {node.op_type}; {since} does"
            if since is None:
                why = f"no list of the operators that TensorRT reads, up to that of 10.15, has {node.op_type}"
            yield broken(
                node, "unsupported-operator", "refused", why,
                "Export to an opset that expresses it by older operators, or choose other layers.",
                repairable=_lowers(node.op_type, opset),
            )  # fmt: skip


def _lowers(op_type: str, opset: int) -> bool:
    """Whether an operator is newer than the target's opset, so that lowering the file to it may replace it."""
    try:
        return _first_opset(op_type) > opset
    except ValueError:  # no operator of ONNX
        return False


def _first_opset(op_type: str) -> int:
    return min(schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == op_type)


def _constant_inputs(view: View, device: TensorRT) -> Iterator[Violation]:
    """Inputs that the parser needs when it builds."""
    tables = [_support()["constant_inputs"]]
    tables += [
        table for release, table in _support()["constant_inputs_before"].items() if device.release < _release(release)
    ]
    for node in view.nodes:
        for index in (index for table in tables for index in table.get(node.op_type, [])):
            if index >= len(node.input) or not node.input[index] or view.is_constant(node.input[index]):
                continue
            dequantizer = view.dequantizer(node.input[index])
            if dequantizer is None or view.stored(dequantizer) is None:
                yield broken(
                    node, "computed-input", "refused",
                    f"TensorRT {device.version} needs input {index} ({node.input[index]}) as a constant",
                    "Export with fixed sizes, and fold constants.", repairable=False,
                )  # fmt: skip


def _attributes(view: View, device: TensorRT) -> Iterator[Violation]:
    """Attributes that the parser does not read, or only some values of."""
    for node in view.nodes:
        for broken_limit in _limits(view, node, device):
            yield broken(
                node, "operator-limit", "refused", f"TensorRT {device.version}: {broken_limit}",
                "Choose another setting of the layer, and export again.", repairable=False,
            )  # fmt: skip


def _limits(view: View, node: onnx.NodeProto, device: TensorRT) -> Iterator[str]:
    """Yield what an operator asks for that the parser does not do: operators.md of 8.2 to 10.1, and of 10.15."""
    op = node.op_type
    if op in ("AveragePool", "LpPool", "MaxPool") and any(size != 1 for size in attribute(node, "dilations", [])):
        yield f"{op} has dilations other than 1"
    if op == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield "MaxPool has the output Indices"
    if op == "Resize":
        if (mode := attribute(node, "mode", b"nearest").decode()) not in ("nearest", "linear"):
            yield f"Resize has the mode {mode}, not nearest or linear"
        if attribute(node, "antialias", 0):
            yield "Resize has antialias"
        if (policy := attribute(node, "keep_aspect_ratio_policy", b"stretch").decode()) != "stretch":
            yield f"Resize keeps the aspect ratio by {policy}, not stretch"
    if op == "ScatterND" and (reduction := attribute(node, "reduction", b"none").decode()) != "none":
        yield f"ScatterND has the reduction {reduction}"
    if op == "TopK" and not attribute(node, "sorted", 1):
        yield "TopK has sorted = 0"
    if op == "TopK" and (count := view.value(node.input[1])) is not None and int(count.max(initial=0)) >= 3840:
        yield f"TopK has K = {int(count.max())}, not below 3840"
    if op == "LSTM" and (attribute(node, "layout", 0) or attribute(node, "input_forget", 0)):
        yield "LSTM has layout or input_forget other than 0"
    if op == "LayerNormalization" and any(node.output[1:]):
        yield "LayerNormalization has more outputs than Y"
    if op == "Einsum" and device.release < (10, 0) and b"..." in attribute(node, "equation", b""):
        yield "Einsum has an ellipsis"


def _wide_integers(view: View, device: TensorRT) -> Iterator[Violation]:
    """INT64 before TensorRT 10 is read as INT32: what does not fit is cut off.

    Bounds of Slice are not reported: exporters write the largest INT64 for "to the end", and cut off it means the same.
    """
    if device.release >= (10, 0):
        return
    for node in view.nodes:
        for index, name in enumerate(node.input):
            if (node.op_type == "Slice" and index in (1, 2)) or view.type_of(name) != TensorProto.INT64:
                continue
            value = view.value(name)
            if value is not None and value.size and (value.min() < _INT32.min or value.max() > _INT32.max):
                worst = int(value.max()) if value.max() > _INT32.max else int(value.min())
                yield broken(
                    node, "int64-range", "wrong",
                    f"its input {name} holds {worst}; TensorRT {device.version} has INT32 only and cuts it off",
                    "Keep constants within 32 bits.", repairable=False,
                )  # fmt: skip


def _dynamic_shapes(view: View, _device: TensorRT) -> Iterator[Violation]:
    """Only the batch may be open, and texts whose largest length is recorded: `tlc build` makes profiles for both."""
    fed = fed_of(view.model)
    texts = fed.inputs if isinstance(fed, TextInput) else ()
    for value in view.graph.input:
        dims = value.type.tensor_type.shape.dim
        open_axes = [index for index, dim in enumerate(dims) if not dim.HasField("dim_value")]
        wrong = [index for index in open_axes if index > (1 if value.name in texts else 0)]
        if value.name in view.inputs and wrong:
            yield Violation(
                node=value.name, op_type="", rule="dynamic-shape", severity="refused",
                why=f"axes {wrong} of this input have no fixed size; the builder needs a profile for them",
                fix=_SHAPES_FIX, repairable=False,
            )  # fmt: skip


_QOPERATORS = frozenset(
    {
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
    }
)

_Rule = Callable[[View, TensorRT], Iterator[Violation]]

_GENERAL: tuple[_Rule, ...] = (_constant_inputs, _attributes, _wide_integers, _dynamic_shapes)

_QUANTISED: tuple[_Rule, ...] = (
    grid_rules.zero_points,
    grid_rules.types,
    grid_rules.scales,
    grid_rules.weights,
    grid_rules.biases,
    placement_rules.before_activation,
    placement_rules.before_addition,
    placement_rules.skip_branches,
    placement_rules.pooling,
    placement_rules.concatenations,
    placement_rules.small_layers,
    placement_rules.shared_pairs,
    placement_rules.unread_pairs,
)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(entry.g)


@cache
def _support() -> dict[str, Any]:
    return tomllib.loads(files("tlc.export").joinpath("tensorrt_ops.toml").read_text(encoding="utf-8"))


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
