"""The stages for image classifiers."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.calibration_set import balanced_indices
from tlc.calibration.data import ImageSet, Splits
from tlc.calibration.metrics import agreement, predict
from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import build, parse_arch
from tlc.compress.checkpoint import load_saved, save_model
from tlc.compress.distill import distill
from tlc.compress.events import Emit
from tlc.compress.image_int8 import Int8Images
from tlc.compress.image_train import evaluate, in_batches
from tlc.compress.losses import softened_kl
from tlc.compress.model import Model
from tlc.compress.prune import prune_step, reestimate_batchnorm
from tlc.compress.quantize import FEWEST_SAMPLES, check_calibration, quantize_for_timing
from tlc.compress.runner import Runner
from tlc.compress.student import is_built_from_teacher, student_from_teacher
from tlc.compress.train import Fitted, TrainSettings, bf16_is_fast
from tlc.compress.work import (
    CHOICE_EVALUATIONS,
    ENOUGH_TO_JUDGE,
    Answers,
    Data,
    Feeds,
    Outcome,
    Quantized,
    Work,
    counted,
    some,
)
from tlc.export.fp16 import RANGE_SAMPLES, Fp16Record, fp16_from_float
from tlc.export.graph import graph_stats
from tlc.export.metadata import write_metadata
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Agreement
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.tensor import Samples

_CHOICE_SAMPLES = 512
_CHECK_SAMPLES = 64
_BATCHNORM_BATCH = 256
_RECOVERY_RATE = 0.01
_BATCHNORM_BATCHES = 8


def prepare_images(splits: Splits, preprocess: Preprocess, cache: Path) -> Data[Pixels]:
    """Decode every split once, as far as `preprocess` goes before the crop."""
    holdout, fit = splits.holdout, splits.fit
    judge = holdout if len(holdout) >= ENOUGH_TO_JUDGE else holdout.joined(fit.subset(some(len(fit))))

    def prepared(images: ImageSet) -> Pixels:
        return prepare(images, preprocess, cache=cache)

    return Data(prepared(fit), prepared(holdout), prepared(splits.evaluation), prepared(judge), cache)


class ImageWork(Work[Model, Preprocess, Pixels]):
    """What the stages do with an image classifier and labelled images."""

    noun = "images"

    @cached_property
    def _scores(self) -> WeakKeyDictionary[nn.Module, dict[frozenset[str], float]]:
        """What teachers are worth without some of their blocks, as far as it was asked for."""
        return WeakKeyDictionary()

    def save(self, model: Model, folder: Path) -> None:
        """Write a checkpoint."""
        save_model(model, folder)

    def load(self, folder: Path, arch: str | None) -> Model:
        """Read a checkpoint."""
        return load_saved(folder, arch=arch)

    def start_student(
        self, teacher: Model, spec: str, emit: Emit, evaluations: int = CHOICE_EVALUATIONS
    ) -> tuple[Model, dict[str, Any]]:
        """Return the student that `spec` names, not yet trained, and what was found on the way.

        A student made of the teacher keeps the teacher's weights; which of its blocks stay is decided by how much the
        teacher's answers change without them.
        """
        fit, seed = self.data.fit, self.recipe.seed
        if not is_built_from_teacher(spec):
            return _other_architecture(teacher, spec, seed), {"built": spec}
        indices = _choice_indices(fit, seed)
        student, record = student_from_teacher(
            teacher,
            spec,
            score=counted(_answers_kept(teacher, fit, indices), emit, evaluations),
            example=torch.from_numpy(fit.batch(indices[:2])),
            max_evaluations=evaluations,
            known=self._scores.setdefault(teacher.module, {}),
            round_to=self.target.channel_multiple,
        )
        student = student.after("batch norm re-estimated", _with_batchnorm(student.module, fit, seed))
        return student, {"built": record.model_dump(mode="json")}

    def train_student(
        self, teacher: Model, student: Model, training: TrainSettings, *, teacher_key: str, folder: Path, emit: Emit
    ) -> tuple[Model, Fitted]:
        """Return `student` trained towards the teacher; `folder` keeps the state after each epoch."""
        return distill(
            teacher,
            student,
            self.data.fit,
            self.data.holdout,
            self.recipe.distill,
            training,
            seed=self.recipe.seed,
            folder=folder,
            logits_folder=self._logits_folder(teacher_key),
            emit=emit,
            what="distill",
        )

    def make_pruned(
        self, teacher: Model, model: Model, ratio: float, *, teacher_key: str, folder: Path, emit: Emit
    ) -> tuple[Model, dict[str, Any]]:
        """Return `model` with `ratio` of its channels removed in equal steps, each followed by recovery training."""
        settings, seed = self.recipe.prune, self.recipe.seed
        training = self.recipe.train.model_copy(
            update={
                "epochs": settings.recovery_epochs,
                "learning_rate": settings.recovery_learning_rate or _RECOVERY_RATE,
            }
        )
        scores: list[float] = []
        start = model
        for step in range(1, settings.steps + 1):
            model = prune_step(
                model,
                settings,
                step=step,
                ratio=ratio,
                round_to=settings.round_to or self.target.channel_multiple,
                original=start,
                batches=_labelled_batches(self.data.fit, seed),
            )
            model = model.after("batch norm re-estimated", _with_batchnorm(model.module, self.data.fit, seed))
            if settings.recovery_epochs:
                own = folder / f"step{step}"
                own.mkdir(exist_ok=True)
                model, fitted = distill(
                    teacher,
                    model,
                    self.data.fit,
                    self.data.holdout,
                    self.recipe.distill,
                    training,
                    seed=seed,
                    folder=own,
                    logits_folder=self._logits_folder(teacher_key),
                    emit=emit,
                    what=f"recover {step}/{settings.steps}",
                )
                scores += fitted.scores
                own.rmdir()
        return model, {"ratio": ratio, "steps": settings.steps, "scores": scores}

    def _logits_folder(self, teacher_key: str) -> Path:
        return self.data.cache / f"teacher-{teacher_key[:16]}"

    def export(self, model: Model, path: Path) -> Agreement:
        """Write the model as float32 ONNX and return how far it is from torch on real samples."""
        onnx_from_torch(model.module, model.preprocess.input_shape, path, opset=self.target.opset)
        samples = self.data.fit
        few = prepare(samples.images.subset(some(len(samples), _CHECK_SAMPLES)), samples.preprocess)
        with OrtSession(path) as session:
            return agreement(evaluate(model.module, few, bf16=False).numpy(), self.answers(session, few))

    def fp16(self, float_onnx: Path, out: Path) -> Fp16Record:
        """Write the float16 file of `float_onnx`; what leaves float16's range on training samples stays in float32."""
        return fp16_from_float(
            float_onnx, out, samples=self.calibration(float_onnx, min(RANGE_SAMPLES, len(self.data.fit)))
        )

    def quantize(
        self, network: Model | None, float_onnx: Path, folder: Path, runner: Runner, emit: Emit
    ) -> tuple[list[Quantized], dict[str, Any], str]:
        """Write the file with everything in INT8 and, where that misses the budget, others."""
        return self._int8(network, float_onnx, runner, emit).files(folder)

    def int8_for_timing(self, float_onnx: Path, folder: Path) -> list[Quantized]:
        """Write the file with everything in INT8."""
        out = folder / "int8.onnx"
        samples = self.calibration(float_onnx, FEWEST_SAMPLES)
        quantize_for_timing(float_onnx, out, samples, target=self.target, settings=self.recipe.quantize)
        return [Quantized("", out)]

    def quantize_within_budget(
        self, network: Model | None, float_onnx: Path, out: Path, runner: Runner, emit: Emit
    ) -> Outcome:
        """Write the INT8 file of `float_onnx`; where the budget asks for it, trained, or with layers left in float."""
        return self._int8(network, float_onnx, runner, emit).one_file(out)

    def _int8(self, network: Model | None, float_onnx: Path, runner: Runner, emit: Emit) -> Int8Images:
        count, judge = check_calibration(len(self.data.fit), self.recipe.quantize), self.data.judge
        before = self.accuracy(self.judged(float_onnx, runner, judge), judge)

        def drop_points(path: Path) -> float:
            return 100 * (before - self.accuracy(self.judged(path, runner, judge), judge))

        samples = self.calibration(float_onnx, count)
        return Int8Images(float_onnx, network, self.recipe, runner.target, self.data, samples, count, drop_points, emit)

    def calibration(self, float_onnx: Path, count: int) -> Samples:
        """Return training images by the input's name."""
        indices = balanced_indices(self.labels(self.data.fit), count, seed=self.recipe.seed)
        return _OneByOne(self.data.fit, indices, graph_stats(float_onnx).inputs[0].name)

    def answers(self, session: Session, part: Pixels, *, batch_size: int = 64) -> Answers:
        """Return the logits (N, K) of all images, `batch_size` at once or what the file fixes."""
        return image_logits(session, part, batch_size=batch_size)

    def labels(self, part: Pixels) -> NDArray[np.int64]:
        """Return the class of every image, (N,)."""
        return np.asarray(part.labels)

    def timing_feeds(self) -> list[Feeds]:
        """Return one image: all take the same time."""
        return [{"input": self.data.evaluation.batch(np.arange(1))}]

    def write_metadata(self, source: Path, path: Path) -> None:
        """Write the preprocessing and the class names into the file."""
        write_metadata(source, path, self.fed, self.classes)


