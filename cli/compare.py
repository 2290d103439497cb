"""`tlc compare`."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from tlc.cli.cases import limit_options, limits_from, with_target_of
from tlc.cli.options import data_options, model_options, recipe_from, recipe_options
from tlc.cli.progress import progress
from tlc.runtime.errors import UsageError

_PATH = click.Path(path_type=Path)
_PICTURES = 200


@click.command("compare", short_help="Say what two models differ in: time, memory, answers, outputs.")
@click.argument("a", type=_PATH)
@click.argument("b", type=_PATH)
@data_options(required=True, multiple=True)
@model_options
@recipe_options
@click.option("--threads", type=click.IntRange(1), help="Cores for one inference.  [default: the target's]")
@click.option("--duration", default="3s", show_default=True, help="Timed runs of each model.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of blocks, instead of --duration.")
@click.option("--launches", type=click.IntRange(1), default=3, show_default=True, help="Starts of every process.")
@limit_options
@click.option("--html", type=_PATH, help="Write a page with the samples whose answer changed.")
@click.option("--md", type=_PATH, help="Write Markdown for a pull request.")
@click.option("--label", default="", help="Of the run in the history, such as a commit.")
@click.option("--no-history", is_flag=True, help="Leave the run out of the history.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def compare_command(
    a: Path,
    b: Path,
    data: tuple[Path, ...],
    html: Path | None,
    md: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare B with A: latency ratio, memory, size, and accuracy on the same evaluation samples.

    Give --data several times to see a drop that only one domain has. Exit status 0 whatever is found: `tlc gate`
    decides.

    \b
    Examples:
      tlc compare model.onnx int8.onnx --data photos/ --html compare.html
      tlc compare model.onnx int8.onnx --data day/ --data night/
    """
    from tlc.cli import compare_output
    from tlc.cli.history import keep
    from tlc.compress.compare import compare
    from tlc.runtime.artifact import write_text
    from tlc.runtime.bench import Timing
    from tlc.runtime.limits import parse_ms

    seconds = parse_ms(options["duration"]) / 1000
    for path in (html, md):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"There is no folder {path.parent} for {path.name}", hint="Make it, or name another.")
    options = with_target_of((a, b), options)
    recipe_a, recipe_b = (recipe_from({**options, "data": data[0]}, model) for model in (a, b))
    timing = Timing(seconds, options["rounds"], options["launches"], recipe_a.seed)
    limits = limits_from(options)
    with progress(quiet=quiet) as emit:
        found = compare(
            recipe_a,
            recipe_b,
            data,
            timing,
            limits=limits,
            threads=options["threads"],
            pictures=_PICTURES if html is not None else 0,
            command=shlex.join(["tlc", *sys.argv[1:]]),
            emit=emit,
        )
    if html is not None:
        write_text(html, compare_output.html(found.report, found.pictures, limit=_PICTURES))
    if md is not None:
        write_text(md, compare_output.markdown(found.report))
    if found.report.bench is not None:
        keep(found.report.bench, label=options["label"], off=options["no_history"])
    click.echo(found.report.model_dump_json() if as_json else "\n".join(compare_output.lines(found.report)))
