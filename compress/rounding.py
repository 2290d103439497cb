"""Rounding to the grid of a Q/DQ pair, with a gradient, and a scale that is trained along."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class _Rounded(torch.autograd.Function):
    """(values, scale, lowest and highest integer, weight of the scale's gradient) -> the nearest values of the grid.

    The gradient passes to values that the grid reaches, and to the scale as in "Learned Step Size Quantization" (Esser,
    McKinstry, Bablani, Appuswamy, Modha 2020, arXiv 1902.08153, equation 3).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, low: Tensor, high: Tensor, share: float) -> Tensor:
        steps = values / scale
        ctx.share = share
        ctx.save_for_backward(steps, scale, low, high)
        return steps.round().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        steps, scale, low, high = ctx.saved_tensors
        levels = steps.round().clamp_(low, high)
        error = levels - steps
        reached = error.abs() <= 0.5
        to_scale = torch.where(reached, error, levels).mul_(gradient)
        if scale.numel() == 1:
            to_scale = to_scale.sum().reshape(scale.shape)
        else:
            kept = [axis for axis, size in enumerate(scale.shape) if size > 1]
            to_scale = to_scale.sum([axis for axis in range(steps.ndim) if axis not in kept]).reshape(scale.shape)
        return gradient * reached, to_scale * ctx.share, None, None, None


class Grid(nn.Module):
    """The grid of a Q/DQ pair; its scale is trained as the logarithm of how far it is from the file's."""

    file_scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, scale: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
        """`low` and `high` are the integers of the ends, zero point taken off; shapes () or (C,)."""
        super().__init__()
        self.register_buffer("file_scale", torch.tensor(scale))
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))
        self.log_ratio = nn.Parameter(torch.zeros_like(self.file_scale))
        self._largest = float(np.abs([low, high]).max())

    @property
    def scale(self) -> Tensor:
        """Shape () or (C,), float32."""
        return self.file_scale * self.log_ratio.exp()

    def forward(self, values: Tensor, axis: int) -> Tensor:
        """Return `values` as they come back from the grid, float32; scales of shape (C,) run along `axis`."""
        scale, low, high = self.scale, self.low, self.high
        if scale.numel() > 1:
            shape = [1] * values.ndim
            shape[axis] = -1
            scale, low, high = scale.reshape(shape), low.reshape(shape), high.reshape(shape)
        # So that the step of a scale is in proportion to that of a weight (there, section 2.2).
        share = 1 / math.sqrt(values.numel() / scale.numel() * self._largest)
        rounded: Tensor = _Rounded.apply(values.float(), scale, low, high, share)
        return rounded


def unit_of(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest powers of two, by which float32 is divided without rounding."""
    return np.exp2(np.rint(np.log2(np.maximum(largest, np.finfo(np.float32).tiny)))).astype(np.float32)


def along(values: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    """Return values of shape () or (C,) so that they run along `axis` of a tensor of that rank."""
    if values.size == 1:
        return values.reshape([1] * rank)
    return values.reshape([-1 if position == axis % rank else 1 for position in range(rank)])
