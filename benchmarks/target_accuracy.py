"""How accurate each target's file is: ResNet-56 on CIFAR-10 and SqueezeNet on photographs, as each target gets them.

    OMP_NUM_THREADS=1 python benchmarks/target_accuracy.py ASSETS > benchmarks/results/target_accuracy.md

ASSETS holds cifar10/ and ants-bees/ as in cifar10.sh and ants_bees.sh. Files are run by ONNX Runtime on the CPU, which
computes Q/DQ pairs as they stand: this compares what quantisation does to the answers, not the devices' kernels. The
last column says what `tlc check` finds wrong in the file.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.calibration_set import balanced_indices
from tlc.calibration.data import read_data
from tlc.calibration.metrics import accuracy_change, predict, sqnr_db
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.compress.quantize import QuantizeSettings, check_calibration, quantize_onnx
from tlc.export.contract import check_model
from tlc.export.fp16 import fp16_from_float
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.session import OrtSession
from tlc.runtime.target import load_target
from tlc.runtime.tensor import Feeds

TARGETS = ("cpu-x86", "cpu-arm", "openvino", "jetson-orin", "jetson-xavier", "jetson-nano")
CASES = {
    "ResNet-56, CIFAR-10": (
        *("cifar10/resnet56-cifar10.pt", "cifar10/cifar_resnet.py:resnet56", "cifar10/images.zip"),
        PreprocessOptions(input=(3, 32, 32), resize="none", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
    "SqueezeNet, ants and bees": (
        *("ants-bees/squeezenet1_0-ants-bees.pt", "torchvision:squeezenet1_0", "ants-bees/images.zip"),
        PreprocessOptions(),
    ),
}
COLUMNS = "| network | target | file | correct | top-1 | lost, won | change, points (95 %) | SNR, dB | check |"


@dataclass(frozen=True, slots=True)
class _Samples:
    """Some images, one at a time, again and again."""

    pixels: Pixels
    indices: NDArray[np.int64]

    def __iter__(self) -> Iterator[Feeds]:
        return ({"input": self.pixels.batch([index])} for index in self.indices)


def rows(case: str, assets: Path, folder: Path) -> Iterator[str]:
    """Yield the table's rows for one network: the float file, then one per target."""
    weights, arch, images, options = CASES[case]
    if not arch.startswith("torchvision:"):
        arch = str(assets / arch)
    model = load_model(assets / weights, arch=arch, preprocess=options)
    splits = read_data(assets / images)
    fit, evaluation = prepare(splits.fit, model.preprocess), prepare(splits.evaluation, model.preprocess)
    settings = QuantizeSettings()
    count = check_calibration(len(fit), settings)
    samples = _Samples(fit, balanced_indices(np.asarray(fit.labels), count, seed=0))
    labels = np.asarray(evaluation.labels)
    before: NDArray[np.float32] | None = None
    for name in TARGETS:
        target = load_target(name)
        source, out = folder / f"{name}-float.onnx", folder / f"{name}.onnx"
        onnx_from_torch(model.module, model.preprocess.input_shape, source, opset=target.opset)
        if before is None:
            before = logits_of(source, evaluation)
            correct = int((before.argmax(1) == labels).sum())
            yield f"| {case} | (float32) | | {correct} of {len(labels)} | {100 * correct / len(labels):.2f} % | | | | |"
        precision = "int8" if "int8" in target.precisions else "fp16"
        if precision == "int8":
            quantize_onnx(source, out, samples, count=count, target=target, settings=settings)
        else:
            fp16_from_float(source, out)
        after = logits_of(out, evaluation)
        correct = int((after.argmax(1) == labels).sum())
        change = accuracy_change(before, after, labels, splits.classes)
        points = change.change_points
        violations = check_model(onnx.load(out), target)
        yield (
            f"| {case} | {name} | {precision} | {correct} | "
            f"{100 * correct / len(labels):.2f} % | {change.regressed}, {change.improved} | "
            f"{points.estimate:+.2f} ({points.low:+.2f} to {points.high:+.2f}) | {sqnr_db(before, after):.1f} | "
            f"{', '.join(sorted({violation.rule for violation in violations})) or 'clean'} |"
        )


def logits_of(path: Path, pixels: Pixels) -> NDArray[np.float32]:
    """Return the file's logits (N, K) for all samples in order, by ONNX Runtime on the CPU."""
    with OrtSession(path) as session:
        name, output = session.inputs[0].name, session.outputs[0].name
        return predict(lambda images: session.run({name: images})[output], pixels)


def main() -> None:
    """Print the table."""
    print(COLUMNS)
    print("|---" * COLUMNS.count(" | ") + "|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(case, Path(sys.argv[1]), Path(folder)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
