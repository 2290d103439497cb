"""What the history keeps of a report beside the report itself: when, where, how it ended, and a flat row per number."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import ValidationError

from tlc.runtime.artifact import sha256_json
from tlc.runtime.bench_report import BenchReport, ModelBench
from tlc.runtime.environment import machine_identity
from tlc.runtime.errors import TlcError
from tlc.runtime.gate_report import GateReport
from tlc.runtime.report import Measurement, Report

OVER = "latency_ratio over "
"""How the name of a ratio of latencies begins; what follows is the name of the model that it is a ratio to."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What the values of one metric mean."""

    title: str
    unit: str
    better: Literal["lower", "higher"]


METRICS: dict[str, Metric] = {
    "p50_ms": Metric("p50 latency", "ms", "lower"),
    "p90_ms": Metric("p90 latency", "ms", "lower"),
    "p95_ms": Metric("p95 latency", "ms", "lower"),
    "p99_ms": Metric("p99 latency", "ms", "lower"),
    "mean_ms": Metric("mean latency", "ms", "lower"),
    "throughput_per_s": Metric("throughput", "samples a second", "higher"),
    "load_ms": Metric("loading", "ms", "lower"),
    "first_ms": Metric("first inference", "ms", "lower"),
    "peak_memory_bytes": Metric("peak memory", "bytes", "lower"),
    "device_memory_bytes": Metric("device memory", "bytes", "lower"),
    "size_bytes": Metric("file size", "bytes", "lower"),
    "joules_per_run": Metric("energy of an inference", "J", "lower"),
    "top1_ratio": Metric("top-1", "share of 1", "higher"),
}


def metric(name: str) -> Metric:
    """Return what `name` means. Raises KeyError for a name that no report has."""
    if name.startswith(OVER):
        return Metric(f"latency over that of {name.removeprefix(OVER)}", "ratio", "lower")
    return METRICS[name]


