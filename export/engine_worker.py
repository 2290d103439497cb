"""Building one engine, or putting weights into it, with TensorRT's Python module: 8.2 to 11 by one code path, by names.

`python -m tlc.export.engine_worker build|refit|evaluate REQUEST.json ANSWER.json` is the child of `engine_process`.
Names that some release lacks are asked for with `hasattr` or `getattr`; a test holds every other name against the
tables of eleven releases.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tlc.export.engine_evaluate import evaluate
from tlc.export.engine_process import WorkerAnswer
from tlc.export.engine_request import BuildRequest, Built, EvaluateRequest, RefitRequest, Refitted
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import engine_host, require_gpu, require_tensorrt
from tlc.runtime.tensorrt_io import engine_io, load_engine, process_logger

_FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",), "best": ("FP16", "INT8")}
"""Builder flags of weakly typed builds: what kernels may compute in beside float32."""
_SHOWN = 5


def build(request: BuildRequest) -> Built:
    """Build the engine and write its plan. Raises TlcError with TensorRT's words when it cannot."""
    host = engine_host()
    require_gpu(host)
    version = require_tensorrt(host)
    import tensorrt as trt

    logger, messages = process_logger(trt)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, strongly_typed=request.strongly_typed))
    parser = trt.OnnxParser(network, logger)
    _stage("reading the graph")
    if not parser.parse_from_file(request.onnx):
        raise _unreadable(request, version, parser)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_flags(trt, config, request, version)
    _set_limits(trt, config, request)
    _set_profile(builder, network, config, request)
    dla_layer_ratio = None if request.dla_core is None else _set_dla(trt, network, config, request)
    hit = _use_timing_cache(config, request)
    _stage("trying kernels")
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    build_s = time.perf_counter() - start
    if plan is None:
        raise TlcError(
            f"TensorRT {version} cannot build {request.onnx}: {_errors(messages)}",
            hint="The words above are TensorRT's own: they name the layer. tlc check tells what the target refuses.",
        )
    write_bytes(Path(request.plan), bytes(plan))
    if request.timing_cache is not None:
        _keep_timing_cache(config, Path(request.timing_cache))
    warnings = _said(messages, "warning: ")
    _stage("loading the engine")
    runtime, engine = load_engine(
        bytes(plan), request.plan, allow_host_code=request.version_compatible, dla_core=request.dla_core
    )
    io = engine_io(trt, engine, None)
    built = Built(
        tensorrt=str(trt.__version__),
        inputs=io.inputs,
        outputs=io.outputs,
        profile={tensor.name: io.profile(tensor.name) for tensor in io.inputs},
        device_memory_bytes=_scratch_bytes(engine),
        timing_cache_hit=hit,
        dla_layer_ratio=dla_layer_ratio,
        build_s=build_s,
        warnings=warnings,
    )
    del io, engine, runtime  # in this order
    return built


