"""Small networks and pixels for tests of training."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.data import read_data
from tlc.calibration.preprocess import Preprocess

PREPROCESS = Preprocess(size=(8, 8), resize=None, mean=(0.5,), std=(0.25,), channels="gray")


class TinyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)) + x)


class TinyNet(nn.Module):
    """(N, 1, 8, 8) -> (N, num_classes); three removable blocks."""

    def __init__(self, num_classes: int = 2, width: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(*(TinyBlock(width) for _ in range(blocks)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.layer1(torch.relu(self.stem(x))).mean((2, 3)))
        return logits


def tiny_net(num_classes: int = 2) -> TinyNet:
    """A builder for --arch FILE.py:FUNCTION."""
    return TinyNet(num_classes)


def wide_net(num_classes: int = 2) -> TinyNet:
    """A builder of a network whose convolutions are large enough for INT8 on a GPU."""
    return TinyNet(num_classes, width=16)


def seeded_net(seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet().eval()


def write_bars(path: Path, count: int = 120) -> Path:
    """Write an .npz of noisy horizontal (0) and vertical (1) bars, 8x8 gray uint8."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (count, 8, 8), np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        line = rng.integers(0, 8)
        image[line if label == 0 else slice(None), slice(None) if label == 0 else line] = 255
    np.savez(path, x=images, y=labels, classes=np.array(["flat", "upright"]))
    return path


def bars(folder: Path) -> tuple[Pixels, Pixels]:
    """Training and held-out pixels of `write_bars`."""
    splits = read_data(write_bars(folder / "bars.npz"))
    return prepare(splits.fit, PREPROCESS), prepare(splits.holdout, PREPROCESS)
