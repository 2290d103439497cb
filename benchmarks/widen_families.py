"""torchvision's families made wider: which layers, and how far the answers are from the original's.

    OMP_NUM_THREADS=1 python benchmarks/widen_families.py [FACTOR [NAME ...]] > table.md

Random weights, ten classes, noise of 64 x 64 pixels (Inception: 96) as images. "channels" are those of all convolutions
and linear layers but the last; the error is the largest over the largest logit. A network refused says why.
"""

import sys

import torch
from torch import nn
from torchvision import models

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import Architecture
from tlc.compress.cost import macs
from tlc.compress.model import Model
from tlc.compress.prune import without_auxiliary
from tlc.compress.widen import widen_step
from tlc.runtime.errors import TlcError

FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
)  # fmt: skip


def row(name: str, factor: float) -> str:
    """Return the table's row for one family; a refusal is a cell."""
    torch.manual_seed(0)
    side = 96 if name == "inception_v3" else 64
    options = {"image_size": side} if name.startswith("vit") else {}
    network = models.get_model(name, weights=None, num_classes=10, **options).eval()
    for parameter in network.parameters():
        if not parameter.any():  # ViT starts with a head of zeros, whose logits would say nothing
            torch.nn.init.normal_(parameter, std=0.02)
    fed = Preprocess(size=(side, side), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = Model(network, Architecture(kind="torchvision", name=name, num_classes=10), fed, 10)
    try:
        wider, widths = widen_step(model, lambda _coupling: factor)
    except TlcError as refusal:
        return f"| {name} | {refusal.message} | | | |"
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted, got = network(images), wider.module(images)
    error = float((got - wanted).abs().max() / wanted.abs().max())
    cost = [macs(m, images[:1]) / 1e9 for m in (network, wider.module)]
    before, after = _channels(without_auxiliary(network)), _channels(wider.module)
    return f"| {name} | {len(widths)} | {before:,} → {after:,} | {cost[0]:.3f} → {cost[1]:.3f} | {error:.0e} |"


def _channels(network: nn.Module) -> int:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)][:-1]
    return sum(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features for layer in layers)


def main() -> None:
    """Print the table, one row as soon as it is known."""
    factor = float(sys.argv[1]) if len(sys.argv) > 1 else 1.5
    print(f"Factor {factor:g}.\n")
    print("| model | groups | channels | MACs, G | error |\n|---|---|---|---|---|", flush=True)
    for name in sys.argv[2:] or FAMILIES:
        print(row(name, factor), flush=True)


if __name__ == "__main__":
    main()
