"""TensorRT engines: one file for one kind of GPU and one TensorRT release, with a sidecar that says so.

A builder runs in a child (`engine_process`), by TensorRT's Python module or by `trtexec`. With `auto`, each precision
that the file and the target allow is built, all are measured in turns, and the fastest that keeps the accuracy stays.
No torch and no onnx here: this runs on the device.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tlc.export.engine_choice import OF_A_RUN, Builder, choose
from tlc.export.engine_limits import larger, pool_limits, smaller, timing_cache_path
from tlc.export.engine_options import (
    BuildOptions,
    candidates,
    check_host,
    check_options,
    check_refit,
    profile_shapes,
    require_target,
)
from tlc.export.engine_process import ChildError, run_worker
from tlc.export.engine_request import BuildRequest, Built, RefitRequest, Refitted
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
    check_plan,
    plan_version,
    read_record,
    version_key,
    write_plan,
)
from tlc.runtime.target import Target

__all__ = ["BuildOptions", "build_engine", "refit_engine"]

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
    _check_data(files[0], options)
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


def refit_engine(
    onnx: Path, stripped: Path, out: Path, target: Target, options: BuildOptions, tell: Tell = lambda _: None
) -> EngineRecord:
    """Put the weights of `onnx` into the plan `stripped`, measure it, write it to `out`, and return its sidecar.

    The plan is one built with `strip`, which takes the weights of the same file alone, or with `refit`.

    Raises:
        UsageError: the plan takes no weights, or not these; an option is for building; nothing was started.
        TlcError: no TensorRT from 10.0 on, no GPU, or others than the plan's; the file has not all of its weights.

    """
    plan_version(stripped)
    record = read_record(stripped)
    facts = read_onnx_facts(onnx)
    check_refit(facts, stripped, record, target, options)
    _check_data(facts, options)
    require_free_space(out, 2 * (facts.path.stat().st_size + record.plan_bytes))
    host = engine_host()
    require_gpu(host)
    require_tensorrt(host)
    check_plan(stripped, record, host)
    warnings = check_host(target, host)
    with tempfile.TemporaryDirectory(prefix="tlc-engine-") as work:
        plan = Path(work, "0.plan")
        tell(f"putting the weights of {facts.path.name} into {stripped.name}")
        request = RefitRequest(
            onnx=str(facts.path.absolute()),
            stripped=str(stripped.absolute()),
            plan=str(plan),
            version_compatible=record.version_compatible,
            refittable=record.refittable,
            dla_core=record.dla_core,
            node_names=facts.node_names,
        )
        refitted = run_worker("refit", request, Refitted, limits="loading the plan", timeout_s=options.timeout_s)
        kept = [warning for warning in record.warnings if not warning.startswith(OF_A_RUN)]
        changes = {
            "plan_sha256": sha256_file(plan),
            "plan_bytes": plan.stat().st_size,
            "onnx": facts.path.name,
            "onnx_sha256": facts.sha256,
            "tensorrt": plan_version(plan) or record.tensorrt,
            "stripped": False,
            "refittable": refitted.refittable,
            "device_memory_bytes": refitted.device_memory_bytes,
            "warnings": list(dict.fromkeys([*warnings, *kept, *refitted.warnings])),
            "preprocess": facts.preprocess,
            "classes": list(facts.classes),
        }
        record = record.model_copy(update=changes)
        write_plan(plan, plan.read_bytes(), record)
        tell("measuring 1 engine")
        name = f"{facts.path.name} {record.precision}"
        plan, record = choose({name: (plan, record)}, [], [facts], options, Builder(host, None))
        write_plan(out, plan.read_bytes(), record)
    return record


def _check_data(facts: OnnxFacts, options: BuildOptions) -> None:
    if options.data is not None and (facts.preprocess is None or not facts.classes):
        raise UsageError(
            f"--data, and {facts.path} does not record its preprocessing and classes",
            hint="Build a file that tlc wrote, or leave --data out.",
        )
    if options.data is not None and facts.longest_text is not None:
        raise UsageError(
            f"--data, and {facts.path} takes texts: engines are scored on images only while they are built",
            hint="Leave --data out, and score the plan: tlc eval model.plan --data FILE.",
        )


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
        refittable=options.refit,
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
