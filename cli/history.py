"""`tlc history`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.runtime.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tlc.runtime.history import History, Row
    from tlc.runtime.history_trend import Trend

_PATH = click.Path(path_type=Path)
_SHOWN = ("p50_ms", "p99_ms", "peak_memory_bytes", "size_bytes", "joules_per_run", "top1_ratio")
_TELLING = 12  # runs below which hardly any order is rare enough to be a change

_store = click.option("--store", type=_PATH, metavar="FILE", help="History to use.  [default: $TLC_HISTORY]")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        [
            click.option("--model", metavar="NAME", help="Only this model."),
            click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this metric; repeatable."),
            click.option("--setting", metavar="TEXT", help="Only settings that contain this, such as 'threads 1'."),
            click.option("--machine", metavar="ID", help="Only the machine whose identifier begins so."),
        ]
    ):
        function = option(function)
    return function


class _ListByDefault(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take `tlc history --last 5` for `tlc history list --last 5`."""
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("history", cls=_ListByDefault, short_help="Show what was measured before, and where it changed.")
def history_command() -> None:
    """Show what was measured before, and where it changed.

    tlc bench, tlc compare, tlc gate and tlc compress append every run to a local SQLite file: TLC_HISTORY names it, and
    switches that off if it is "". Without a command the last runs are listed.

    \b
    Examples:
      tlc history
      tlc history trend --model model.onnx --html trend.html
    """


@history_command.command("list", short_help="List the last runs.")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option("--model", metavar="NAME", help="Only runs that measured this model.")
@_store
@_as_json
def list_command(last: int, model: str | None, store: Path | None, as_json: bool) -> None:
    """List the last runs, the newest at the end.

    \b
    Example: tlc history list --last 5 --model model.onnx
    """
    from tlc.cli.wording import shortened

    with _opened(store) as history:
        runs = history.runs(last=last, model=model)
        path = history.path
    if as_json:
        click.echo(json.dumps([run._asdict() for run in runs], indent=1))
        return
    if not runs:
        click.echo(f"{path} has no run{f' of {model}' if model else ''}.", err=True)
        return
    header = ("run", "time", "what", "outcome", "models", "machine", "label", "warnings")
    rows = [
        (
            str(run.run),
            run.time_utc[:16].replace("T", " "),
            run.kind,
            shortened(run.outcome, 30),
            shortened(run.models, 40),
            run.machine,
            shortened(run.label, 24),
            run.warnings,
        )
        for run in runs
    ]
    for line in _aligned([header, *rows]):
        click.echo(line)


