"""The recipe: every setting of a run, from `tlc.toml` and the command line, validated before anything starts."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tlc.calibration.splits import EVALUATION_RATIO, HOLDOUT_RATIO
from tlc.compress.distill import LossSettings
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.prune import PruneSettings
from tlc.compress.quantize import QuantizeSettings
from tlc.compress.train import TrainSettings
from tlc.runtime.budget import Budget
from tlc.runtime.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Sampler = Literal["tpe", "random", "grid", "nsga2"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSection(_Section):
    """The model that comes in."""

    path: Path
    """The fine-tuned model: .pt, .pth, .pt2, .safetensors, a tlc checkpoint or a Hugging Face folder."""
    arch: str | None = None
    """What builds the network: torchvision:NAME, timm:NAME, FILE.py:FUNCTION or hf:DIR; not always needed."""
    num_classes: int | None = Field(None, ge=2)
    """Number of classes, where the weights do not tell."""
    tokenizer: Path | None = None
    """Folder of the text model's tokenizer.json, or that file; absent, the model's own folder."""
    max_length: int | None = Field(None, ge=8)
    """Most tokens of a text, special ones included; absent, what 99.9 % of the training texts fit in."""
    preprocess: PreprocessOptions = PreprocessOptions()
    """What to do to an image, where neither the file nor the architecture says."""


class DataSection(_Section):
    """The data to train, calibrate and evaluate on."""

    path: Path
    """Images: an ImageFolder directory (train/ and val/, or one folder), a .zip or .tar of it, or .npz arrays. Texts: a
    CSV, TSV, JSONL or Parquet file, a folder of train, val and test files of these, or a folder per class."""
    text_column: str | None = None
    """Column of the texts, the words of token classification, or the questions; absent, found by its usual names."""
    pair_column: str | None = None
    """Column of the second text of a pair, or of the questions' contexts."""
    label_column: str | None = None
    """Column of the classes, the words' tags, or the answers."""
    unlabeled: Path | None = None
    """More texts, without labels, to distil on: a file of lines, or a table."""
    holdout_ratio: float = Field(HOLDOUT_RATIO, gt=0, le=0.5)
    """Share of train that is held out of training for early stopping and every choice: at least 200 images where train
    has them to spare, at most 2,500."""
    evaluation_ratio: float = Field(EVALUATION_RATIO, gt=0, le=0.5)
    """Share to evaluate on, when the data has no split of its own."""
    skip_bad: bool = False
    """Leave unreadable images, or broken rows of a table, out instead of stopping; they are counted in the report."""


class DistillSection(LossSettings):
    """The student and what it learns from the teacher."""

    student: str = "auto"
    """auto, none, depth:0.5 (blocks or layers kept), width:0.75 (channels kept), both joined by "+". Images also:
    depth:4,4,4 (kept per stage), width:2 (wider, the same answers), or an architecture as for the model. Texts also:
    depth:3 (layers), heads:0.5, intermediate:0.5, embedding:128 (factorised), vocabulary:data (tokens that the data
    uses)."""


class PruneSection(PruneSettings):
    """Structured pruning after distillation."""

    recovery_epochs: int = Field(3, ge=0)
    """Epochs of training after each pruning step."""
    recovery_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of that training: 0.01 for images, 0.00005 for texts."""


class MeasureSection(_Section):
    """How latency is measured."""

    rounds: int = Field(40, ge=10)
    """Interleaved rounds over all files, in random order; in each, a file has a block of eight runs or more."""
    launches: int = Field(3, ge=1)
    """How often the processes are started anew for the final table: the rounds are shared among them."""


class SearchSection(_Section):
    """How a network is searched for, where there is a time limit."""

    sampler: Sampler = "tpe"
    """What proposes shapes: tpe (Watanabe 2023, arXiv 2304.11127) after those that the latency table points to, or
    random, grid or nsga2 alone."""
    portions: int = Field(3, ge=1, le=6)
    """In how many portions a shape is trained; between two of them it may be given up."""
    factor: int = Field(3, ge=2)
    """One shape in so many is trained on after each portion, for so many times as many epochs in all."""
    finalists: int = Field(5, ge=1, le=10)
    """How many of the best students are measured on the evaluation part at the end."""


class Recipe(_Section):
    """Every setting of `tlc compress`."""

    target: str = "cpu-x86"
    """Device to compress for: a name that `tlc targets` lists, or a TOML file."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice."""
    model: ModelSection
    data: DataSection
    budget: Budget = Budget()
    train: TrainSettings = TrainSettings()
    distill: DistillSection = DistillSection()
    prune: PruneSection = PruneSection()
    quantize: QuantizeSettings = QuantizeSettings()
    measure: MeasureSection = MeasureSection()
    search: SearchSection = SearchSection()


