"""Options that several commands share, and how they become a recipe."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tlc.runtime.errors import UsageError

if TYPE_CHECKING:
    from tlc.compress.recipe import ModelSection, Recipe

F = TypeVar("F", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)

MODEL_KEYS = {
    "arch": "model.arch",
    "num_classes": "model.num_classes",
    "input_shape": "model.preprocess.input",
    "resize": "model.preprocess.resize",
    "mean": "model.preprocess.mean",
    "std": "model.preprocess.std",
    "interpolation": "model.preprocess.interpolation",
    "channels": "model.preprocess.channels",
    "tokenizer": "model.tokenizer",
    "max_length": "model.max_length",
}
BUDGET_KEYS = {
    "max_drop": "budget.max_drop_points",
    "confident": "budget.confident",
    "max_latency": "budget.max_latency_ms",
    "max_size": "budget.max_size_bytes",
    "max_memory": "budget.max_memory_bytes",
    "objective": "budget.objective",
}
OTHER_KEYS = {
    "data": "data.path",
    "text_column": "data.text_column",
    "pair_column": "data.pair_column",
    "label_column": "data.label_column",
    "unlabeled": "data.unlabeled",
    "skip_bad": "data.skip_bad",
    "target": "target",
    "seed": "seed",
    **BUDGET_KEYS,
    "student": "distill.student",
    "epochs": "train.epochs",
    "prune": "prune.ratio",
}


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.replace(",", " ").split())
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406") from error


def _shape(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    from tlc.compress.inputs import parse_input

    return None if value is None else parse_input(value)


def _resize(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | tuple[int, int] | None:
    """Return HxW as numbers; the recipe reads everything else."""
    height, cross, width = (value or "").partition("x")
    return (int(height), int(width)) if cross and height.isdecimal() and width.isdecimal() else value


def model_options(function: F) -> F:
    """Add the options that say what the model is and how it wants its images or texts."""
    function = preprocess_options(function)
    function = click.option("--max-length", type=click.IntRange(8), help="Most tokens of a text.")(function)
    function = click.option("--tokenizer", type=_PATH, help="Folder with tokenizer.json, where the model's has none.")(
        function
    )
    function = click.option("--num-classes", type=click.IntRange(2), help="Where the weights do not tell.")(function)
    return click.option("--arch", help="torchvision:NAME, timm:NAME, FILE.py:FUNCTION or hf:DIR.")(function)


def preprocess_options(function: F) -> F:
    """Add the options that say how a model wants its images."""
    for option in reversed(
        [
            click.option("--input", "input_shape", callback=_shape, metavar="CxHxW", help="The model's input."),
            click.option(
                "--resize",
                callback=_resize,
                metavar="N|HxW|none",
                help="Before the crop: short side, exact size, or nothing.",
            ),
            click.option("--mean", callback=_numbers, metavar="A,B,C", help="Per channel, of values in [0, 1]."),
            click.option("--std", callback=_numbers, metavar="A,B,C", help="Per channel, of values in [0, 1]."),
            click.option("--interpolation", type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"])),
            click.option("--channels", type=click.Choice(["rgb", "bgr", "gray"])),
        ]
    ):
        function = option(function)
    return function


def data_options(*, required: bool, multiple: bool = False) -> Callable[[F], F]:
    """Add the options that say where the data is; `multiple` makes `data` a tuple of any number."""

    def add(function: F) -> F:
        for option in reversed(
            [
                click.option(
                    "--data",
                    type=_PATH,
                    required=required,
                    multiple=multiple,
                    help="ImageFolder directory, .zip or .tar of it, .npz; texts as .csv, .tsv, .jsonl or .parquet.",
                ),
                click.option("--text-column", metavar="NAME", help="Texts, words or questions, if not found by name."),
                click.option("--pair-column", metavar="NAME", help="Second text of a pair, or context of a question."),
                click.option("--label-column", metavar="NAME", help="Classes, tags or answers."),
                click.option("--skip-bad", is_flag=True, default=None, help="Leave unreadable samples out."),
            ]
        ):
            function = option(function)
        return function

    return add


def quantity(option: str, parser: str, metavar: str, what: str) -> Callable[[F], F]:
    """Return an option whose text, with its unit, a function of `tlc.runtime.limits` reads."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> float | int | None:
        from tlc.runtime import limits

        parse: Callable[[str], float | int] = getattr(limits, parser)
        try:
            return None if value is None else parse(value)
        except UsageError as error:
            raise click.BadParameter(f"{error.message}. {error.hint}", ctx, param) from error

    return click.option(option, callback=read, metavar=metavar, help=what)


def max_drop_option(function: F) -> F:
    """Add `--max-drop`."""
    return click.option(
        "--max-drop", type=click.FloatRange(0, 100), help="Largest loss of top-1, in points; 1 by default."
    )(function)


def budget_options(function: F) -> F:
    """Add the limits of a budget, and what is wanted within them."""
    for option in reversed(
        [
            max_drop_option,
            click.option(
                "--confident", is_flag=True, default=None, help="Hold the whole 95 % interval of the loss within it."
            ),
            quantity("--max-latency", "parse_ms", "TIME", "Largest p50 on the target at batch 1: 5ms."),
            quantity("--max-size", "parse_bytes", "SIZE", "Largest file: 2MB."),
            quantity("--max-memory", "parse_bytes", "SIZE", "Largest peak memory: 50MB."),
            click.option(
                "--objective",
                type=click.Choice(["fastest", "smallest", "most-accurate"]),
                help="What to choose within the limits; fastest by default.",
            ),
        ]
    ):
        function = option(function)
    return function


def recipe_options(function: F) -> F:
    """Add `--recipe`, `--set` and the settings that every command with a recipe has."""
    for option in reversed(
        [
            click.option("--recipe", "recipe_file", type=_PATH, help="TOML file of settings; `tlc init` writes one."),
            click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting of the recipe."),
            click.option("--target", help="Device: a name of `tlc targets`, or FILE.toml.  [default: cpu-x86]"),
            click.option("--seed", type=click.IntRange(0), help="Seed of every random choice.  [default: 0]"),
        ]
    ):
        function = option(function)
    return function


def model_from(options: Mapping[str, Any], model: Path) -> "ModelSection":
    """Return what the model's options say."""
    from tlc.compress.recipe import read_model

    given = {key: options[name] for name, key in MODEL_KEYS.items() if options.get(name) is not None}
    return read_model({key.removeprefix("model."): value for key, value in {"model.path": model, **given}.items()})


def recipe_from(options: Mapping[str, Any], model: Path | None = None) -> "Recipe":
    """Return the recipe of `--recipe`, then the options, then `--set`, the later ones on top."""
    from tlc.compress.recipe import parse_override, read_recipe

    overrides: dict[str, object] = {} if model is None else {"model.path": model}
    for name, key in {**MODEL_KEYS, **OTHER_KEYS}.items():
        if options.get(name) is not None:
            overrides[key] = options[name]
    overrides.update(parse_override(text) for text in options.get("settings", ()))
    return read_recipe(options.get("recipe_file"), overrides)
