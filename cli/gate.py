"""`tlc gate`."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.cases import case_of, limit_options, limits_from, with_target_of
from tlc.cli.devices import device_options, host_of
from tlc.cli.gate_config import read_config
from tlc.cli.history import keep
from tlc.cli.options import data_options, model_options, quantity, recipe_from
from tlc.cli.progress import progress
from tlc.runtime.errors import TlcError, UsageError

if TYPE_CHECKING:
    from tlc.runtime.gate_report import Check, GateReport
    from tlc.runtime.limits import GateLimits
    from tlc.runtime.process import Case
    from tlc.runtime.stored_report import StoredBaseline

_PATH = click.Path(path_type=Path)
_OUTPUTS = ("output", "junit", "summary", "comment", "code_quality")
_POINTS = click.FloatRange(0, 100, min_open=True)


@click.command("gate", short_help="Decide whether a model may ship: pass, fail or inconclusive.")
@click.argument("candidate", type=_PATH)
@click.option("--baseline", type=_PATH, help="Model to measure in turns with; or a report of bench or gate, .json.")
@quantity("--max-slowdown", "parse_ratio", "PERCENT", "Of the median latency, against the baseline: 5%.")
@quantity("--p50-under", "parse_ms", "TIME", "Median latency: 8ms.")
@quantity("--p90-under", "parse_ms", "TIME", "90th percentile of the latency.")
@quantity("--p99-under", "parse_ms", "TIME", "99th percentile, which takes at least 568 runs.")
@quantity("--max-memory", "parse_bytes", "SIZE", "Peak memory: 200MB.")
@quantity("--max-size", "parse_bytes", "SIZE", "Size of the model's files: 5MB.")
@click.option("--max-drop", type=_POINTS, help="Loss of top-1 on --data, in points.")
@click.option("--per-class-drop", type=_POINTS, help="Loss of each class's recall on --data, in points.")
@click.option("--config", type=_PATH, callback=read_config, is_eager=True, help="TOML file with [gate].  [tlc.toml]")
@click.option("--target", help="Device: a name of `tlc targets`, or FILE.toml.  [default: ONNX Runtime on the CPU]")
@click.option("--threads", type=click.IntRange(1), help="Cores for one inference.  [default: the target's, or 1]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Samples in one inference.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="Length of an open dimension.")
@click.option("--inputs", type=_PATH, help="An .npz of real inputs, one array per input.")
@click.option("--rounds", type=click.IntRange(1), default=40, show_default=True, help="At the first of three looks.")
@click.option("--launches", type=click.IntRange(1), default=3, show_default=True, help="Starts of every process.")
@click.option("--self-check", is_flag=True, help="Compare the baseline with itself first; that has to pass.")
@click.option("--any-machine", is_flag=True, help="Compare with a stored report of another machine, too.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order and the inputs.")
@device_options(several=False)
@limit_options
@data_options(required=False)
@model_options
@click.option("-o", "--output", type=_PATH, help="Write the report as JSON.")
@click.option("--junit", type=_PATH, help="Write JUnit XML: one test case per limit.")
@click.option("--summary", type=_PATH, help="Append Markdown to FILE.  [default: $GITHUB_STEP_SUMMARY]")
@click.option("--comment", type=_PATH, help="Write Markdown for a comment, with a marker to find it again.")
@click.option("--code-quality", type=_PATH, help="Write GitLab's code quality report.")
@click.option("--label", default="", help="Of the run in the history, such as a commit.")
@click.option("--no-history", is_flag=True, help="Leave the run out of the history.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def gate_command(candidate: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Hold CANDIDATE to limits: exit status 0 if all are shown to be kept, 3 if one is shown not to be, 4 otherwise.

    Latency is compared with the baseline's, measured now and in turns with it; while it is open which side of the
    limit it is on, both are measured again, at most twice. A candidate that crashes fails. What cannot be measured, or
    not well enough, never passes. Limits and settings may also stand in [gate] of tlc.toml; options override them. Of a
    bundle its own limits count where no other is given. With --device all is measured on another machine, by tlc-run.

    \b
    Examples:
      tlc gate int8.onnx --baseline model.onnx --max-slowdown 5%
      tlc gate model.onnx --p50-under 8ms --max-memory 200MB --max-size 5MB
      tlc gate int8.onnx --baseline model.onnx --max-drop 1 --per-class-drop 5 --data photos/
    """
    from tlc.compress.events import Progress
    from tlc.runtime.gate import Effort, gate
    from tlc.runtime.gate_report import EXIT_CODES
    from tlc.runtime.process import Case

    start = time.monotonic()
    options = with_target_of((candidate, options["baseline"]), options)
    limits = _limits(candidate, options)
    _require_places(options)
    if options["device"] and limits.needs_accuracy:
        raise UsageError(
            "A limit on accuracy is not held on a device by tlc gate",
            hint="Leave --device out, or evaluate there with `tlc deploy --data`.",
        )
    baseline = _baseline(options["baseline"], candidate, options)
    effort = Effort(
        rounds=options["rounds"],
        launches=options["launches"],
        self_check=options["self_check"],
        any_machine=options["any_machine"],
        limits=limits_from(options),
    )
    case = _case(candidate, options)
    cases = [case, baseline] if isinstance(baseline, Case) else [case]
    score = _scoring(candidate, limits, options)
    with progress(quiet=quiet) as emit, host_of(options["device"], cases, options) as host:
        report = gate(
            case,
            baseline,
            limits,
            seed=options["seed"],
            effort=effort,
            score=score,
            command=shlex.join(["tlc", *sys.argv[1:]]),
            on_progress=lambda what, done, total: emit(Progress(what, done, total)),
            host=host,
        )
    _print(report, as_json=as_json)
    _write(report, options, time.monotonic() - start)
    keep(report, label=options["label"], off=options["no_history"])
    sys.exit(EXIT_CODES[report.verdict])


