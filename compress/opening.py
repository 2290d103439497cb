"""A model, ONNX file or engine opened beside its data: the file that runs, and the stages that feed and judge it."""

from pathlib import Path

from tlc.calibration.token_set import TextInput
from tlc.compress.image_work import ImageWork, prepare_images
from tlc.compress.inputs import resolve_preprocess
from tlc.compress.plan import Network, make_plan, read_splits, read_text_splits
from tlc.compress.recipe import Recipe
from tlc.compress.text_work import text_work, tokenizer_name
from tlc.compress.tokenizer_files import read_tokenizer
from tlc.compress.work import AnyWork
from tlc.export.graph import graph_stats
from tlc.export.metadata import fed_from_json, read_metadata
from tlc.runtime.bundle import is_bundle, unpacked
from tlc.runtime.plan import read_record
from tlc.runtime.sessions import ENGINES
from tlc.runtime.target import load_target


def opened(recipe: Recipe, folder: Path) -> tuple[Path, Network | None, AnyWork]:
    """Return the recipe's ONNX file or engine, or that of its bundle, or one made of its model; that model; the stages.

    `folder` gets that ONNX file, and the prepared data. Raises TlcError for a file or data that is broken, and for data
    that is not the model's.
    """
    recipe = unbundled(recipe)
    if not is_network(recipe.model.path):
        return recipe.model.path, None, _for_file(recipe, folder)
    plan = make_plan(without(recipe, student=True, prune=True))
    work, path = plan.start(folder), folder / "model.onnx"
    work.export(plan.model, path)
    return path, plan.model, work


def is_network(path: Path) -> bool:
    """Whether `path` is a PyTorch model, rather than an ONNX file or an engine."""
    return path.suffix not in (".onnx", *ENGINES)


def unbundled(recipe: Recipe) -> Recipe:
    """Return the recipe with the ONNX file of its bundle in place of that; as it is where its model is no bundle."""
    if not is_bundle(recipe.model.path):
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": unpacked(recipe.model.path)})})


def without(recipe: Recipe, *, student: bool = False, prune: bool = False) -> Recipe:
    """Return the recipe without the stages named."""
    changes: dict[str, object] = {}
    if student:
        changes["distill"] = recipe.distill.model_copy(update={"student": "none"})
    if prune:
        changes["prune"] = recipe.prune.model_copy(update={"ratio": 0.0})
    return recipe.model_copy(update=changes)


def _for_file(recipe: Recipe, folder: Path) -> AnyWork:
    """Return the stages of an ONNX file or an engine."""
    path = recipe.model.path
    if path.suffix == ".onnx":
        recorded, classes = read_metadata(path)
        outputs = graph_stats(path).outputs[0].shape[-1]
    else:
        record = read_record(path)
        recorded = fed_from_json(record.preprocess)
        classes, outputs = tuple(record.classes), record.outputs[0].shape[-1]
    if isinstance(recorded, TextInput):
        return _for_texts(recipe, folder, recorded, classes, int(outputs))
    splits = read_splits(recipe)
    preprocess = resolve_preprocess(recorded, None, recipe.model.preprocess, splits.image_size)
    splits = splits.for_model(int(outputs), classes)
    data = prepare_images(splits, preprocess, folder)
    return ImageWork(recipe, load_target(recipe.target), preprocess, splits.classes, data)


def _for_texts(recipe: Recipe, folder: Path, fed: TextInput, classes: tuple[str, ...], outputs: int) -> AnyWork:
    beside = recipe.model.path.with_name(tokenizer_name(fed))
    own = beside if beside.exists() else recipe.model.path.parent
    tokenizer, _length = read_tokenizer(recipe.model.tokenizer or own)
    splits = read_text_splits(recipe, fed.task).for_model(outputs, classes)
    return text_work(recipe, load_target(recipe.target), fed, tokenizer, splits, folder)
