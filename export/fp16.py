"""Float32 ONNX -> float16 inside, float32 at the boundary; what float16 cannot hold stays in float32."""

import math
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from tlc.export.half import LARGEST, constants_as_initializers, half_model, largest_finite
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError
from tlc.runtime.tensor import Samples

RANGE_SAMPLES = 64
"""Samples on which ranges are measured: enough to meet a tensor's usual extremes, for which HEADROOM leaves room."""
HEADROOM = 2
"""Values up to 65,504 / 2 on the samples are trusted not to exceed 65,504 on other data."""
FAINTEST_DB = 50.0
"""A tensor that float16 represents worse than this underflows: in its normal range, rounding alone leaves 72 dB or more
(half a unit in the last place of 11 bits)."""

Reason = Literal["overflow", "underflow", "squares", "runtime"]


class KeptNode(BaseModel):
    """A node that stays in float32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    op_type: str
    reason: Reason
    why: str


class Fp16Record(BaseModel):
    """What a float16 file kept in float32, in the graph's order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: tuple[KeptNode, ...]
    nodes: int
    """Nodes of the float32 graph."""
    samples: int
    """Samples that ranges were measured on; 0: structure alone decided."""


def fp16_from_float(path: Path, out: Path, *, samples: Samples | None = None, keep: Collection[str] = ()) -> Fp16Record:
    """Write `path` with weights and arithmetic in float16; inputs and outputs stay float32.

    Args:
        path: a float32 file.
        out: the file to write.
        samples: tensors that leave float16's range on them stay in float32, with the nodes that write and read them.
            Memory does not grow with their number.
        keep: names of more nodes that stay in float32.

    Raises:
        TlcError: a weight lies beyond 65,504, the largest float16, or the graph has branches or loops.

    """
    model = constants_as_initializers(onnx.load(path))
    _check_weights(model, path.name)
    name_nodes(model)
    found = {node.name: node for node in structural_float32(model)}
    count = 0
    if samples is not None:
        outside, count = float32_on_data(model, samples)
        found = {node.name: node for node in outside} | found
    half = half_model(model, {*found, *keep})
    onnx.checker.check_model(half, full_check=True)
    write_bytes(out, half.SerializeToString(deterministic=True))
    kept = tuple(found[node.name] for node in model.graph.node if node.name in found)
    return Fp16Record(kept=kept, nodes=len(model.graph.node), samples=count)


