"""Measuring the original and the candidates in one interleaved session, in the target's runtime where that is here."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tlc.calibration.cache import Pixels
from tlc.calibration.metrics import accuracy_change, agreement, predict, score
from tlc.compress.events import Emit, Progress
from tlc.export.engine import BuildOptions, build_engine
from tlc.export.graph import graph_stats
from tlc.runtime.artifact import sha256_file
from tlc.runtime.capability import missing, this_machine
from tlc.runtime.latency import Latency, disturbance, measure_interleaved, speedup
from tlc.runtime.memory import peak_memory_bytes
from tlc.runtime.openvino import OpenVinoSession
from tlc.runtime.plan import read_record
from tlc.runtime.report import Agreement, Interval, LayerPrecisions, Measurement
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.sessions import open_session
from tlc.runtime.target import Target

Precision = Literal["fp32", "fp16", "int8"]
_BATCH_SIZE = 64
"""Samples at once while accuracy is measured, where the file leaves it open."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to measure."""

    name: str
    path: Path
    precision: Precision
    made_from: str | None
    """Name of the candidate that it was made from; None for the original."""
    checked: Agreement | None = None
    """Agreement with torch, found at export; None: outputs are compared with those of `made_from`."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure: rounds of blocks of runs."""

    rounds: int
    block: int
    seed: int


@dataclass(frozen=True, slots=True)
class Runner:
    """Opens files in the target's runtime where that is here, else in ONNX Runtime on this machine's CPU."""

    target: Target
    engines: Path
    """Folder for what TensorRT builds, named by the content of the ONNX file."""
    missing: str
    """Why the target's runtime is not here, and what to do; empty where it is."""

    @classmethod
    def here(cls, target: Target, engines: Path) -> "Runner":
        """Return the runner of this machine."""
        if (reason := missing(target)) is None:
            return cls(target, engines, "")
        if target.runtime == "tensorrt":
            step = f"Build and time the files where it runs: tlc build model.onnx --target {target.name} -o model.plan."
        else:
            step = "Install it, and run again with --resume."
        return cls(target, engines, f"{reason[0].upper()}{reason[1:]}. {step}")

    @property
    def runtime(self) -> str:
        """What files run in, with its version: `onnxruntime 1.31.1`."""
        name = "onnxruntime" if self.missing else self.target.runtime
        return f"{name} {this_machine().packages[name].version if name != 'onnxruntime' else onnxruntime.__version__}"

    def deployed(self, path: Path, precision: Precision) -> Path:
        """Return what the runtime loads: the file itself, or the engine that TensorRT builds from it in `precision`."""
        if self.missing or self.target.runtime != "tensorrt":
            return path
        plan = self.engines / f"{sha256_file(path)[:16]}-{precision}.plan"
        if not plan.exists():
            self.engines.mkdir(parents=True, exist_ok=True)
            build_engine(path, plan, self.target, BuildOptions(precision=self._built_in(precision)))
        return plan

    def _built_in(self, precision: Precision) -> Literal["auto", "fp32", "fp16", "int8", "best"]:
        """Return what the builder may use: where precisions stand in the graph it takes them from there."""
        assert self.target.tensorrt is not None
        if self.target.tensorrt.strongly_typed:
            return "auto"
        return "best" if precision == "int8" and "fp16" in self.target.precisions else precision

    def open(self, path: Path, precision: Precision, *, threads: int) -> Session:
        """Return a session of the file that runs in `precision`."""
        if self.missing:
            return OrtSession(path, threads=threads)
        return open_session(self.deployed(path, precision), self.target, threads=threads)

    def layers(self, path: Path, precision: Precision) -> LayerPrecisions | None:
        """Return what the runtime says its layers run in; None where it does not tell."""
        if self.missing or self.target.runtime == "onnxruntime":
            return None
        if self.target.runtime == "tensorrt":
            summary = read_record(self.deployed(path, precision)).layers
            if summary is None:
                return None
            return LayerPrecisions(
                layers=summary.layers_by_precision,
                time_ratios=summary.time_ratio_by_precision or {},
                reformats=summary.reformats,
            )
        with OpenVinoSession(path, threads=self.target.threads) as session:
            return LayerPrecisions(layers=session.product_precisions, time_ratios={}, reformats=None)

    def logits(self, path: Path, precision: Precision, pixels: Pixels) -> NDArray[np.float32]:
        """Return the file's logits (N, K) for all samples in order, on all cores."""
        with self.open(path, precision, threads=os.cpu_count() or 1) as session:
            return logits_of(session, pixels)


