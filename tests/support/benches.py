"""Invented reports of `tlc bench`: every number is drawn from a seeded generator."""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from launches import drawn_launch

from tlc.runtime.bench_report import BenchReport, BenchWarning, Latency, ModelBench, Quantile
from tlc.runtime.process import Case
from tlc.runtime.report import Interval

MACHINE = {"cpu_model": "Invented CPU", "logical_cores": 2, "versions": {"onnxruntime": "1.31.1"}}
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def bench_of(
    day: float = 0,
    *,
    ms: Mapping[str, float] | None = None,
    machine: Mapping[str, Any] = MACHINE,
    batch: int = 1,
    sha256: str = "a" * 64,
    failed: str | None = None,
    warnings: tuple[BenchWarning, ...] = (),
    seed: int = 0,
) -> BenchReport:
    """Return a report of the models named in `ms` with their latencies, measured `day` days after START."""
    rng = np.random.default_rng([seed, round(24 * 3600 * day)])
    rows = [_model(name, value, rng, batch, sha256) for name, value in (ms or {"model.onnx": 1.0}).items()]
    if failed is not None:
        rows.append(_model(failed, 1.0, rng, batch, sha256).model_copy(update={"status": "crashed", "latency": None}))
    return BenchReport(
        tlc_version="0.0.0+invented",
        command="tlc bench " + " ".join(row.name for row in rows),
        seed=seed,
        environment={"time_utc": (START + timedelta(days=day)).isoformat(timespec="seconds")},
        machine=dict(machine),
        models=rows,
        warnings=list(warnings),
    )


def _model(name: str, ms: float, rng: np.random.Generator, batch: int, sha256: str) -> ModelBench:
    launch = drawn_launch(Case(name, Path(name), batch=batch), rng, latency_ms=ms, rounds=4)
    samples_ms = np.sort(launch.samples_ns) / 1e6
    quantiles = [
        Quantile(percentile=rank, ms=float(np.quantile(samples_ms, rank / 100)), low_ms=None, high_ms=None)
        for rank in (50, 90, 95, 99, 100)
    ]
    return ModelBench(
        name=name,
        path=name,
        sha256=sha256,
        size_bytes=1_000_000,
        weights_bytes=None,
        runtime=launch.runtime,
        setting=launch.setting,
        status="ok",
        problem="",
        launches=[launch],
        latency=Latency(
            samples=len(samples_ms),
            quantiles=quantiles,
            mean_ms=float(samples_ms.mean()),
            min_ms=float(samples_ms[0]),
            spread_ratio=0.03,
            throughput_per_s=1000 / float(samples_ms.mean()),
            ratio=Interval(estimate=ms, low=0.9 * ms, high=1.1 * ms),
        ),
        energy=None,
        layers=None,
        roofline=None,
    )
