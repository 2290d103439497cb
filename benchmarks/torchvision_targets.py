"""torchvision's families for each kind of target: export, quantize or halve, check, and compare with torch.

    OMP_NUM_THREADS=1 python benchmarks/torchvision_targets.py [NAME ...] > benchmarks/results/torchvision_targets.md

Random weights, ten classes, noise for images: this says what works and how far rounding moves the outputs, not how
accurate it is. A cell holds what `tlc check` finds (rules broken, else "clean"), the signal-to-noise ratio of the
logits against the float file, and for INT8 on TensorRT how many of the weighted layers are in INT8.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision import models

from tlc.calibration.metrics import sqnr_db
from tlc.compress.quantize import QuantizeSettings, quantize_onnx
from tlc.export.contract import check_model
from tlc.export.fp16 import fp16_from_float
from tlc.export.onnx import onnx_from_torch
from tlc.export.view import WEIGHTED, View
from tlc.runtime.errors import TlcError
from tlc.runtime.session import OrtSession
from tlc.runtime.target import Target, load_target
from tlc.runtime.tensor import Feeds

FAMILIES = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "vgg11_bn", "densenet121", "googlenet",
    "inception_v3", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0", "vit_b_16", "swin_t",
)  # fmt: skip
TARGETS = ("cpu-x86", "openvino", "jetson-orin", "jetson-xavier", "jetson-nano")
SIZE = {"vgg11_bn": 64, "inception_v3": 128, "vit_b_16": 224}
"""Pixels a side; 96 for the others, which is enough for every layer to have an image to work on."""
SAMPLES = 16


def network(name: str) -> nn.Module:
    """Return the network with random weights and no head of zeros, whose logits would say nothing."""
    torch.manual_seed(0)
    module: nn.Module = models.get_model(name, weights=None, num_classes=10)
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return module.eval()


def cell(module: nn.Module, target: Target, images: NDArray[np.float32], folder: Path) -> str:
    """Return what one target's file is like; a refusal is a cell."""
    source, out = folder / "float.onnx", folder / "out.onnx"
    samples = [{"input": image[None]} for image in images]
    try:
        onnx_from_torch(module, images.shape[1:], source, opset=target.opset)
        if "int8" in target.precisions:
            settings = QuantizeSettings(samples=SAMPLES)
            quantize_onnx(source, out, samples, count=SAMPLES, target=target, settings=settings)
        else:
            fp16_from_float(source, out)
    except TlcError as refusal:
        return refusal.message
    model = onnx.load(out)
    broken = Counter(violation.rule for violation in check_model(model, target))
    checked = ", ".join(f"{count} {rule}" for rule, count in broken.items()) or "clean"
    snr = f"{sqnr_db(logits(source, samples), logits(out, samples)):.0f} dB"
    if target.contract != "tensorrt" or "int8" not in target.precisions:
        return f"{checked}, {snr}"
    view = View(model)
    layers = [node for node in view.nodes if node.op_type in WEIGHTED and view.weight(node) is not None]
    return f"{checked}, {snr}, {sum(map(view.is_quantised, layers))} of {len(layers)}"


def logits(path: Path, samples: Sequence[Feeds]) -> NDArray[np.float32]:
    """Return the file's logits (N, 10), by ONNX Runtime on the CPU."""
    with OrtSession(path) as session:
        return np.concatenate([session.run(sample)["logits"] for sample in samples])


def main() -> None:
    """Print the table."""
    print(f"| model | {' | '.join(TARGETS)} | seconds |")
    print("|---" * (len(TARGETS) + 2) + "|")
    for name in sys.argv[1:] or FAMILIES:
        start = time.monotonic()
        module = network(name)
        size = SIZE.get(name, 96)
        images = np.random.default_rng(0).standard_normal((SAMPLES, 3, size, size), dtype=np.float32)
        cells = []
        for target in TARGETS:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(cell(module, load_target(target), images, Path(folder)))
        print(f"| {name} | {' | '.join(cells)} | {time.monotonic() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