def read_recipe(path: Path | None, overrides: Mapping[str, object]) -> Recipe:
    """Return the recipe of `path` (TOML; None: defaults only) with `overrides` ("train.epochs": 5) on top.

    Relative paths in the file count from the file's own folder. A table [gate] is that of `tlc gate`, and left alone.

    Raises:
        UsageError: the file is missing or not TOML, a key is unknown, or a value is out of its range.

    """
    values: dict[str, Any] = {} if path is None else _read_toml(path)
    values.pop("gate", None)
    if path is not None:
        for section, key in (("model", "path"), ("model", "tokenizer"), ("data", "path"), ("data", "unlabeled")):
            if isinstance(values.get(section), dict) and key in values[section]:
                values[section][key] = path.parent / values[section][key]
    for key, value in overrides.items():
        _put(values, key.split("."), value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(error, path) from error


def read_model(values: Mapping[str, object]) -> ModelSection:
    """Return the model's section alone, for what needs no data.

    Raises:
        UsageError: a value is out of its range.

    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        _put(nested, key.split("."), value)
    try:
        return ModelSection.model_validate(nested)
    except ValidationError as error:
        raise _explained(error, None) from error


def parse_override(text: str) -> tuple[str, object]:
    """Return key and value of `--set KEY=VALUE`; the value is TOML, or a plain string where it is not.

    >>> parse_override("train.epochs=5")
    ('train.epochs', 5)
    >>> parse_override("distill.student=depth:0.5")
    ('distill.student', 'depth:0.5')
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text!r} is not KEY=VALUE.", hint="Write for example --set train.epochs=5.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the recipe {path}: {error.strerror}.", hint="`tlc init` writes one.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", hint="Correct that line.") from error


def _put(values: dict[str, Any], keys: Sequence[str], value: object) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


def _explained(error: ValidationError, path: Path | None) -> UsageError:
    """Return one sentence per wrong setting, with what is allowed."""
    where = f"{path}: " if path else ""
    lines = [_sentence(detail) for detail in error.errors()]
    missing = any(detail["type"] == "missing" for detail in error.errors())
    hint = "Give a model and --data." if missing else "`tlc init` writes a recipe that lists every setting."
    return UsageError(where + "; ".join(lines), hint=hint)


def _sentence(detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        allowed = list(_section(detail["loc"][:-1]).model_fields)
        key = str(detail["loc"][-1])
        close = difflib.get_close_matches(key, allowed, n=1) or [
            f"{section}.{key}"
            for section, info in Recipe.model_fields.items()
            if (inner := _inner_section(info.annotation)) is not None and key in inner.model_fields
        ]
        return f"unknown setting {name} ({f'did you mean {close[0]}?' if close else 'allowed: ' + ', '.join(allowed)})"
    if detail["type"] == "missing":
        return f"{name} is missing"
    reason = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{name} = {detail['input']!r}: {reason}"


def _section(location: Sequence[int | str]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for key in location:
        inner = _inner_section(section.model_fields[str(key)].annotation)
        assert inner is not None, location
        section = inner
    return section


def recipe_template(model: str = "model.pt", data: str = "data") -> str:
    """Return a `tlc.toml` that names every setting with its meaning; defaults are commented out."""
    given = {"model.path": model, "data.path": data}
    return "\n".join(_template_lines(Recipe, "", given)) + "\n"


def _template_lines(section: type[BaseModel], prefix: str, given: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    nested: list[str] = []
    for key, info in section.model_fields.items():
        name = prefix + key
        inner = _inner_section(info.annotation)
        if inner is None:
            lines += _comment(info.description or "")
            lines.append(f"{key} = {_toml(given[name])}" if name in given else f"# {key} = {_default(info)}")
            continue
        # A section that is absent by default stays so: its header is a comment as well.
        header = f"# [{name}]" if info.default is None else f"[{name}]"
        nested += ["", *_comment(info.description or inner.__doc__ or ""), header]
        nested += _template_lines(inner, name + ".", given)
    return lines + nested


def _inner_section(annotation: object) -> type[BaseModel] | None:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _default(info: FieldInfo) -> str:
    return "...  (needed)" if info.is_required() else _toml(info.get_default(call_default_factory=True))


def _comment(text: str) -> list[str]:
    return [f"# {line.strip()}" for line in text.splitlines() if line.strip()]


def _toml(value: object) -> str:
    if value is None:
        return '""  (absent: decided by tlc)'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
