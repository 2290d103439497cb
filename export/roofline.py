"""How far a measured model is from what the machine reaches: the roofline.

Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
Communications of the ACM 52(4), 2009: no program is faster than its operations at the peak of arithmetic, nor than its
traffic at the peak of memory.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tlc.export.contract import load_onnx
from tlc.export.graph import input_specs, macs, shapes_in_run
from tlc.export.view import View
from tlc.runtime.bench_report import Peaks, Roofline
from tlc.runtime.session import sample_feeds
from tlc.runtime.tensor import Feeds

_HALF_BYTES = (TensorProto.INT4, TensorProto.UINT4)


def roofline(
    path: Path,
    p50_ms: float,
    peaks: Peaks,
    *,
    sizes: Mapping[str, int] | None = None,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Roofline | None:
    """Return how close a p50 comes to the shortest time that `peaks` allow; None for anything but an ONNX file.

    `sizes`, `batch` and `shapes` are those of `tlc.runtime.session.sample_feeds`: what was measured. The model runs
    once, without optimisations, to see the shapes of all tensors.

    Operations are those of `tlc.export.graph.macs`: INT8 ones against the INT8 peak, all others against that of
    float32, one after the other. Traffic is the least there is: weights, inputs and outputs once, of tables that only
    Gather reads the rows that are looked up. A model whose weights stay in the caches from run to run can be faster
    than memory, so that `reached_ratio` is above 1; and so can one whose runtime multiplies faster than ONNX Runtime,
    with which `tlc.runtime.peak` measures.

    Raises TlcError for a file that is no ONNX, and ValueError where `p50_ms` is not positive.
    """
    if p50_ms <= 0:
        raise ValueError(f"a latency is positive, got {p50_ms} ms")
    if path.suffix.lower() != ".onnx":
        return None
    model = load_onnx(path)
    feeds = sample_feeds(input_specs(model), batch=batch, sizes=sizes, shapes=shapes)
    cost = macs(model, feeds)
    moved_bytes = _moved_bytes(model, feeds)
    compute_ms = 2000 * (cost.floating / peaks.fp32_per_s + cost.int8 / peaks.int8_per_s)
    memory_ms = 1000 * moved_bytes / peaks.bytes_per_s
    operations, bound_ms = 2 * (cost.floating + cost.int8), max(compute_ms, memory_ms)
    return Roofline(
        operations=operations,
        moved_bytes=moved_bytes,
        achieved_per_s=operations / p50_ms * 1000,
        bound_ms=bound_ms,
        bound_by="compute" if compute_ms >= memory_ms else "memory",
        reached_ratio=bound_ms / p50_ms,
        peaks=peaks,
    )


def weights_bytes(path: Path) -> int | None:
    """Return the bytes of all constants of an ONNX file, those in a data file beside it included; None for other files.

    Raises TlcError for a file that is no ONNX.
    """
    if path.suffix.lower() != ".onnx":
        return None
    return sum(map(_bytes, _constants(load_onnx(path)).values()))


def _constants(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Return initialisers and the tensors of Constant nodes, by the name under which nodes read them."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _bytes(tensor: TensorProto) -> int:
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _HALF_BYTES:  # two to a byte
        return (count + 1) // 2
    return count * _itemsize(tensor.data_type)


def _moved_bytes(model: onnx.ModelProto, feeds: Feeds) -> int:
    view = View(model)
    constants = _constants(model)
    tables = {name: readers for name in constants if _is_table(name, readers := view.readers(name))}
    looked_up = {node.output[0] for readers in tables.values() for node in readers}
    outputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    shapes = shapes_in_run(model, outputs.keys() | looked_up, feeds)
    moved = sum(array.nbytes for array in feeds.values())
    moved += sum(math.prod(shapes[name]) * _itemsize(kind) for name, kind in outputs.items())
    for name, tensor in constants.items():
        whole = _bytes(tensor)
        rows = sum(math.prod(shapes[node.output[0]]) * _itemsize(tensor.data_type) for node in tables.get(name, ()))
        moved += min(whole, rows) if name in tables else whole
    return moved


def _is_table(name: str, readers: Sequence[onnx.NodeProto]) -> bool:
    """Whether nothing but Gather reads a constant."""
    return bool(readers) and all(node.op_type == "Gather" and node.input[0] == name for node in readers)


def _itemsize(data_type: int) -> int:
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize)
