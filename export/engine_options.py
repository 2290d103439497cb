"""What `tlc build` is asked for, and everything about it that can be refused before TensorRT starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tlc.export.onnx_facts import OnnxFacts
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.gpu import EngineHost
from tlc.runtime.plan import EnginePrecision, EngineRecord, ProfileShapes, version_key
from tlc.runtime.target import Target, TensorRT

_DLA_MAX_BATCH, _DLA_MAX_DIM = 4096, 8192
_ORDINARY_TEXT = 32
"""Tokens that an engine for texts is tuned for."""
_OF_A_BUILD = {
    "precision": "--precision", "batch": "--batch", "shapes": "a shape", "workspace_bytes": "--workspace",
    "builder_level": "--level", "timing_cache": "--timing-cache", "version_compatible": "--version-compatible",
    "hardware_compatible": "--hardware-compatible", "strip": "--strip", "refit": "--refit", "dla_core": "--dla",
    "gpu_fallback": "--no-gpu-fallback", "alternatives": "--also", "trtexec": "--trtexec",
}  # fmt: skip
"""Fields of `BuildOptions` that make a plan what it is, with their options."""


class BuildOptions(BaseModel):
    """How to build an engine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    precision: Literal["auto", "fp32", "fp16", "int8", "best"] = "auto"
    """`best` is fp16 and int8, layer by layer; `auto` builds what the file and target allow and keeps the fastest."""
    batch: int = Field(default=1, ge=1)
    """Size of an open first dimension that has no entry in `shapes`."""
    shapes: dict[str, ProfileShapes] = {}
    """Smallest, best and largest shape of inputs with open dimensions."""
    workspace_bytes: int | None = Field(default=None, ge=1 << 20)
    """None: see `tlc.export.engine_limits.pool_limits`."""
    builder_level: int | None = Field(default=None, ge=0, le=5)
    """How many kernels are tried, 0 to 5, from TensorRT 8.6 on; None is its default, 3."""
    timing_cache: Path | Literal["default", "off"] = "default"
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip: bool = False
    """Leave the weights out; they are put back on the device."""
    refit: bool = False
    """Let weights be replaced later."""
    dla_core: int | None = Field(default=None, ge=0)
    gpu_fallback: bool = True
    """Whether layers that the DLA cannot run may run on the GPU."""
    alternatives: tuple[Path, ...] = ()
    """Other ONNX files of the same network, such as the INT8 one, to choose among with `auto`."""
    data: Path | None = None
    """Evaluation images; without them accuracy is not checked."""
    max_drop_points: float = Field(default=1.0, ge=0, le=100)
    """Largest loss of top-1 against ONNX Runtime's float file that `auto` accepts."""
    samples: int = Field(default=8, ge=1)
    """How many are compared with ONNX Runtime."""
    rounds: int = Field(default=40, ge=1)
    """Rounds of the measurement."""
    trtexec: Path | None = None
    """Build with this program even where TensorRT's Python module is."""
    timeout_s: float = Field(default=7200, gt=0)
    """For each engine."""


def require_target(target: Target) -> TensorRT:
    """Return the target's TensorRT. Raises UsageError when it runs something else."""
    if target.tensorrt is None:
        raise UsageError(
            f"target {target.name} runs {target.runtime}: it has no engines to build",
            hint="Choose a target with TensorRT: tlc targets.",
        )
    return target.tensorrt


def check_options(files: Sequence[OnnxFacts], target: Target, options: BuildOptions) -> None:
    """Raise UsageError for what contradicts itself or the target, whatever machine this is."""
    trt = require_target(target)
    wanted = {"fp32": ["fp32"], "fp16": ["fp16"], "int8": ["int8"], "best": ["fp16", "int8"]}
    for precision in wanted.get(options.precision, []):
        if precision not in target.precisions:
            raise UsageError(
                f"target {target.name} has no {precision}; it has {', '.join(target.precisions)}",
                hint="Choose one of them with --precision, or leave it at auto.",
            )
    if options.precision != "auto" and trt.strongly_typed:
        raise UsageError(
            f"--precision {options.precision} has no effect on TensorRT {trt.version}: precisions stand in the file",
            hint="Leave it at auto, and build the file of the precision wanted: tlc compress writes each of them.",
        )
    if options.precision != "auto" and options.alternatives:
        raise UsageError("--also is for choosing, and --precision leaves no choice", hint="Leave one of them out.")
    for facts in files:
        if options.precision in ("int8", "best") and not facts.is_quantized:
            raise UsageError(
                f"--precision {options.precision} needs a quantised file, and {facts.path} has no Q/DQ nodes",
                hint=f"Make one first: tlc quantize {facts.path} --target {target.name} --data DIR -o int8.onnx",
            )
        if options.precision in ("fp32", "fp16") and facts.is_quantized:
            raise UsageError(
                f"--precision {options.precision} on {facts.path}, which has Q/DQ nodes: they always run in int8",
                hint="Build the float file instead, or choose int8 or best.",
            )
        if facts.is_quantized and "int8" not in target.precisions:
            raise UsageError(
                f"{facts.path} is quantised, and target {target.name} has no int8",
                hint="Build the float file for this target.",
            )
    _check_release(trt, options)
    if options.dla_core is not None:
        _check_dla(files, target, options)


