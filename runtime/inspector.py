"""What an engine's layers run in: the engine inspector's JSON, and the time of each layer.

Both generations of the JSON, as written with profiling verbosity DETAILED:

    8.2 to 10.x   {"Layers": [{"Name", "LayerType", "Inputs": [{"Name", "Dimensions", "Format/Datatype"}], "Outputs",
                   "ParameterType", "Weights": {"Type", "Count"}, "TacticName", "TacticValue"}], "Bindings": [names]}
    11.x          "Bindings" became "I/O Tensors", a list of objects, and "Format/Datatype" two fields
                  https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html

With the default verbosity `Layers` is a list of names, from which no precision can be told.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlc.runtime.errors import TlcError
from tlc.runtime.plan import LayerSummary

# Formats are sentences ("Thirty-two wide channel vectorized row major Int8 format") or type names ("Half").
_TYPES = (
    ("fp8", r"fp8|e4m3"),
    ("fp4", r"fp4|e2m1"),
    ("int4", r"int4"),
    ("int8", r"(?<!u)int8"),
    ("uint8", r"uint8"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
    ("fp32", r"fp32|float"),
)
_WIDTH = {"fp4": 4, "int4": 4, "fp8": 8, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
"""Bits of the types that arithmetic is done in; others do not decide a layer's precision."""
_REFORMAT = re.compile(r"reformat|copynode", re.IGNORECASE)
_IDLE = re.compile(r"^(noop|constant|signal|wait|shapehostto\w*|shuffle_host)$", re.IGNORECASE)
_WEIGHTED = re.compile(r"conv|gemm|matmul|matrix_?multiply|fullyconnected|fully_connected", re.IGNORECASE)
_DLA = re.compile(r"\bdla\b", re.IGNORECASE)
_TYPE_FIELDS = ("DataType", "Datatype", "Format/Datatype", "Format")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine."""

    name: str
    """The nodes it was made from, joined by " + ", and what TensorRT added."""
    kind: str
    """TensorRT's layer type, such as "CaskConvolution" or "Reformat"."""
    precision: str
    """What it computes in: "int8", "fp16", "fp32", …; "" where the inspector does not say."""
    tactic: str
    """Name of the kernel, or its number where it has no name; "" where neither is given."""
    is_weighted: bool
    """Whether it is a convolution or a matrix product."""
    is_reformat: bool
    """Whether it only changes format or precision."""
    is_idle: bool
    """Whether it computes nothing: constants, markers, and views that cost nothing."""
    is_on_dla: bool


def read_layers(text: str) -> list[Layer]:
    """Return the engine's layers from the inspector's (or trtexec --exportLayerInfo's) JSON, in order of running.

    Raises:
        TlcError: the text is not that JSON, or holds names alone because the engine was built without details.

    """
    try:
        # TensorRT writes control characters of node names as they are.
        table = json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        raise TlcError(
            f"the engine inspector's answer is not JSON: {error}",
            hint="This release writes another form; the engine itself may be fine.",
        ) from error
    layers = table.get("Layers") if isinstance(table, dict) else None
    if not isinstance(layers, list):
        raise TlcError(
            "the engine inspector's answer has no list of layers",
            hint="This release writes another form; the engine itself may be fine.",
        )
    if layers and all(isinstance(layer, str) for layer in layers):
        raise TlcError(
            f"the engine inspector knows only the names of {len(layers)} layers",
            hint="Build with profiling verbosity 'detailed', as tlc build does.",
        )
    return [_layer(layer) for layer in layers if isinstance(layer, dict)]


