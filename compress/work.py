"""What the stages of a run do with a network and its data: one implementation for images, one for texts.

`tlc.compress.pipeline` orders and memoises the stages, `tlc.compress.steps` offers each by itself; both know this
interface alone.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tlc.calibration.metrics import accuracy_change, agreement, score
from tlc.compress.events import Emit, Progress
from tlc.compress.recipe import Recipe
from tlc.compress.runner import Runner
from tlc.compress.train import Fitted, TrainSettings
from tlc.export.fp16 import Fp16Record
from tlc.runtime.report import Accuracy, AccuracyChange, Agreement, TextLengths
from tlc.runtime.session import Session
from tlc.runtime.target import Target
from tlc.runtime.tensor import Samples

M = TypeVar("M")
"""The network with what feeds it: `Model` or `TextModel`."""
F = TypeVar("F", bound=BaseModel)
"""What a sample goes through before the network: `Preprocess` or `TextInput`."""
P = TypeVar("P")
"""One part of the data, prepared: `Pixels` or `Tokens`."""

Feeds = dict[str, NDArray[Any]]
Answers = NDArray[np.float32]
"""What a file says about the samples of one part, in order: logits (N, K), for tokens one row per labelled token."""

CHOICE_EVALUATIONS = 120
"""Networks without some blocks that are tried to choose a student's."""
ENOUGH_TO_JUDGE = 500


@dataclass(frozen=True, slots=True)
class Data(Generic[P]):
    """The parts of the data, prepared, with the folder that caches what is computed from them."""

    fit: P
    holdout: P
    evaluation: P
    judge: P
    """What quantization is judged on: the held-out part, joined by the training part where that alone is small."""
    cache: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an INT8 file that had a budget to meet."""

    summary: str
    """A sentence without a full stop."""
    met: bool


@dataclass(frozen=True, slots=True)
class Quantized:
    """An INT8 file to measure."""

    suffix: str
    """Of the row's name: "", "-mixed", "-dynamic"."""
    path: Path


