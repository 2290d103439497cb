"""`tlc sensitivity`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.options import data_options, model_options, recipe_from, recipe_options
from tlc.cli.progress import progress

if TYPE_CHECKING:
    from tlc.compress.sensitivity_report import Treatment

_PATH = click.Path(path_type=Path)
NAMES = ("int8", "channels-25", "channels-50", "removed")


def _treatments(_ctx: click.Context, _param: click.Parameter, value: str | None) -> "tuple[Treatment, ...]":
    found = NAMES if value is None else tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    if unknown := [name for name in found if name not in NAMES]:
        raise click.BadParameter(f"{unknown[0]!r} is no treatment; there are {', '.join(NAMES)}")
    return found  # type: ignore[return-value]


@click.command("sensitivity", short_help="Show what each layer and block is worth, in answers and time.")
@click.argument("model", type=_PATH)
@data_options(required=True)
@model_options
@click.option("--treatments", callback=_treatments, metavar="A,B", help=f"What to try.  [default: {','.join(NAMES)}]")
@click.option("--samples", type=click.IntRange(16), default=500, show_default=True, help="Samples to judge by.")
@click.option("--no-latency", is_flag=True, help="Leave time out.")
@recipe_options
@click.option("-o", "--output", type=_PATH, required=True, help="Folder for sensitivity.json and sensitivity.html.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def sensitivity_command(
    model: Path,
    treatments: "tuple[Treatment, ...]",
    samples: int,
    no_latency: bool,
    output: Path,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Try INT8, fewer channels and removal on each layer and block of MODEL alone; nothing is trained.

    Answers are judged on held-out samples, p50 is measured on the target.

    \b
    Example: tlc sensitivity model.pt --arch torchvision:resnet18 --data photos/ -o sensitivity
    """
    from tlc.cli import sensitivity_output
    from tlc.compress.sensitivity import study_model
    from tlc.runtime.errors import UsageError

    recipe = recipe_from(options, model)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; the result is a folder", hint="Name another one: -o sensitivity.")
    with progress(quiet=quiet) as emit:
        found = study_model(
            recipe,
            samples=samples,
            treatments=treatments,
            timed=not no_latency,
            emit=emit,
            command=shlex.join(["tlc", *sys.argv[1:]]),
        )
    sensitivity_output.write(found, output)
    click.echo(found.model_dump_json() if as_json else "\n".join(sensitivity_output.lines(found)))
    if not as_json:
        click.echo(f"\nReport: {output / 'sensitivity.html'}")
