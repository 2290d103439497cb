"""TensorRT engines: one file for one kind of GPU and one TensorRT release, with a sidecar that says so.

A builder runs in a child (`engine_process`), by TensorRT's Python module or by `trtexec`. With `auto`, each precision
that the file and the target allow is built, all are measured in turns, and the fastest that keeps the accuracy stays.
No torch and no onnx here: this runs on the device.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tlc.export.engine_choice import Builder, choose
from tlc.export.engine_limits import larger, pool_limits, smaller, timing_cache_path
from tlc.export.engine_options import (
    BuildOptions,
    candidates,
    check_host,
    check_options,
    profile_shapes,
    require_target,
)
from tlc.export.engine_process import ChildError, run_worker
from tlc.export.engine_request import BuildRequest, Built
from tlc.export.onnx_facts import OnnxFacts, read_onnx_facts
from tlc.export.trtexec import build_with_trtexec, find_trtexec, trtexec_version
from tlc.runtime.artifact import require_free_space, sha256_file
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.gpu import EngineHost, engine_host, require_gpu, require_tensorrt
from tlc.runtime.plan import (
    Candidate,
    EnginePrecision,
    EngineRecord,
    ProfileShapes,
    plan_version,
    version_key,
    write_plan,
)
from tlc.runtime.target import Target

__all__ = ["BuildOptions", "build_engine"]

_TRIES = 4
Tell = Callable[[str], None]


def build_engine(
    onnx: Path, out: Path, target: Target, options: BuildOptions, tell: Tell = lambda _: None
) -> EngineRecord:
    """Build `onnx` for `target`, write it to `out` with its sidecar `out`.json, and return the sidecar.

    `tell` gets a line before each long step.

    Raises:
        UsageError: options, file and target contradict each other; nothing was started.
        TlcError: no TensorRT, no GPU, or none of the right release; the builder failed; or, with data, no engine keeps
            the accuracy.

    """
    files = [read_onnx_facts(path) for path in (onnx, *options.alternatives)]
    check_options(files, target, options)
    if options.data is not None and (files[0].preprocess is None or not files[0].classes):
        raise UsageError(
            f"--data, and {onnx} does not record its preprocessing and classes",
            hint="Build a file that tlc wrote, or leave --data out.",
        )
    shapes = {facts.path: profile_shapes(facts, options) for facts in files}
    require_free_space(out, 2 * sum(facts.path.stat().st_size for facts in files))
    here = _builder(options)
    warnings = check_host(target, here.host)
    with tempfile.TemporaryDirectory(prefix="tlc-engine-") as work:
        built: dict[str, tuple[Path, EngineRecord]] = {}
        failed: list[Candidate] = []
        wanted = candidates(files, target, options)
        for facts, precision in wanted:
            name = f"{facts.path.name} {precision}"
            plan = Path(work, f"{len(built) + len(failed)}.plan")
            tell(f"building {name}")
            try:
                record = _build(facts, plan, precision, target, options, shapes[facts.path], here, warnings)
            except ChildError as error:
                if len(wanted) == 1:
                    raise
                failed.append(_failed(facts, precision, error))
                continue
            write_plan(plan, plan.read_bytes(), record)
            built[name] = (plan, record)
        if not built:
            raise TlcError(
                "no engine could be built: " + "; ".join(f"{c.onnx} {c.precision}: {c.verdict}" for c in failed),
                hint="Build one of them alone, with --precision, for its own next step.",
            )
        tell(f"measuring {len(built)} engine{'s' if len(built) > 1 else ''}")
        plan, record = choose(built, failed, files, options, here)
        write_plan(out, plan.read_bytes(), record)
    return record


def _builder(options: BuildOptions) -> Builder:
    """Return what builds here: the Python module, else trtexec. Raises TlcError for the first thing missing."""
    host = engine_host()
    if options.trtexec is None and host.tensorrt is not None and host.can_build:
        require_gpu(host)
        return Builder(host, None)
    program = find_trtexec(options.trtexec)
    if program is None:
        require_tensorrt(host)
        raise TlcError(
            f"TensorRT {host.tensorrt} is here without its builder: that is the lean runtime",
            hint="Install the full package: pip install tensorrt, in the release that the target names.",
        )
    require_gpu(host)
    found = EngineHost(trtexec_version(program), "", True, host.gpu, "", host.cuda, host.power_mode)
    return Builder(found, program)


def _build(
    facts: OnnxFacts,
    plan: Path,
    precision: EnginePrecision,
    target: Target,
    options: BuildOptions,
    shapes: dict[str, ProfileShapes],
    here: Builder,
    warnings: list[str],
) -> EngineRecord:
    """Build one engine, with other limits where memory ran out or no kernel fitted."""
    trt, host = require_target(target), here.host
    limits = pool_limits(trt.workspace_bytes, host, workspace_bytes=options.workspace_bytes)
    level = options.builder_level
    attempts: list[str] = []
    cache = timing_cache_path(host) if options.timing_cache == "default" else options.timing_cache
    while True:
        request = BuildRequest(
            onnx=str(facts.path.absolute()),
            plan=str(plan),
            precision=precision,
            strongly_typed=trt.strongly_typed,
            shapes={spec.name: shapes[spec.name] for spec in facts.inputs if _is_open(spec.shape)},
            pools_bytes=limits,
            builder_level=level,
            aux_streams=0 if attempts else None,
            timing_cache=None if cache == "off" else str(cache),
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            strip=options.strip,
            refit=options.refit,
            dla_core=options.dla_core,
            gpu_fallback=options.gpu_fallback,
            node_names=facts.node_names,
        )
        try:
            built = _built(request, here, options.timeout_s)
            break
        except ChildError as error:
            free = host.gpu.free_bytes if host.gpu else None
            other = {"memory": smaller(limits), "no_kernel": larger(limits, free), "other": None}[error.cause]
            if other is None or options.workspace_bytes is not None or len(attempts) + 1 >= _TRIES:
                tried = f" (tried before: {'; '.join(attempts)})" if attempts else ""
                raise ChildError(error.message + tried, hint=error.hint, cause=error.cause) from error
            attempts.append(f"{_words(limits, level)}: {error.message}")
            limits = other
            if error.cause == "memory" and level is None and version_key(str(host.tensorrt)) >= (8, 6):
                level = 2
    gpu = require_gpu(host)
    return EngineRecord(
        target=target.name,
        plan_sha256=sha256_file(plan),
        plan_bytes=plan.stat().st_size,
        onnx=facts.path.name,
        onnx_sha256=facts.sha256,
        builder="python" if here.trtexec is None else "trtexec",
        tensorrt=plan_version(plan) or built.tensorrt,
        sm=gpu.sm,
        gpu=gpu.name,
        power_mode=host.power_mode,
        precision=precision,
        strongly_typed=trt.strongly_typed,
        inputs=built.inputs,
        outputs=built.outputs,
        profile=built.profile,
        builder_level=level,
        pools_bytes=limits,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        stripped=options.strip,
        refittable=options.refit or options.strip,
        dla_core=options.dla_core,
        dla_layer_ratio=built.dla_layer_ratio,
        timing_cache_hit=built.timing_cache_hit,
        build_s=built.build_s,
        attempts=attempts,
        device_memory_bytes=built.device_memory_bytes,
        gpu_ms=None,
        layers=None,
        comparison=[],
        candidates=[],
        warnings=[*warnings, *built.warnings],
        preprocess=facts.preprocess,
        classes=list(facts.classes),
    )


def _built(request: BuildRequest, here: Builder, timeout_s: float) -> Built:
    limits = _words(request.pools_bytes, request.builder_level)
    if here.trtexec is None:
        return run_worker("build", request, Built, limits=limits, timeout_s=timeout_s)
    version = str(here.host.tensorrt)
    return build_with_trtexec(here.trtexec, version, request, limits=limits, timeout_s=timeout_s)


def _failed(facts: OnnxFacts, precision: EnginePrecision, error: TlcError) -> Candidate:
    return Candidate(
        onnx=facts.path.name,
        precision=precision,
        plan_bytes=None,
        latency_ms=None,
        gpu_ms=None,
        top1=None,
        verdict=f"not built: {error.message}",
    )


def _is_open(shape: tuple[int | str, ...]) -> bool:
    return any(isinstance(dim, str) for dim in shape)


def _words(limits: dict[str, int], level: int | None) -> str:
    pools = ", ".join(f"{name} {size >> 20} MiB" for name, size in limits.items())
    return pools + ("" if level is None else f", level {level}")
