"""PyTorch module -> float32 ONNX file, checked against the module before it is kept."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
import torch
from numpy.typing import NDArray
from torch import nn

from tlc.export.opset import lower_opset
from tlc.export.quiet import quiet
from tlc.runtime.errors import TlcError
from tlc.runtime.tensor import BATCH_NAME, INPUT_NAME, OUTPUT_NAME, Feeds

_EXPORTER_OPSET = 18  # torch's exporter writes nothing older; see tlc.export.opset for what lowers it
_OLDEST_OPSET = 13
_PROTOBUF_LIMIT_BYTES = 2**31 - 2**20
_RELATIVE_TOLERANCE = 1e-3
"""Of the largest logit: float32 kernels that sum in another order stay two orders of magnitude below it."""
_ROUNDING = 1e-6
_ROUNDING_FACTOR = 10
"""An ill-conditioned network may differ by this many times what a relative change of its input of 1e-6, eight float32
roundings, does to it. (EfficientNet-B0 with random weights amplifies that 10,000-fold: torch itself gives logits 1 %
apart for one image alone and in a batch of three.)"""


@dataclass(frozen=True)
class Probe:
    """Inputs by name, torch's logits for them, and how far other logits may be from these."""

    feeds: Feeds
    logits: NDArray[np.float32]
    limit: float
    counted: NDArray[np.bool_] | None = None
    """Which of the leading dimensions count, (N, T) without the padding; None: all."""


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """What `onnx_from_torch` wrote and how it was checked."""

    path: Path
    opset: int
    simplified: bool
    """False where the simplifier failed or changed the outputs; the exporter's own graph was kept then."""
    note: str
    """One sentence on why the graph is not simplified, else empty."""
    max_abs_error: float
    """Largest |ONNX - torch| over the logits of seeded noise at batch 1 and 3."""


def onnx_from_torch(module: nn.Module, input_shape: tuple[int, int, int], path: Path, *, opset: int) -> OnnxExport:
    """Write `module` as ONNX: float32 input `input` ("N", C, H, W), output `logits` ("N", K).

    The graph comes from torch's dynamo exporter in evaluation mode, is simplified by onnxslim and lowered to `opset`;
    it is written only after ONNX Runtime gave the module's own outputs on seeded noise at batch 1 and 3. The same
    module gives the same bytes. Weights lie inside the file; above 2 GB, the limit of protobuf, in `<path>.data`.
    `module` keeps its mode, device and weights.

    Args:
        module: (N, C, H, W) float32 -> (N, K) float32.
        input_shape: (C, H, W).
        path: the file to write.
        opset: ONNX operator set, 13 or newer.

    Raises:
        TlcError: torch cannot export the module, the graph fixes the batch size, an operator does not exist in
            `opset`, or the outputs differ from torch's.

    """
    check_opset(opset)
    name = type(module).__name__
    example = torch.zeros(2, *input_shape, device=_device(module))
    with evaluating(module):
        probes = [_probe(module, (count, *input_shape), name) for count in (1, 3)]
        exported = exported_by_torch(module, {INPUT_NAME: example}, ({0: torch.export.Dim(BATCH_NAME)},), opset)
    return write_checked(exported, probes, path, opset=opset, name=name)


def check_opset(opset: int) -> None:
    """Raise TlcError for an ONNX operator set that `lower_opset` does not reach."""
    if opset < _OLDEST_OPSET:
        raise TlcError(
            f"ONNX opset {opset} is too old: the limit is {_OLDEST_OPSET}",
            hint=f"Choose a target with opset {_OLDEST_OPSET} or newer.",
        )


