"""What a training works on and towards: the protocols of the one loop, and the plain case of labels alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["images", "texts"]
"""What a network is trained on."""

Inputs = tuple[Tensor, ...]
"""What a network is called with: images (N, C, H, W), or token ids (N, T), attention mask (N, T) and so on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's samples: positions in the training set, labels, and the pass that drew the augmentation."""

    indices: NDArray[np.int64]
    labels: Tensor
    """int64: (N,), for tokens (N, T), for answers' starts and ends (N, 2); -100 where a text has no label."""
    view: int
    mix: tuple[Tensor, float] | None
    """Mixup: permutation (N,) and the weight of the sample itself; None without mixup."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the batches of one epoch depend on, with this process's place among those that train together."""

    number: int
    """From 0."""
    view: int
    """The augmented pass."""
    seed: int
    steps: int
    batch_size: int
    """Samples of one step, over all processes."""
    device: torch.device
    process: int = 0
    processes: int = 1

    def own(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's share of a step's samples."""
        return indices[self.process :: self.processes]


class TrainingSamples(Protocol):
    """What the loop trains on."""

    @property
    def kind(self) -> Kind:
        """Decides what the settings leave open."""
        ...

    def __len__(self) -> int: ...

    def set_mode(self, network: nn.Module) -> None:
        """Put the network into the mode that it is trained in."""
        ...

    def batches(self, epoch: Epoch) -> Iterator[tuple[Inputs, Batch]]:
        """Yield `epoch.steps` batches on `epoch.device`, a function of the epoch and torch's generator alone."""
        ...


class HeldOutSamples(Protocol):
    """What an epoch's weights are judged on."""

    @property
    def labels(self) -> Tensor:
        """int64, one for each row of `logits`."""
        ...

    def logits(self, network: nn.Module, *, bf16: bool) -> Tensor:
        """Return the network's float32 logits, classes last, of all samples in order, on the CPU."""
        ...


class Objective(Protocol):
    """What the network is trained towards."""

    score_name: str
    """Name of the held-out score, such as "top1"."""

    def prepare(self, network: nn.Module, device: torch.device) -> list[nn.Parameter]:
        """Attach to `network`; return extra parameters to train, such as projections."""
        ...

    def loss(self, logits: Tensor, inputs: Inputs, batch: Batch) -> Tensor:
        """Return the scalar loss of the float32 logits for these inputs."""
        ...

    def holdout_reference(self, holdout: HeldOutSamples) -> Tensor | None:
        """Return reference logits of the held-out part where the score needs them."""
        ...

    def score(self, logits: Tensor, labels: Tensor, reference: Tensor | None) -> float:
        """Return the held-out score of logits, classes last; higher is better."""
        ...


class Supervised:
    """Cross-entropy with the labels alone."""

    score_name = "top1"

    def prepare(self, _network: nn.Module, _device: torch.device) -> list[nn.Parameter]:
        """Nothing to attach."""
        return []

    def loss(self, logits: Tensor, _inputs: Inputs, batch: Batch) -> Tensor:
        """Return the cross-entropy, of both labels under mixup."""
        return cross_entropy(logits, batch)

    def holdout_reference(self, _holdout: HeldOutSamples) -> Tensor | None:
        """Labels are the reference."""
        return None

    def score(self, logits: Tensor, labels: Tensor, reference: Tensor | None) -> float:
        """Return top-1 accuracy in [0, 1]."""
        return share_right(logits, labels, reference)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy of logits (N, K) with the batch's labels, mixed as its images are."""
    loss = F.cross_entropy(logits, batch.labels)
    if batch.mix is None:
        return loss
    partner, share = batch.mix
    return share * loss + (1 - share) * F.cross_entropy(logits, batch.labels[partner])


def share_right(logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> float:
    """Return the share of logits (..., K) whose largest is that of the reference, or the label without one."""
    wanted = labels if reference is None else reference.argmax(-1)
    return float((logits.argmax(-1) == wanted).double().mean())
