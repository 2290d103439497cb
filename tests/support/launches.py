"""Launches as `tlc.runtime.bench.launch` returns them, with drawn samples instead of measured ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlc.runtime.bench_report import NS_PER_MS, BenchReport, BenchWarning, Launch, Memory, ModelBench, Setting
from tlc.runtime.gate_report import Check, GateReport, worst
from tlc.runtime.process import Case, Failure


def drawn_launch(
    case: Case,
    rng: np.random.Generator,
    *,
    rounds: int = 14,
    block: int = 8,
    latency_ms: float = 1.0,
    launch_sd: float = 0.005,
    noise_sd: float = 0.03,
    peak_bytes: int = 50_000_000,
) -> Launch:
    """Lognormal runs; `launch_sd` is what a whole process is slower or faster by, as a share."""
    bias = rng.normal(0, launch_sd)
    samples_ms = latency_ms * np.exp(bias + rng.normal(0, noise_sd, rounds * block))
    samples_ns = [round(sample * NS_PER_MS) for sample in samples_ms]
    return Launch(
        runtime="onnxruntime 1.31.1",
        setting=Setting(batch=case.batch, threads=case.threads, streams=case.streams, shapes={"x": [case.batch, 3]}),
        load_ms=5.0,
        first_ms=2 * latency_ms,
        warmup_runs=200,
        warmup_stable=True,
        block=block,
        samples_ns=samples_ns,
        wall_ns=sum(samples_ns),
        cpu_ratio=1.0,
        overhead_ns=100,
        memory=Memory(
            loaded_bytes=30_000_000,
            run_bytes=10_000_000,
            peak_bytes=peak_bytes,
            growth_bytes_per_run=0.0,
            device_bytes=None,
        ),
    )


@dataclass
class FakeLaunch:
    """Stands in for `launch`: each case, by its path's stem, is as slow as `ms` says, or fails as `failures` does."""

    ms: Mapping[str, float | Callable[[int], float]]
    failures: Mapping[str, Failure] = field(default_factory=dict)
    peak_bytes: Sequence[int] = (50_000_000,)
    noise: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, cases: Sequence[Case], **options: Any) -> dict[str, Launch | Failure]:
        rng = np.random.default_rng([self.seed, len(self.calls)])
        number = len(self.calls)
        self.calls.append({"names": [case.name for case in cases], **options})
        found: dict[str, Launch | Failure] = {}
        for case in cases:
            stem = case.path.stem
            latency = self.ms[stem]
            found[case.name] = self.failures.get(stem) or drawn_launch(
                case,
                rng,
                rounds=options["rounds"],
                latency_ms=latency(number) if callable(latency) else latency,
                peak_bytes=self.peak_bytes[number % len(self.peak_bytes)],
                **self.noise,
            )
        return found


def gate_report(checks: Sequence[Check], *, candidate: str, warnings: Sequence[BenchWarning] = ()) -> GateReport:
    """A report of one look at one launch of three runs, with these checks."""
    launch = drawn_launch(Case("candidate", Path("models/candidate.onnx")), np.random.default_rng(0), rounds=1, block=3)
    model = ModelBench(
        name=candidate,
        path="models/candidate.onnx",
        sha256="0" * 64,
        size_bytes=1,
        weights_bytes=None,
        runtime=launch.runtime,
        setting=launch.setting,
        status="ok",
        problem="",
        launches=[launch],
        latency=None,
        energy=None,
        layers=None,
        roofline=None,
    )
    bench = BenchReport(
        tlc_version="0",
        command="",
        seed=7,
        environment={},
        machine={},
        models=[model],
        warnings=list(warnings),
    )
    return GateReport(
        tlc_version="0",
        command="",
        seed=7,
        candidate=candidate,
        baseline=None,
        stored_baseline=None,
        verdict=worst(check.verdict for check in checks),
        checks=list(checks),
        confidence=0.99,
        tail=0.01 / 3,
        looks=2,
        bench=bench,
    )
