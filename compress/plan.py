"""What a run will do: model and data read, every setting checked, and what was left to tlc decided."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tlc.calibration.data import Splits, read_data
from tlc.calibration.texts import Columns, Task, TextSet, TextSplits, read_texts, read_unlabeled, unlabeled_set
from tlc.calibration.tokens import choose_max_length, token_lengths
from tlc.compress.image_work import ImageWork, prepare_images
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.compress.model import Model
from tlc.compress.objective import Kind
from tlc.compress.prune import check_prunable
from tlc.compress.quantize import check_calibration, check_target
from tlc.compress.recipe import Recipe
from tlc.compress.student import check_student, removable_blocks
from tlc.compress.text_distill import check_text_loss
from tlc.compress.text_layers import transformer_layers
from tlc.compress.text_model import TextModel, is_text_model, load_text_model
from tlc.compress.text_student import check_text_student
from tlc.compress.text_work import text_work
from tlc.compress.work import Work
from tlc.runtime.artifact import sha256_file, sha256_json
from tlc.runtime.capability import missing
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.target import Target, load_target

ENOUGH_TO_RETRAIN = 1000
"""Fewer training samples than this, and tlc does not retrain a network on its own account."""
_AUTO_STUDENT = "depth:0.5"
_AUTO_BLOCKS = 4
_AUTO_PRUNE_RATIO = 0.25
_AUTO_TEXT_STUDENT = "depth:0.5+intermediate:0.5"
_AUTO_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Decision:
    """What a stage will do and why; `value` is None where it does nothing."""

    value: str | float | None
    reason: str


Network: TypeAlias = Model | TextModel
"""A network with what feeds it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is known before the first expensive step."""

    recipe: Recipe
    target: Target
    model: Network
    model_sha256: str
    splits: Splits | TextSplits
    student: Decision
    prune: Decision
    unlabeled: TextSet | None = None
    """Texts to distil on besides."""

    @property
    def kind(self) -> Kind:
        """What the model is for."""
        return "texts" if isinstance(self.model, TextModel) else "images"

    def start(self, cache: Path) -> Work[Any, Any, Any]:
        """Return the stages of the run, with the data prepared."""
        if isinstance(self.model, TextModel):
            assert isinstance(self.splits, TextSplits)
            model = self.model
            return text_work(self.recipe, self.target, model.text, model.tokenizer, self.splits, cache, self.unlabeled)
        assert isinstance(self.splits, Splits)
        data = prepare_images(self.splits, self.model.preprocess, cache)
        return ImageWork(self.recipe, self.target, self.model.preprocess, self.splits.classes, data)


def make_plan(recipe: Recipe) -> Plan:
    """Read model and data, check every setting against them, and decide what is left to tlc to decide.

    Raises:
        TlcError: anything that would fail later and can be known now.

    """
    target = load_target(recipe.target)
    _refuse_limits_without_runtime(recipe, target)
    model_sha256 = model_digest(recipe.model.path)
    if is_text_model(recipe.model.path, recipe.model.arch):
        return _plan_texts(recipe, target, model_sha256)
    return _plan_images(recipe, target, model_sha256)


def _refuse_limits_without_runtime(recipe: Recipe, target: Target) -> None:
    """Refuse limits on what cannot be measured here."""
    given = [key for key in ("max_latency_ms", "max_memory_bytes") if getattr(recipe.budget, key) is not None]
    if given and (reason := missing(target)) is not None:
        raise TlcError(
            f"{', '.join(f'budget.{key}' for key in given)}: latency and memory on {target.name} cannot be measured on "
            f"this machine: {reason}.",
            hint="Leave these limits out here, and hold them on the device: tlc gate --device.",
        )


def _plan_images(recipe: Recipe, target: Target, model_sha256: str) -> Plan:
    _refuse_text_settings(recipe)
    splits = read_splits(recipe)
    model = load_model(
        recipe.model.path,
        arch=recipe.model.arch,
        num_classes=recipe.model.num_classes,
        input_shape=observed_shape(splits, recipe.model.preprocess),
        preprocess=recipe.model.preprocess,
    )
    check_sizes(recipe.model.preprocess, model, splits)
    splits = splits.for_model(model.num_classes, model.classes)
    check_calibration(len(splits.fit), recipe.quantize)
    if "int8" in target.precisions:
        check_target(target, recipe.quantize)
    student, prune = _decide_student(recipe, model, splits), _decide_prune(recipe, model, splits)
    return Plan(recipe, target, model, model_sha256, splits, student, prune)


def _plan_texts(recipe: Recipe, target: Target, model_sha256: str) -> Plan:
    given = recipe.model
    model = load_text_model(given.path, arch=given.arch, tokenizer=given.tokenizer, max_length=given.max_length)
    splits = read_text_splits(recipe, model.text.task)
    if splits.fit.pairs is not None and model.text.task == "sequence-classification":
        model = load_text_model(
            given.path, arch=given.arch, tokenizer=given.tokenizer, max_length=given.max_length, pairs=True
        )
    splits = splits.for_model(model.num_classes, model.classes)
    if given.max_length is None:
        lengths = token_lengths(splits.fit, model.tokenizer)
        model = model.with_max_length(choose_max_length(lengths, model.text.max_length))
    unlabeled = None
    if recipe.data.unlabeled is not None:
        unlabeled = unlabeled_set(read_unlabeled(recipe.data.unlabeled, recipe.data.text_column), splits)
    check_text_loss(recipe.distill)
    check_calibration(len(splits.fit), recipe.quantize)
    if "int8" in target.precisions:
        check_target(target, recipe.quantize)
    student, prune = _decide_text_student(recipe, model, splits), _decide_text_prune(recipe, model)
    return Plan(recipe, target, model, model_sha256, splits, student, prune, unlabeled)


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


def read_text_splits(recipe: Recipe, task: Task) -> TextSplits:
    """Read and split the recipe's texts; their classes are not compared with any model's yet."""
    data = recipe.data
    return read_texts(
        data.path,
        task=task,
        columns=Columns(text=data.text_column, pair=data.pair_column, label=data.label_column),
        holdout_ratio=data.holdout_ratio,
        evaluation_ratio=data.evaluation_ratio,
        seed=recipe.seed,
        skip_bad=data.skip_bad,
    )


def observed_shape(splits: Splits, options: PreprocessOptions) -> tuple[int, int, int] | None:
    """Return (C, H, W) of the images where all have one size; it counts where neither weights nor options tell."""
    if splits.image_size is None:
        return None
    return (1 if options.channels == "gray" else 3, *splits.image_size)


def _refuse_text_settings(recipe: Recipe) -> None:
    given = [
        f"{section}.{key}"
        for section, keys in (
            ("model", ("tokenizer", "max_length")),
            ("data", ("text_column", "pair_column", "label_column", "unlabeled")),
        )
        for key in keys
        if getattr(getattr(recipe, section), key) is not None
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)}: for text models; {recipe.model.path} holds none that tlc knows.",
            hint="Leave it out, or give a text model: a Hugging Face folder, or weights with --arch hf:DIR.",
        )


def check_sizes(options: PreprocessOptions, model: Model, splits: Splits) -> None:
    """Refuse to cut out the centre of images of another size where nobody asked for that."""
    fed = model.preprocess
    if fed.resize is None and options.resize is None and splits.image_size != fed.size:
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
        check_student(model, spec, round_to=load_target(recipe.target).channel_multiple)
        return Decision(spec, "Asked for.")
    count = len(splits.fit)
    if count < ENOUGH_TO_RETRAIN:
        return Decision(None, f"{count} training images are too few to retrain on (limit {ENOUGH_TO_RETRAIN}).")
    blocks = len(removable_blocks(model))
    if blocks < _AUTO_BLOCKS:
        return Decision(None, f"The network has {blocks} blocks that could be taken out (limit {_AUTO_BLOCKS}).")
    return Decision(_AUTO_STUDENT, f"{blocks} blocks could be taken out; half of them stay.")


def _decide_text_student(recipe: Recipe, model: TextModel, splits: TextSplits) -> Decision:
    spec = recipe.distill.student
    if spec == "none":
        return Decision(None, "Switched off by student = none.")
    if spec != "auto":
        check_text_student(model, spec)
        return Decision(spec, "Asked for.")
    count = len(splits.fit)
    if count < ENOUGH_TO_RETRAIN:
        return Decision(None, f"{count} training texts are too few to retrain on (limit {ENOUGH_TO_RETRAIN}).")
    layers = len(transformer_layers(model.module))
    if layers < _AUTO_LAYERS:
        return Decision(None, f"The network has {layers} layers (limit {_AUTO_LAYERS}).")
    return Decision(_AUTO_TEXT_STUDENT, f"Half of {layers} layers stay, with half of their inner width.")


def _decide_text_prune(recipe: Recipe, model: TextModel) -> Decision:
    settings = recipe.prune
    if settings.macs_ratio is not None or settings.params_ratio is not None:
        raise UsageError(
            "prune.macs_ratio and prune.params_ratio are for images; of a text model heads and inner width go",
            hint="Set prune.ratio, the share of them to remove.",
        )
    if settings.ratio == 0:
        return Decision(None, "Switched off by ratio = 0.")
    if settings.ratio is None:
        return Decision(None, "The student's width was chosen with its depth.")
    check_text_student(model, f"width:{1 - settings.ratio:g}")
    return Decision(settings.ratio, "Asked for.")


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
