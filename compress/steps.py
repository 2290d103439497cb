"""Each stage by itself: a model or ONNX file in, one output out. `tlc.compress.pipeline` is all of them in a row."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tlc.calibration.cache import prepare
from tlc.calibration.data import Splits
from tlc.calibration.metrics import accuracy_change, score
from tlc.calibration.preprocess import Preprocess
from tlc.compress.checkpoint import save_model
from tlc.compress.events import Emit, silent
from tlc.compress.inputs import resolve_preprocess
from tlc.compress.load import load_model
from tlc.compress.model import Model
from tlc.compress.plan import Plan, make_plan, read_splits
from tlc.compress.quantize import QuantizeRecord, check_target
from tlc.compress.recipe import ModelSection, Recipe
from tlc.compress.runner import Runner
from tlc.compress.stages import Data, make_pruned, make_student, prepare_data, quantize_file
from tlc.export.graph import graph_stats
from tlc.export.metadata import read_metadata, write_metadata
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.artifact import replacing_dir
from tlc.runtime.errors import TlcError
from tlc.runtime.plan import read_record
from tlc.runtime.report import Accuracy, AccuracyChange
from tlc.runtime.sessions import ENGINES
from tlc.runtime.target import load_target


def distill_to(recipe: Recipe, output: Path, emit: Emit = silent) -> Model:
    """Train the student of `recipe.distill` towards the model and write it to the folder `output`."""
    plan = make_plan(_without(recipe, prune=True))
    if not isinstance(plan.student.value, str):
        raise TlcError(f"There is no student to train: {plan.student.reason}", hint="Name one: --student depth:0.5.")
    with _workspace(plan) as (data, work):
        student, _ = make_student(
            plan.model, plan.student.value, data, recipe, plan.target, teacher_key="teacher", folder=work, emit=emit
        )
    _save(student, output)
    return student


def prune_to(recipe: Recipe, output: Path, emit: Emit = silent) -> Model:
    """Remove `recipe.prune.ratio` of the model's channels, let it recover, and write it to the folder `output`."""
    plan = make_plan(_without(recipe, student=True))
    if not isinstance(plan.prune.value, float):
        raise TlcError(f"There is nothing to prune: {plan.prune.reason}", hint="Name a share: --ratio 0.3.")
    with _workspace(plan) as (data, work):
        pruned, _ = make_pruned(
            plan.model, plan.model, plan.prune.value, data, recipe, plan.target,
            teacher_key="teacher", folder=work, emit=emit,
        )  # fmt: skip
    _save(pruned, output)
    return pruned


def export_to(source: ModelSection, output: Path, target: str = "cpu-x86") -> float:
    """Write the model as float32 ONNX; return the largest difference from torch, on noise at batch 1 and 3."""
    device = load_target(target)
    model = load_model(source.path, arch=source.arch, num_classes=source.num_classes, preprocess=source.preprocess)
    with _beside(output) as path:
        export = onnx_from_torch(model.module, model.preprocess.input_shape, path, opset=device.opset)
        write_metadata(path, path, model.preprocess, model.classes)
    return export.max_abs_error


def quantize_to(recipe: Recipe, output: Path, emit: Emit = silent) -> QuantizeRecord:
    """Write the model, or float ONNX file, as INT8 ONNX within `recipe.max_drop_points`."""
    target = load_target(recipe.target)
    check_target(target, recipe.quantize)
    with tempfile.TemporaryDirectory(prefix="tlc-") as work:
        source = _opened(recipe, Path(work))
        data = prepare_data(source.splits, source.preprocess, Path(work))
        with _beside(output) as path:
            runner = Runner.here(target, Path(work))
            record = quantize_file(source.file, path, data, recipe, runner, emit)
            write_metadata(path, path, source.preprocess, source.splits.classes)
    return record


class Evaluation(BaseModel):
    """Scores of one file on the evaluation images, and its paired change against the first file."""

    model_config = ConfigDict(frozen=True)

    path: Path
    accuracy: Accuracy
    change: AccuracyChange | None


def evaluate_files(recipes: Sequence[Recipe]) -> list[Evaluation]:
    """Score the models, ONNX files or engines of `recipes`, all with the same data, on its evaluation images."""
    rows: list[Evaluation] = []
    first: NDArray[np.float32] | None = None
    for recipe in recipes:
        with tempfile.TemporaryDirectory(prefix="tlc-") as work:
            source = _opened(recipe, Path(work))
            images = source.splits.evaluation
            runner = Runner.here(load_target(recipe.target), Path(work))
            logits = runner.logits(source.file, prepare(images, source.preprocess))
            labels = np.asarray(images.labels)
            change = None if first is None else accuracy_change(first, logits, labels, images.classes)
            rows.append(
                Evaluation(path=recipe.model.path, accuracy=score(logits, labels, images.classes), change=change)
            )
            first = logits if first is None else first
    return rows


@dataclass(frozen=True, slots=True)
class _Source:
    """A float or INT8 ONNX file, or an engine, with what feeds it."""

    file: Path
    preprocess: Preprocess
    splits: Splits


def _opened(recipe: Recipe, work: Path) -> _Source:
    """Return the recipe's ONNX file or engine, an ONNX file made from the model where it is neither, and its data."""
    if recipe.model.path.suffix not in (".onnx", *ENGINES):
        plan = make_plan(_without(recipe, student=True, prune=True))
        path = work / "model.onnx"
        onnx_from_torch(plan.model.module, plan.model.preprocess.input_shape, path, opset=plan.target.opset)
        return _Source(path, plan.model.preprocess, plan.splits)
    if recipe.model.path.suffix == ".onnx":
        recorded, classes = read_metadata(recipe.model.path)
        outputs = graph_stats(recipe.model.path).outputs[0].shape[-1]
    else:
        record = read_record(recipe.model.path)
        recorded = Preprocess.model_validate_json(record.preprocess) if record.preprocess else None
        classes, outputs = tuple(record.classes), record.outputs[0].shape[-1]
    splits = read_splits(recipe)
    preprocess = resolve_preprocess(recorded, None, recipe.model.preprocess, splits.image_size)
    return _Source(recipe.model.path, preprocess, splits.for_model(int(outputs), classes))


def _without(recipe: Recipe, *, student: bool = False, prune: bool = False) -> Recipe:
    changes: dict[str, object] = {}
    if student:
        changes["distill"] = recipe.distill.model_copy(update={"student": "none"})
    if prune:
        changes["prune"] = recipe.prune.model_copy(update={"ratio": 0.0})
    return recipe.model_copy(update=changes)


@contextmanager
def _workspace(plan: Plan) -> Iterator[tuple[Data, Path]]:
    with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
        work = Path(folder)
        yield prepare_data(plan.splits, plan.model.preprocess, work), work


def _save(model: Model, output: Path) -> None:
    with replacing_dir(output) as folder:
        save_model(model, folder)


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """Yield a path beside `output` that takes its place when the block succeeds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        path = Path(folder) / output.name
        yield path
        path.replace(output)
