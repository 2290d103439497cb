"""What a run will do: model and data read, every setting checked, and what was left to tlc decided."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tlc.calibration.data import Splits, read_data
from tlc.compress.image_work import ImageWork, prepare_images
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.compress.model import Model
from tlc.compress.prune import check_prunable
from tlc.compress.quantize import check_calibration, check_target
from tlc.compress.recipe import Recipe
from tlc.compress.student import check_student, removable_blocks
from tlc.runtime.artifact import sha256_file, sha256_json
from tlc.runtime.errors import TlcError
from tlc.runtime.target import Target, load_target

ENOUGH_TO_RETRAIN = 1000
"""Fewer training samples than this, and tlc does not retrain a network on its own account."""
_AUTO_STUDENT = "depth:0.5"
_AUTO_BLOCKS = 4
_AUTO_PRUNE_RATIO = 0.25


@dataclass(frozen=True, slots=True)
class Decision:
    """What a stage will do and why; `value` is None where it does nothing."""

    value: str | float | None
    reason: str


Network: TypeAlias = Model
"""A network with what feeds it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is known before the first expensive step."""

    recipe: Recipe
    target: Target
    model: Model
    model_sha256: str
    splits: Splits
    student: Decision
    prune: Decision

    def start(self, cache: Path) -> ImageWork:
        """Return the stages of the run, with the data prepared."""
        data = prepare_images(self.splits, self.model.preprocess, cache)
        return ImageWork(self.recipe, self.target, self.model.preprocess, self.splits.classes, data)


def make_plan(recipe: Recipe) -> Plan:
    """Read model and data, check every setting against them, and decide what is left to tlc to decide.

    Raises:
        TlcError: anything that would fail later and can be known now.

    """
    target = load_target(recipe.target)
    model_sha256 = model_digest(recipe.model.path)
    splits = read_splits(recipe)
    model = load_model(
        recipe.model.path,
        arch=recipe.model.arch,
        num_classes=recipe.model.num_classes,
        input_shape=observed_shape(splits, recipe.model.preprocess),
        preprocess=recipe.model.preprocess,
    )
    _check_sizes(recipe, model, splits)
    splits = splits.for_model(model.num_classes, model.classes)
    check_calibration(len(splits.fit), recipe.quantize)
    if "int8" in target.precisions:
        check_target(target, recipe.quantize)
    student, prune = _decide_student(recipe, model, splits), _decide_prune(recipe, model, splits)
    return Plan(recipe, target, model, model_sha256, splits, student, prune)


def model_digest(path: Path) -> str:
    """Return the sha256 of a model file, or over the files of a model folder.

    Raises TlcError where there is none.
    """
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise TlcError(f"There is no model at {path}.", hint="Give the path of a .pt file or of a model's folder.")
    return sha256_json({f.name: sha256_file(f) for f in sorted(path.iterdir()) if f.is_file()})


def read_splits(recipe: Recipe) -> Splits:
    """Read and split the recipe's data; its classes are not compared with any model's yet."""
    return read_data(
        recipe.data.path,
        holdout_ratio=recipe.data.holdout_ratio,
        evaluation_ratio=recipe.data.evaluation_ratio,
        seed=recipe.seed,
        skip_bad=recipe.data.skip_bad,
    )


def observed_shape(splits: Splits, options: PreprocessOptions) -> tuple[int, int, int] | None:
    """Return (C, H, W) of the images where all have one size; it counts where neither weights nor options tell."""
    if splits.image_size is None:
        return None
    return (1 if options.channels == "gray" else 3, *splits.image_size)


def _check_sizes(recipe: Recipe, model: Model, splits: Splits) -> None:
    """Refuse to cut out the centre of images of another size where nobody asked for that."""
    fed = model.preprocess
    if fed.resize is None and recipe.model.preprocess.resize is None and splits.image_size != fed.size:
        wanted = f"{fed.size[0]}x{fed.size[1]}"
        found = f"{splits.image_size[0]}x{splits.image_size[1]}" if splits.image_size else "of several sizes"
        raise TlcError(
            f"The images are {found}, the model's input is {wanted}, and how to get there is not known.",
            hint=f"Pass --resize {wanted} to scale them, or --resize none to cut out the centre.",
        )


def _decide_student(recipe: Recipe, model: Model, splits: Splits) -> Decision:
    spec = recipe.distill.student
    if spec == "none":
        return Decision(None, "Switched off by student = none.")
    if spec != "auto":
        check_student(model, spec)
        return Decision(spec, "Asked for.")
    count = len(splits.fit)
    if count < ENOUGH_TO_RETRAIN:
        return Decision(None, f"{count} training images are too few to retrain on (limit {ENOUGH_TO_RETRAIN}).")
    blocks = len(removable_blocks(model))
    if blocks < _AUTO_BLOCKS:
        return Decision(None, f"The network has {blocks} blocks that could be taken out (limit {_AUTO_BLOCKS}).")
    return Decision(_AUTO_STUDENT, f"{blocks} blocks could be taken out; half of them stay.")


def _decide_prune(recipe: Recipe, model: Model, splits: Splits) -> Decision:
    settings = recipe.prune
    if settings.ratio == 0:
        return Decision(None, "Switched off by ratio = 0.")
    goal = settings.ratio or settings.macs_ratio or settings.params_ratio
    if goal is not None:
        check_prunable(model, settings)
        return Decision(goal, "Asked for.")
    count = len(splits.fit)
    if count < ENOUGH_TO_RETRAIN:
        return Decision(None, f"{count} training images are too few to recover with (limit {ENOUGH_TO_RETRAIN}).")
    try:
        check_prunable(model, settings)
    except TlcError as refusal:
        return Decision(None, refusal.message)
    return Decision(_AUTO_PRUNE_RATIO, "tlc's own choice; kept if it pays.")