def write_checked(
    exported: onnx.ModelProto, probes: Sequence[Probe], path: Path, *, opset: int, name: str
) -> OnnxExport:
    """Lower an exporter's graph to `opset`, simplify it, and write it once it gives the logits of the probes.

    name: of the module, for messages. Raises TlcError as `onnx_from_torch` does.
    """
    lower_opset(exported, opset)
    _require_dynamic_batch(exported, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        plain = _write(_tidied(exported), Path(scratch) / "plain" / path.name)
        plain_error = _largest_error(plain, probes, name)
        chosen, note, error = plain, "", plain_error
        try:
            candidate = _write(_tidied(_slimmed(exported)), Path(scratch) / "slim" / path.name)
            slim_error = _largest_error(candidate, probes, name)
            chosen, error = candidate, slim_error
        except Exception as problem:  # whatever onnxslim trips over, the checked graph above stands
            note = f"Not simplified: {_first_line(problem)}"
        onnx.checker.check_model(str(chosen), full_check=True)
        for file in sorted(chosen.parent.iterdir(), reverse=True):  # NAME.data before NAME
            file.replace(path.parent / file.name)
    return OnnxExport(path, opset, not note, note, error)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode, without gradients, for the length of a with statement."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def _probe(module: nn.Module, shape: tuple[int, ...], name: str) -> Probe:
    batch = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    feeds = {INPUT_NAME: batch}
    logits = torch_outputs(module, feeds, name, ("N", "K"))
    nearby = torch_outputs(module, {INPUT_NAME: batch * np.float32(1 + _ROUNDING)}, name, ("N", "K"))
    rounding = float(np.abs(nearby - logits).max())
    return Probe(feeds, logits, max(tolerance(logits), _ROUNDING_FACTOR * rounding))


def tolerance(logits: NDArray[np.float32]) -> float:
    """Return how far logits may be from these when float32 kernels sum in another order."""
    return _RELATIVE_TOLERANCE * max(float(np.abs(logits).max()), 1e-3)


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def torch_outputs(module: nn.Module, feeds: Feeds, name: str, *shapes: tuple[str, ...]) -> NDArray[np.float32]:
    """Return the logits for inputs in the order of the arguments; TlcError unless float32 of the rank of a shape."""
    output = module(*(torch.from_numpy(values).to(_device(module)) for values in feeds.values()))
    ranks = {len(shape) for shape in shapes}
    if not isinstance(output, torch.Tensor) or output.ndim not in ranks or output.dtype != torch.float32:
        found = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        wanted = " or ".join(f"({', '.join(shape)})" for shape in shapes)
        raise TlcError(
            f"{name} returns {found}, not float32 logits {wanted}",
            hint="Wrap the module so that it returns the logits.",
        )
    values: NDArray[np.float32] = output.cpu().numpy()
    return values


def exported_by_torch(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], dynamic: tuple[dict[int, Any], ...], opset: int
) -> onnx.ModelProto:
    """Return the graph of torch's exporter, in the oldest opset from `opset` on that it writes.

    inputs: examples by name, in the order of the module's arguments. dynamic: of each, torch.export.Dim by dimension.
    """
    _read_operators_once()
    try:
        with quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(inputs),
                output_names=[OUTPUT_NAME],
                opset_version=max(opset, _EXPORTER_OPSET),
                verbose=False,
            )
    except Exception as problem:  # the exporter raises many kinds, all of them about the module
        raise TlcError(
            f"torch cannot export {type(module).__name__} to ONNX: {_root_sentence(problem)}",
            hint="Rewrite what the sentence names so that torch.export accepts it, or choose another architecture.",
        ) from problem
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@cache
def _read_operators_once() -> None:
    """Let torch's exporter read its table of operators once a process, not once a network: it takes a second."""
    with contextlib.suppress(ImportError, AttributeError):  # a release of torch that has it elsewhere
        from torch.onnx._internal.exporter import _registration

        exporter: Any = _registration
        exporter.onnxscript_apis.get_torchlib_ops = cache(exporter.onnxscript_apis.get_torchlib_ops)


def _require_dynamic_batch(model: onnx.ModelProto, name: str) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        batch = value.type.tensor_type.shape.dim[0]
        if batch.dim_param != BATCH_NAME:
            raise TlcError(
                f"{name} fixes the batch size: {value.name} has first dimension {batch.dim_value}, not {BATCH_NAME}",
                hint="Let the module take the batch size from its input, not from a constant.",
            )


def _slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with quiet():
        slimmed: onnx.ModelProto = onnxslim.slim(copy)
    return slimmed


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what no runtime reads: stack traces with this machine's paths, type notes of inner values, versions."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.functions):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    model.graph.ClearField("value_info")
    model.graph.name = "main"
    model.producer_name = "tlc"
    model.ClearField("producer_version")
    return model


def _write(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir()
    if model.ByteSize() > _PROTOBUF_LIMIT_BYTES:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _largest_error(path: Path, probes: Sequence[Probe], name: str) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for probe in probes:
        (found,) = session.run([OUTPUT_NAME], probe.feeds)
        same_shape = found.shape == probe.logits.shape
        counted = slice(None) if probe.counted is None else probe.counted
        error = float(np.abs(found - probe.logits)[counted].max()) if same_shape else float("inf")
        if not error <= probe.limit:  # NaN is no success either
            raise TlcError(
                f"the ONNX file of {name} gives other outputs than torch at {_sizes(probe.feeds)}: "
                f"largest error {error:.3g}, limit {probe.limit:.3g}",
                hint="Look for code in forward that depends on the batch size or on tensor values.",
            )
        worst = max(worst, error)
    return worst


def _sizes(feeds: Feeds) -> str:
    shape = next(iter(feeds.values())).shape
    return f"batch {shape[0]}" + (f", length {shape[1]}" if len(shape) == 2 else "")


def _root_sentence(problem: BaseException) -> str:
    """First line of the innermost cause: the exporter wraps what went wrong in a page of advice."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return _first_line(problem)


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0] if lines else type(problem).__name__