_SCHEMAS: dict[str, type[BenchReport] | type[GateReport] | type[Report]] = {
    "bench": BenchReport,
    "gate": GateReport,
    "compress": Report,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One number of one model in one setting."""

    model: str
    sha256: str
    setting: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a report says, flat."""

    sha256: str
    """Tells the report from others, whatever the order of its keys."""
    kind: Literal["bench", "gate", "compress"]
    time_utc: str
    """ISO 8601 with seconds, in UTC."""
    tlc_version: str
    outcome: str
    """Of a gate its verdict; else `ok`, or what failed, such as `crashed: bad.onnx`."""
    warnings: str
    """Codes of the measurement's warnings, comma-separated; "" without any."""
    machine: dict[str, Any]
    """Result of `machine_identity`."""
    models: str
    """Names, comma-separated."""
    rows: tuple[Row, ...]


def facts_of(report: Mapping[str, Any], *, where: str = "this") -> Facts:
    """Return the facts of the JSON object of a `tlc bench`, `tlc gate` or `tlc compress` report.

    Raises TlcError, with `where` as its subject, for anything else, and for the schema of a newer tlc.
    """
    kind = report.get("kind", "compress")
    schema = _SCHEMAS.get(kind) if isinstance(kind, str) else None
    if schema is None or "schema_version" not in report:
        raise TlcError(
            f"{where} is not a report of tlc bench, tlc gate or tlc compress",
            hint="Give the JSON that one of them wrote.",
        )
    if report["schema_version"] != 1:
        raise TlcError(
            f"{where} has schema version {report['schema_version']!r}, and this tlc reads 1",
            hint="Upgrade tlc.",
        )
    try:
        found = schema.model_validate(report)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TlcError(
            f"{where} is not a complete report of tlc {kind}: {place}: {first['msg']}",
            hint="It was changed, or another version of tlc wrote it: leave it out.",
        ) from error
    try:
        sha256 = sha256_json(_identifying(report))
    except ValueError as error:
        raise TlcError(f"{where} holds a number that is not finite", hint="Leave it out, and measure again.") from error
    if isinstance(found, Report):
        return _of_compress(found, sha256, where)
    bench = found.bench if isinstance(found, GateReport) else found
    failed = [f"{model.status}: {model.name}" for model in bench.models if model.status != "ok"]
    return Facts(
        sha256=sha256,
        kind=found.kind,
        time_utc=_time(bench.environment, where),
        tlc_version=found.tlc_version,
        outcome=found.verdict if isinstance(found, GateReport) else ", ".join(failed) or "ok",
        warnings=", ".join(sorted({warning.code for warning in bench.warnings})),
        machine=bench.machine,
        models=", ".join(dict.fromkeys(model.name for model in bench.models)),
        rows=tuple(row for model in bench.models for row in _bench_rows(model, bench.models[0].name)),
    )


_CHOSEN = frozenset(
    {"chosen", "selected_by", "budget", "budget_met", "confident", "front", "lost", "needed", "verdict", "warnings"}
)


def _identifying(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was measured: of a compress report not what was chosen by it, which `tlc select` may change.

    Nor its samples: the report's file has them with fewer digits.
    """
    if "measurements" not in report:
        return report
    report = {key: value for key, value in report.items() if key not in _CHOSEN}
    rows = [
        {**row, "latency": row["latency"] and {**row["latency"], "samples_ms": None}} for row in report["measurements"]
    ]
    return {**report, "measurements": rows}


def _of_compress(report: Report, sha256: str, where: str) -> Facts:
    stem = Path(report.model.path).name
    # Accuracy is comparable on the same data only, latency on the same input.
    setting = (
        f"compress for {report.target}, {report.runtime}, threads {report.threads}, "
        f"input {'x'.join(map(str, report.model.input_shape))}, data {report.data.sha256[:12]}"
    )
    return Facts(
        sha256=sha256,
        kind="compress",
        time_utc=_time(report.environment, where),
        tlc_version=report.tlc_version,
        outcome="ok" if report.budget_met else "over budget",
        warnings="",
        machine=machine_identity(report.environment),
        models=", ".join(f"{stem} {row.name}" for row in report.measurements),
        rows=tuple(
            Row(f"{stem} {row.name}", row.sha256, setting, name, value)
            for row in report.measurements
            for name, value in _compress_values(row)
        ),
    )


def _compress_values(row: Measurement) -> Iterator[tuple[str, float]]:
    latency = row.latency
    if latency is not None:
        yield "p50_ms", latency.p50_ms
        yield "p90_ms", latency.p90_ms
        yield "p99_ms", latency.p99_ms
        yield "mean_ms", latency.mean_ms
        yield "throughput_per_s", latency.throughput_per_s
        if row.made_from is not None:
            yield f"{OVER}original", 1 / latency.speedup.estimate
    if row.peak_memory_bytes is not None:
        yield "peak_memory_bytes", row.peak_memory_bytes
    yield "size_bytes", row.size_bytes
    yield "top1_ratio", row.accuracy.top1


def _bench_rows(model: ModelBench, first: str) -> Iterator[Row]:
    if model.status != "ok" or model.latency is None:
        return  # it has no numbers; its status is the run's outcome
    setting = model.setting
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in setting.shapes.items())
    text = f"{model.runtime}, batch {setting.batch}, threads {setting.threads}, streams {setting.streams}, {shapes}"
    for name, value in _bench_values(model, first):
        yield Row(model.name, model.sha256, text, name, value)


def _bench_values(model: ModelBench, first: str) -> Iterator[tuple[str, float]]:
    assert model.latency is not None
    for quantile in model.latency.quantiles:
        name = f"p{quantile.percentile:g}_ms"
        if name in METRICS:  # the maximum of a run is one sample, and no level
            yield name, quantile.ms
    yield "mean_ms", model.latency.mean_ms
    yield "throughput_per_s", model.latency.throughput_per_s
    if model.name != first and model.latency.ratio is not None:
        yield f"{OVER}{first}", model.latency.ratio.estimate
    yield "load_ms", median(launch.load_ms for launch in model.launches)
    yield "first_ms", median(launch.first_ms for launch in model.launches)
    yield "peak_memory_bytes", max(launch.memory.peak_bytes for launch in model.launches)
    device = [launch.memory.device_bytes for launch in model.launches if launch.memory.device_bytes is not None]
    if device:
        yield "device_memory_bytes", max(device)
    yield "size_bytes", model.size_bytes
    if model.energy is not None:
        yield "joules_per_run", model.energy.joules_per_run


def _time(environment: Mapping[str, Any], where: str) -> str:
    text = environment.get("time_utc")
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))  # Python 3.10 does not read the Z
    except ValueError as error:
        raise TlcError(
            f"{where} does not say when it was measured: environment.time_utc is {text!r}",
            hint="Leave it out: without a time it has no place in a series.",
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