def _limits(candidate: Path, options: Mapping[str, Any]) -> "GateLimits":
    """Return the limits that the options name; where they name none, those of a bundle."""
    from tlc.runtime.bundle import is_bundle, read_manifest
    from tlc.runtime.limits import GateLimits

    limits = GateLimits(
        max_slowdown_ratio=options["max_slowdown"],
        p50_under_ms=options["p50_under"],
        p90_under_ms=options["p90_under"],
        p99_under_ms=options["p99_under"],
        max_memory_bytes=options["max_memory"],
        max_size_bytes=options["max_size"],
        max_drop_points=options["max_drop"],
        per_class_drop_points=options["per_class_drop"],
    )
    return read_manifest(candidate).limits.of_gate if not limits.any and is_bundle(candidate) else limits


def _require_places(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a file that could not be written when everything is measured."""
    for name in _OUTPUTS:
        path = options[name]
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.parent} to write {path.name} to", hint="Create it first.")


def _baseline(path: Path | None, candidate: Path, options: Mapping[str, Any]) -> "Case | StoredBaseline | None":
    from tlc.runtime.stored_report import read_stored

    if path is None:
        return None
    return read_stored(path, str(candidate)) if path.suffix == ".json" else _case(path, options)


def _case(path: Path, options: Mapping[str, Any]) -> "Case":
    sizes = dict(_size(text) for text in options["sizes"])
    return case_of(str(path), path, options, threads=options["threads"], batch=options["batch"], sizes=sizes)


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not (name and value.isdecimal() and int(value)):
        raise UsageError(f"--size {text!r} has no name and length", hint="Write it as --size T=128.")
    return name, int(value)


def _scoring(
    candidate: Path, limits: "GateLimits", options: Mapping[str, Any]
) -> "Callable[[], Sequence[Check]] | None":
    """Return what judges the accuracy; None without --data."""
    data, baseline = options["data"], options["baseline"]
    if data is None:
        return None
    if not limits.needs_accuracy:
        raise UsageError("--data is given, and no limit on accuracy", hint="Give --max-drop or --per-class-drop.")
    if not data.exists():
        raise TlcError(f"no data at {data}", hint="Check the path.")

    if baseline is None or baseline.suffix == ".json":
        return list  # the gate refuses that, and says why
    # Before anything is measured: what is missing, and what is wrong with an option.
    try:
        from tlc.compress.gate_accuracy import disagreements
    except ModuleNotFoundError as error:
        raise TlcError(
            f"a limit on accuracy needs {error.name}, which is not here", hint="pip install 'tlc[compress]'"
        ) from error
    from tlc.runtime.gate_checks import accuracy_checks

    recipes = recipe_from(options, candidate), recipe_from(options, baseline)

    def score() -> "Sequence[Check]":
        overall, by_class = disagreements(*recipes)
        return accuracy_checks(
            overall,
            by_class,
            max_drop_points=limits.max_drop_points,
            per_class_drop_points=limits.per_class_drop_points,
        )

    return score


def _write(report: "GateReport", options: Mapping[str, Any], seconds: float) -> None:
    from tlc.cli.gate_output import code_quality_json, comment, junit_xml, markdown
    from tlc.runtime.artifact import write_text

    if options["output"] is not None:
        write_text(options["output"], report.model_dump_json())
    if options["junit"] is not None:
        write_text(options["junit"], junit_xml(report, seconds))
    if options["comment"] is not None:
        write_text(options["comment"], comment(report))
    if options["code_quality"] is not None:
        write_text(options["code_quality"], code_quality_json(report))
    summary = options["summary"] or os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:  # other steps may have written to it
                file.write(markdown(report))
        except OSError as error:
            raise TlcError(f"cannot write the summary {summary}: {error}", hint="Give another --summary.") from error


def _print(report: "GateReport", *, as_json: bool) -> None:
    from tlc.cli.gate_output import annotations, gate_lines

    click.echo(report.model_dump_json() if as_json else "\n".join(gate_lines(report)))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations(report):
            click.echo(line, err=True)
