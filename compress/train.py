"""Recovery training: one loop for students, pruned networks and plain fine-tuning."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tlc.calibration.augment import Augment
from tlc.compress.events import Emit, Progress
from tlc.compress.objective import Batch, Epoch, HeldOutSamples, Inputs, Kind, Objective, TrainingSamples
from tlc.runtime.errors import TlcError


class TrainSettings(BaseModel):
    """How a network is trained or recovers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: int | None = Field(None, ge=0)
    """Passes over the training samples: 10 for images, 20 for texts."""
    batch_size: int | None = Field(None, ge=2)
    """Samples of one optimiser step, over all processes: 128 images, 64 texts; lowered for data sets of few samples."""
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    """SGD with Nesterov momentum 0.9 suits convolutional networks, AdamW suits transformers; auto takes the first for
    images, the second for texts."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate, reached after the warm-up; falls to zero along a half cosine: 0.05 for SGD; for AdamW 0.001
    on images, 0.0001 on texts."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of all steps over which the learning rate rises linearly."""
    weight_decay: float | None = Field(None, ge=0)
    """Not applied to biases and normalisation; 0.0005 for SGD, 0.01 for AdamW."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Discriminative learning rates: each block nearer to the input trains at this multiple of the one after it."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that are not trained, such as "features.0.*"."""
    unfreeze_ratio: float = Field(0.0, ge=0, le=1)
    """Gradual unfreezing: over this share of the epochs blocks thaw one by one, last first; 0 trains all at once."""
    patience: int = Field(0, ge=0)
    """Stop after this many epochs without a better held-out score; 0 never stops early."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay a step of an exponential moving average of the weights, which is what is evaluated and kept; 0 is off."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of the gradient: 5 for images, 1 for texts."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast: auto uses it where the GPU or the CPU has instructions for it."""
    augment: Augment | None = None
    """Training augmentation of images; absent, it is chosen by the input's size."""

    @property
    def bf16(self) -> bool:
        """Whether this machine computes with bfloat16 under these settings."""
        return self.precision == "bf16" or (self.precision == "auto" and bf16_is_fast())

    def resolved(self, kind: Kind) -> "ResolvedTrainSettings":
        """Return the settings with a value for everything that they leave to tlc."""
        texts = kind == "texts"
        sgd = self.optimizer == "sgd" or (self.optimizer == "auto" and not texts)
        decided: dict[str, Any] = {
            "epochs": 20 if texts else 10,
            "batch_size": 64 if texts else 128,
            "learning_rate": 0.05 if sgd else 1e-4 if texts else 1e-3,
            "weight_decay": 5e-4 if sgd else 0.01,
            "clip_norm": 1.0 if texts else 5.0,
        }
        given = {name: value for name, value in self if value is not None}
        return ResolvedTrainSettings(**{**decided, **given, "optimizer": "sgd" if sgd else "adamw"})


class ResolvedTrainSettings(TrainSettings):
    """`TrainSettings` with nothing left to decide."""

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    clip_norm: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The network with its best held-out score, and the score after each epoch."""

    network: nn.Module
    best_score: float | None
    """None when no epoch was run."""
    best_epoch: int
    scores: tuple[float, ...]


def bf16_is_fast() -> bool:
    """Say whether this machine computes bfloat16 with instructions of its own (GPU, AMX or AVX512-BF16)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any((torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()))