def refit(request: RefitRequest) -> Refitted:
    """Put the weights of an ONNX file into a plan. Raises TlcError with TensorRT's words when it cannot.

    From 10.0 on: NVIDIA/TensorRT, samples/python/sample_weight_stripping. INCLUDE_REFIT came after 10.13; before,
    whether the plan stays refittable is TensorRT's choice, so the plan that was written is asked.
    """
    host = engine_host()
    require_gpu(host)
    version = require_tensorrt(host)
    import tensorrt as trt

    make_reader = getattr(trt, "OnnxParserRefitter", None)
    if make_reader is None:
        raise TlcError(
            f"TensorRT {version} has no OnnxParserRefitter: weights can be put into plans from 10.0 on",
            hint="Build a new plan: leave --into out.",
        )
    logger, messages = process_logger(trt)
    trt.init_libnvinfer_plugins(logger, "")
    _stage("loading the plan")
    load: dict[str, Any] = {"allow_host_code": request.version_compatible, "dla_core": request.dla_core}
    old_runtime, engine = load_engine(Path(request.stripped).read_bytes(), request.stripped, **load)
    refitter = trt.Refitter(engine, logger)
    reader = make_reader(refitter, logger)
    _stage("reading the weights")
    if not reader.refit_from_file(request.onnx):
        raise _unreadable(request, version, reader)
    if missing := list(refitter.get_missing_weights()):
        raise TlcError(
            f"{request.onnx} lacks weights of {request.stripped}, {len(missing)} in all: {', '.join(missing[:_SHOWN])}",
            hint="Give an ONNX file of the same network, or build a new plan from this one.",
        )
    _stage("putting the weights in")
    settings = engine.create_serialization_config()
    # Set where the plan came without weights: it would be written without them again.
    settings.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if request.refittable and hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        settings.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    plan = engine.serialize_with_config(settings) if refitter.refit_cuda_engine() else None
    if plan is None:
        raise TlcError(
            f"TensorRT {version} cannot put the weights of {request.onnx} into {request.stripped}: {_errors(messages)}",
            hint="The words above are TensorRT's own. Build a new plan: leave --into out.",
        )
    write_bytes(Path(request.plan), bytes(plan))
    warnings = _said(messages, "warning: ")
    del reader, refitter, settings, engine, old_runtime  # in this order
    _stage("loading the engine")
    runtime, engine = load_engine(bytes(plan), request.plan, **load)
    refitted = Refitted(
        refittable=request.refittable and bool(engine.refittable),
        device_memory_bytes=_scratch_bytes(engine),
        warnings=warnings,
    )
    del engine, runtime  # in this order
    return refitted


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one request; an error that a user can act on is an answer too."""
    actions: dict[str, Callable[[str], BaseModel]] = {
        "build": lambda text: build(BuildRequest.model_validate_json(text)),
        "refit": lambda text: refit(RefitRequest.model_validate_json(text)),
        "evaluate": lambda text: evaluate(EvaluateRequest.model_validate_json(text)),
    }
    parser = argparse.ArgumentParser(prog="python -m tlc.export.engine_worker")
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("request", type=Path)
    parser.add_argument("answer", type=Path)
    options = parser.parse_args(arguments)
    text = options.request.read_text(encoding="utf-8")
    try:
        answer = WorkerAnswer(result=actions[options.action](text).model_dump(mode="json"))
    except TlcError as error:
        answer = WorkerAnswer(error=error.message, hint=error.hint)
    except MemoryError as error:
        answer = WorkerAnswer(error=f"out of memory: {error}", hint="Close what else uses memory, or add swap.")
    options.answer.write_text(answer.model_dump_json(), encoding="utf-8")
    return 0


def _stage(doing: str) -> None:
    """Leave word of what comes next, for the case that it ends the process."""
    print(f"stage: {doing}", flush=True)  # noqa: T201 - the parent reads it


def _network_flags(trt: Any, *, strongly_typed: bool) -> int:
    """Return the bits of create_network: explicit batch where the flag still exists, strong typing where it is asked.

    From 11 on every network is strongly typed, whether the flag is set or not.
    """
    names = ["EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if strongly_typed else [])]
    members = [getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in names]
    return sum(1 << int(member) for member in members if member is not None)


def _set_flags(trt: Any, config: Any, request: BuildRequest, version: str) -> None:
    wanted = [] if request.strongly_typed else list(_FLAGS[request.precision])
    if request.version_compatible:
        wanted.append("VERSION_COMPATIBLE")
    if request.strip:
        # Weights are put back from the same ONNX file; with refit, from any.
        wanted += ["STRIP_PLAN", *([] if request.refit else ["REFIT_IDENTICAL"])]
    if request.refit:
        wanted.append("REFIT")
    for name in wanted:
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise _lacking(version, f"BuilderFlag.{name}")
        config.set_flag(flag)
    if request.hardware_compatible:
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        if levels is None or not hasattr(config, "hardware_compatibility_level"):
            raise _lacking(version, "hardware compatibility")
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    if request.builder_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise _lacking(version, "builder levels")
        config.builder_optimization_level = request.builder_level


def _set_limits(trt: Any, config: Any, request: BuildRequest) -> None:
    pools = getattr(trt, "MemoryPoolType", None)  # from 8.4 on; before, there is the workspace alone
    for name, size_bytes in request.pools_bytes.items():
        pool = getattr(pools, name, None)
        if pool is not None and hasattr(config, "set_memory_pool_limit"):
            config.set_memory_pool_limit(pool, size_bytes)
        elif name == "WORKSPACE" and hasattr(config, "max_workspace_size"):
            config.max_workspace_size = size_bytes
    if request.aux_streams is not None and hasattr(config, "max_aux_streams"):
        config.max_aux_streams = request.aux_streams


def _set_profile(builder: Any, network: Any, config: Any, request: BuildRequest) -> None:
    """Add an optimisation profile when an input is dynamic."""
    profile = builder.create_optimization_profile()
    is_dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise TlcError(
                f"input {tensor.name} of {request.onnx} holds a shape: such inputs are not supported",
                hint="Export with fixed shapes, or with the batch alone left open.",
            )
        if min(tuple(tensor.shape), default=1) < 0:
            limits = request.shapes[tensor.name]
            profile.set_shape(tensor.name, tuple(limits.min), tuple(limits.opt), tuple(limits.max))
            is_dynamic = True
    if is_dynamic and config.add_optimization_profile(profile) < 0:
        raise TlcError(
            f"TensorRT refuses the shapes { ({name: limits.model_dump() for name, limits in request.shapes.items()}) }",
            hint="Each dimension needs min <= opt <= max, and what the graph fixes must be kept.",
        )


def _set_dla(trt: Any, network: Any, config: Any, request: BuildRequest) -> float:
    """Send layers to the DLA; return the share of those that it can take."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = request.dla_core
    if request.gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return sum(bool(config.can_run_on_DLA(layer)) for layer in layers) / max(1, len(layers))


