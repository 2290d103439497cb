"""What a network costs to hold and to run, counted without a stopwatch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def macs(module: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one sample, from (N, C, H, W) float32 `example`, of which the first is run.

    Convolutions, linear layers, matrix products and attention count; elementwise operations, pooling and
    normalisation do not, which is the convention of the literature (ResNet-50: 4.09 G).
    """
    was_training = module.training
    module.eval()
    try:
        # The fused attention of eval mode is one opaque operation to the counter.
        with torch.no_grad(), _plain_attention(), FlopCounterMode(display=False) as counter:
            module(example[:1])
    finally:
        module.train(was_training)
    return int(counter.get_total_flops()) // 2


def parameters(module: nn.Module) -> int:
    """Return how many numbers are learned; shared tensors count once, buffers not at all."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _plain_attention() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
