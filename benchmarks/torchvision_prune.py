"""Prune 30 % of the channels of torchvision's families (random weights) and print what came of it as Markdown.

python benchmarks/torchvision_prune.py [NAME ...]
"""

import sys
import time
import warnings

import torch
from torchvision.models import get_model

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import parse_arch
from tlc.compress.cost import macs, parameters
from tlc.compress.model import Model
from tlc.compress.prune import PruneSettings, check_prunable, prune_step
from tlc.compress.student import removable_blocks
from tlc.runtime.errors import TlcError

FAMILIES = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "vgg11_bn", "densenet121", "googlenet",
    "inception_v3", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0", "vit_b_16", "swin_t",
)  # fmt: skip


def random_model(name: str) -> Model:
    torch.manual_seed(0)
    side = 299 if name == "inception_v3" else 224
    # Auxiliary classifiers would count as parameters removed.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module = get_model(name, weights=None, **options).eval()
    preprocess = Preprocess(size=(side, side), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(module, parse_arch(f"torchvision:{name}"), preprocess, 1000)


def row(name: str) -> str:
    model, settings = random_model(name), PruneSettings(ratio=0.3)
    example = torch.zeros(1, *model.preprocess.input_shape)
    start = time.perf_counter()
    try:
        layers = len(check_prunable(model, settings).couplings)
        pruned = prune_step(model, settings).module
    except TlcError as refusal:
        return f"| {name} | refused: {refusal.message} | | | | |"
    seconds = time.perf_counter() - start
    before, after = macs(model.module, example), macs(pruned, example)
    weights = parameters(model.module), parameters(pruned)
    return (
        f"| {name} | {layers} | {before / 1e9:.3f} → {after / 1e9:.3f} ({1 - after / before:.0%} less) | "
        f"{weights[0] / 1e6:.2f} → {weights[1] / 1e6:.2f} ({1 - weights[1] / weights[0]:.0%} less) | "
        f"{len(removable_blocks(model))} | {seconds:.0f} |"
    )


def main() -> None:
    warnings.simplefilter("ignore")
    print("| network | groups of channels pruned | MACs, G | parameters, M | blocks that could be left out | seconds |")
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:] or FAMILIES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
