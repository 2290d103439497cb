"""Measuring the original and the candidates in one interleaved session, on the target's runtime."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.cache import Pixels
from tlc.calibration.metrics import accuracy_change, agreement, predict, score
from tlc.compress.events import Emit, Progress
from tlc.export.graph import graph_stats
from tlc.runtime.artifact import sha256_file
from tlc.runtime.latency import Latency, disturbance, measure_interleaved, speedup
from tlc.runtime.memory import peak_memory_bytes
from tlc.runtime.report import Agreement, Interval, Measurement
from tlc.runtime.session import OrtSession

Precision = Literal["fp32", "fp16", "int8"]


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
    """How long to measure: rounds of blocks of runs, on `threads` threads."""

    rounds: int
    block: int
    threads: int
    seed: int


def logits_of(path: Path, pixels: Pixels) -> NDArray[np.float32]:
    """Return the file's logits (N, K) for all samples in order, by ONNX Runtime on all cores."""
    with OrtSession(path, threads=os.cpu_count() or 1) as session:
        name, output = session.inputs[0].name, session.outputs[0].name
        return predict(lambda images: session.run({name: images})[output], pixels)


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of arg-maxima that equal the labels."""
    return float(np.mean(logits.argmax(1) == labels))


def latencies(paths: dict[str, Path], sample: NDArray[np.float32], timing: Timing, emit: Emit) -> dict[str, Latency]:
    """Return each file's latency for `sample` (1, C, H, W), measured interleaved."""
    with ExitStack() as stack:
        sessions = {n: stack.enter_context(OrtSession(p, threads=timing.threads)) for n, p in paths.items()}
        runs = {n: _runner(session, sample) for n, session in sessions.items()}
        return measure_interleaved(
            runs,
            rounds=timing.rounds,
            block=timing.block,
            seed=timing.seed,
            on_progress=lambda done, total: emit(Progress("latency", done, total)),
        )


def _runner(session: OrtSession, sample: NDArray[np.float32]) -> Callable[[], object]:
    feeds = {session.inputs[0].name: sample}
    return lambda: session.run(feeds)


def is_faster(baseline: Path, candidate: Path, sample: NDArray[np.float32], timing: Timing, emit: Emit) -> Interval:
    """Return by what factor `candidate` is faster than `baseline`, with its 99 % bounds."""
    measured = latencies({"baseline": baseline, "candidate": candidate}, sample, timing, emit)
    return speedup(measured["baseline"], measured["candidate"], seed=timing.seed)


def measure(
    candidates: Sequence[Candidate],
    evaluation: Pixels,
    classes: tuple[str, ...],
    timing: Timing,
    *,
    relative_to: Path,
    emit: Emit,
) -> tuple[list[Measurement], list[str]]:
    """Return one measurement per candidate, and warnings about the session; the first candidate is the original.

    Latency of all in one interleaved session, batch 1; peak memory in a fresh process each; scores on every sample of
    `evaluation`, through the file itself.
    """
    labels = np.asarray(evaluation.labels)
    logits: dict[str, NDArray[np.float32]] = {}
    for position, candidate in enumerate(candidates):
        logits[candidate.name] = logits_of(candidate.path, evaluation)
        emit(Progress("accuracy", position + 1, len(candidates), {"top1": top1(logits[candidate.name], labels)}))
    paths = {candidate.name: candidate.path for candidate in candidates}
    measured = latencies(paths, evaluation.batch(np.arange(1)), timing, emit)
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
                peak_memory_bytes=peak_memory_bytes(candidate.path, threads=timing.threads),
                latency=measured[candidate.name].record(
                    speedup(measured[original], measured[candidate.name], seed=timing.seed)
                ),
                layers=None,
                accuracy=score(own, labels, classes),
                change=None if candidate.name == original else accuracy_change(logits[original], own, labels, classes),
                agreement=candidate.checked or agreement(logits[str(candidate.made_from)], own),
            )
        )
    disturbed = disturbance(measured)
    return rows, [disturbed] if disturbed else []