def _use_timing_cache(config: Any, request: BuildRequest) -> bool | None:
    """Give the builder the kept timings; return whether there were any that it takes."""
    if request.timing_cache is None:
        return None
    path = Path(request.timing_cache)
    kept = path.read_bytes() if path.is_file() else b""
    # The second argument: timings of another device are not accepted.
    if config.set_timing_cache(config.create_timing_cache(kept), False):
        return bool(kept)
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return False


def _keep_timing_cache(config: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = config.get_timing_cache()
    if cache is not None:
        write_bytes(path, bytes(cache.serialize()))


def _scratch_bytes(engine: Any) -> int | None:
    for name in ("device_memory_size_v2", "device_memory_size"):
        if hasattr(engine, name):
            return int(getattr(engine, name))
    return None


def _unreadable(request: BuildRequest | RefitRequest, version: str, parser: Any) -> TlcError:
    """List what the parser says, with the node's name."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        number = int(error.node())
        known = request.node_names[number] if 0 <= number < len(request.node_names) else ""
        name = str(error.node_name()) if hasattr(error, "node_name") else known
        lines.append(f"node {name or known or number}: {error.desc()}")
    more = f" | and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return TlcError(
        f"TensorRT {version} cannot read {request.onnx}: {' | '.join(lines[:_SHOWN]) or 'it does not say why'}{more}",
        hint="tlc check tells what the target refuses, and --fix repairs what can be.",
    )


def _errors(messages: list[str]) -> str:
    return " | ".join(_said(messages, "error: ")[-_SHOWN:]) or "it does not say why"


def _lacking(version: str, what: str) -> TlcError:
    return TlcError(f"TensorRT {version} has no {what}", hint="Leave that option out for this release.")


def _said(messages: list[str], kind: str) -> list[str]:
    return list(dict.fromkeys(line.removeprefix(kind) for line in messages if line.startswith(kind)))[:20]


if __name__ == "__main__":
    sys.exit(main())
