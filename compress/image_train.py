"""Images for the training loop, and a network's answers about them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlc.calibration.augment import Augment, draw_views
from tlc.calibration.cache import Pixels
from tlc.compress.objective import Batch, Epoch, Inputs, Kind

INFERENCE_BATCH = 64
"""Images at once: the activations of more no longer fit a processor's caches."""


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """The images of one split as the loop trains on them, or judges an epoch by them."""

    pixels: Pixels
    augment: Augment | None = None
    """Training augmentation; absent, it is chosen by the input's size."""

    kind: ClassVar[Kind] = "images"

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.from_numpy(np.asarray(self.pixels.labels))

    def logits(self, network: nn.Module, *, bf16: bool) -> Tensor:
        """Return float32 logits (N, K) of the images without augmentation."""
        return evaluate(network, self.pixels, bf16=bf16)

    def set_mode(self, network: nn.Module) -> None:
        """Let batch norm learn its statistics, and dropout drop."""
        network.train()

    def batches(self, epoch: Epoch) -> Iterator[tuple[Inputs, Batch]]:
        """Yield images (n, C, H, W) as augmented pass `epoch.view` has them, in the epoch's random order."""
        augment = self.augment or Augment.for_input(self.pixels.preprocess.size)
        views = draw_views(augment, len(self), seed=epoch.seed, view=epoch.view)
        order = np.random.default_rng([epoch.seed, epoch.number]).permutation(len(self))
        for step in range(epoch.steps):
            indices = epoch.own(order[step * epoch.batch_size : (step + 1) * epoch.batch_size])
            images = on_device(self.pixels.augmented(indices, views), epoch.device)
            labels = torch.from_numpy(self.pixels.labels[indices]).to(epoch.device)
            mix = None
            if augment.mixup:
                share = float(torch.distributions.Beta(augment.mixup, augment.mixup).sample())
                partner = torch.randperm(len(indices))
                images = share * images + (1 - share) * images[partner]
                mix = (partner, share)
            yield (images,), Batch(indices, labels, epoch.view, mix)


def evaluate(network: nn.Module, pixels: Pixels, *, bf16: bool, device: torch.device | None = None) -> Tensor:
    """Return float32 logits (N, K) of all samples in order, on the CPU; leaves the network in eval mode."""
    device = device or next(network.parameters()).device
    network.eval()
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for images, _labels in pixels.iterate(INFERENCE_BATCH):
            logits.append(network(on_device(images, device)).float().cpu())
    return torch.cat(logits).clone()


def in_batches(images: Tensor) -> tuple[Tensor, ...]:
    """Return `images` (N, C, H, W) in order, in parts of at most `INFERENCE_BATCH` whose sizes differ by one at most.

    >>> [len(part) for part in in_batches(torch.zeros(130, 1, 1, 1))]
    [44, 43, 43]
    """
    return images.tensor_split(-(-len(images) // INFERENCE_BATCH))


def on_device(images: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return images (N, C, H, W) as a channels-last tensor, the layout that convolutions are fastest in."""
    return torch.from_numpy(images).to(device, memory_format=torch.channels_last)
