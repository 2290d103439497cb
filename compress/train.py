"""Recovery training: one loop for students, pruned networks and plain fine-tuning."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tlc.calibration.augment import Augment, Views, draw_views
from tlc.calibration.cache import Pixels
from tlc.compress.events import Emit, Progress
from tlc.compress.objective import Batch, Objective
from tlc.runtime.errors import TlcError

_EVAL_BATCH = 256


class TrainSettings(BaseModel):
    """How a network is trained or recovers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: int = Field(10, ge=0)
    """Passes over the training samples."""
    batch_size: int = Field(128, ge=2)
    """Samples of one optimiser step, over all processes; lowered for data sets of few samples."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9 suits convolutional networks, AdamW suits transformers."""
    learning_rate: float = Field(0.05, gt=0)
    """Peak learning rate, reached after the warm-up; falls to zero along a half cosine."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of all steps over which the learning rate rises linearly."""
    weight_decay: float = Field(5e-4, ge=0)
    """Not applied to biases and normalisation."""
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
    clip_norm: float = Field(5.0, gt=0)
    """Largest L2 norm of the gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast: auto uses it where the GPU or the CPU has instructions for it."""
    augment: Augment | None = None
    """Training augmentation; absent, it is chosen by the input's size."""


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


def evaluate(network: nn.Module, pixels: Pixels, *, bf16: bool, device: torch.device | None = None) -> Tensor:
    """Return float32 logits (N, K) of all samples in order, on the CPU; leaves the network in eval mode."""
    device = device or next(network.parameters()).device
    network.eval()
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for images, _labels in pixels.iterate(_EVAL_BATCH):
            logits.append(network(on_device(images, device)).float().cpu())
    return torch.cat(logits).clone()


def on_device(images: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return images (N, C, H, W) as a channels-last tensor, the layout that convolutions are fastest in."""
    return torch.from_numpy(images).to(device, memory_format=torch.channels_last)


def fit(
    network: nn.Module,
    train: Pixels,
    holdout: Pixels,
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
    trainer = _Trainer(network, train, settings, objective, seed=seed, views=views)
    checkpoint = folder / "epoch.pt"
    trainer.load(checkpoint)
    reference = objective.holdout_reference(holdout)
    labels = torch.from_numpy(np.asarray(holdout.labels))
    for epoch in range(len(trainer.scores), settings.epochs):
        if trainer.is_stale():
            break

        def report(step: int, loss: float, epoch: int = epoch) -> None:
            last = {objective.score_name: trainer.scores[-1]} if trainer.scores else {}
            done, total = epoch * trainer.steps + step, settings.epochs * trainer.steps
            emit(Progress(what, done, total, {"loss": loss, **last}))

        trainer.run_epoch(epoch, report)
        trainer.keep(objective.score(evaluate(trainer.evaluated, holdout, bf16=trainer.bf16), labels, reference))
        trainer.save(checkpoint)
    return trainer.finish(checkpoint)


class _Trainer:
    """The mutable state of one training: weights, optimiser, average, scores."""

    def __init__(
        self, network: nn.Module, train: Pixels, settings: TrainSettings, objective: Objective, *, seed: int, views: int
    ) -> None:
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bf16_is_fast())
        # Autocast is ours: accelerate's would replace the network's forward, which then could not be saved.
        self.accelerator = Accelerator(mixed_precision="no")
        self.network = network.to(self.accelerator.device).to(memory_format=torch.channels_last)
        self.average = (
            AveragedModel(self.network, multi_avg_fn=_ema(settings.ema_decay), use_buffers=True)
            if settings.ema_decay
            else None
        )
        self.settings, self.objective, self.train_set, self.seed, self.views = settings, objective, train, seed, views
        self.augment = settings.augment or Augment.for_input(train.preprocess.size)
        self.extra = objective.prepare(self.network, self.accelerator.device)
        blocks = parameter_blocks(self.network, settings.freeze)
        self.block_count = len(blocks)
        prepared = self.accelerator.prepare(self.network, _optimizer(blocks, self.extra, settings))
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
        view = epoch % self.views
        views = draw_views(self.augment, len(self.train_set), seed=self.seed, view=view)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.train_set))
        total, noted = 0.0, time.monotonic()
        self.prepared.train()
        for step in range(self.steps):
            self._set_learning_rates(epoch, step)
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            mine = indices[self.accelerator.process_index :: self.accelerator.num_processes]
            total += self._step(mine, views, view)
            if not math.isfinite(total):
                raise TlcError(
                    f"The loss is not finite in epoch {epoch + 1}, step {step + 1} "
                    f"(learning rate {self.settings.learning_rate}).",
                    hint='Lower learning_rate, or set precision = "fp32".',
                )
            if time.monotonic() - noted > 0.2 or step + 1 == self.steps:
                noted = time.monotonic()
                report(step + 1, total / (step + 1))

    def _step(self, indices: NDArray[np.int64], views: Views, view: int) -> float:
        device = self.accelerator.device
        images = on_device(self.train_set.augmented(indices, views), device)
        labels = torch.from_numpy(self.train_set.labels[indices]).to(device)
        mix = None
        if self.augment.mixup:
            share = float(torch.distributions.Beta(self.augment.mixup, self.augment.mixup).sample())
            partner = torch.randperm(len(indices))
            images = share * images + (1 - share) * images[partner]
            mix = (partner, share)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.prepared(images)
        loss = self.objective.loss(logits.float(), images, Batch(indices, labels, view, mix))
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
    `encoder.layers.encoder_layer_0`; without a number, under the first component.

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
    blocks: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        frozen = any(fnmatch(name, pattern) for pattern in freeze)
        parameter.requires_grad_(not frozen)
        if not frozen:
            parts = name.split(".")
            numbered = next((i for i, part in enumerate(parts) if any(c.isdigit() for c in part)), 0)
            blocks.setdefault(".".join(parts[: numbered + 1]), []).append(parameter)
    if not blocks:
        raise TlcError(f"freeze = {list(freeze)} leaves no parameter to train.", hint="Freeze fewer layers.")
    return list(blocks.values())


def _optimizer(
    blocks: list[list[nn.Parameter]], extra: list[nn.Parameter], settings: TrainSettings
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
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
