"""Models in one or several settings, measured and summed up: what `tlc bench` does. `tlc.runtime.launch` runs them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from tlc.runtime.bench_report import (
    NS_PER_MS,
    BenchReport,
    Energy,
    Latency,
    Launch,
    LayerTime,
    ModelBench,
    Quantile,
    Setting,
)
from tlc.runtime.environment import machine_identity
from tlc.runtime.health import machine_warnings, model_warnings
from tlc.runtime.host import LOCAL, Host
from tlc.runtime.launch import OnProgress, launch
from tlc.runtime.model_files import model_files, model_sha256
from tlc.runtime.power import Meter
from tlc.runtime.process import Case, Failure, Limits, Worker
from tlc.runtime.sessions import ENGINES
from tlc.runtime.statistics import nearest_rank, quantile_bounds, ratio_interval

PERCENTILES = (50, 90, 95, 99)
ENERGY_S = 3.0
PROFILE_RUNS = 20


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure: `rounds` of blocks, or, if None, until every model ran for `duration_s`."""

    duration_s: float = 3.0
    rounds: int | None = None
    launches: int = 1
    seed: int = 0


def bench_report(
    groups: Sequence[Sequence[Case]],
    timing: Timing,
    *,
    command: str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    energy: bool = False,
    profile: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
    host: Host = LOCAL,
) -> BenchReport:
    """Measure each group of cases in turns, one group after the other; ratios are those to a group's first case.

    Of several launches each has its share of the rounds or of the time. With `energy`, and a counter, every model also
    runs for three seconds by itself while that is read; with `profile`, its layers are timed, in a session of its own.
    The models run on `host`; raises Dropped where the connection to it breaks for good.
    """
    facts = host.environment()
    meters, reasons = host.open_meters() if energy else ([], [])
    before, cpu_before_s = host.snapshot(), host.cpu_s()
    try:
        models = [
            model
            for number, cases in enumerate(groups)
            for model in _bench(
                cases,
                timing,
                limits=limits,
                meter=_meter_for(cases, meters),
                profile=profile,
                host=host,
                on_progress=on_progress and partial(on_progress, f"setting {number + 1} of {len(groups)}"),
            )
        ]
    finally:
        for meter in meters:
            meter.close()
    after = host.snapshot()
    warnings = machine_warnings(before, after, own_cpu_s=host.cpu_s() - cpu_before_s, environment=facts)
    warnings += host.warnings()
    for model in models:
        warnings += model_warnings(model.name, model.launches)
    return BenchReport(
        tlc_version=version("tlc"),
        command=command,
        seed=timing.seed,
        environment={**facts, "energy_not_measured": reasons},
        machine=machine_identity(facts),
        models=models,
        warnings=warnings,
    )


