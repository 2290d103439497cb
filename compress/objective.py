"""What a training works towards: the protocol, and the plain case of labels alone."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tlc.calibration.cache import Pixels


class Objective(Protocol):
    """What the network is trained towards."""

    score_name: str
    """Name of the held-out score, such as "top1"."""

    def prepare(self, network: nn.Module, device: torch.device) -> list[nn.Parameter]:
        """Attach to `network`; return extra parameters to train, such as projections."""
        ...

    def loss(self, logits: Tensor, images: Tensor, batch: "Batch") -> Tensor:
        """Return the scalar loss of float32 logits (N, K) for images (N, C, H, W)."""
        ...

    def holdout_reference(self, holdout: Pixels) -> Tensor | None:
        """Return reference logits (N, K) of the held-out part where the score needs them."""
        ...

    def score(self, logits: Tensor, labels: Tensor, reference: Tensor | None) -> float:
        """Return the held-out score of logits (N, K), higher is better."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's samples: positions in the training set, labels (N,), and the pass that drew the augmentation."""

    indices: NDArray[np.int64]
    labels: Tensor
    view: int
    mix: tuple[Tensor, float] | None
    """Mixup: permutation (N,) and the weight of the sample itself; None without mixup."""


class Supervised:
    """Cross-entropy with the labels alone."""

    score_name = "top1"

    def prepare(self, _network: nn.Module, _device: torch.device) -> list[nn.Parameter]:
        """Nothing to attach."""
        return []

    def loss(self, logits: Tensor, _images: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy, of both labels under mixup."""
        return cross_entropy(logits, batch)

    def holdout_reference(self, _holdout: Pixels) -> Tensor | None:
        """Labels are the reference."""
        return None

    def score(self, logits: Tensor, labels: Tensor, _reference: Tensor | None) -> float:
        """Return top-1 accuracy in [0, 1]."""
        return float((logits.argmax(1) == labels).double().mean())


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy of logits (N, K) with the batch's labels, mixed as its images are."""
    loss = F.cross_entropy(logits, batch.labels)
    if batch.mix is None:
        return loss
    partner, share = batch.mix
    return share * loss + (1 - share) * F.cross_entropy(logits, batch.labels[partner])
