"""One command per stage: `tlc distill | prune | export | quantize | eval`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tlc.cli.cases import with_target_of
from tlc.cli.options import data_options, max_drop_option, model_from, model_options, recipe_from, recipe_options
from tlc.cli.progress import progress

F = TypeVar("F", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_model = click.argument("model", type=_PATH)
_quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")
_student = click.option(
    "--student", metavar="SPEC", required=True, help="depth:0.5, width:0.75, width:2, A+B, or an --arch."
)
_epochs = click.option("--epochs", type=click.IntRange(0), help="Passes over the training samples.")
_ratio = click.option(
    "--ratio", "prune", type=click.FloatRange(0, 1, min_open=True, max_open=True), required=True,
    help="Share of channels to remove.",
)  # fmt: skip


def _output(what: str) -> Callable[[F], F]:
    return click.option("-o", "--output", type=_PATH, required=True, help=what)


@click.command("distill", short_help="Train a smaller student towards the model.")
@_model
@data_options(required=True)
@model_options
@_student
@_epochs
@recipe_options
@_output("Folder to write the student to.")
@_quiet
def distill_command(model: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Train a student towards MODEL and write it as a tlc checkpoint.

    \b
    Example: tlc distill model.pt --arch torchvision:resnet50 --data photos/ --student depth:0.5 -o student
    """
    from tlc.compress.steps import distill_to

    with progress(quiet=quiet) as emit:
        distill_to(recipe_from(options, model), output, emit)
    click.echo(output)


@click.command("prune", short_help="Remove channels and let the network recover.")
@_model
@data_options(required=True)
@model_options
@_ratio
@recipe_options
@_output("Folder to write the pruned network to.")
@_quiet
def prune_command(model: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Remove channels of MODEL, let it recover, and write it as a tlc checkpoint.

    \b
    Example: tlc prune model.pt --arch torchvision:resnet18 --data photos/ --ratio 0.3 -o pruned
    """
    from tlc.compress.steps import prune_to

    with progress(quiet=quiet) as emit:
        prune_to(recipe_from(options, model), output, emit)
    click.echo(output)


@click.command("export", short_help="Write a model as ONNX and check it against torch.")
@_model
@model_options
@click.option("--target", default="cpu-x86", show_default=True, help="Device: a name of `tlc targets`, or FILE.toml.")
@_output("ONNX file to write.")
def export_command(model: Path, output: Path, target: str, **options: Any) -> None:
    """Write MODEL as float32 ONNX, checked against torch.

    \b
    Example: tlc export model.pt --arch torchvision:resnet18 -o model.onnx
    """
    from tlc.compress.steps import export_to

    error = export_to(model_from(options, model), output, target)
    click.echo(f"{output}: largest difference from torch {error:.2e}")


@click.command("quantize", short_help="Write a model or ONNX file as INT8 ONNX.")
@_model
@data_options(required=True)
@model_options
@max_drop_option
@recipe_options
@_output("ONNX file to write.")
@_quiet
def quantize_command(model: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Write MODEL (or a float ONNX file) as INT8 ONNX, calibrated on the training samples.

    \b
    Example: tlc quantize model.pt --arch torchvision:resnet18 --data photos/ -o int8.onnx
    """
    from tlc.compress.steps import quantize_to

    with progress(quiet=quiet) as emit:
        recipe = recipe_from(options, model)
        outcome = quantize_to(recipe, output, emit)
    click.echo(f"{output}: {outcome.summary}")
    if not outcome.met:
        raise click.ClickException(f"That is over the budget of {recipe.budget.max_drop_points:g} points.")


@click.command("eval", short_help="Score models and ONNX files on the evaluation samples.")
@click.argument("models", type=_PATH, nargs=-1, required=True)
@data_options(required=True)
@model_options
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print every score as JSON.")
def eval_command(models: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Score MODELS, bundles among them, on the evaluation samples; later ones are also compared with the first.

    \b
    Example: tlc eval model.onnx int8.onnx --data photos/
    """
    import json

    from tlc.compress.steps import evaluate_files

    options = with_target_of(models, options)
    rows = evaluate_files([recipe_from(options, model) for model in models])
    if as_json:
        click.echo(json.dumps([row.model_dump(mode="json") for row in rows]))
        return
    for row in rows:
        line = f"{row.path}: top-1 {100 * row.accuracy.top1:.2f} % ({row.accuracy.correct} of {row.accuracy.samples})"
        if row.change is not None:
            change = row.change.change_points
            line += f", {change.estimate:+.2f} points [{change.low:+.2f}, {change.high:+.2f}] against {rows[0].path}"
        click.echo(line)
