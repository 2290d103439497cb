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
        with counting(module) as counter:
            module(example[:1])
    finally:
        module.train(was_training)
    return int(counter.get_total_flops()) // 2


def parameters(module: nn.Module) -> int:
    """Return how many numbers are learned; shared tensors count once, buffers not at all."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def counting(module: nn.Module) -> Iterator[FlopCounterMode]:
    """Count what `module` computes within, without gradients; a multiply-accumulate counts as two operations."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation to the counter
    for parameter in trained:  # the counter fails on a parameter that is handed to a module, as DeBERTa does
        parameter.requires_grad_(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
        for parameter in trained:
            parameter.requires_grad_(True)