def _bench(
    cases: Sequence[Case],
    timing: Timing,
    *,
    limits: Limits,
    meter: Meter | None,
    profile: bool,
    host: Host,
    on_progress: OnProgress | None,
) -> list[ModelBench]:
    idle_watts = 0.0 if meter is None else _watts(meter, lambda: time.sleep(ENERGY_S))
    extras: dict[str, dict[str, Any]] = {case.name: {} for case in cases}

    def after(name: str, worker: Worker) -> None:
        if meter is not None:
            extras[name]["energy"] = _energy(meter, worker, idle_watts)
        if profile:
            layers = worker.ask("profile", runs=PROFILE_RUNS)["layers"]
            extras[name]["layers"] = [LayerTime.model_validate(layer) for layer in layers]

    found = [
        launch(
            cases,
            rounds=None if timing.rounds is None else -(-timing.rounds // timing.launches),
            duration_s=timing.duration_s / timing.launches if timing.rounds is None else None,
            seed=timing.seed + number,
            limits=limits,
            on_progress=on_progress,
            host=host,
            after=after if number == timing.launches - 1 else None,
        )
        for number in range(timing.launches)
    ]
    return [
        model_bench(case, found, first=cases[0].name, seed=timing.seed).model_copy(update=extras[case.name])
        for case in cases
    ]


def _meter_for(cases: Sequence[Case], meters: Sequence[Meter]) -> Meter | None:
    """Return the counter of what runs the first case: a GPU's own where it runs on one, else the package or module."""
    target = cases[0].target
    on_gpu = cases[0].path.suffix in ENGINES or (target is not None and target.provider in ("cuda", "tensorrt"))
    gpus = [meter for meter in meters if meter.name.startswith("nvml")]
    others = [meter for meter in meters if not meter.name.startswith("nvml")]
    return next(iter([*gpus, *others] if on_gpu else others), None)


def model_bench(
    case: Case, launches: Sequence[Mapping[str, Launch | Failure]], *, first: str, seed: int = 0
) -> ModelBench:
    """Return what `launches`, each the result of `launch`, found about one case; ratios are those to the case `first`.

    A case that failed in any launch counts as failed.
    """
    own = [found[case.name] for found in launches]
    failure = next((one for one in own if isinstance(one, Failure)), None)
    whole = [one for one in own if isinstance(one, Launch)]
    opened = whole[-1].setting if whole else None
    compared = [one for one in (found[first] for found in launches) if isinstance(one, Launch)]
    return ModelBench(
        name=case.name,
        path=str(case.path),
        sha256=model_sha256(case.path),
        size_bytes=sum(file.stat().st_size for file in model_files(case.path)),
        weights_bytes=None,
        runtime=whole[-1].runtime if whole else "",
        setting=opened or Setting(batch=case.batch, threads=case.threads, streams=case.streams, shapes={}),
        status="ok" if failure is None else failure.status,
        problem="" if failure is None else failure.problem,
        launches=whole,
        latency=None if failure else latency_of(whole, compared if len(compared) == len(whole) else None, seed=seed),
        energy=None,
        layers=None,
        roofline=None,
    )


def latency_of(launches: Sequence[Launch], compared: Sequence[Launch] | None, *, seed: int = 0) -> Latency:
    """Return what all samples of `launches` say; the ratio is that to `compared`, which ran in turns with them."""
    samples_ms = np.concatenate([np.asarray(one.samples_ns, np.float64) for one in launches]) / NS_PER_MS
    quantiles = []
    for percentile in PERCENTILES:
        low_ms, high_ms = quantile_bounds(samples_ms, percentile)
        ms = nearest_rank(samples_ms, percentile)
        quantiles.append(Quantile(percentile=percentile, ms=ms, low_ms=low_ms, high_ms=high_ms))
    longest_ms = float(samples_ms.max())
    quantiles.append(Quantile(percentile=100, ms=longest_ms, low_ms=longest_ms, high_ms=None))
    wall_s = sum(one.wall_ns for one in launches) / 1e9
    return Latency(
        samples=len(samples_ms),
        quantiles=quantiles,
        mean_ms=float(samples_ms.mean()),
        min_ms=float(samples_ms.min()),
        spread_ratio=float(samples_ms.std() / samples_ms.mean()),
        throughput_per_s=launches[0].setting.batch * len(samples_ms) / wall_s,
        ratio=None if compared is None else ratio_interval(compared, launches, seed=seed),
    )


def _energy(meter: Meter, worker: Worker, idle_watts: float) -> Energy:
    answer: dict[str, Any] = {}
    watts = _watts(meter, lambda: answer.update(worker.ask("run_for", seconds=ENERGY_S)))
    return Energy(
        counter=meter.name,
        joules_per_run=watts * answer["seconds"] / answer["runs"],
        watts=watts,
        idle_watts=idle_watts,
        seconds=answer["seconds"],
    )


def _watts(meter: Meter, step: Callable[[], object]) -> float:
    """Return the mean power while `step` runs."""
    start, joules = time.monotonic(), meter.joules()
    step()
    return (meter.joules() - joules) / (time.monotonic() - start)
