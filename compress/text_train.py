"""Texts for the training loop, and a network's answers about them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlc.calibration.text_augment import TextAugment, augmented
from tlc.calibration.tokens import Tokens, gather
from tlc.compress.objective import Batch, Epoch, Inputs, Kind

_EVAL_BATCH = 64
_POOL_BATCHES = 16


@dataclass(frozen=True, slots=True)
class TextSamples:
    """The texts of one split as the loop trains on them, or judges an epoch by them."""

    tokens: Tokens
    mask_id: int = 0
    """The tokenizer's mask token, which augmentation puts in."""
    augment: TextAugment | None = None
    """Training augmentation; absent, the default one."""

    kind: ClassVar[Kind] = "texts"

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> Tensor:
        """int64: (N,), (M,) for the M tokens that have a tag, or (N, 2) for the first and last token of answers."""
        tokens = self.tokens
        return torch.from_numpy(tokens.flat_labels if tokens.spans is None else tokens.spans)

    def logits(self, network: nn.Module, *, bf16: bool) -> Tensor:
        """Return float32 logits of the texts without augmentation, as `evaluate_texts` does."""
        return evaluate_texts(network, self.tokens, bf16=bf16)

    def set_mode(self, network: nn.Module) -> None:
        """Leave dropout off: a teacher's answer to these very inputs is what is learnt, and the inputs vary enough."""
        network.eval()

    def view(self, seed: int, view: int) -> Tokens:
        """Return the texts as augmented pass `view` has them."""
        return augmented(self.tokens, seed=seed, view=view, mask_id=self.mask_id, augment=self.augment)

    def batches(self, epoch: Epoch) -> Iterator[tuple[Inputs, Batch]]:
        """Yield token ids, attention mask and so on, (n, T) each, padded to the longest of the n texts."""
        tokens = self.view(epoch.seed, epoch.view)
        rng = np.random.default_rng([epoch.seed, epoch.number])
        order = rng.permutation(len(self))[: epoch.steps * epoch.batch_size]
        for together in _by_length(order, tokens.lengths, epoch.batch_size, rng):
            indices = epoch.own(together)
            inputs = on_device(tokens.feeds(indices), tokens, epoch.device)
            labels = torch.from_numpy(tokens.targets(indices, inputs[0].shape[1])).to(epoch.device)
            yield inputs, Batch(indices, labels, epoch.view, None)


def _by_length(
    order: NDArray[np.int64], lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Cut `order` into batches of similar lengths, in random order, so that little of a batch is padding.

    Only within a pool of some batches is sorted: which texts meet stays random.
    """
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), batch_size * _POOL_BATCHES):
        pool = order[start : start + batch_size * _POOL_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluate_texts(
    network: nn.Module, tokens: Tokens, *, bf16: bool, on_batch: Callable[[int], None] | None = None
) -> Tensor:
    """Return float32 logits of all texts in order, on the CPU; leaves the network in eval mode.

    (N, K); (M, K) for the M tokens that have a tag; (N, 2, T) of answers' first and last tokens. `on_batch` is told
    the number of texts of each batch that is done.
    """
    device = next(network.parameters()).device
    network.eval()

    def run(feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.generic]:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits: NDArray[np.generic] = network(*on_device(feeds, tokens, device)).float().cpu().numpy()
        if on_batch is not None:
            on_batch(len(logits))
        return logits

    return torch.from_numpy(gather(run, tokens, _EVAL_BATCH))


def on_device(feeds: dict[str, NDArray[np.int64]], tokens: Tokens, device: torch.device) -> Inputs:
    """Return what a network of texts is called with, in its order."""
    return tuple(torch.from_numpy(feeds[name]).to(device) for name in tokens.fed.inputs)
