"""Measuring the original and the candidates in one interleaved session, in the target's runtime where that is here."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tlc.compress.events import Emit, Progress
from tlc.compress.runner import Runner
from tlc.compress.work import Answers, AnyWork, Feeds
from tlc.export.graph import graph_stats
from tlc.runtime.artifact import sha256_file
from tlc.runtime.bench_report import NS_PER_MS, Launch
from tlc.runtime.errors import TlcError
from tlc.runtime.health import model_warnings
from tlc.runtime.launch import launch, peak_memory_bytes
from tlc.runtime.process import Failure
from tlc.runtime.report import Agreement, Interval, LatencyRecord, Measurement
from tlc.runtime.statistics import nearest_rank, ratio_interval
from tlc.runtime.worker import write_feeds

Precision = Literal["fp32", "fp16", "int8"]
_FEWEST_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to measure."""

    name: str
    path: Path
    work: AnyWork
    """What feeds it and judges its answers."""
    precision: Precision
    plain: Path
    """The float ONNX file of the same network, of ONNX's own operators alone: what it costs is counted there."""
    made_from: str | None
    """Name of the candidate that it was made from; None for the original."""
    checked: Agreement | None = None
    """Agreement with torch, found at export; None: outputs are compared with those of `made_from`."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure."""

    rounds: int
    """In all launches together."""
    launches: int
    """How often the processes are started anew."""
    seed: int


def latencies(
    files: Mapping[str, tuple[Path, Sequence[Feeds]]], runner: Runner, timing: Timing, emit: Emit
) -> dict[str, list[Launch]]:
    """Return each file's launches, measured in turns; a block's runs take turns through the file's inputs, batch 1.

    Raises TlcError for a file that cannot be run to the end.
    """
    rounds = -(-timing.rounds // timing.launches)
    found: dict[str, list[Launch]] = {name: [] for name in files}
    with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
        cases = []
        for number, (name, (path, feeds)) in enumerate(files.items()):
            arrays = Path(folder) / f"{number}.npz"
            write_feeds(arrays, feeds)
            cases.append(runner.case(name, path, feeds=arrays))
        for number in range(timing.launches):
            launched = launch(
                cases,
                rounds=rounds,
                seed=timing.seed + number,
                on_progress=_shown(emit, number * rounds, timing.launches * rounds),
            )
            for name, one in launched.items():
                if isinstance(one, Failure):
                    raise TlcError(f"{files[name][0]}: {one.problem}", hint="Run it by itself: tlc bench.")
                found[name].append(one)
    return found


def _shown(emit: Emit, before: int, all_rounds: int) -> Callable[[int, int], None]:
    return lambda done, _total: emit(Progress("latency", before + done, all_rounds))


def p50_ms(launches: Sequence[Launch]) -> float:
    """Return the median of all samples, by the nearest-rank rule."""
    return nearest_rank(_samples_ms(launches), 50)


def speedup(baseline: Sequence[Launch], candidate: Sequence[Launch], *, seed: int = 0) -> Interval:
    """Return how many times faster `candidate` is: see `tlc.runtime.statistics.ratio_interval`."""
    return ratio_interval(candidate, baseline, seed=seed)


def _samples_ms(launches: Sequence[Launch]) -> list[float]:
    return [sample / NS_PER_MS for one in launches for sample in one.samples_ns]


def _record(baseline: Sequence[Launch], launches: Sequence[Launch], *, seed: int) -> LatencyRecord:
    """Return the report's form."""
    samples_ms = _samples_ms(launches)
    mean_ms = sum(samples_ms) / len(samples_ms)
    return LatencyRecord(
        samples_ms=samples_ms,
        p50_ms=p50_ms(launches),
        p90_ms=nearest_rank(samples_ms, 90),
        p99_ms=nearest_rank(samples_ms, 99),
        mean_ms=mean_ms,
        min_ms=min(samples_ms),
        throughput_per_s=1000 / mean_ms,
        speedup=speedup(baseline, launches, seed=seed),
    )


def measure(
    candidates: Sequence[Candidate],
    runner: Runner,
    timing: Timing,
    *,
    relative_to: Path,
    emit: Emit,
) -> tuple[list[Measurement], list[str]]:
    """Return one measurement per candidate, and warnings about the session; the first candidate is the original.

    Latency of all in one interleaved session, batch 1; peak memory in a fresh process each; scores on every sample of
    the evaluation part, through the file itself. Where the target's runtime is not here, no latency and no memory:
    those of another runtime say nothing about it.
    """
    answers: dict[str, Answers] = {}
    for position, candidate in enumerate(candidates):
        work, evaluation = candidate.work, candidate.work.data.evaluation
        answers[candidate.name] = work.judged(candidate.path, runner, evaluation)
        accuracy = work.accuracy(answers[candidate.name], evaluation)
        emit(Progress("accuracy", position + 1, len(candidates), {"accuracy": accuracy}))
    measured, others = ({}, {}) if runner.missing else _timed(candidates, runner, timing, emit)
    original = candidates[0].name
    rows = []
    for candidate in candidates:
        work, evaluation = candidate.work, candidate.work.data.evaluation
        stats = graph_stats(candidate.plain, work.typical_sizes)
        own = answers[candidate.name]
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
                else peak_memory_bytes(runner.case(candidate.name, candidate.path, sizes=work.largest_sizes)),
                p50_ms_by_input={name: p50_ms(found[candidate.name]) for name, found in others.items()},
                latency=_record(measured[original], measured[candidate.name], seed=timing.seed) if measured else None,
                layers=runner.layers(candidate.path),
                accuracy=work.score(own, evaluation),
                change=None if candidate.name == original else work.change(answers[original], own, evaluation),
                agreement=candidate.checked or work.agreement(answers[str(candidate.made_from)], own, evaluation),
            )
        )
    return rows, unsteady(measured)


def unsteady(measured: Mapping[str, Sequence[Launch]]) -> list[str]:
    """Return what to know of times that cannot be trusted: the first in full, of all others their names."""
    warnings = {
        name: warning.message
        for name, launches in measured.items()
        for warning in model_warnings(name, launches)
        if warning.code == "unstable"
    }
    if len(warnings) < 2:
        return list(warnings.values())
    first, *others = warnings
    return [warnings[first], f"Nor were the times of these steady: {', '.join(others)}."]


def _timed(
    candidates: Sequence[Candidate], runner: Runner, timing: Timing, emit: Emit
) -> tuple[dict[str, list[Launch]], dict[str, dict[str, list[Launch]]]]:
    """Return the latencies with ordinary inputs, and by kind those with others."""
    usual = {c.name: (c.path, c.work.timing_feeds()) for c in candidates}
    measured = latencies(usual, runner, timing, emit)
    fewer = replace(timing, rounds=max(_FEWEST_ROUNDS, timing.rounds // 4), launches=1)
    others = {c.name: c.work.other_feeds() for c in candidates}
    return measured, {
        kind: latencies({c.name: (c.path, others[c.name][kind]) for c in candidates}, runner, fewer, emit)
        for kind in others[candidates[0].name]
    }