def fit(
    network: nn.Module,
    train: TrainingSamples,
    holdout: HeldOutSamples,
    settings: TrainSettings,
    objective: Objective,
    *,
    seed: int,
    views: int,
    folder: Path,
    emit: Emit,
    what: str = "train",
) -> Fitted:
    """Train `network` in place and return it, on the CPU, with the weights of its best held-out score.

    Every random number is a function of (seed, epoch) and the state after each epoch is kept in `folder`, so a run that
    is killed goes on from its last whole epoch and ends with the same weights. `views` is the number of different
    augmented passes over the samples: epoch e draws pass e modulo `views`.

    Raises:
        TlcError: the loss is not finite, or a `freeze` pattern matches nothing.

    """
    settings = settings.resolved(train.kind)
    trainer = _Trainer(network, train, settings, objective, seed=seed, views=views)
    checkpoint = folder / "epoch.pt"
    trainer.load(checkpoint)
    reference = objective.holdout_reference(holdout)
    labels = holdout.labels
    for epoch in range(len(trainer.scores), settings.epochs):
        if trainer.is_stale():
            break

        def report(step: int, loss: float, epoch: int = epoch) -> None:
            last = {objective.score_name: trainer.scores[-1]} if trainer.scores else {}
            done, total = epoch * trainer.steps + step, settings.epochs * trainer.steps
            emit(Progress(what, done, total, {"loss": loss, **last}))

        trainer.run_epoch(epoch, report)
        trainer.keep(objective.score(holdout.logits(trainer.evaluated, bf16=settings.bf16), labels, reference))
        trainer.save(checkpoint)
    return trainer.finish(checkpoint)


