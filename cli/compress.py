"""`tlc compress`, `tlc demo` and `tlc init`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.options import budget_options, data_options, model_options, quantity, recipe_from, recipe_options
from tlc.cli.progress import progress

if TYPE_CHECKING:
    from tlc.runtime.report import Report

_PATH = click.Path(path_type=Path)
_out = click.option("--out", type=_PATH, default=Path("tlc-out"), show_default=True, help="Folder of the run.")
_resume = click.option("--resume", is_flag=True, help="Go on with the run in --out; reuse what is unchanged.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
_quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


@click.command("compress", short_help="Make a model smaller and faster, and measure it beside the original.")
@click.argument("model", type=_PATH, required=False)
@data_options(required=False)
@model_options
@click.option("--unlabeled", type=_PATH, help="More texts, without labels, to distil on.")
@click.option("--student", metavar="SPEC", help="auto, none, depth:0.5, width:0.75, width:2, A+B, or an --arch.")
@click.option("--epochs", type=click.IntRange(0), help="Passes over the training samples to distil.")
@click.option(
    "--prune", type=click.FloatRange(0, 1, max_open=True), metavar="RATIO", help="Share of channels to remove."
)
@budget_options
@quantity("--time-limit", "parse_s", "90min", "Search for the student that the budget asks for, for so long.")
@recipe_options
@_out
@_resume
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan with estimated times, and stop.")
@_json
@_quiet
def compress_command(
    model: Path | None,
    out: Path,
    time_limit: float | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Take MODEL through a smaller student, pruning and INT8, and measure each step beside the original.

    What ships is the best of the measured files, by --objective, that keeps the budget: --max-drop, --max-latency,
    --max-size and --max-memory. Where none does, all files are kept, the closest ships, and the exit status is 1.

    \b
    Examples:
      tlc compress model.pt --arch torchvision:resnet18 --data photos/
      tlc compress model.pt --arch net.py:build --input 3x32x32 --data images.zip --student depth:0.5
      tlc compress my-bert-classifier/ --data reviews.csv --max-drop 0.5 --max-latency 5ms --max-size 20MB
      tlc compress model.pt --arch torchvision:resnet18 --data photos/ --max-drop 0.5 --time-limit 90min
      tlc compress --recipe tlc.toml --resume
    """
    from tlc.compress.estimate import plan_lines
    from tlc.compress.pipeline import compress
    from tlc.compress.plan import make_plan

    recipe = recipe_from(options, model)
    if time_limit is not None:
        from tlc.compress.search import compress_within, search_lines

        if dry_run:
            click.echo("\n".join(search_lines(recipe, out, limit_s=time_limit)))
            return
        with progress(quiet=quiet) as emit:
            report = compress_within(recipe, out, limit_s=time_limit, resume=resume, emit=emit, command=command_line())
        present(report, out, as_json=as_json)
        return
    if dry_run:
        for line in plan_lines(make_plan(recipe)):
            click.echo(line)
        return
    with progress(quiet=quiet) as emit:
        report = compress(recipe, out, resume=resume, emit=emit, command=command_line())
    present(report, out, as_json=as_json)


@click.command("demo", short_help="Train a small network on scikit-learn's digits and compress it.")
@click.option("--out", type=_PATH, default=Path("tlc-out/demo"), show_default=True, help="Folder of the run.")
@_resume
@_json
@_quiet
def demo_command(out: Path, resume: bool, as_json: bool, quiet: bool) -> None:
    """Train a small network on scikit-learn's digits, then compress it as `tlc compress` would.

    \b
    Example: tlc demo --out tlc-out/demo
    """
    from tlc.compress.demo import write_demo_inputs
    from tlc.compress.pipeline import compress

    with progress(quiet=quiet) as emit:
        recipe = write_demo_inputs(out.with_name(out.name + "-inputs"), emit)
        report = compress(recipe, out, resume=resume, emit=emit, command=command_line())
    present(report, out, as_json=as_json)


@click.command("init", short_help="Write a commented recipe.")
@click.argument("file", type=_PATH, default=Path("tlc.toml"))
@click.option("--model", default="model.pt", show_default=True, help="The model to name in it.")
@click.option("--data", default="data", show_default=True, help="The data to name in it.")
def init_command(file: Path, model: str, data: str) -> None:
    """Write FILE, a recipe that lists every setting with its meaning and default.

    \b
    Example: tlc init tlc.toml --model model.pt --data photos
    """
    from tlc.compress.recipe import recipe_template
    from tlc.runtime.artifact import write_text
    from tlc.runtime.errors import TlcError

    if file.exists():
        raise TlcError(f"{file} exists and is not overwritten.", hint="Name another file, or remove it first.")
    write_text(file, recipe_template(model, data))
    click.echo(f"Wrote {file}. Edit it, then run: tlc compress --recipe {file}", err=True)


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["tlc", *sys.argv[1:]])


def present(report: "Report", out: Path, *, as_json: bool, measured: bool = True) -> None:
    """Write the report, print it and, where it was `measured` now, keep it in the history.

    Raises TlcError where the budget is not met, when all is written.
    """
    from rich.console import Console

    from tlc.cli.history import keep
    from tlc.cli.report import print_report, write_report
    from tlc.runtime.errors import TlcError

    write_report(report, out)
    if as_json:
        click.echo(report.model_dump_json())
    else:
        print_report(report, Console(file=sys.stdout, highlight=False))
        click.echo(f"\nReport: {out / 'report.html'}   Ships: {out / 'model.onnx'} ({report.chosen})")
    if measured:
        keep(report)
    if not report.budget_met:
        raise TlcError(
            f"The budget is not met: {report.budget.words}. All files are in {out}; {report.chosen} ships.",
            hint=f"tlc select {shlex.quote(str(out))} chooses by another budget.",
        )
