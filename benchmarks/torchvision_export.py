"""Export and quantise torchvision's families with random weights: does the file run, is it right, does it pay?

    OMP_NUM_THREADS=1 python benchmarks/torchvision_export.py [NAME ...] > table.md

Random weights say nothing about accuracy; the errors compare files of one network on the same seeded noise. Batch
normalisation gets statistics from two batches, without which random networks fade to zero. Latency: batch 1, one
thread, interleaved, median of paired blocks, 99 % interval.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision import models

from tlc.compress.quantize import QuantizeSettings, quantize_onnx
from tlc.export.fp16 import fp16_from_float
from tlc.export.graph import graph_stats
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError
from tlc.runtime.latency import measure_interleaved
from tlc.runtime.statistics import bootstrap_median
from tlc.runtime.target import load_target

FAMILIES = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "vgg11_bn",
    "densenet121",
    "googlenet",
    "inception_v3",
    "efficientnet_b0",
    "convnext_tiny",
    "shufflenet_v2_x1_0",
    "vit_b_16",
    "swin_t",
)
CALIBRATION_IMAGES = 16
INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "MatMulInteger", "QGemm", "MatMulIntegerToFloat")
FLOAT_OPS = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm", "FusedMatMul")
COLUMNS = (
    "model",
    "M parameters",
    "G MACs",
    "nodes",
    "FP32 MB",
    "FP16 MB",
    "INT8 MB",
    "error to torch",
    "FP16 error",
    "INT8 SNR dB",
    "integer of weighted nodes",
    "INT8 speedup",
    "export s",
    "INT8 s",
)


@dataclass(frozen=True)
class Noise:
    """Seeded images of low-pass noise, closer to photographs than white noise."""

    size: int
    count: int
    seed: int

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.count):
            coarse = torch.from_numpy(rng.standard_normal((1, 3, self.size // 8, self.size // 8), dtype=np.float32))
            image = nn.functional.interpolate(coarse, (self.size, self.size), mode="bilinear")
            yield image.numpy() + 0.1 * rng.standard_normal((1, 3, self.size, self.size), dtype=np.float32)


def network(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    kwargs = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = models.get_model(name, weights=None, **kwargs)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
    module.train()
    images = torch.from_numpy(np.concatenate(list(Noise(size, 8, seed=1))))
    with torch.no_grad():
        for batch in (images[:4], images[4:]):
            module(batch)
    return module.eval()


def session(path: Path, fused: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if fused is not None:
        options.optimized_model_filepath = str(fused)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits(path: Path, size: int) -> NDArray[np.float32]:
    runner = session(path)
    return np.concatenate([runner.run(None, {"input": image})[0] for image in Noise(size, 8, seed=2)])


def integer_share(path: Path, folder: Path) -> str:
    """Weighted nodes that run in integers once ONNX Runtime has fused the file, of all."""
    session(path, folder / "fused.onnx")
    ops = [node.op_type for node in onnx.load(folder / "fused.onnx").graph.node]
    integer = sum(
        op in ("QLinearConv", "QLinearMatMul", "MatMulInteger", "QGemm", "MatMulIntegerToFloat") for op in ops
    )
    single = sum(op in ("Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm", "FusedMatMul") for op in ops)
    return f"{integer} of {integer + single}"


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def row(name: str, folder: Path) -> list[str]:
    size = 299 if name == "inception_v3" else 224
    module = network(name, size)
    single, half, integer = (folder / f"{kind}.onnx" for kind in ("fp32", "fp16", "int8"))
    target = load_target("cpu-x86")
    export_s = timed(lambda: onnx_from_torch(module, (3, size, size), single, opset=target.opset))
    stats = graph_stats(single)
    samples = [{"input": image} for image in Noise(size, CALIBRATION_IMAGES, seed=3)]
    settings = QuantizeSettings(samples=CALIBRATION_IMAGES)
    quantize = lambda: quantize_onnx(single, integer, samples, count=len(samples), target=target, settings=settings)  # noqa: E731
    quantize_s = timed(quantize)
    fp16_from_float(single, half)
    with torch.no_grad():
        truth = module(torch.from_numpy(np.concatenate(list(Noise(size, 8, seed=2))))).numpy()
    error = {path: np.abs(logits(path, size) - truth).max() / np.abs(truth).max() for path in (single, half)}
    noise = np.square(logits(integer, size) - truth).sum() / np.square(truth).sum()
    runners = {path.stem: session(path) for path in (single, integer)}
    runs = {stem: lambda runner=runner: runner.run(None, samples[0]) for stem, runner in runners.items()}
    latency = measure_interleaved(runs, rounds=20, block=3, warmup_runs=5)
    ratios = latency["fp32"].block_medians_ns() / latency["int8"].block_medians_ns()
    gain, low, high = bootstrap_median([ratios])
    return [
        name,
        f"{stats.parameters / 1e6:.2f}",
        f"{stats.macs / 1e9:.2f}",
        str(sum(stats.ops.values())),
        *(f"{path.stat().st_size / 1e6:.1f}" for path in (single, half, integer)),
        f"{error[single]:.1e}",
        f"{error[half]:.1e}",
        f"{-10 * np.log10(noise):.1f}",
        integer_share(integer, folder),
        f"{gain:.2f}x ({low:.2f} to {high:.2f})",
        f"{export_s:.0f}",
        f"{quantize_s:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=FAMILIES, help="torchvision models; default: all families")
    torch.set_num_threads(1)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print("| " + " | ".join(row(name, Path(folder))) + " |", flush=True)
            except TlcError as error:
                print(f"| {name} | {error.message} |" + " |" * (len(COLUMNS) - 2), flush=True)
                print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
