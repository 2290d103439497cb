"""A TensorRT engine file, its sidecar `NAME.plan.json`, and whether both fit a machine. Needs no TensorRT."""

import struct
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tlc.runtime.artifact import sha256_file, write_bytes, write_text
from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import EngineHost

_HEADER_BYTES = 28
_MAGIC = b"ftrt"

EnginePrecision = Literal["fp32", "fp16", "int8", "best"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class TensorRecord(_Record):
    """An input or output as the engine has it; -1 is a dynamic dimension."""

    name: str
    shape: list[int]
    dtype: str
    """numpy's name."""


class ProfileShapes(_Record):
    """Shapes of one input that the engine accepts, and the one that it is tuned for."""

    min: list[int]
    opt: list[int]
    max: list[int]


class LayerSummary(_Record):
    """What the engine inspector says the engine's layers run in."""

    layers: int
    """Those that do something: no copies between formats, no constants, no markers."""
    layers_by_precision: dict[str, int]
    time_ratio_by_precision: dict[str, float] | None
    """Share of the summed layer time; None where no profile was taken."""
    weighted: int
    """Convolutions and matrix products."""
    weighted_int8: int
    reformats: int
    """Copies between formats or precisions, which quantised graphs that do not fuse are full of."""
    reformat_time_ratio: float | None
    fused: int
    """Layers that do the work of several nodes of the graph."""
    on_dla: int
    slowest: list[str]
    """Up to five layers with their precision and time, slowest first; without a profile empty."""


class OutputComparison(_Record):
    """One output of the engine against the same ONNX file in ONNX Runtime, on the same inputs."""

    name: str
    samples: int
    max_abs: float
    cosine: float
    """Of all elements as one vector; 1 is equal direction."""
    sqnr_db: float
    """10 log10(power of ONNX Runtime's output / power of the difference); 400 stands for equal outputs."""


class Candidate(_Record):
    """One of the engines that were built to choose among."""

    onnx: str
    precision: EnginePrecision
    plan_bytes: int | None
    """None where it could not be built."""
    latency_ms: float | None
    """Median time of one batch with the copies, all candidates measured in turns; this decides."""
    gpu_ms: float | None
    """Median GPU time of one batch."""
    top1: float | None
    """On the evaluation images; None without them."""
    verdict: str
    """Why it was chosen, or not."""


class EngineRecord(_Record):
    """Everything about an engine that its file does not tell, written beside it."""

    schema_version: Literal[1] = 1
    target: str
    plan_sha256: str
    plan_bytes: int
    onnx: str
    """Name of the ONNX file it was built from."""
    onnx_sha256: str
    builder: Literal["python", "trtexec", "tlc-run"]
    tensorrt: str
    """Full version, such as "10.3.0.26"."""
    sm: str
    gpu: str
    power_mode: str
    precision: EnginePrecision
    strongly_typed: bool
    """Whether the precisions stood in the graph; else the builder chose among those allowed."""
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    profile: dict[str, ProfileShapes]
    builder_level: int | None
    """None: TensorRT's default."""
    pools_bytes: dict[str, int]
    """Memory pools that were limited, by TensorRT's name; the others had its default."""
    version_compatible: bool
    hardware_compatible: bool
    stripped: bool
    """Without weights: not to be run before they are put back."""
    refittable: bool
    """Whether weights of another ONNX file of the same network may be put in."""
    dla_core: int | None
    dla_layer_ratio: float | None
    """Share of the network's layers that can run on the DLA; the rest falls back to the GPU. None without a DLA."""
    timing_cache_hit: bool | None
    """Whether timings of an earlier build were at hand; None where the cache was off."""
    build_s: float
    attempts: list[str]
    """What was tried before, and why it failed."""
    device_memory_bytes: int | None
    """Scratch memory of one execution context."""
    gpu_ms: float | None
    """Median GPU time of one batch of the optimal shape, by CUDA events; None where it was not run."""
    layers: LayerSummary | None
    """None where the inspector had nothing to say."""
    comparison: list[OutputComparison]
    candidates: list[Candidate]
    warnings: list[str]
    preprocess: str | None
    """The ONNX file's `tlc.preprocess`, as JSON."""
    classes: list[str]


def plan_version(path: Path) -> str | None:
    """Return the TensorRT version in the plan's header, such as "10.3.0.26"; None where the layout is not known.

    Bytes 0-3 are `ftrt`, 4-7 the serialisation version, and for version 0 bytes 24-27 hold the version's four numbers:
    printPlanVersion() in samples/common/sampleEngines.cpp of NVIDIA/TensorRT, from 10.0 on. Plans of 8.x also begin
    with `ftrt`, but where their version stands is not documented, so numbers below 9 are not believed.

    Raises:
        TlcError: the file is missing, or is no plan.

    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise TlcError(f"cannot read plan {path}: {error.strerror}", hint="Check the path.") from error
    if len(header) < _HEADER_BYTES or header[:4] != _MAGIC:
        raise TlcError(
            f"{path} is not a TensorRT plan: it begins with {header[:4]!r}, not {_MAGIC!r}",
            hint="Build one on the device: tlc build model.onnx --target T -o model.plan",
        )
    (serialization,) = struct.unpack("<I", header[4:8])
    numbers = header[24:28]
    if serialization != 0 or numbers[0] < 9:
        return None
    return ".".join(str(number) for number in numbers)


def sidecar(path: Path) -> Path:
    """Return where the plan's record lies: NAME.plan.json for NAME.plan."""
    return path.with_name(path.name + ".json")


def write_plan(path: Path, plan: bytes, record: EngineRecord) -> None:
    """Write the plan and its sidecar; a plan without its sidecar is refused, so that one is written last."""
    write_bytes(path, plan)
    write_text(sidecar(path), record.model_dump_json(indent=2) + "\n")


def read_record(path: Path) -> EngineRecord:
    """Return the sidecar of the plan at `path`. Raises TlcError when it is missing or broken."""
    place = sidecar(path)
    try:
        return EngineRecord.model_validate_json(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TlcError(
            f"{path} has no sidecar {place.name}: what it was built from and for is unknown",
            hint="Copy the .json along with the plan, or build it again with tlc build.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TlcError(f"cannot read {place}: {error}", hint="Copy the .json along with the plan again.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TlcError(
            f"{place} is not an engine's record: {where}: {first['msg']}", hint="Build the plan again with this tlc."
        ) from error


def check_plan(path: Path, record: EngineRecord, host: EngineHost) -> None:
    """Raise TlcError, with the next step, unless the plan is the recorded one and fits the host.

    A plan runs on the TensorRT release that built it, to the last number, and on GPUs of the same compute capability;
    version-compatible plans also run on later releases (of the same major version and the next one: 8 to 10, 10 to 11),
    and hardware-compatible ones on GPUs from SM 8.0 on.
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#engine-compatibility
    """
    found = sha256_file(path)
    if found != record.plan_sha256:
        raise TlcError(
            f"{path} is not the plan that {sidecar(path).name} describes: SHA-256 {found[:12]}…, recorded "
            f"{record.plan_sha256[:12]}…",
            hint="The file was cut short or replaced: copy plan and .json together, or build again.",
        )
    again = f"Build it on this machine: tlc build {record.onnx} --target {record.target} -o {path.name}"
    header = plan_version(path)
    if header is not None and not _same(header, record.tensorrt):
        raise TlcError(
            f"{path} was built by TensorRT {header}, its sidecar says {record.tensorrt}",
            hint="Copy plan and .json together, or build again.",
        )
    if host.tensorrt is not None and not _runs_on(record, host.tensorrt):
        kind = "version-compatible plan, but " if record.version_compatible else ""
        raise TlcError(
            f"{path} was built by TensorRT {record.tensorrt}, this machine has {host.tensorrt}: {kind}"
            "a plan runs on the release that built it",
            hint=again + ("" if record.version_compatible else ", or build with --version-compatible (8.6 and later)."),
        )
    if host.gpu is not None and record.sm != host.gpu.sm and not _hardware_fits(record, host.gpu.sm):
        raise TlcError(
            f"{path} was built for SM {record.sm} ({record.gpu}), this GPU is SM {host.gpu.sm} ({host.gpu.name})",
            hint=again
            + ("" if record.hardware_compatible else ", or build with --hardware-compatible (8.6, SM 8.0+)."),
        )


def version_key(version: str) -> tuple[int, ...]:
    """Return the version's leading numbers: "10.13.3.9.post1" -> (10, 13, 3, 9).

    >>> version_key("10.13.3.9.post1")
    (10, 13, 3, 9)
    """
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _same(first: str, second: str) -> bool:
    # The Python module of 10.3.0.26 calls itself 10.3.0: as many numbers count as both have.
    return all(a == b for a, b in zip(version_key(first), version_key(second), strict=False))


def _runs_on(record: EngineRecord, installed: str) -> bool:
    if _same(record.tensorrt, installed):
        return True
    built, here = version_key(record.tensorrt), version_key(installed)
    following = {8: 10, 10: 11}.get(built[0])
    return record.version_compatible and here > built and here[0] in (built[0], following)


def _hardware_fits(record: EngineRecord, sm: str) -> bool:
    return record.hardware_compatible and min(version_key(record.sm), version_key(sm)) >= (8, 0)
