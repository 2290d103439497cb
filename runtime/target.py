"""Devices to compress for, as data: `targets.toml`, or a file of the user's own."""

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tlc.runtime.environment import cpu_flags
from tlc.runtime.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Provider = Literal["cpu", "cuda", "tensorrt", "openvino"]
"""ONNX Runtime's execution providers that sessions are made of."""
PROVIDERS: dict[Provider, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}
"""ONNX Runtime's name of each execution provider, and the package whose build has it."""


class TensorRT(BaseModel):
    """What a device's TensorRT is and has."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    version: str = Field(pattern=r"^\d+\.\d+$")
    """Release on the device, `major.minor`: it decides what the parser accepts and how engines are built."""
    max_opset: int = Field(ge=9)
    """Newest ONNX opset that its parser reads."""
    sm: list[Annotated[str, Field(pattern=r"^\d+\.\d$")]] = Field(min_length=1)
    """Compute capabilities of the GPUs meant, such as "8.7"."""
    workspace_bytes: int = Field(ge=2**20)
    """Scratch memory that the builder may use at most; less where less is free."""
    dla_cores: int = Field(ge=0, le=2)
    """Deep Learning Accelerators of the module that this release can build for."""

    @property
    def release(self) -> tuple[int, int]:
        """(major, minor), which compares."""
        major, minor = self.version.split(".")
        return int(major), int(minor)

    @property
    def strongly_typed(self) -> bool:
        """Whether precisions belong into the graph: builder flags for them are deprecated from 10.12 and gone in 11."""
        return self.release >= (10, 12)


class Target(BaseModel):
    """What a device runs well, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    description: str
    runtime: Literal["onnxruntime", "openvino", "tensorrt"]
    opset: int = Field(ge=13, le=23)
    """ONNX opset of exported files. From 13 on, weights can have one scale per channel."""
    precisions: list[Literal["fp32", "fp16", "int8"]] = Field(min_length=1)
    """Those that the device has arithmetic for."""
    contract: Literal["ort-u8s8", "ort-s8s8", "openvino", "tensorrt"]
    """Which quantised graphs the runtime accepts and fuses: see `tlc.export.contract`."""
    weights_reduced_range: bool
    """Whether weights use 7 of the 8 bits, which keeps sums of two products within 16 bits."""
    channel_multiple: int = Field(ge=1, le=256)
    """Pruned channel counts are rounded to a multiple of this."""
    threads: int = Field(ge=1, le=1024)
    """Intra-op threads that measurements use; 1 where a GPU does the work."""
    python: str
    """Python on the device, such as "3.10"; "" where any will do."""
    source: str
    """Where these facts are from."""
    provider: Provider = "cpu"
    """Execution provider, for the runtime `onnxruntime` only."""
    tensorrt: TensorRT | None = None
    """Where TensorRT runs the files: by the runtime or the provider of that name."""


def load_target(name_or_file: str, *, flags: frozenset[str] | None = None) -> Target:
    """Return the target of that name, or the one in that TOML file.

    In TOML, `weights_reduced_range` may be `"without-vnni"`: true on an x86 CPU that lacks VNNI. It is resolved here,
    against `flags` (default: those of this machine), because compression measures on the machine it runs on. A CPU that
    does not tell its flags is taken to have VNNI.

    A file has the keys of `Target` at its top level:

        name = "gateway"
        description = "our gateway, two slow cores"
        runtime = "onnxruntime"
        opset = 18
        precisions = ["fp32", "int8"]
        contract = "ort-u8s8"
        weights_reduced_range = "without-vnni"
        channel_multiple = 8
        threads = 2
        python = ""
        source = "measured 2026-11-20"

    and, where TensorRT runs the files, those of `TensorRT` in a table `[tensorrt]` below them.

    Raises UsageError for an unknown name, and for a file that is missing, not TOML, has a wrong, unknown or missing
    key, or keys that contradict each other.
    """
    built_in = _built_in()
    if name_or_file in built_in:
        return _validated({"name": name_or_file, **built_in[name_or_file]}, f"target {name_or_file}", flags)
    path = Path(name_or_file)
    if path.suffix.lower() != ".toml" and not path.is_file():
        raise _unknown(name_or_file)
    return _validated(_read(path), f"target file {path}", flags)


