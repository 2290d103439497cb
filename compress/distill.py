"""Distillation: a student, or a pruned network, learns to answer as its teacher does."""

import copy
import os
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tlc.calibration.augment import Augment, draw_views
from tlc.calibration.cache import Pixels
from tlc.compress.events import Emit, Progress
from tlc.compress.image_train import INFERENCE_BATCH, ImageSamples, on_device
from tlc.compress.losses import attention_transfer, decoupled_kd, hint, relation, softened_kl
from tlc.compress.model import Model
from tlc.compress.objective import Batch, HeldOutSamples, Inputs, Kind, cross_entropy, share_right
from tlc.compress.train import Fitted, TrainSettings, fit
from tlc.runtime.artifact import sha256_json
from tlc.runtime.errors import TlcError


class LossSettings(BaseModel):
    """What the student is pulled towards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    loss: Literal["logits", "decoupled"] = "logits"
    """logits: softened logits (Hinton 2015); decoupled: decoupled KD (Zhao 2022), which needs labels, so for images
    alone."""
    temperature: float | None = Field(None, gt=0)
    """Softens both sides' logits; the loss is multiplied by its square. 4 for images, 2 for texts."""
    label_weight: float | None = Field(None, ge=0, le=1)
    """Weight of the cross-entropy with the labels; the teacher's loss gets the rest. 0.1 for images, 0 for texts."""
    label_free: bool = False
    """Never look at a label: no cross-entropy, and the best epoch is the one that agrees most with the teacher."""
    feature: Literal["auto", "none", "hint", "attention", "relation"] = "auto"
    """Additional loss between inner features; auto is none for images, hint for texts. Images: of equal resolution,
    FitNets hints with learned projections, attention maps, or the batch's pairwise similarities. Texts: hidden states
    or attention of paired layers (TinyBERT), or the last layers' relations of queries, keys and values (MiniLMv2). The
    teacher then runs in every step instead of being cached."""
    feature_weight: float = Field(1.0, ge=0)
    """Weight of the feature loss."""
    views: int = Field(8, ge=1)
    """Different augmented passes over the samples, used in turn; the teacher's logits for each are computed once."""

    def resolved(self, kind: Kind) -> "ResolvedLossSettings":
        """Return the loss with a value for everything that it leaves to tlc."""
        texts = kind == "texts"
        decided: dict[str, Any] = {"temperature": 2.0 if texts else 4.0, "label_weight": 0.0 if texts else 0.1}
        given = {name: value for name, value in self if name in LossSettings.model_fields and value is not None}
        if self.feature == "auto":
            given["feature"] = "hint" if texts else "none"
        return ResolvedLossSettings(**{**decided, **given})


class ResolvedLossSettings(LossSettings):
    """`LossSettings` with nothing left to decide."""

    temperature: float
    label_weight: float
    feature: Literal["none", "hint", "attention", "relation"]


class CachedLogits:
    """Logits for each augmented pass, computed once and kept in `folder` as `view-NNN.npy`."""

    def __init__(self, folder: Path, compute: Callable[[int], NDArray[np.float32]]) -> None:
        """`compute` returns the logits (N, K) of a pass over all samples."""
        self._folder, self._compute = folder, compute
        self.view = lru_cache(maxsize=2)(self._view)

    def _view(self, view: int) -> NDArray[np.float32]:
        """Return logits (N, K) float32 for pass `view` over all samples."""
        path = self._folder / f"view-{view:03d}.npy"
        if path.exists():
            logits: NDArray[np.float32] = np.load(path)
            return logits
        logits = self._compute(view)
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.npy")
        np.save(beside, logits)
        beside.replace(path)
        return logits