def structural_float32(model: onnx.ModelProto) -> list[KeptNode]:
    """Return the nodes that need float32 whatever the data.

    The mean of squares of a decomposed normalisation: squares overflow from 256 on, and an epsilon below 6e-8 is 0.
    And the Transpose in front of a MatMul: on a CPU, ONNX Runtime puts a Cast between such a float16 Transpose and its
    MatMul, and its MatmulTransposeFusion then crashes the process (1.31, ViT-B/16: segmentation fault while the session
    is made).
    """
    readers = _readers(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Transpose" and any(reader.op_type == "MatMul" for reader in readers[node.output[0]]):
            found.append(_kept(node, "runtime", "ONNX Runtime crashes on a float16 Transpose in front of MatMul"))
        if _is_square(node, constants) and any(reader.op_type == "ReduceMean" for reader in readers[node.output[0]]):
            chain = [node]
            for op_type in ("ReduceMean", "Add", "Sqrt"):
                chain += [reader for reader in readers[chain[-1].output[0]] if reader.op_type == op_type][:1]
            found += [
                _kept(part, "squares", "a mean of squares: float16 overflows from 256 squared on") for part in chain
            ]
    return found


def float32_on_data(model: onnx.ModelProto, samples: Samples) -> tuple[list[KeptNode], int]:
    """Run the float32 model and return the nodes that write or read what float16 cannot hold, and the sample count.

    A tensor overflows where its largest magnitude exceeds 65,504 / 2; it underflows where rounding it to float16 leaves
    less than 50 dB of signal. What vanishes beside large values does no harm and does not count: the tail of a softmax,
    or the mean of a tensor centred already.
    """
    measured, count = _measured(model, samples)
    readers = _readers(model)
    reasons: dict[str, tuple[Reason, str]] = {}
    for name, (largest, signal, noise) in measured.items():
        if math.isinf(largest):
            continue  # a mask: infinity is infinity in float16 too
        if largest * HEADROOM > LARGEST:
            why = f"{name} reaches {largest:.4g}, float16 ends at {LARGEST:.0f}"
            reasons[name] = "overflow", why
        elif largest > 0 and noise * 10 ** (FAINTEST_DB / 10) > signal and not _drowned(name, readers[name], measured):
            reasons[name] = "underflow", f"{name} is at most {largest:.3g}, float16's smallest steps are 6e-8"
    found = []
    for node in model.graph.node:
        hit = next((name for name in (*node.output, *node.input) if name in reasons), None)
        if hit is not None:
            found.append(_kept(node, *reasons[hit]))
    return found, count


def _drowned(name: str, readers: list[onnx.NodeProto], measured: dict[str, tuple[float, float, float]]) -> bool:
    """Whether all that happens to a tensor is that one 2,048 times as large, float16's precision, is added to it."""
    others = [next((other for other in node.input if other != name), name) for node in readers]
    return bool(readers) and all(
        node.op_type in ("Add", "Sub") and measured.get(other, (0.0,))[0] > measured[name][0] * 2**11
        for node, other in zip(readers, others, strict=True)
    )


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    return readers


def _measured(model: onnx.ModelProto, samples: Samples) -> tuple[dict[str, tuple[float, float, float]], int]:
    """Largest magnitude, and energy of the signal and of its rounding error, of every inner float32 tensor.

    Nodes inside the graph reduce each tensor to three numbers, so that no tensor outlives its use.
    """
    probe = onnx.shape_inference.infer_shapes(model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*probe.graph.value_info, *probe.graph.output)}
    names = [name for node in model.graph.node for name in node.output if name and kinds.get(name) == TensorProto.FLOAT]
    del probe.graph.output[:]
    for name in names:
        steps: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
            ("Abs", name, "magnitude", {}),
            ("ReduceMax", f"{name}/magnitude", "largest", {"keepdims": 0}),
            ("ReduceSumSquare", name, "signal", {"keepdims": 0}),
            ("Cast", name, "half", {"to": TensorProto.FLOAT16}),
            ("Cast", f"{name}/half", "rounded", {"to": TensorProto.FLOAT}),
        )
        for op_type, source, result, attributes in steps:
            probe.graph.node.append(helper.make_node(op_type, [source], [f"{name}/{result}"], **attributes))
        probe.graph.node.append(helper.make_node("Sub", [name, f"{name}/rounded"], [f"{name}/error"]))
        probe.graph.node.append(helper.make_node("ReduceSumSquare", [f"{name}/error"], [f"{name}/noise"], keepdims=0))
        for result in ("largest", "signal", "noise"):
            probe.graph.output.append(helper.make_tensor_value_info(f"{name}/{result}", TensorProto.FLOAT, []))
    session = _session(probe)
    totals = {name: np.zeros(3) for name in names}
    count = 0
    for sample in samples:
        values = np.array(session.run(None, dict(sample)), np.float64).reshape(-1, 3)
        for name, (largest, signal, noise) in zip(names, values, strict=True):
            total = totals[name]
            total[:] = max(total[0], largest), total[1] + signal, total[2] + noise
        count += 1
    if not count:
        raise TlcError("no samples to measure float16's range on", hint="Give at least one image.")
    return {name: (float(a), float(b), float(c)) for name, (a, b, c) in totals.items()}, count


def _session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Fusions would remove tensors, and a Cast to float16 and back.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _is_square(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type == "Mul":
        return bool(node.input[0] == node.input[1])
    exponent = constants.get(node.input[1]) if node.op_type == "Pow" else None
    return exponent is not None and bool((numpy_helper.to_array(exponent) == 2).all())


def _kept(node: onnx.NodeProto, reason: Reason, why: str) -> KeptNode:
    return KeptNode(name=node.name, op_type=node.op_type, reason=reason, why=why)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give nodes without one a name: what is kept is told by name."""
    for node in model.graph.node:
        if not node.name:
            node.name = f"{node.op_type}_{node.output[0]}"


def _check_weights(model: onnx.ModelProto, name: str) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            largest = largest_finite(numpy_helper.to_array(tensor))
            if not largest <= LARGEST:
                raise TlcError(
                    f"{name} cannot be float16: {tensor.name} holds {largest:.6g}, the limit is {LARGEST:.6g}",
                    hint="Leave the float16 file out.",
                )