@history_command.command("trend", short_help="Show where a model's numbers moved to a new level.")
@_filters
@click.option(
    "--alpha", type=click.FloatRange(0.001, 0.2), default=0.01, show_default=True, help="Share of false alarms."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the permutations.")
@click.option("--html", type=_PATH, metavar="FILE", help="Write a page with plots.")
@_store
@_as_json
def trend_command(
    metrics: tuple[str, ...],
    alpha: float,
    seed: int,
    html: Path | None,
    store: Path | None,
    as_json: bool,
    **wanted: str | None,
) -> None:
    """Show the series of every model, and the change points in them.

    Runs of one machine, one setting and one model name form a series. A change point is where everything after differs
    from what was before; a single slow run is none. Of a series without a change, --alpha is the chance of a false one.

    \b
    Example: tlc history trend --model model.onnx --metric p50_ms --html trend.html
    """
    from tlc.runtime.history_trend import trend

    _check_metrics(metrics)
    if html is not None:
        _require_plots()
    with _opened(store) as history:
        found = [series for name in metrics or _SHOWN for series in history.series(metric=name, **wanted)]
        machines = history.machines()
        path = history.path
    trends = [trend(series, alpha=alpha, seed=seed) for series in found]
    if html is not None:
        from tlc.cli.history_page import write_page

        write_page(html, trends, machines, alpha)
    if as_json:
        click.echo(json.dumps([_as_object(each) for each in trends], indent=1))
    elif not trends:
        click.echo(f"{path} has nothing of that; tlc history lists its runs.", err=True)
    else:
        _print_trends(trends, machines)
    if html is not None:
        click.echo(f"wrote {html}", err=True)


@history_command.command("show", short_help="Print the report of one run.")
@click.argument("run", type=click.IntRange(1))
@click.option("-o", "--output", type=_PATH, metavar="FILE", help="Write it there instead.")
@_store
def show_command(run: int, output: Path | None, store: Path | None) -> None:
    """Print the report of one run as JSON, every sample included: also a stored baseline for tlc gate.

    \b
    Example: tlc history show 1 -o baseline.json
    """
    from tlc.runtime.artifact import write_text

    with _opened(store) as history:
        text = json.dumps(history.report(run), ensure_ascii=False)
    if output is None:
        click.echo(text)
    else:
        write_text(output, text + "\n")


@history_command.command("export", short_help="Write all numbers to a .csv or .parquet file.")
@click.argument("file", type=_PATH)
@_filters
@_store
def export_command(file: Path, metrics: tuple[str, ...], store: Path | None, **wanted: str | None) -> None:
    """Write one row per number to FILE, as its suffix says: .csv or .parquet.

    \b
    Example: tlc history export numbers.csv --metric p50_ms
    """
    from tlc.runtime.artifact import write_bytes

    if file.suffix not in (".csv", ".parquet"):
        raise UsageError(f"{file} is neither .csv nor .parquet", hint="Name the file so.")
    _check_metrics(metrics)
    with _opened(store) as history:
        rows = [row for name in metrics or (None,) for row in history.rows(metric=name, **wanted)]
    write_bytes(file, _csv(rows) if file.suffix == ".csv" else _parquet(rows))
    click.echo(f"wrote {len(rows)} rows to {file}", err=True)


@history_command.command("import", short_help="Append reports that were measured elsewhere, such as in CI.")
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@click.option("--label", default="", help="Of the runs, such as a branch.")
@_store
@_as_json
def import_command(paths: tuple[Path, ...], label: str, store: Path | None, as_json: bool) -> None:
    """Append the reports in PATHS: .json files, folders, .zip archives of CI. What is there already is left out.

    \b
    Example: tlc history import artifacts/ ci.zip
    """
    from tlc.cli.wording import printable
    from tlc.runtime.history_import import import_files

    with _opened(store, must_exist=False) as history:
        found = import_files(history, paths, label=label)
    for reason in found.skipped:
        click.echo(f"skipped: {printable(reason)}", err=True)
    if as_json:
        click.echo(json.dumps({"added": found.added, "duplicates": found.duplicates, "skipped": found.skipped}))
    else:
        click.echo(f"{len(found.added)} added, {found.duplicates} there already, {len(found.skipped)} skipped")


def keep(report: "BaseModel", *, label: str = "", off: bool = False) -> None:
    """Append a report to the history, as `append_to_history` does; where it cannot be written, warn on stderr.

    What was measured is measured: the exit status of a gate in CI does not depend on a folder that is read-only.
    """
    from tlc.runtime.errors import TlcError
    from tlc.runtime.history import append_to_history

    try:
        append_to_history(report, label=label, off=off)
    except TlcError as error:
        click.echo(f"warning: this run is not kept: {error.message}\nhint: {error.hint}", err=True)


def _opened(store: Path | None, *, must_exist: bool = True) -> "History":
    from tlc.runtime.history import History, history_path

    path = store or history_path()
    if path is None:
        raise UsageError('the history is switched off by TLC_HISTORY=""', hint="Unset it, or give --store FILE.")
    return History(path, must_exist=must_exist)


def _check_metrics(names: Sequence[str]) -> None:
    from tlc.runtime.history_facts import METRICS, OVER

    for name in names:
        if name not in METRICS and not name.startswith(OVER):
            raise UsageError(f"there is no metric {name!r}", hint=f"One of: {', '.join(METRICS)}, '{OVER}MODEL'.")


def _require_plots() -> None:
    from importlib.util import find_spec

    from tlc.runtime.errors import TlcError

    absent = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if absent:
        raise TlcError(
            f"--html needs {' and '.join(absent)}",
            hint="Install tlc with its extra, from a clone: pip install '.[compress]'; or export to .csv.",
        )


def _csv(rows: "Sequence[Row]") -> bytes:
    import csv
    import io

    from tlc.runtime.history import Row

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([Row._fields, *rows])
    return text.getvalue().encode()


def _parquet(rows: "Sequence[Row]") -> bytes:
    from tlc.runtime.errors import TlcError
    from tlc.runtime.history import Row

    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise TlcError(".parquet needs pyarrow", hint="pip install pyarrow, or export to .csv.") from error
    kinds = {"run": pa.int64(), "value": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in Row._fields])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([row._asdict() for row in rows], schema=schema), sink)
    return bytes(sink.getvalue())


def _as_object(trend: "Trend") -> dict[str, Any]:
    series = trend.series
    return {
        "model": series.model,
        "setting": series.setting,
        "machine": series.machine,
        "metric": series.metric,
        "points": [
            {"run": p.run, "time_utc": p.time_utc, "label": p.label, "sha256": p.sha256, "value": p.value}
            for p in series.points
        ],
        "changes": [
            {
                "run": change.first.run,
                "time_utc": change.first.time_utc,
                "before": change.before,
                "after": change.after,
                "better": change.better,
                "file_changed": change.file_changed,
            }
            for change in trend.changes
        ],
    }


def _print_trends(trends: "Sequence[Trend]", machines: Mapping[str, Mapping[str, Any]]) -> None:
    from tlc.cli.history_wording import change_words, level_words, series_words
    from tlc.cli.wording import plural, printable
    from tlc.runtime.history_facts import metric

    groups: dict[str, list[Trend]] = {}
    for trend in sorted(trends, key=lambda each: (each.series.model, each.series.setting, each.series.machine)):
        groups.setdefault(series_words(trend.series, machines), []).append(trend)
    for title, group in groups.items():
        click.secho(title, bold=True)
        rows = []
        for trend in group:
            series = trend.series
            few = len(series.points) < _TELLING
            rows.append(
                (
                    f"  {printable(metric(series.metric).title)}",
                    level_words(series.metric, trend.levels[-1].value),
                    plural(len(series.points), "run"),
                    "" if trend.changes else "too few to tell a change" if few else "no change",
                )
            )
            rows += [("", "", "", change_words(series.metric, change)) for change in trend.changes]
        for line in _aligned(rows):
            click.echo(line)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
