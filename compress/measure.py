"""Measuring the original and the candidates in one interleaved session, in the target's runtime where that is here."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Literal

from tlc.compress.events import Emit, Progress
from tlc.compress.runner import Runner
from tlc.compress.work import Answers, AnyWork, Feeds
from tlc.export.graph import graph_stats
from tlc.runtime.artifact import sha256_file
from tlc.runtime.latency import Latency, disturbance, measure_interleaved, speedup
from tlc.runtime.memory import peak_memory_bytes
from tlc.runtime.report import Agreement, Measurement
from tlc.runtime.session import Session

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
    """How long to measure: rounds of blocks of runs."""

    rounds: int
    block: int
    seed: int


def latencies(
    files: Mapping[str, tuple[Path, Sequence[Feeds]]], runner: Runner, timing: Timing, emit: Emit
) -> dict[str, Latency]:
    """Return each file's latency, measured interleaved; its runs take turns through its inputs, batch 1 each."""
    threads = runner.target.threads
    with ExitStack() as stack:
        return measure_interleaved(
            {
                name: _runner(stack.enter_context(runner.open(path, threads=threads)), feeds)
                for name, (path, feeds) in files.items()
            },
            rounds=timing.rounds,
            block=timing.block,
            seed=timing.seed,
            on_progress=lambda done, total: emit(Progress("latency", done, total)),
        )


def _runner(session: Session, feeds: Sequence[Feeds]) -> Callable[[], object]:
    turns = cycle([{spec.name: feed[spec.name] for spec in session.inputs} for feed in feeds])
    return lambda: session.run(next(turns))


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
                else peak_memory_bytes(
                    runner.deployed(candidate.path),
                    runner.target,
                    threads=runner.target.threads,
                    sizes=work.largest_sizes,
                ),
                p50_ms_by_input={name: found[candidate.name].p50_ms for name, found in others.items()},
                latency=measured[candidate.name].record(
                    speedup(measured[original], measured[candidate.name], seed=timing.seed)
                )
                if measured
                else None,
                layers=runner.layers(candidate.path),
                accuracy=work.score(own, evaluation),
                change=None if candidate.name == original else work.change(answers[original], own, evaluation),
                agreement=candidate.checked or work.agreement(answers[str(candidate.made_from)], own, evaluation),
            )
        )
    disturbed = disturbance(measured) if measured else None
    return rows, [disturbed] if disturbed else []


def _timed(
    candidates: Sequence[Candidate], runner: Runner, timing: Timing, emit: Emit
) -> tuple[dict[str, Latency], dict[str, dict[str, Latency]]]:
    """Return the latencies with ordinary inputs, and by kind those with others."""
    usual = {c.name: (c.path, c.work.timing_feeds(timing.block)) for c in candidates}
    measured = latencies(usual, runner, timing, emit)
    fewer = replace(timing, rounds=max(_FEWEST_ROUNDS, timing.rounds // 4))
    others = {c.name: c.work.other_feeds(timing.block) for c in candidates}
    return measured, {
        kind: latencies({c.name: (c.path, others[c.name][kind]) for c in candidates}, runner, fewer, emit)
        for kind in others[candidates[0].name]
    }