def summarize(layers: Sequence[Layer], times_ms: Mapping[str, float] | None = None) -> LayerSummary:
    """Return counts and, given each layer's time by its name, shares of the time.

    Layers that compute nothing count nowhere; copies between formats count as such alone.
    """
    working = [layer for layer in layers if not layer.is_idle and not layer.is_reformat]
    reformats = [layer for layer in layers if layer.is_reformat]
    weighted = [layer for layer in working if layer.is_weighted]
    shares: dict[str, float] | None = None
    copying: float | None = None
    slowest: list[str] = []
    if times_ms:
        total = sum(times_ms.values())
        own = {layer.name: times_ms.get(layer.name, 0.0) for layer in layers}
        sums: Counter[str] = Counter()
        for layer in working:
            sums[layer.precision or "unknown"] += own[layer.name]  # type: ignore[assignment]
        if total > 0:
            shares = {precision: value / total for precision, value in sorted(sums.items())}
            copying = sum(own[layer.name] for layer in reformats) / total
        ranked = sorted(layers, key=lambda layer: -own[layer.name])[:5]
        slowest = [f"{layer.name}: {layer.precision or 'unknown'}, {own[layer.name]:.4f} ms" for layer in ranked]
    return LayerSummary(
        layers=len(working),
        layers_by_precision=dict(sorted(Counter(layer.precision or "unknown" for layer in working).items())),
        time_ratio_by_precision=shares,
        weighted=len(weighted),
        weighted_int8=sum(layer.precision == "int8" for layer in weighted),
        reformats=len(reformats),
        reformat_time_ratio=copying,
        fused=sum(" + " in layer.name for layer in working),
        on_dla=sum(layer.is_on_dla for layer in working),
        slowest=slowest,
    )


def read_profile(text: str) -> dict[str, float]:
    """Return milliseconds a run by layer from trtexec --exportProfile: a list whose first element is {"count": N}."""
    table = json.loads(text, strict=False)
    return {str(row["name"]): float(row["averageMs"]) for row in table if "name" in row}


def read_times(text: str) -> list[float]:
    """Return the GPU time of each run in milliseconds from trtexec --exportTimes, which leaves the warm-up out."""
    return [float(row["computeMs"]) for row in json.loads(text)]


def make_profiler(trt: Any) -> Any:
    """Return an `IProfiler` that collects the times of each layer in `times_ms`: name -> one value a run."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            # pybind11 refuses a subclass whose constructor does not call that of its base directly.
            trt.IProfiler.__init__(self)
            self.times_ms: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times_ms.setdefault(layer_name, []).append(ms)

    return Profiler()


def _layer(entry: dict[str, Any]) -> Layer:
    name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    parameter = str(entry.get("ParameterType", ""))
    tactic = str(entry.get("TacticName") or entry.get("TacticValue") or "")
    is_idle = bool(_IDLE.match(kind))
    # A copy that turned out to be a view keeps its name, as a NoOp.
    is_reformat = not is_idle and bool(_REFORMAT.search(kind) or name.startswith("Reformatting CopyNode"))
    is_weighted = not is_reformat and bool(_WEIGHTED.search(kind) or _WEIGHTED.search(parameter) or "Weights" in entry)
    inputs = [_type(tensor) for tensor in entry.get("Inputs", [])]
    outputs = [_type(tensor) for tensor in entry.get("Outputs", [])]
    return Layer(
        name=name,
        kind=kind,
        precision=_precision(inputs, outputs, is_weighted=is_weighted),
        tactic=tactic,
        is_weighted=is_weighted,
        is_reformat=is_reformat,
        is_idle=is_idle,
        is_on_dla=bool(_DLA.search(f"{kind} {parameter}")),
    )


def _precision(inputs: Sequence[str], outputs: Sequence[str], *, is_weighted: bool) -> str:
    """Tell what a layer computes in.

    A convolution or matrix product multiplies what it reads: the narrowest input decides, whatever it writes. Of
    everything else, a layer that reads or writes a wider type has to compute in it.
    """
    read = [kind for kind in inputs if kind in _WIDTH]
    if is_weighted and read:
        return min(read, key=_WIDTH.__getitem__)
    both = read + [kind for kind in outputs if kind in _WIDTH]
    if both:
        return max(both, key=_WIDTH.__getitem__)
    return next((kind for kind in (*outputs, *inputs) if kind), "")


def _type(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return ""
    for field in _TYPE_FIELDS:
        text = str(tensor.get(field, "")).lower()
        found = next((kind for kind, pattern in _TYPES if re.search(pattern, text)), "")
        if found:
            return found
    return ""