class TeacherLogits(CachedLogits):
    """The teacher's logits for each augmented pass over images."""

    def __init__(
        self, teacher: nn.Module, pixels: Pixels, augment: Augment, *, seed: int, bf16: bool, folder: Path, emit: Emit
    ) -> None:
        super().__init__(folder, self._of_view)
        self._teacher, self._pixels, self._augment = teacher, pixels, augment
        self._seed, self._bf16, self._emit = seed, bf16, emit

    def _of_view(self, view: int) -> NDArray[np.float32]:
        count, device = len(self._pixels), next(self._teacher.parameters()).device
        views = draw_views(self._augment, count, seed=self._seed, view=view)
        rows = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            for start in range(0, count, INFERENCE_BATCH):
                indices = np.arange(start, min(count, start + INFERENCE_BATCH))
                images = on_device(self._pixels.augmented(indices, views), device)
                rows.append(self._teacher(images).float().cpu().numpy())
                self._emit(Progress(f"teacher's logits, view {view + 1}", int(indices[-1]) + 1, count))
        return np.concatenate(rows)


class Distillation:
    """The training objective: labels, teacher's logits, and inner features, weighted by `settings`."""

    def __init__(
        self,
        teacher: nn.Module,
        settings: ResolvedLossSettings,
        logits: TeacherLogits | None,
        *,
        example: Tensor,
        bf16: bool,
        seed: int,
    ) -> None:
        """Without `logits` the teacher runs in every step; `example` (2, C, H, W) finds the layers to compare."""
        self.score_name = "agreement" if settings.label_free else "top1"
        self._teacher, self._settings, self._logits = teacher, settings, logits
        self._example, self._bf16, self._seed = example, bf16, seed
        self._student_features: dict[str, Tensor] = {}
        self._teacher_features: dict[str, Tensor] = {}
        self._pairs: list[tuple[str, str]] = []
        self._projections = nn.ModuleList()
        self._handles: list[RemovableHandle] = []

    def prepare(self, network: nn.Module, device: torch.device) -> list[nn.Parameter]:
        """Attach hooks for the feature loss; return the projections' parameters."""
        self._teacher.to(device).to(memory_format=torch.channels_last).eval()
        if self._settings.feature == "none":
            return []
        example = self._example.to(device)
        self._pairs = paired_layers(self._teacher, network, example)
        self._handles = [
            *_keep_outputs(self._teacher, [t for t, _ in self._pairs], self._teacher_features),
            *_keep_outputs(network, [s for _, s in self._pairs], self._student_features),
        ]
        with torch.no_grad():
            self._teacher(example)
            network.eval()(example)
        if self._settings.feature == "hint":
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                self._projections = nn.ModuleList(
                    _projection(self._student_features[s], self._teacher_features[t]) for t, s in self._pairs
                ).to(device)
        return list(self._projections.parameters())

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def loss(self, logits: Tensor, inputs: Inputs, batch: Batch) -> Tensor:
        """Return the weighted sum of the losses for float32 logits (N, K)."""
        settings = self._settings
        teacher = self._teacher_logits(inputs[0], batch)
        label_weight = 0.0 if settings.label_free else settings.label_weight
        if settings.loss == "decoupled":
            distance = decoupled_kd(logits, teacher, batch.labels, settings.temperature)
        else:
            distance = softened_kl(logits, teacher, settings.temperature)
        total = (1 - label_weight) * distance
        if label_weight:
            total = total + label_weight * cross_entropy(logits, batch)
        if self._pairs:
            total = total + settings.feature_weight * self._feature_loss()
        return total

    def _teacher_logits(self, images: Tensor, batch: Batch) -> Tensor:
        if self._logits is not None:
            return torch.from_numpy(self._logits.view(batch.view)[batch.indices]).to(images.device)
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self._teacher(images)
        return logits.float()

    def _feature_loss(self) -> Tensor:
        total = torch.zeros((), device=next(iter(self._student_features.values())).device)
        for position, (teacher_name, student_name) in enumerate(self._pairs):
            theirs = self._teacher_features[teacher_name].float()
            ours = self._student_features[student_name].float()
            if self._settings.feature == "hint":
                total = total + hint(self._projections[position](ours), theirs)
            elif self._settings.feature == "attention":
                total = total + attention_transfer(ours, theirs)
            else:
                total = total + relation(ours, theirs)
        return total / len(self._pairs)

    def holdout_reference(self, holdout: HeldOutSamples) -> Tensor | None:
        """Return the teacher's logits of the held-out part for a label-free score."""
        return holdout.logits(self._teacher, bf16=self._bf16) if self._settings.label_free else None

    def score(self, logits: Tensor, labels: Tensor, reference: Tensor | None) -> float:
        """Return top-1 accuracy, or agreement with the teacher, in [0, 1]."""
        return share_right(logits, labels, reference)