class Work(ABC, Generic[M, F, P]):
    """What the stages do with one kind of network and data."""

    noun: ClassVar[Literal["images", "texts"]]
    """What samples are called in sentences."""
    network_files: ClassVar[tuple[str, ...]] = ("model.json", "model.safetensors")
    """What `save` writes."""

    def __init__(self, recipe: Recipe, target: Target, fed: F, classes: tuple[str, ...], data: Data[P]) -> None:
        self.recipe, self.target, self.fed, self.classes, self.data = recipe, target, fed, classes, data

    def for_network(self, _network: M) -> "Work[M, F, P]":
        """Return the same work with the data as `network` is fed with it."""
        return self

    @abstractmethod
    def save(self, model: M, folder: Path) -> None:
        """Write the network so that `load` gives it back, outputs bit-equal."""

    @abstractmethod
    def load(self, folder: Path, arch: str | None) -> M:
        """Return what `save` wrote; `arch` is what it needs besides."""

    @abstractmethod
    def start_student(
        self, teacher: M, spec: str, emit: Emit, evaluations: int = CHOICE_EVALUATIONS
    ) -> tuple[M, dict[str, Any]]:
        """Return the student that `spec` names, not yet trained, and what was found on the way.

        For the choice of its blocks so many smaller networks are tried at most, or each block's absence alone.
        """

    @abstractmethod
    def train_student(
        self, teacher: M, student: M, training: TrainSettings, *, teacher_key: str, folder: Path, emit: Emit
    ) -> tuple[M, Fitted]:
        """Return `student` trained towards the teacher; `folder` keeps the state after each epoch."""

    def make_student(
        self, teacher: M, spec: str, *, teacher_key: str, folder: Path, emit: Emit
    ) -> tuple[M, dict[str, Any]]:
        """Return the student that `spec` names, trained towards the teacher, and what was found on the way."""
        student, found = self.start_student(teacher, spec, emit)
        student, fitted = self.train_student(
            teacher, student, self.recipe.train, teacher_key=teacher_key, folder=folder, emit=emit
        )
        return student, {**found, "best_epoch": fitted.best_epoch, "scores": list(fitted.scores)}

    @abstractmethod
    def make_pruned(
        self, teacher: M, model: M, ratio: float, *, teacher_key: str, folder: Path, emit: Emit
    ) -> tuple[M, dict[str, Any]]:
        """Return `model` with `ratio` of its channels removed in equal steps, each followed by recovery training."""

    @abstractmethod
    def export(self, model: M, path: Path) -> Agreement:
        """Write the network as float32 ONNX for the target; return how far it is from torch on real samples."""

    def fused(self, float_onnx: Path, _folder: Path) -> tuple[Path, str]:
        """Return the float file as it is deployed, with operators that the target's runtime alone has.

        Also a sentence where that was not possible, else "".
        """
        return float_onnx, ""

    @abstractmethod
    def fp16(self, float_onnx: Path, out: Path) -> Fp16Record:
        """Write the float16 file; what leaves float16's range on training samples stays in float32."""

    @abstractmethod
    def calibration(self, float_onnx: Path, count: int) -> Samples:
        """Return `count` training samples for a file, balanced by class, one at a time and as often as asked."""

    @abstractmethod
    def quantize(
        self, network: M | None, float_onnx: Path, folder: Path, runner: Runner, emit: Emit
    ) -> tuple[list[Quantized], dict[str, Any], str]:
        """Write the INT8 files of `float_onnx` into `folder`.

        `network` is what the file was made from; without it there is no training for INT8, which goes on from what it
        had written into `folder` before a kill. Return the files with what was found, and a sentence about it.
        """

    @abstractmethod
    def int8_for_timing(self, float_onnx: Path, folder: Path) -> list[Quantized]:
        """Write the INT8 files that `quantize` could ship, with ranges from a few samples.

        They take the same time, since their operators and shapes are the same; their answers are worth nothing.
        """

    @abstractmethod
    def quantize_within_budget(
        self, network: M | None, float_onnx: Path, out: Path, runner: Runner, emit: Emit
    ) -> Outcome:
        """Write one INT8 file of `float_onnx`, within the budget if that can be; `network` is what it was made from."""

    @abstractmethod
    def answers(self, session: Session, part: P, *, batch_size: int = 64) -> Answers:
        """Return what the file says about every sample of `part`, in order, at most `batch_size` at once."""

    @abstractmethod
    def labels(self, part: P) -> NDArray[np.int64]:
        """Return the true class of every row of `answers`."""

    @abstractmethod
    def timing_feeds(self) -> list[Feeds]:
        """Return the inputs that latency is measured with, batch 1: as real samples are."""

    def other_feeds(self) -> dict[str, list[Feeds]]:
        """Return inputs of other kinds to measure latency with besides, by name."""
        return {}

    @property
    def unlabeled_samples(self) -> int:
        """Number of samples without labels that are distilled on as well."""
        return 0

    @property
    def lengths(self) -> TextLengths | None:
        """How long the texts are."""
        return None

    @property
    def typical_sizes(self) -> dict[str, int]:
        """How long the open dimensions of an ordinary sample are, by name."""
        return {}

    @property
    def largest_sizes(self) -> dict[str, int]:
        """How long the open dimensions of the largest sample are, by name."""
        return {}

    @abstractmethod
    def write_metadata(self, source: Path, path: Path) -> None:
        """Write `source` to `path` with what a device needs to feed it inside, and beside it what does not fit in."""

    def judged(self, path: Path, runner: Runner, part: P) -> Answers:
        """Return the answers of a file as the target's runtime gives them, on all cores."""
        with runner.open(path, threads=os.cpu_count() or 1) as session:
            return self.answers(session, part, batch_size=runner.largest_batch(path) or 64)

    def accuracy(self, answers: Answers, part: P) -> float:
        """Return the share of right answers."""
        return float(np.mean(answers.argmax(1) == self.labels(part)))

    def score(self, answers: Answers, part: P) -> Accuracy:
        """Return all scores."""
        return score(answers, self.labels(part), self.classes)

    def agreement(self, reference: Answers, candidate: Answers, _part: P) -> Agreement:
        """Return how far the candidate's answers are from the reference's."""
        return agreement(reference, candidate)

    def change(self, before: Answers, after: Answers, part: P) -> AccuracyChange:
        """Return the paired change."""
        return accuracy_change(before, after, self.labels(part), self.classes)


AnyWork: TypeAlias = Work[Any, Any, Any]


def counted(score: Callable[[Any], float], emit: Emit, limit: int) -> Callable[[Any], float]:
    """Return `score`, saying how often it was asked."""
    count = 0

    def asked(module: Any) -> float:
        nonlocal count
        count += 1
        emit(Progress("blocks tried", count, limit))
        return score(module)

    return asked


def some(count: int, limit: int = ENOUGH_TO_JUDGE) -> NDArray[np.int64]:
    """Return at most `limit` positions spread evenly over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(np.int64))
