"""`tlc bench`."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.cases import case_of, limit_options, limits_from, with_target_of
from tlc.cli.devices import device_options, host_of
from tlc.cli.options import model_options
from tlc.cli.progress import progress
from tlc.runtime.errors import TlcError, UsageError

if TYPE_CHECKING:
    from tlc.runtime.bench import Timing
    from tlc.runtime.bench_report import BenchReport, Latency, ModelBench, Peaks
    from tlc.runtime.process import Case

_PATH = click.Path(path_type=Path)
_SAMPLES = (".json", ".parquet")
_MOST_LAYERS = 15
_DEVICE = "{device}"
"""In the name of a file: stands for the device's."""


def _counts(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return one number above zero, or several to sweep over; () for none."""
    try:
        counts = () if value is None else tuple(int(part) for part in value.split(","))
    except ValueError:
        counts = (0,)
    if min(counts, default=1) < 1:
        raise click.BadParameter(f"{value!r} is not a number above 0, nor several such as 1,4,16")
    return counts


@click.command("bench", short_help="Measure latency, memory and energy of models, in turns.")
@click.argument("models", type=_PATH, nargs=-1, required=True)
@click.option("--target", help="Device: a name of `tlc targets`, or FILE.toml.  [default: ONNX Runtime on the CPU]")
@click.option(
    "--threads", callback=_counts, metavar="N[,N...]", help="Cores for one inference.  [default: the target's, or 1]"
)
@click.option(
    "--batch", callback=_counts, metavar="N[,N...]", default="1", show_default=True, help="Samples in one inference."
)
@click.option(
    "--streams", callback=_counts, metavar="N[,N...]", default="1", show_default=True, help="Inferences at once."
)
@click.option("--shape", "shapes", multiple=True, metavar="INPUT=AxBxC", help="Whole shape of an input.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N[,N...]", help="Length of an open dimension.")
@click.option("--inputs", type=_PATH, help="An .npz of real inputs, one array per input.")
@click.option("--duration", default="3s", show_default=True, help="Timed runs of each model.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of blocks, instead of --duration.")
@click.option("--launches", type=click.IntRange(1), default=1, show_default=True, help="Starts of every process.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order and the inputs.")
@click.option("--profile", is_flag=True, help="Time every layer, in a run of its own.")
@click.option("--roofline", is_flag=True, help="Measure the machine's peaks, and how far each model is from them.")
@click.option("--energy/--no-energy", default=True, show_default=True, help="Where this machine has a counter.")
@device_options(several=True)
@limit_options
@model_options
@click.option("--samples", type=_PATH, help="Write every sample to FILE.parquet or FILE.json.")
@click.option("-o", "--output", type=_PATH, help="Write the report as JSON: a baseline for `tlc gate`.")
@click.option("--label", default="", help="Of the run in the history, such as a commit.")
@click.option("--no-history", is_flag=True, help="Leave the run out of the history.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def bench_command(models: tuple[Path, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure MODELS, each in a process of its own, in blocks of runs that take turns in random order.

    ONNX files, those of bundles too, and engines run in the target's runtime, everything else in PyTorch. Several
    values of --threads, --batch, --streams or --size are measured one after the other. A model that crashes, hangs or
    outgrows its memory is reported, and the others are measured; exit status 1 then.

    With --device the models run on another machine, in tlc-run, which is sent there with what it needs; several devices
    are measured one after the other, and names of files have to hold {device} then.

    \b
    Examples:
      tlc bench model.onnx int8.onnx --threads 1
      tlc bench model.onnx --batch 1,4,16 --samples samples.json
      tlc bench model.pt model.onnx --arch torchvision:resnet18
      tlc bench model.onnx int8.onnx --device pi@kitchen
    """
    from tlc.cli.history import keep
    from tlc.runtime.bench import Timing
    from tlc.runtime.limits import parse_ms

    _require_places(options)
    options = with_target_of(models, options)
    timing = Timing(parse_ms(options["duration"]) / 1000, options["rounds"], options["launches"], options["seed"])
    groups = [_cases(models, setting, options) for setting in _settings(options)]
    devices = options["device"] or (None,)
    failed = False
    for device in devices:
        try:
            report = _measured(device, groups, timing, options, quiet=quiet)
        except TlcError as error:
            if len(devices) == 1:
                raise
            click.echo(f"error: {error.message}\nhint: {error.hint}", err=True)
            failed = True
            continue
        _write(report, options)
        click.echo(report.model_dump_json() if as_json else "\n".join(report_lines(report)))
        keep(report, label=options["label"], off=options["no_history"])
        failed |= any(model.status != "ok" for model in report.models)
    if failed:
        sys.exit(1)


def _measured(
    device: str | None,
    groups: "Sequence[Sequence[Case]]",
    timing: "Timing",
    options: Mapping[str, Any],
    *,
    quiet: bool,
) -> "BenchReport":
    """Measure on one device; None is this machine."""
    from tlc.compress.events import Progress
    from tlc.runtime.bench import bench_report

    with (
        progress(quiet=quiet) as emit,
        host_of(device, [case for cases in groups for case in cases], options) as host,
    ):
        report = bench_report(
            groups,
            timing,
            limits=limits_from(options),
            energy=options["energy"],
            profile=options["profile"],
            command=shlex.join(["tlc", *sys.argv[1:]]),
            on_progress=lambda what, done, total: emit(Progress(what, done, total)),
            host=host,
        )
        return _with_facts(report, groups, roofline=options["roofline"])


def _require_places(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that cannot be done together, before anything is measured."""
    samples, devices = options["samples"], options["device"]
    if samples is not None and samples.suffix not in _SAMPLES:
        raise UsageError(f"--samples {samples} is neither .json nor .parquet", hint="Name it samples.json.")
    for name in ("profile", "roofline"):
        if devices and options[name]:
            raise UsageError(
                f"--{name} is measured on this machine alone", hint=f"Leave --{name} out, or run tlc on the device."
            )
    for name in ("output", "samples"):
        path = options[name]
        if len(devices) > 1 and path is not None and _DEVICE not in str(path):
            raise UsageError(
                f"--{name} {path} would be written by {len(devices)} devices",
                hint=f"Put {_DEVICE} into the name, such as {path.stem}-{_DEVICE}{path.suffix}.",
            )


def report_lines(report: "BenchReport") -> list[str]:
    """Return the report as lines of text."""
    device = report.environment.get("device")
    what = report.environment.get("board") or report.environment.get("cpu_model") or report.environment.get("machine")
    lines = ["", f"on {device}: {what}"] if device else []
    groups: dict[str, list[ModelBench]] = {}
    for model in report.models:
        groups.setdefault(_setting_text(model), []).append(model)
    for setting, models in groups.items():
        lines += ["", setting, *_table(models)]
    for model in report.models:
        if model.status != "ok":
            lines += ["", f"{model.name} {_STATUS[model.status]}. {model.problem}"]
        lines += _layer_lines(model) + _roofline_lines(model)
    lines += [""] if report.warnings else []
    lines += [f"warning ({warning.code}): {warning.message}" for warning in report.warnings]
    return lines[1:]


_STATUS = {"failed": "failed", "crashed": "crashed", "hung": "hung", "out_of_memory": "ran out of memory"}


def _cases(models: Sequence[Path], setting: Mapping[str, Any], options: Mapping[str, Any]) -> "list[Case]":
    """Return one case per model; the same file given twice gets a number."""
    cases = []
    for place, path in enumerate(models):
        before = list(models[:place]).count(path)
        name = f"{path} #{before + 1}" if before else str(path)
        cases.append(case_of(name, path, options, **setting))
    return cases


def _settings(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of what is swept over."""
    shapes = dict(_shape(text) for text in options["shapes"])
    sizes = dict(_named(text, "--size", "T=128") for text in options["sizes"])
    lengths = [_lengths(name, text) for name, text in sizes.items()]
    return [
        {
            "threads": threads,
            "streams": streams,
            "batch": batch,
            "shapes": shapes,
            "sizes": dict(zip(sizes, chosen, strict=True)),
        }
        for threads, streams, batch, *chosen in product(
            options["threads"] or (None,), options["streams"], options["batch"], *lengths
        )
    ]


def _lengths(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise UsageError(f"--size {name}={text} is not a length", hint=f"Write it as --size {name}=16,128.")
    return tuple(map(int, text.split(",")))


def _named(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text!r} has no name and value", hint=f"Write it as {option} {example}.")
    return name, value


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, value = _named(text, "--shape", "input=1x3x224x224")
    try:
        return name, tuple(int(part) for part in value.split("x"))
    except ValueError:
        raise UsageError(f"--shape {text!r} is not a shape", hint="Write it as input=1x3x224x224.") from None


def _with_facts(report: "BenchReport", groups: "Sequence[Sequence[Case]]", *, roofline: bool) -> "BenchReport":
    """Return the report with what the ONNX files themselves tell: weights, and how near each is to the peaks."""
    from importlib.util import find_spec

    if find_spec("onnx") is None:
        if roofline:
            raise TlcError("--roofline counts operations with onnx, which is not here", hint="pip install onnx")
        return report
    from tlc.export.roofline import roofline as roofline_of
    from tlc.export.roofline import weights_bytes
    from tlc.runtime.bench_report import BenchWarning
    from tlc.runtime.peak import measure_peaks

    peaks: dict[int, Peaks] = {}
    models, warnings = [], list(report.warnings)
    for model, case in zip(report.models, [case for cases in groups for case in cases], strict=True):
        facts: dict[str, Any] = {}
        try:
            facts["weights_bytes"] = weights_bytes(case.path)
            if roofline and model.latency is not None:
                threads, shapes = model.setting.threads, model.setting.shapes
                if threads not in peaks:
                    peaks[threads] = measure_peaks(threads)
                facts["roofline"] = roofline_of(case.path, model.latency.quantile(50).ms, peaks[threads], shapes=shapes)
        except TlcError as error:  # what was measured must not be lost for it
            warnings.append(
                BenchWarning(code="not_counted", model=model.name, message=f"{error.message}. {error.hint}")
            )
        models.append(model.model_copy(update=facts))
    return report.model_copy(update={"models": models, "warnings": warnings})


def _write(report: "BenchReport", options: Mapping[str, Any]) -> None:
    from tlc.runtime.artifact import write_text

    device = re.sub(r"[^\w.@-]", "_", report.environment.get("device") or "")
    output, samples = (
        None if options[name] is None else Path(str(options[name]).replace(_DEVICE, device))
        for name in ("output", "samples")
    )
    if output is not None:
        write_text(output, report.model_dump_json())
    if samples is not None:
        _write_samples(report, samples)


def _write_samples(report: "BenchReport", path: Path) -> None:
    """Write one row per sample: model, setting, launch, round, place in the block, nanoseconds."""
    from tlc.runtime.artifact import write_bytes, write_text

    rows = [
        {
            "model": model.name,
            "batch": model.setting.batch,
            "threads": model.setting.threads,
            "streams": model.setting.streams,
            "shapes": json.dumps(model.setting.shapes),
            "launch": number,
            "round": place // launch.block,
            "run": place % launch.block,
            "latency_ns": sample,
        }
        for model in report.models
        for number, launch in enumerate(model.launches)
        for place, sample in enumerate(launch.samples_ns)
    ]
    if path.suffix == ".json":
        write_text(path, json.dumps(rows))
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise TlcError(
            f"--samples {path} needs pyarrow: {error}", hint="pip install pyarrow, or write .json."
        ) from error
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _setting_text(model: "ModelBench") -> str:
    setting = model.setting
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in setting.shapes.items())
    streams = f", {setting.streams} streams" if setting.streams > 1 else ""
    batch = f"batch {setting.batch}{f': {shapes}' if shapes else ''}"
    return f"{_many(setting.threads, 'thread')}{streams}, {batch}"


def _table(models: "Sequence[ModelBench]") -> list[str]:
    from tlc.cli.table import columns

    header = [
        "",
        "in",
        "p50 ms",
        "99 %",
        "p90",
        "p95",
        "p99",
        "max",
        "per s",
        "x first",
        "99 %",
        "first ms",
        "load ms",
        "memory",
    ]
    with_energy = any(model.energy is not None for model in models)
    rows = []
    for model in models:
        if model.latency is None:
            rows.append([model.name, _STATUS[model.status], *[""] * (len(header) - 2 + with_energy)])
            continue
        latency, last = model.latency, model.launches[-1]
        ratio = latency.ratio
        rows.append(
            [
                model.name,
                model.runtime,
                _ms(latency.quantile(50).ms),
                _bounds(latency),
                *[_ms(latency.quantile(rank).ms) for rank in (90, 95, 99, 100)],
                f"{latency.throughput_per_s:,.0f}",
                f"{ratio.estimate:.3f}" if ratio else "",
                f"[{ratio.low:.3f}, {ratio.high:.3f}]" if ratio and model is not models[0] else "",
                _ms(last.first_ms),
                f"{last.load_ms:.0f}",
                f"{last.memory.peak_bytes / 1e6:.0f} MB",
            ]
        )
        if with_energy:
            rows[-1].append("" if model.energy is None else f"{1e3 * model.energy.joules_per_run:.2f} mJ")
    return columns([*header, "energy"] if with_energy else header, rows)


def _bounds(latency: "Latency") -> str:
    median = latency.quantile(50)
    low, high = ("?" if bound is None else _ms(bound) for bound in (median.low_ms, median.high_ms))
    return f"[{low}, {high}]"


def _layer_lines(model: "ModelBench") -> list[str]:
    from tlc.cli.table import columns

    if not model.layers:
        return []
    layers = sorted(model.layers, key=lambda layer: -layer.ms)
    total_ms = sum(layer.ms for layer in layers)
    rows = [[layer.name, layer.kind, _ms(layer.ms), f"{100 * layer.ratio:.1f} %"] for layer in layers[:_MOST_LAYERS]]
    title = f"{model.name}: {_many(len(layers), 'layer')}, {_ms(total_ms)} ms in all"
    return ["", title, *columns(["layer", "kind", "ms", "share"], rows)]


def _roofline_lines(model: "ModelBench") -> list[str]:
    roof = model.roofline
    if roof is None:
        return []
    return [
        "",
        f"{model.name}: {roof.operations / 1e9:.3g} G operations and {roof.moved_bytes / 1e6:.3g} MB in "
        f"{_ms(roof.bound_ms / roof.reached_ratio)} ms, {roof.achieved_per_s / 1e9:.3g} G a second; "
        f"the machine's peaks ({roof.peaks.fp32_per_s / 1e9:.3g} G float32, {roof.peaks.int8_per_s / 1e9:.3g} G INT8, "
        f"{roof.peaks.bytes_per_s / 1e9:.3g} GB a second) allow {_ms(roof.bound_ms)} ms, by {roof.bound_by}: "
        f"{100 * roof.reached_ratio:.0f} % reached",
    ]


def _ms(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
