"""torchvision's families through the whole chain: inspect, prune 30 %, save, reload, export, quantize, run.

    OMP_NUM_THREADS=1 python benchmarks/torchvision_families.py [NAME ...] > table.md

Random weights, ten classes, noise for images: this says what works, not how accurate it is. "reload" compares the
outputs of the pruned network with those of the saved one, bit for bit; "ONNX" is the largest error to torch over the
largest logit; "INT8" is the file's size over the float file's, and its outputs' signal-to-noise ratio against torch.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torchvision import models

from tlc.compress.checkpoint import load_saved, save_model
from tlc.compress.cost import macs
from tlc.compress.inspect import inspect_model
from tlc.compress.load import load_model
from tlc.compress.prune import PruneSettings, prune_step, reestimate_batchnorm
from tlc.compress.quantize import QuantizeSettings, quantize_onnx
from tlc.compress.student import removable_blocks
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError
from tlc.runtime.session import OrtSession
from tlc.runtime.target import load_target

FAMILIES = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "vgg11_bn", "densenet121", "googlenet",
    "inception_v3", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0", "vit_b_16", "swin_t",
)  # fmt: skip
COLUMNS = "| model | inspect | blocks | MACs, G, before and after | reload | ONNX | INT8 | seconds |"


def row(name: str, folder: Path) -> str:
    """Return the table's row for one family; a refusal is a cell."""
    start = time.monotonic()
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, num_classes=10)
    for parameter in network.parameters():
        if not parameter.any():  # ViT starts with a head of zeros, whose logits would say nothing
            torch.nn.init.normal_(parameter, std=0.02)
    torch.save(network.state_dict(), folder / f"{name}.pt")
    arch = f"torchvision:{name}"
    inspected = inspect_model(folder / f"{name}.pt", arch=arch)
    model = load_model(folder / f"{name}.pt", arch=arch)
    shape = model.preprocess.input_shape
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((16, *shape), dtype=np.float32))
    blocks = len(removable_blocks(model))
    try:
        pruned = prune_step(model, PruneSettings(ratio=0.3))
    except TlcError as refusal:
        return f"| {name} | {inspected.parameters:,} parameters | {blocks} | {refusal.message} | | | | |"
    reestimate_batchnorm(pruned.module, [images])
    cost = [macs(m.module, images[:1]) / 1e9 for m in (model, pruned)]
    save_model(pruned, folder / name)
    again = load_saved(folder / name)
    with torch.no_grad():
        logits = pruned.module(images)
        equal = torch.equal(logits, again.module(images))
    onnx = onnx_from_torch(again.module, shape, folder / f"{name}.onnx", opset=18)
    int8 = folder / f"{name}-int8.onnx"
    samples = [{"input": image[None].numpy()} for image in images]
    target, settings = load_target("cpu-x86"), QuantizeSettings(samples=16)
    quantize_onnx(onnx.path, int8, samples, count=16, target=target, settings=settings)
    with OrtSession(int8) as session:
        found = session.run({"input": images.numpy()})["logits"]
    snr = 10 * np.log10(np.square(logits.numpy()).sum() / np.square(found - logits.numpy()).sum())
    size = int8.stat().st_size / onnx.path.stat().st_size
    return (
        f"| {name} | {inspected.parameters:,} parameters | {blocks} | {cost[0]:.3f} → {cost[1]:.3f} | "
        f"{'bit-equal' if equal else 'DIFFERENT'} | {onnx.max_abs_error / float(logits.abs().max()):.0e} | "
        f"{size:.2f} of the size, {snr:.0f} dB | {time.monotonic() - start:.0f} |"
    )


def main() -> None:
    """Print the table."""
    print(COLUMNS)
    print("|---" * COLUMNS.count(" | ") + "|---|")
    for name in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