def image_logits(session: Session, pixels: Pixels, *, batch_size: int = 64) -> Answers:
    """Return the logits (N, K) for all images in order, `batch_size` at once or what the file fixes."""
    (spec,), output = session.inputs, session.outputs[0].name
    fixed = spec.shape[0]
    size = fixed if isinstance(fixed, int) else batch_size
    return predict(lambda images: session.run({spec.name: images})[output], pixels, size)


@dataclass(frozen=True, slots=True)
class _OneByOne:
    """Samples (1, C, H, W) of `pixels` by the input's name, again and again, one in memory at a time."""

    pixels: Pixels
    indices: NDArray[np.int64]
    name: str

    def __iter__(self) -> Iterator[Feeds]:
        return ({self.name: self.pixels.batch([index])} for index in self.indices)


def _choice_indices(pixels: Pixels, seed: int) -> NDArray[np.int64]:
    return balanced_indices(np.asarray(pixels.labels), min(_CHOICE_SAMPLES, len(pixels)), seed=seed)


def _answers_kept(teacher: Model, pixels: Pixels, indices: NDArray[np.int64]) -> Callable[[nn.Module], float]:
    """Return a score for a network: minus its softened KL divergence from the teacher on some training samples."""
    batches = in_batches(torch.from_numpy(pixels.batch(indices)).contiguous(memory_format=torch.channels_last))
    bf16 = bf16_is_fast()

    def logits(module: nn.Module) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return torch.cat([module(images) for images in batches]).float()

    wanted = logits(copy.deepcopy(teacher.module).to(memory_format=torch.channels_last).eval())

    def score(module: nn.Module) -> float:
        network = copy.deepcopy(module).to(memory_format=torch.channels_last)
        # Without its own statistics a network that lost blocks is judged by its batch norms, not by its weights.
        reestimate_batchnorm(network, batches)
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


def _labelled_batches(pixels: Pixels, seed: int) -> list[tuple[Tensor, Tensor]]:
    indices = _choice_indices(pixels, seed)
    labels = torch.from_numpy(np.asarray(pixels.labels)[indices])
    images = torch.from_numpy(pixels.batch(indices))
    return list(zip(torch.split(images, 64), torch.split(labels, 64), strict=True))


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
