"""A small MobileNetV2 for images of 32x32 (Sandler et al. 2018, arXiv 1801.04381), for benchmarks/qat_images.py.

Depthwise convolutions and linear bottlenecks are what rounding hurts most.
"""

import torch
from torch import nn

STAGES = ((1, 16, 1), (4, 24, 2), (4, 24, 1), (4, 40, 2), (4, 40, 1))
"""Expansion, channels, stride of each block."""


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool = True) -> nn.Module:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6()] if relu else []))


class Inverted(nn.Module):
    """Widen, filter each channel by itself, narrow; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *([_layer(inputs, inner, 1)] if expansion > 1 else []),
            _layer(inner, inner, 3, stride, inner),
            _layer(inner, outputs, 1, relu=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, outputs, H / stride, W / stride)."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.adds else y


class MobileNet(nn.Module):
    """(N, 3, 32, 32) -> (N, num_classes)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        blocks, channels = [], 16
        for expansion, outputs, stride in STAGES:
            blocks.append(Inverted(channels, outputs, expansion, stride))
            channels = outputs
        self.features = nn.Sequential(_layer(3, 16, 3, 2), *blocks, _layer(channels, 128, 1))
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def mobilenet(num_classes: int = 10) -> MobileNet:
    """A builder for --arch FILE.py:FUNCTION."""
    return MobileNet(num_classes)
