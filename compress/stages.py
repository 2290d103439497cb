"""What each stage does, as plain functions of values; `tlc.compress.pipeline` orders and memoises them."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.calibration_set import balanced_indices
from tlc.calibration.data import ImageSet, Splits
from tlc.calibration.metrics import agreement
from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import build, parse_arch
from tlc.compress.distill import distill
from tlc.compress.events import Emit, Progress
from tlc.compress.losses import softened_kl
from tlc.compress.measure import top1
from tlc.compress.model import Model
from tlc.compress.prune import prune_step, reestimate_batchnorm
from tlc.compress.quantize import QuantizeRecord, check_calibration, quantize_within_budget
from tlc.compress.recipe import Recipe
from tlc.compress.runner import Runner, logits_of
from tlc.compress.student import is_built_from_teacher, student_from_teacher
from tlc.compress.train import bf16_is_fast, evaluate
from tlc.export.fp16 import RANGE_SAMPLES, Fp16Record, fp16_from_float
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Agreement
from tlc.runtime.session import OrtSession
from tlc.runtime.target import Target
from tlc.runtime.tensor import Feeds

_CHOICE_SAMPLES = 512
_CHOICE_EVALUATIONS = 120
_CHECK_SAMPLES = 64
_ENOUGH_TO_JUDGE = 500
_BATCHNORM_BATCH = 256
_BATCHNORM_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Data:
    """The three parts of the data, decoded, with the folder that caches what is computed from them."""

    fit: Pixels
    holdout: Pixels
    evaluation: Pixels
    judge: Pixels
    """What quantization is judged on: the held-out part, joined by the training part where that alone is small."""
    cache: Path


def prepare_data(splits: Splits, preprocess: Preprocess, cache: Path) -> Data:
    """Decode every split once, as far as `preprocess` goes before the crop."""
    holdout, fit = splits.holdout, splits.fit
    judge = holdout if len(holdout) >= _ENOUGH_TO_JUDGE else holdout.joined(fit.subset(_some(len(fit))))

    def prepared(images: ImageSet) -> Pixels:
        return prepare(images, preprocess, cache=cache)

    return Data(prepared(fit), prepared(holdout), prepared(splits.evaluation), prepared(judge), cache)


def _some(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, _ENOUGH_TO_JUDGE)).astype(np.int64))


def make_student(
    teacher: Model,
    spec: str,
    data: Data,
    recipe: Recipe,
    target: Target,
    *,
    teacher_key: str,
    folder: Path,
    emit: Emit,
) -> tuple[Model, dict[str, Any]]:
    """Return the student that `spec` names, trained towards the teacher, and what was found on the way.

    A student made of the teacher keeps the teacher's weights; which of its blocks stay is decided by how much the
    teacher's answers change without them.
    """
    if is_built_from_teacher(spec):
        indices = _choice_indices(data.fit, recipe.seed)
        example = torch.from_numpy(data.fit.batch(indices[:2]))
        student, record = student_from_teacher(
            teacher,
            spec,
            score=_counted(_answers_kept(teacher, data, indices), emit),
            example=example,
            max_evaluations=_CHOICE_EVALUATIONS,
            round_to=target.channel_multiple,
        )
        student = student.after("batch norm re-estimated", _with_batchnorm(student.module, data.fit, recipe.seed))
        found: dict[str, Any] = {"built": record.model_dump(mode="json")}
    else:
        student = _other_architecture(teacher, spec, recipe.seed)
        found = {"built": spec}
    student, fitted = distill(
        teacher,
        student,
        data.fit,
        data.holdout,
        recipe.distill,
        recipe.train,
        seed=recipe.seed,
        folder=folder,
        logits_folder=data.cache / f"teacher-{teacher_key[:16]}",
        emit=emit,
        what="distill",
    )
    return student, {**found, "best_epoch": fitted.best_epoch, "scores": list(fitted.scores)}


def _counted(score: Callable[[nn.Module], float], emit: Emit) -> Callable[[nn.Module], float]:
    """Return `score`, saying how often it was asked."""
    count = 0

    def asked(module: nn.Module) -> float:
        nonlocal count
        count += 1
        emit(Progress("blocks tried", count, _CHOICE_EVALUATIONS))
        return score(module)

    return asked


def _choice_indices(pixels: Pixels, seed: int) -> NDArray[np.int64]:
    return balanced_indices(np.asarray(pixels.labels), min(_CHOICE_SAMPLES, len(pixels)), seed=seed)


def _answers_kept(teacher: Model, data: Data, indices: NDArray[np.int64]) -> Callable[[nn.Module], float]:
    """Return a score for a network: minus its softened KL divergence from the teacher on some training samples."""
    images = torch.from_numpy(data.fit.batch(indices)).contiguous(memory_format=torch.channels_last)
    bf16 = bf16_is_fast()

    def logits(module: nn.Module) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output: Tensor = module(images)
        return output.float()

    wanted = logits(copy.deepcopy(teacher.module).to(memory_format=torch.channels_last).eval())

    def score(module: nn.Module) -> float:
        network = copy.deepcopy(module).to(memory_format=torch.channels_last)
        # Without its own statistics a network that lost blocks is judged by its batch norms, not by its weights.
        reestimate_batchnorm(network, [images])
        return -float(softened_kl(logits(network.eval()), wanted, temperature=4.0))

    return score


def _with_batchnorm(module: nn.Module, pixels: Pixels, seed: int) -> nn.Module:
    """Return a copy whose batch norms have the statistics of clean training samples."""
    network = copy.deepcopy(module)
    reestimate_batchnorm(network, _clean_batches(pixels, seed))
    return network.eval()


def _clean_batches(pixels: Pixels, seed: int) -> Iterator[Tensor]:
    order = np.random.default_rng(seed).permutation(len(pixels))
    for start in range(0, min(len(order), _BATCHNORM_BATCH * _BATCHNORM_BATCHES), _BATCHNORM_BATCH):
        yield torch.from_numpy(pixels.batch(order[start : start + _BATCHNORM_BATCH]))


def _other_architecture(teacher: Model, spec: str, seed: int) -> Model:
    arch = parse_arch(spec).with_classes(teacher.num_classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build(arch)
    example = torch.zeros(1, *teacher.preprocess.input_shape)
    with torch.no_grad():
        outputs = module.eval()(example).shape[1]
    if outputs != teacher.num_classes:
        raise TlcError(
            f"--student {spec} has {outputs} outputs, the model {teacher.num_classes}.",
            hint="Let the function take num_classes, or return a network with that many outputs.",
        )
    return Model(module, arch, teacher.preprocess, teacher.num_classes, teacher.classes, (f"student: {spec}",))


def make_pruned(
    teacher: Model,
    model: Model,
    ratio: float,
    data: Data,
    recipe: Recipe,
    target: Target,
    *,
    teacher_key: str,
    folder: Path,
    emit: Emit,
) -> tuple[Model, dict[str, Any]]:
    """Return `model` with `ratio` of its channels removed in equal steps, each followed by recovery training."""
    training = recipe.train.model_copy(
        update={"epochs": recipe.prune.recovery_epochs, "learning_rate": recipe.prune.recovery_learning_rate}
    )
    scores: list[float] = []
    start = model
    for step in range(1, recipe.prune.steps + 1):
        model = prune_step(
            model,
            recipe.prune,
            step=step,
            ratio=ratio,
            round_to=recipe.prune.round_to or target.channel_multiple,
            original=start,
            batches=_labelled_batches(data.fit, recipe.seed),
        )
        model = model.after("batch norm re-estimated", _with_batchnorm(model.module, data.fit, recipe.seed))
        if recipe.prune.recovery_epochs:
            own = folder / f"step{step}"
            own.mkdir(exist_ok=True)
            model, fitted = distill(
                teacher,
                model,
                data.fit,
                data.holdout,
                recipe.distill,
                training,
                seed=recipe.seed,
                folder=own,
                logits_folder=data.cache / f"teacher-{teacher_key[:16]}",
                emit=emit,
                what=f"recover {step}/{recipe.prune.steps}",
            )
            scores += fitted.scores
            own.rmdir()
    return model, {"ratio": ratio, "steps": recipe.prune.steps, "scores": scores}


def _labelled_batches(pixels: Pixels, seed: int) -> list[tuple[Tensor, Tensor]]:
    indices = _choice_indices(pixels, seed)
    labels = torch.from_numpy(np.asarray(pixels.labels)[indices])
    images = torch.from_numpy(pixels.batch(indices))
    return list(zip(torch.split(images, 64), torch.split(labels, 64), strict=True))


def export_model(model: Model, path: Path, target: Target, samples: Pixels) -> Agreement:
    """Write the model as float32 ONNX and return how far it is from torch on real samples."""
    onnx_from_torch(model.module, model.preprocess.input_shape, path, opset=target.opset)
    indices = np.linspace(0, len(samples) - 1, min(_CHECK_SAMPLES, len(samples))).astype(np.int64)
    few = prepare(samples.images.subset(indices), samples.preprocess)
    with OrtSession(path) as session:
        return agreement(evaluate(model.module, few, bf16=False).numpy(), logits_of(session, few))


@dataclass(frozen=True, slots=True)
class _OneByOne:
    """Feeds of `file` with samples (1, C, H, W) of `pixels`, again and again, one in memory at a time."""

    file: Path
    pixels: Pixels
    indices: NDArray[np.int64]

    def __iter__(self) -> Iterator[Feeds]:
        name = onnx.load(self.file).graph.input[0].name
        return ({name: self.pixels.batch([index])} for index in self.indices)


def fp16_file(float_onnx: Path, out: Path, data: Data, recipe: Recipe) -> Fp16Record:
    """Write the float16 file of `float_onnx`; what leaves float16's range on training samples stays in float32."""
    indices = balanced_indices(np.asarray(data.fit.labels), min(RANGE_SAMPLES, len(data.fit)), seed=recipe.seed)
    return fp16_from_float(float_onnx, out, samples=_OneByOne(float_onnx, data.fit, indices))


def quantize_file(
    float_onnx: Path, out: Path, data: Data, recipe: Recipe, runner: Runner, emit: Emit, *, full: Path | None = None
) -> QuantizeRecord:
    """Write the INT8 file of `float_onnx`; layers stay in float where the accuracy budget asks for it.

    `full` also gets the file with everything in INT8.
    """
    count = check_calibration(len(data.fit), recipe.quantize)
    indices = balanced_indices(np.asarray(data.fit.labels), count, seed=recipe.seed)
    labels = np.asarray(data.judge.labels)
    before = top1(runner.logits(float_onnx, data.judge), labels)
    return quantize_within_budget(
        float_onnx,
        out,
        _OneByOne(float_onnx, data.fit, indices),
        count=count,
        target=runner.target,
        settings=recipe.quantize,
        drop_points=lambda path: 100 * (before - top1(runner.logits(path, data.judge), labels)),
        budget_points=recipe.max_drop_points,
        full=full,
        on_progress=lambda done, total: emit(Progress("calibrate", done, total)),
    )