def check_host(target: Target, host: EngineHost) -> list[str]:
    """Return warnings; raise TlcError when this machine's TensorRT cannot make what the target is for."""
    wanted, installed = require_target(target), host.tensorrt or ""
    here = version_key(installed)[:2]
    if here < wanted.release or (here[0] != wanted.release[0]):
        raise TlcError(
            f"target {target.name} is for TensorRT {wanted.version}, and this machine has {installed}",
            hint="Build on the device itself, or choose the target whose TensorRT this machine has: tlc targets.",
        )
    warnings = []
    if here != wanted.release:
        warnings.append(f"Built by TensorRT {installed}; target {target.name} is described for {wanted.version}.")
    if host.gpu is not None and host.gpu.sm not in wanted.sm:
        warnings.append(
            f"Built on SM {host.gpu.sm} ({host.gpu.name}): it does not run on {target.name}, which has SM "
            f"{', '.join(wanted.sm)}."
        )
    return warnings


def check_refit(facts: OnnxFacts, plan: Path, record: EngineRecord, target: Target, options: BuildOptions) -> None:
    """Raise UsageError unless the weights of `facts` may be put into the plan, and no option would change its build."""
    require_target(target)
    if not record.stripped and not record.refittable:
        raise UsageError(
            f"--into {plan}: it was built with neither --strip nor --refit, so its weights cannot be replaced",
            hint="Leave --into out, which builds a new plan.",
        )
    if record.target != target.name:
        raise UsageError(
            f"--target {target.name}, and {plan} was built for {record.target}", hint=f"Give --target {record.target}."
        )
    if not record.refittable and facts.sha256 != record.onnx_sha256:
        raise UsageError(
            f"{plan} was built with --strip alone: it takes back the weights of {record.onnx} (SHA-256 "
            f"{record.onnx_sha256[:12]}…), and {facts.path} is another file ({facts.sha256[:12]}…)",
            hint="Give that file, or build with both --strip and --refit, which takes other weights.",
        )
    still = BuildOptions()
    used = [option for field, option in _OF_A_BUILD.items() if getattr(options, field) != getattr(still, field)]
    if used:
        raise UsageError(
            f"--into takes {plan} as it was built, and {', '.join(used)} would change that",
            hint="Leave it out, or build a new plan without --into.",
        )


def profile_shapes(facts: OnnxFacts, options: BuildOptions) -> dict[str, ProfileShapes]:
    """Return smallest, best and largest shape of every input.

    An open first dimension is the batch; an open length of texts goes from 2 tokens to the recorded limit. Raises
    UsageError for other open dimensions without shapes, for shapes of unknown inputs, and for those that contradict the
    file or themselves.
    """
    names = [spec.name for spec in facts.inputs]
    if unknown := [name for name in options.shapes if name not in names]:
        raise UsageError(f"{facts.path} has no input {unknown[0]}; it has {', '.join(names)}", hint="Correct the name.")
    shapes: dict[str, ProfileShapes] = {}
    for spec in facts.inputs:
        given = options.shapes.get(spec.name)
        if given is None:
            dims = [options.batch if i == 0 and isinstance(dim, str) else dim for i, dim in enumerate(spec.shape)]
            if facts.longest_text is not None and len(dims) == 2 and isinstance(dims[1], str):
                shapes[spec.name] = _text_shapes(int(dims[0]), facts.longest_text)
                continue
            if still := [str(dim) for dim in dims if isinstance(dim, str)]:
                raise UsageError(
                    f"input {spec.name} of {facts.path} leaves {', '.join(still)} open, and a profile needs sizes",
                    hint=f"Give them: --min-shape {spec.name}:1x3x224x224 --opt-shape … --max-shape …",
                )
            fixed = [int(dim) for dim in dims]
            if isinstance(spec.shape[0] if spec.shape else 0, int) and fixed and options.batch not in (1, fixed[0]):
                raise UsageError(
                    f"--batch {options.batch}, and {facts.path} fixes the batch of {spec.name} at {fixed[0]}",
                    hint="Export it with an open batch, or leave --batch out.",
                )
            given = ProfileShapes(min=fixed, opt=fixed, max=fixed)
        else:
            _check_shapes(facts.path, spec.name, spec.shape, given)
        shapes[spec.name] = given
    return shapes