class _Trainer:
    """The mutable state of one training: weights, optimiser, average, scores."""

    def __init__(
        self,
        network: nn.Module,
        train: TrainingSamples,
        settings: ResolvedTrainSettings,
        objective: Objective,
        *,
        seed: int,
        views: int,
    ) -> None:
        self.bf16 = settings.bf16
        # Autocast is ours: accelerate's would replace the network's forward, which then could not be saved.
        self.accelerator = Accelerator(mixed_precision="no")
        self.network = network.to(self.accelerator.device).to(memory_format=torch.channels_last)
        self.average = (
            AveragedModel(self.network, multi_avg_fn=_ema(settings.ema_decay), use_buffers=True)
            if settings.ema_decay
            else None
        )
        self.settings, self.objective, self.train_set, self.seed, self.views = settings, objective, train, seed, views
        self.extra = objective.prepare(self.network, self.accelerator.device)
        blocks = parameter_blocks(self.network, settings.freeze)
        self.block_count = len(blocks)
        # Fused steps round differently, but take a quarter of the time where half of a network is embeddings.
        optimizer = _optimizer(blocks, self.extra, settings, fused=train.kind == "texts")
        prepared = self.accelerator.prepare(self.network, optimizer)
        self.prepared: nn.Module = prepared[0]
        self.optimizer: torch.optim.Optimizer = prepared[1]
        # Few samples: at least four steps an epoch, so that the weights move at all.
        self.batch_size = min(settings.batch_size, max(2, len(train) // 4))
        self.steps = max(1, len(train) // self.batch_size)
        self.scores: list[float] = []
        self.best = self._weights()

    @property
    def evaluated(self) -> nn.Module:
        """The network whose score counts: the moving average where there is one."""
        return self.average.module if self.average is not None else self.network

    def is_stale(self) -> bool:
        """Say whether `patience` epochs went by without a better score."""
        patience = self.settings.patience
        return bool(patience and self.scores) and len(self.scores) - 1 - int(np.argmax(self.scores)) >= patience

    @property
    def best_epoch(self) -> int:
        """The last epoch, counted from 1, with the best score; 0 before the first."""
        return len(self.scores) - int(np.argmax(self.scores[::-1])) if self.scores else 0

    def run_epoch(self, epoch: int, report: Callable[[int, float], None]) -> None:
        """Take the optimiser steps of one epoch; `report(step, mean loss so far)` is called now and then."""
        torch.manual_seed(self.seed + epoch)
        batches = self.train_set.batches(
            Epoch(
                epoch,
                view=epoch % self.views,
                seed=self.seed,
                steps=self.steps,
                batch_size=self.batch_size,
                device=self.accelerator.device,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
            )
        )
        total, noted = 0.0, time.monotonic()
        self.train_set.set_mode(self.prepared)
        for step, (inputs, batch) in enumerate(batches):
            self._set_learning_rates(epoch, step)
            total += self._step(inputs, batch)
            if not math.isfinite(total):
                raise TlcError(
                    f"The loss is not finite in epoch {epoch + 1}, step {step + 1} "
                    f"(learning rate {self.settings.learning_rate}).",
                    hint='Lower learning_rate, or set precision = "fp32".',
                )
            if time.monotonic() - noted > 0.2 or step + 1 == self.steps:
                noted = time.monotonic()
                report(step + 1, total / (step + 1))

    def _step(self, inputs: Inputs, batch: Batch) -> float:
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.prepared(*inputs)
        loss = self.objective.loss(logits.float(), inputs, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_([*self.prepared.parameters(), *self.extra], self.settings.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return float(loss.detach())

    def _set_learning_rates(self, epoch: int, step: int) -> None:
        settings = self.settings
        done = (epoch * self.steps + step) / (settings.epochs * self.steps)
        rise = (
            min(1.0, (done + 1 / (settings.epochs * self.steps)) / settings.warmup_ratio)
            if settings.warmup_ratio
            else 1.0
        )
        rate = settings.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * done))
        thawed = epoch / (settings.unfreeze_ratio * settings.epochs) if settings.unfreeze_ratio else 1.0
        for group in self.optimizer.param_groups:
            # A block that is not thawed yet has a learning rate of zero.
            awake = thawed * (self.block_count - 1) >= group["above"]
            group["lr"] = rate * settings.layer_decay ** group["above"] if awake else 0.0

    def keep(self, score: float) -> None:
        """Note the epoch's score, and the weights when they are the best so far."""
        # Of equal scores the later counts: its learning rate was lower.
        if not self.scores or score >= max(self.scores):
            self.best = self._weights()
        self.scores.append(score)

    def save(self, path: Path) -> None:
        """Write all state that the next epoch needs, whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "extra": [p.data for p in self.extra],
            "scores": self.scores,
            "best": self.best,
        }
        beside = path.with_suffix(".new")
        torch.save(state, beside)
        beside.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote, if it is there."""
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.accelerator.device)
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, value in zip(self.extra, state["extra"], strict=True):
            parameter.data.copy_(value)
        self.scores, self.best = state["scores"], state["best"]

    def finish(self, checkpoint: Path) -> Fitted:
        """Return the network with its best weights and clear up."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoint.unlink(missing_ok=True)
        self.network.load_state_dict(self.best)
        network = self.network.to("cpu").to(memory_format=torch.contiguous_format).eval().requires_grad_(True)
        return Fitted(network, max(self.scores, default=None), self.best_epoch, tuple(self.scores))

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.evaluated.state_dict().items()}


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    average: Callable[[Any, Any, Any], None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return average


def parameter_blocks(network: nn.Module, freeze: Sequence[str]) -> list[list[nn.Parameter]]:
    """Group the trainable parameters by depth, input first; those that match `freeze` stop requiring gradients.

    A block is everything under the first name component that carries a number: `layer1`, `features.3`,
    `encoder.layers.encoder_layer_0`; without a number, under the first component. Components that all names begin with
    do not count.

    Raises:
        TlcError: a pattern matches no parameter, or nothing is left to train.

    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in freeze:
        if not any(fnmatch(name, pattern) for name in names):
            raise TlcError(
                f"freeze = {pattern!r} matches none of the {len(names)} parameters, such as {names[0]}.",
                hint="Run `tlc inspect` to see the layers' names.",
            )
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    blocks: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        frozen = any(fnmatch(name, pattern) for pattern in freeze)
        parameter.requires_grad_(not frozen)
        if not frozen:
            parts = name.split(".")
            inner = min(shared, len(parts) - 1)
            numbered = next((i for i in range(inner, len(parts)) if any(c.isdigit() for c in parts[i])), inner)
            blocks.setdefault(".".join(parts[: numbered + 1]), []).append(parameter)
    if not blocks:
        raise TlcError(f"freeze = {list(freeze)} leaves no parameter to train.", hint="Freeze fewer layers.")
    return list(blocks.values())


def _optimizer(
    blocks: list[list[nn.Parameter]], extra: list[nn.Parameter], settings: ResolvedTrainSettings, *, fused: bool
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for above, block in enumerate(reversed(blocks)):
        matrices, vectors = [p for p in block if p.ndim > 1], [p for p in block if p.ndim <= 1]
        groups += [
            {"params": matrices, "weight_decay": settings.weight_decay, "above": above},
            {"params": vectors, "weight_decay": 0.0, "above": above},
        ]
    groups.append({"params": extra, "weight_decay": settings.weight_decay, "above": 0})
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