def logits_of(session: Session, pixels: Pixels) -> NDArray[np.float32]:
    """Return the logits (N, K) for all samples in order."""
    (spec,), output = session.inputs, session.outputs[0].name
    batch_size = spec.shape[0] if isinstance(spec.shape[0], int) else _BATCH_SIZE
    return predict(lambda images: session.run({spec.name: images})[output], pixels, batch_size)


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of arg-maxima that equal the labels."""
    return float(np.mean(logits.argmax(1) == labels))


def latencies(
    files: dict[str, tuple[Path, Precision]], sample: NDArray[np.float32], runner: Runner, timing: Timing, emit: Emit
) -> dict[str, Latency]:
    """Return each file's latency for `sample` (1, C, H, W), measured interleaved."""
    threads = runner.target.threads
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(runner.open(path, precision, threads=threads))
            for name, (path, precision) in files.items()
        }
        runs = {n: _runner(session, sample) for n, session in sessions.items()}
        return measure_interleaved(
            runs,
            rounds=timing.rounds,
            block=timing.block,
            seed=timing.seed,
            on_progress=lambda done, total: emit(Progress("latency", done, total)),
        )


def _runner(session: Session, sample: NDArray[np.float32]) -> Callable[[], object]:
    feeds = {session.inputs[0].name: sample}
    return lambda: session.run(feeds)


def is_faster(
    baseline: Path, candidate: Path, sample: NDArray[np.float32], runner: Runner, timing: Timing, emit: Emit
) -> Interval:
    """Return by what factor the float file `candidate` is faster than `baseline`, with its 99 % bounds."""
    files: dict[str, tuple[Path, Precision]] = {"baseline": (baseline, "fp32"), "candidate": (candidate, "fp32")}
    measured = latencies(files, sample, runner, timing, emit)
    return speedup(measured["baseline"], measured["candidate"], seed=timing.seed)


def measure(
    candidates: Sequence[Candidate],
    evaluation: Pixels,
    classes: tuple[str, ...],
    runner: Runner,
    timing: Timing,
    *,
    relative_to: Path,
    emit: Emit,
) -> tuple[list[Measurement], list[str]]:
    """Return one measurement per candidate, and warnings about the session; the first candidate is the original.

    Latency of all in one interleaved session, batch 1; peak memory in a fresh process each; scores on every sample of
    `evaluation`, through the file itself. Where the target's runtime is not here, no latency and no memory: those of
    another runtime say nothing about it.
    """
    labels = np.asarray(evaluation.labels)
    logits: dict[str, NDArray[np.float32]] = {}
    for position, candidate in enumerate(candidates):
        logits[candidate.name] = runner.logits(candidate.path, candidate.precision, evaluation)
        emit(Progress("accuracy", position + 1, len(candidates), {"top1": top1(logits[candidate.name], labels)}))
    files = {candidate.name: (candidate.path, candidate.precision) for candidate in candidates}
    measured = {} if runner.missing else latencies(files, evaluation.batch(np.arange(1)), runner, timing, emit)
    original = candidates[0].name
    rows = []
    for candidate in candidates:
        stats = graph_stats(candidate.path)
        own = logits[candidate.name]
        rows.append(
            Measurement(
                name=candidate.name,
                file=str(candidate.path.relative_to(relative_to)),
                sha256=sha256_file(candidate.path),
                made_from=candidate.made_from,
                precision=candidate.precision,
                size_bytes=candidate.path.stat().st_size,
                parameters=stats.parameters,
                macs=stats.macs,
                peak_memory_bytes=None
                if runner.missing
                else peak_memory_bytes(
                    runner.deployed(candidate.path, candidate.precision), runner.target, threads=runner.target.threads
                ),
                latency=measured[candidate.name].record(
                    speedup(measured[original], measured[candidate.name], seed=timing.seed)
                )
                if measured
                else None,
                layers=runner.layers(candidate.path, candidate.precision),
                accuracy=score(own, labels, classes),
                change=None if candidate.name == original else accuracy_change(logits[original], own, labels, classes),
                agreement=candidate.checked or agreement(logits[str(candidate.made_from)], own),
            )
        )
    disturbed = disturbance(measured) if measured else None
    return rows, [disturbed] if disturbed else []