def _text_shapes(batch: int, longest: int) -> ProfileShapes:
    ordinary = min(_ORDINARY_TEXT, longest)
    return ProfileShapes(min=[batch, 2], opt=[batch, ordinary], max=[batch, longest])


def _check_shapes(path: Path, name: str, shape: tuple[int | str, ...], given: ProfileShapes) -> None:
    for label, dims in (("min", given.min), ("opt", given.opt), ("max", given.max)):
        fits = len(dims) == len(shape) and all(
            isinstance(want, str) or dim == want for dim, want in zip(dims, shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"--{label}-shape {name}:{'x'.join(map(str, dims))} does not fit input {name} "
                f"[{', '.join(map(str, shape))}] of {path}",
                hint="Sizes that the file fixes have to stay.",
            )
    if not all(low <= best <= high for low, best, high in zip(given.min, given.opt, given.max, strict=True)):
        raise UsageError(
            f"shapes of {name}: min {given.min}, opt {given.opt}, max {given.max} are not in ascending order",
            hint="Each dimension needs min <= opt <= max.",
        )


def _check_release(trt: TensorRT, options: BuildOptions) -> None:
    since = {
        "--version-compatible": (options.version_compatible, (8, 6)),
        "--hardware-compatible": (options.hardware_compatible, (8, 6)),
        "--level": (options.builder_level is not None, (8, 6)),
        "--strip": (options.strip, (10, 0)),
    }
    for option, (used, release) in since.items():
        if used and trt.release < release:
            raise UsageError(
                f"{option} needs TensorRT {release[0]}.{release[1]}, and the target has {trt.version}",
                hint="Leave it out for this target.",
            )


def _check_dla(files: Sequence[OnnxFacts], target: Target, options: BuildOptions) -> None:
    cores = target.tensorrt.dla_cores if target.tensorrt else 0
    core = options.dla_core or 0
    if core >= cores:
        raise UsageError(
            f"--dla {core}, and target {target.name} has {cores or 'no'} DLA cores", hint="Cores count from 0."
        )
    for facts in files:
        if facts.is_quantized:
            raise UsageError(
                f"{facts.path} has Q/DQ nodes, and the DLA of TensorRT up to 10.7 knows calibration tables only: every "
                "quantised layer would run on the GPU",
                hint="Build the float file in fp16 for the DLA, or the quantised one for the GPU.",
            )
        for name, limits in profile_shapes(facts, options).items():
            if limits.min != limits.max:
                raise UsageError(
                    f"the DLA takes fixed shapes only, and {name} is dynamic", hint="Leave the shapes out."
                )
            if limits.max and (limits.max[0] > _DLA_MAX_BATCH or max(limits.max[1:], default=1) > _DLA_MAX_DIM):
                raise UsageError(
                    f"input {name} {limits.max}: the DLA takes batches up to {_DLA_MAX_BATCH} and sizes up to "
                    f"{_DLA_MAX_DIM}",
                    hint="Build for the GPU.",
                )


def candidates(
    files: Sequence[OnnxFacts], target: Target, options: BuildOptions
) -> list[tuple[OnnxFacts, EnginePrecision]]:
    """Return what to build: one engine, or with `auto` each that may be the fastest.

    Weakly typed, a float file is built in fp16 (fp32 where the target has no fp16), a quantised one in int8 and in
    best: its float layers then run in float32, or in what is faster. Strongly typed, each file is one engine.
    """
    if options.precision != "auto":
        return [(files[0], options.precision)]
    chosen: list[tuple[OnnxFacts, EnginePrecision]] = []
    for facts in files:
        if require_target(target).strongly_typed:
            chosen.append((facts, "int8" if facts.is_quantized else "fp16" if facts.has_float16 else "fp32"))
        elif options.dla_core is not None:
            chosen.append((facts, "fp16"))  # the DLA has no float32
        elif facts.is_quantized:
            chosen += [(facts, "int8"), (facts, "best")] if "fp16" in target.precisions else [(facts, "int8")]
        else:
            chosen.append((facts, "fp16" if "fp16" in target.precisions else "fp32"))
    return chosen
