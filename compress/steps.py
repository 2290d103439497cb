"""Each stage by itself: a model or ONNX file in, one output out. `tlc.compress.pipeline` is all of them in a row."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tlc.compress.events import Emit, silent
from tlc.compress.load import load_model
from tlc.compress.opening import opened, without
from tlc.compress.plan import Network, make_plan
from tlc.compress.quantize import check_target
from tlc.compress.recipe import ModelSection, Recipe
from tlc.compress.runner import Runner
from tlc.compress.text_model import is_text_model, load_text_model
from tlc.compress.work import Answers, Outcome
from tlc.export.metadata import write_metadata
from tlc.export.onnx import onnx_from_torch
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.runtime.artifact import replacing_dir, write_text
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Accuracy, AccuracyChange
from tlc.runtime.target import Target, load_target


def distill_to(recipe: Recipe, output: Path, emit: Emit = silent) -> Network:
    """Train the student of `recipe.distill` towards the model and write it to the folder `output`."""
    plan = make_plan(without(recipe, prune=True))
    if not isinstance(plan.student.value, str):
        raise TlcError(f"There is no student to train: {plan.student.reason}", hint="Name one: --student depth:0.5.")
    with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
        work = plan.start(Path(folder))
        student: Network
        student, _ = work.make_student(
            plan.model, plan.student.value, teacher_key="teacher", folder=Path(folder), emit=emit
        )
    with replacing_dir(output) as folder:
        work.save(student, folder)
    return student


def prune_to(recipe: Recipe, output: Path, emit: Emit = silent) -> Network:
    """Remove `recipe.prune.ratio` of the model's channels, let it recover, and write it to the folder `output`."""
    plan = make_plan(without(recipe, student=True))
    if not isinstance(plan.prune.value, float):
        raise TlcError(f"There is nothing to prune: {plan.prune.reason}", hint="Name a share: --ratio 0.3.")
    with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
        work = plan.start(Path(folder))
        pruned: Network
        pruned, _ = work.make_pruned(
            plan.model, plan.model, plan.prune.value, teacher_key="teacher", folder=Path(folder), emit=emit
        )
    with replacing_dir(output) as folder:
        work.save(pruned, folder)
    return pruned


def export_to(source: ModelSection, output: Path, target: str = "cpu-x86") -> float:
    """Write the model as float32 ONNX; return the largest difference from torch, on noise at batch 1 and 3."""
    device = load_target(target)
    if is_text_model(source.path, source.arch):
        return _export_text(source, output, device)
    model = load_model(source.path, arch=source.arch, num_classes=source.num_classes, preprocess=source.preprocess)
    with _beside(output) as path:
        export = onnx_from_torch(model.module, model.preprocess.input_shape, path, opset=device.opset)
        write_metadata(path, path, model.preprocess, model.classes)
    return export.max_abs_error


def _export_text(source: ModelSection, output: Path, device: Target) -> float:
    text = load_text_model(source.path, arch=source.arch, tokenizer=source.tokenizer, max_length=source.max_length)
    fed = text.text
    with _beside(output) as path:
        export = text_onnx_from_torch(text.module, fed.inputs, path, opset=device.opset, max_length=fed.max_length)
        write_metadata(path, path, fed, text.classes)
    write_text(output.with_name("tokenizer.json"), text.tokenizer)
    return export.max_abs_error


def quantize_to(recipe: Recipe, output: Path, emit: Emit = silent) -> Outcome:
    """Write the model, or float ONNX file, as INT8 ONNX within `recipe.budget.max_drop_points`."""
    target = load_target(recipe.target)
    check_target(target, recipe.quantize)
    with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
        file, network, work = opened(recipe, Path(folder))
        with _beside(output) as path:
            outcome = work.quantize_within_budget(network, file, path, Runner.here(target, Path(folder)), emit)
            work.write_metadata(path, path)
    return outcome


class Evaluation(BaseModel):
    """Scores of one file on the evaluation images, and its paired change against the first file."""

    model_config = ConfigDict(frozen=True)

    path: Path
    accuracy: Accuracy
    change: AccuracyChange | None


def evaluate_files(recipes: Sequence[Recipe]) -> list[Evaluation]:
    """Score the models, ONNX files or engines of `recipes`, all with the same data, on its evaluation images.

    Classes go by their names, in whatever order each model has them.
    """
    rows: list[Evaluation] = []
    first: tuple[Answers, tuple[str, ...]] | None = None
    for recipe in recipes:
        with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
            file, _network, work = opened(recipe, Path(folder))
            part = work.data.evaluation
            answers = work.judged(file, Runner.here(work.target, Path(folder)), part)
            change = None if first is None else work.change(_in_order(*first, work.classes), answers, part)
            rows.append(Evaluation(path=recipe.model.path, accuracy=work.score(answers, part), change=change))
            first = (answers, work.classes) if first is None else first
    return rows


def _in_order(answers: Answers, classes: tuple[str, ...], wanted: tuple[str, ...]) -> Answers:
    """Return logits (N, K) of `classes` in the order `wanted`; of questions, which have no classes, as they are."""
    if classes == wanted:
        return answers
    if set(classes) != set(wanted):
        raise TlcError(
            f"the first model has the classes {', '.join(classes)}, another {', '.join(wanted)}",
            hint="Evaluate models together that were trained for the same classes.",
        )
    return answers[:, [classes.index(name) for name in wanted]]


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """Yield a path beside `output` that takes its place when the block succeeds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        path = Path(folder) / output.name
        yield path
        path.replace(output)
