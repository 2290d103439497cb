"""Which of several engines is kept: the fastest that keeps the accuracy."""

from dataclasses import dataclass
from pathlib import Path

from tlc.export.engine_options import BuildOptions
from tlc.export.engine_process import ChildError, run_child, run_worker
from tlc.export.engine_request import Contender, Evaluated, EvaluateRequest, Scores
from tlc.export.onnx_facts import OnnxFacts
from tlc.export.trtexec import measure_command, read_measured
from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import EngineHost
from tlc.runtime.plan import Candidate, EngineRecord, version_key

OF_A_RUN = (
    "Not run: ", "Accuracy was not checked", "Outputs and accuracy were not checked", "Top-1 is ", "No CUDA graph",
    "Layers are not known", "trtexec could not run",
)  # fmt: skip
"""How warnings begin that are about running an engine, not about building it."""


@dataclass(frozen=True, slots=True)
class Builder:
    """The machine, and with what it builds."""

    host: EngineHost
    """Its `tensorrt` is the version of what builds."""
    trtexec: Path | None
    """None: TensorRT's Python module."""


def choose(
    built: dict[str, tuple[Path, EngineRecord]],
    failed: list[Candidate],
    files: list[OnnxFacts],
    options: BuildOptions,
    here: Builder,
) -> tuple[Path, EngineRecord]:
    """Measure all, and return the fastest that keeps the accuracy, with what was measured in its record."""
    if options.strip:
        name = next(iter(built))
        plan, record = built[name]
        note = "Not run: the weights are stripped. Put them back on the device before its first run, with --into."
        return plan, record.model_copy(update={"warnings": [*record.warnings, note]})
    if here.trtexec is not None:
        return _choose_by_trtexec(built, failed, options, here)
    float_file = next((facts for facts in files if not facts.is_quantized), files[0])
    paths = {facts.path.name: facts.path for facts in files}
    evaluated = run_worker(
        "evaluate",
        EvaluateRequest(
            contenders=[
                Contender(name=name, plan=str(plan), onnx=str(paths[record.onnx].absolute()))
                for name, (plan, record) in built.items()
            ],
            reference=str(float_file.path.absolute()),
            samples=options.samples,
            rounds=options.rounds,
            data=str(options.data.absolute()) if options.data else None,
            preprocess=files[0].preprocess,
            classes=files[0].classes,
        ),
        Evaluated,
        limits="running the engines",
        timeout_s=options.timeout_s,
    )
    accurate = [name for name in built if not _loss(evaluated, name) > options.max_drop_points]
    if not accurate and len(built) > 1:
        losses = "; ".join(f"{name}: {_loss(evaluated, name):.2f} points" for name in built)
        raise TlcError(
            f"no engine keeps top-1 within {options.max_drop_points:g} points of {float_file.path}: {losses}",
            hint="Allow more with --max-drop, add the float file with --also, or quantise fewer layers.",
        )
    best = min(accurate or built, key=lambda name: evaluated.scores[name].latency_ms)
    rows = [_row(name, record, evaluated, chosen=name == best, limit=options.max_drop_points)
            for name, (_, record) in built.items()]  # fmt: skip
    plan, record = built[best]
    scores = evaluated.scores[best]
    warnings = [*record.warnings, *scores.notes]
    if evaluated.reference_top1 is None:
        warnings.append("Accuracy was not checked: give images with --data. Outputs were compared on seeded noise.")
    elif not accurate:
        warnings.append(f"Top-1 is {_loss(evaluated, best):.2f} points below ONNX Runtime's {float_file.path.name}.")
    return plan, record.model_copy(
        update={
            "gpu_ms": scores.gpu_ms,
            "layers": scores.layers,
            "comparison": scores.comparison,
            "candidates": [*rows, *failed],
            "warnings": warnings,
        }
    )


def _choose_by_trtexec(
    built: dict[str, tuple[Path, EngineRecord]], failed: list[Candidate], options: BuildOptions, here: Builder
) -> tuple[Path, EngineRecord]:
    """As `choose`, with trtexec's own times, one engine after the other, and nothing on outputs."""
    assert here.trtexec is not None
    release = version_key(str(here.host.tensorrt))
    found: dict[str, tuple[Path, EngineRecord]] = {}
    for name, (plan, record) in built.items():
        out = plan.with_suffix("")
        out.mkdir()
        command = measure_command(here.trtexec, release, plan, out, record.profile)
        problems: list[str] = []
        try:
            run_child(command, what="trtexec", limits="running the engine", timeout_s=options.timeout_s)
        except ChildError as error:
            problems.append(f"trtexec could not run the engine: {error.message}")
        gpu_ms, layers, missing = read_measured(out)
        notes = ["Outputs and accuracy were not checked: that needs TensorRT's Python module.", *problems, *missing]
        changes = {"gpu_ms": gpu_ms, "layers": layers, "warnings": [*record.warnings, *notes]}
        found[name] = (plan, record.model_copy(update=changes))
    best = min(found, key=lambda name: found[name][1].gpu_ms or float("inf"))
    chosen = "chosen: the fastest" if found[best][1].gpu_ms is not None else "chosen: the first, none has a time"
    rows = [
        Candidate(onnx=record.onnx, precision=record.precision, plan_bytes=record.plan_bytes, latency_ms=None,
                  gpu_ms=record.gpu_ms, top1=None,
                  verdict=chosen if name == best else "no time" if record.gpu_ms is None else "slower")
        for name, (_, record) in found.items()
    ]  # fmt: skip
    plan, record = found[best]
    return plan, record.model_copy(update={"candidates": [*rows, *failed]})


def _loss(evaluated: Evaluated, name: str) -> float:
    """Return the loss of top-1 in points; 0 where it was not measured."""
    top1, reference = evaluated.scores[name].top1, evaluated.reference_top1
    return 0.0 if top1 is None or reference is None else 100 * (reference - top1)


def _row(name: str, record: EngineRecord, evaluated: Evaluated, *, chosen: bool, limit: float) -> Candidate:
    scores: Scores = evaluated.scores[name]
    loses = _loss(evaluated, name) > limit
    verdict = "chosen: the fastest" + ("" if scores.top1 is None else " that keeps the accuracy")
    if not chosen:
        verdict = f"loses {_loss(evaluated, name):.2f} points" if loses else "slower"
    return Candidate(
        onnx=record.onnx,
        precision=record.precision,
        plan_bytes=record.plan_bytes,
        latency_ms=scores.latency_ms,
        gpu_ms=scores.gpu_ms,
        top1=scores.top1,
        verdict=verdict,
    )