def target_names() -> tuple[str, ...]:
    """Return the names of the built-in targets."""
    return tuple(_built_in())


def target_toml(name: str) -> str:
    """Return the built-in target of that name as the text of a file that `load_target` reads: one to change.

    Raises UsageError for an unknown name.
    """
    if name not in target_names():
        raise _unknown(name)
    return _toml({"name": name, **_built_in()[name]})


def written_target(target: Target) -> str:
    """Return a target as the text of a file that `load_target` reads."""
    return _toml(target.model_dump(mode="json", exclude_none=True))


def _toml(table: dict[str, Any]) -> str:
    nested = table.pop("tensorrt", None)
    # A JSON string, list, number or boolean is a TOML one too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    if nested is not None:
        lines += ["", "[tensorrt]", *(f"{key} = {json.dumps(value)}" for key, value in nested.items())]
    return "\n".join(lines) + "\n"


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"unknown target {name!r}; known: {', '.join(target_names())}",
        hint="Choose one of them, or describe your device in a file: --target FILE.toml",
    )


def _built_in() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("tlc.runtime").joinpath("targets.toml").read_text(encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read target file {path}: {error.strerror}",
            hint=f"Check the path, or choose one of {', '.join(target_names())}.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"target file {path} is not TOML: {error}", hint="Correct that place in the file.") from error


def _validated(table: dict[str, Any], place: str, flags: frozenset[str] | None) -> Target:
    allowed = tuple(Target.model_fields)
    if unknown := [key for key in table if key not in allowed]:
        raise UsageError(
            f"{place}: unknown {_keys(unknown)}; allowed: {', '.join(allowed)}", hint="Remove or rename it."
        )
    required = [key for key, field in Target.model_fields.items() if field.is_required()]
    if missing := [key for key in required if key not in table]:
        raise UsageError(f"{place}: missing {_keys(missing)}", hint="Only provider and tensorrt may be left out.")
    if table["weights_reduced_range"] == "without-vnni":
        table = {**table, "weights_reduced_range": _lacks_vnni(cpu_flags() if flags is None else flags)}
    try:
        target = Target.model_validate(table)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])} = {item['input']!r}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise UsageError(f"{place}: {problems}", hint="Correct the value.") from error
    _check_consistent(target, place)
    return target


def _check_consistent(target: Target, place: str) -> None:
    if target.provider != "cpu" and target.runtime != "onnxruntime":
        raise UsageError(
            f"{place}: provider = {target.provider!r} with runtime = {target.runtime!r}",
            hint="A provider belongs to the runtime 'onnxruntime'; leave it out.",
        )
    library = target.runtime if target.provider == "cpu" else target.provider
    if (library == "tensorrt") != (target.tensorrt is not None):
        without = "without" if target.tensorrt is None else "with"
        raise UsageError(
            f"{place}: runtime = {target.runtime!r}, provider = {target.provider!r} {without} a tensorrt table",
            hint="A [tensorrt] table belongs to the runtime or provider 'tensorrt', and to no other.",
        )
    contracts = _CONTRACTS.get(library, ("ort-u8s8", "ort-s8s8"))
    if target.contract not in contracts:
        raise UsageError(
            f"{place}: contract = {target.contract!r} with {library}, which takes {' or '.join(contracts)}",
            hint="The contract is that of the library which runs the files.",
        )
    if target.tensorrt is not None and target.opset > target.tensorrt.max_opset:
        raise UsageError(
            f"{place}: opset = {target.opset} is above tensorrt.max_opset = {target.tensorrt.max_opset}",
            hint="Lower opset to what the device's parser reads.",
        )


_CONTRACTS = {"tensorrt": ("tensorrt",), "openvino": ("openvino",)}
"""Quantised graphs that a library takes; ONNX Runtime's own kernels take either of its two."""


def _keys(names: list[str]) -> str:
    return f"key{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _lacks_vnni(flags: frozenset[str]) -> bool:
    """Tell whether the flags are those of an x86 CPU (every 64-bit one has sse2) without either form of VNNI."""
    return "sse2" in flags and not flags & {"avx512_vnni", "avx_vnni"}