def _projection(student: Tensor, teacher: Tensor) -> nn.Module:
    """Return a learned map from the student's feature channels to the teacher's."""
    if student.ndim == 4:
        return nn.Conv2d(student.shape[1], teacher.shape[1], 1)
    return nn.Linear(student.shape[-1], teacher.shape[-1])


def _keep_outputs(module: nn.Module, names: list[str], store: dict[str, Tensor]) -> list[RemovableHandle]:
    def keep(name: str) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            store[name] = output

        return module.get_submodule(name).register_forward_hook(hook)

    return [keep(name) for name in names]


def paired_layers(teacher: nn.Module, student: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return (teacher's layer, student's layer) pairs whose outputs have the same resolution.

    For each resolution that both networks reach, (H, W) of feature maps or the token count of (N, T, D), the last
    module that puts out that resolution stands for it.

    Raises:
        TlcError: the networks have no resolution in common.

    """
    theirs, ours = _last_by_resolution(teacher, example), _last_by_resolution(student, example)
    pairs = [(theirs[key], ours[key]) for key in theirs if key in ours]
    if not pairs:
        raise TlcError(
            f"No inner features of the student ({list(ours)}) have the resolution of the teacher's ({list(theirs)}).",
            hint='Set feature = "none" under [distill].',
        )
    return pairs


def _last_by_resolution(module: nn.Module, example: Tensor) -> dict[tuple[int, ...], str]:
    last: dict[tuple[int, ...], str] = {}

    def watch(name: str, layer: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim in (3, 4):
                resolution = tuple(output.shape[2:]) if output.ndim == 4 else (output.shape[1],)
                last[resolution] = name

        return layer.register_forward_hook(hook)

    handles = [watch(name, layer) for name, layer in module.named_modules() if name]
    try:
        with torch.no_grad():
            module.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    # A 1x1 map is the pooled vector; the logits speak for it.
    return {key: name for key, name in last.items() if key != (1, 1)}


def distill(
    teacher: Model,
    student: Model,
    train: Pixels,
    holdout: Pixels,
    loss: LossSettings,
    training: TrainSettings,
    *,
    seed: int,
    folder: Path,
    logits_folder: Path,
    emit: Emit,
    what: str = "distill",
) -> tuple[Model, Fitted]:
    """Train `student` towards `teacher` on `train`; return it with its best held-out weights.

    `folder` keeps the state after each epoch; `logits_folder`, one for each teacher, its cached logits, apart by
    samples, augmentation and seed. Neither model is changed.
    """
    training, loss = training.resolved("images"), loss.resolved("images")
    bf16 = training.bf16
    augment = training.augment or Augment.for_input(train.preprocess.size)
    source = copy.deepcopy(teacher.module).requires_grad_(False)
    cached = loss.feature == "none" and not augment.mixup
    fed = train.preprocess.model_dump(mode="json")
    key = sha256_json([train.images.digest, fed, augment.model_dump(mode="json"), seed])
    logits = (
        TeacherLogits(source, train, augment, seed=seed, bf16=bf16, folder=logits_folder / key[:16], emit=emit)
        if cached
        else None
    )
    example = torch.from_numpy(train.batch(np.arange(min(2, len(train)))))
    with closing(Distillation(source, loss, logits, example=example, bf16=bf16, seed=seed)) as objective:
        fitted = fit(
            copy.deepcopy(student.module),
            ImageSamples(train, augment),
            ImageSamples(holdout),
            training,
            objective,
            seed=seed,
            views=loss.views,
            folder=folder,
            emit=emit,
            what=what,
        )
    return student.after(f"{what}: {len(fitted.scores)} epochs, best {fitted.best_epoch}", fitted.network), fitted
