"""What training for INT8 gives back where quantisation without it loses: a MobileNet on CIFAR-10.

    python benchmarks/qat_images.py ASSETS FOLDER TARGET... > benchmarks/results/qat_images.md

ASSETS holds cifar10/ as in cifar10.sh. The network of cifar_mobilenet.py is trained on every fourth training image,
once for each FOLDER, which a run that was killed goes on from. Its file for each target is quantised without training
(PTQ) and then trained for four epochs on every twelfth image (QAT): the network as it is, and the same function with
channels that lie up to 64-fold and 1024-fold apart. ONNX Runtime runs the files on the CPU, optimised for its own
targets and node by node for others, on the 10,000 evaluation images. `same` compares the trained file with the trained
module: the share of images with the same class, and the median difference of the logits relative to the largest one.
`check` is what `tlc check` finds.
"""

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.calibration_set import balanced_indices
from tlc.calibration.data import read_data
from tlc.calibration.metrics import accuracy_change, predict
from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import build, parse_arch
from tlc.compress.checkpoint import load_saved, save_model
from tlc.compress.distill import LossSettings
from tlc.compress.events import silent
from tlc.compress.image_train import ImageSamples, evaluate
from tlc.compress.model import Model
from tlc.compress.objective import Supervised
from tlc.compress.onnx_network import OnnxNetwork
from tlc.compress.qat import qat
from tlc.compress.quantize import QuantizeSettings, quantize_onnx, write_trained
from tlc.compress.train import TrainSettings, fit
from tlc.export.contract import check_model
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.target import Target, load_target
from tlc.runtime.tensor import Feeds

EPOCHS, QAT_EPOCHS, COUNT, FOLDS = 10, 4, 300, (64, 1024)
ARCH = f"{Path(__file__).with_name('cifar_mobilenet.py')}:mobilenet"
PREPROCESS = Preprocess(size=(32, 32), resize=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
COLUMNS = "| channels | target | float | PTQ | points (95 %) | QAT | points (95 %) | same, difference | check |"


@dataclass(frozen=True, slots=True)
class Samples:
    """Some images, one at a time, again and again."""

    pixels: Pixels
    indices: NDArray[np.int64]

    def __iter__(self) -> Iterator[Feeds]:
        return ({"input": self.pixels.batch([index])} for index in self.indices)


def trained_model(train: Pixels, holdout: Pixels, classes: tuple[str, ...], folder: Path) -> Model:
    """Return the float network, trained once for each folder."""
    saved = folder / "model"
    if not saved.exists():
        arch = parse_arch(ARCH).with_classes(10)
        settings = TrainSettings(epochs=EPOCHS, learning_rate=0.1, precision="fp32")
        samples = (ImageSamples(train), ImageSamples(holdout))
        fitted = fit(build(arch), *samples, settings, Supervised(), seed=0, views=EPOCHS, folder=folder, emit=silent)
        saved.mkdir()
        save_model(Model(fitted.network, arch, PREPROCESS, 10, classes), saved)
    return load_saved(saved, arch=ARCH)


@torch.no_grad()
def uneven(network: nn.Module, fold: float) -> nn.Module:
    """Return a network of the same function whose channels between blocks lie up to `fold` apart.

    So they do in published MobileNets (Nagel et al. 2019, arXiv 1906.04721, section 3.1). What writes a channel is
    multiplied by a factor, what reads it is divided by it: in between are only sums.
    """
    scaled = copy.deepcopy(network)
    layers: list[Any] = list(scaled.features)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    for first in (2, 4):  # this block and the next write the channels; the next and the one behind it read them
        norms = [block.layers[-1][1] for block in layers[first : first + 2]]
        behind = layers[first + 2]
        readers = [layers[first + 1].layers[0][0], behind.layers[0][0] if first == 2 else behind[0]]
        factors = fold ** -torch.rand(norms[0].num_features, generator=random)
        for norm in norms:
            norm.weight *= factors
            norm.bias *= factors
        for reader in readers:
            reader.weight /= factors[:, None, None]
    return scaled


def logits_of(model: Path, pixels: Pixels, target: Target) -> NDArray[np.float32]:
    """Return the file's logits (N, 10)."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if target.runtime != "onnxruntime":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return predict(lambda images: session.run(["logits"], {"input": images})[0], pixels)


def row(name: str, kind: str, model: Model, train: Pixels, holdout: Pixels, evaluation: Pixels, folder: Path) -> str:
    """Return the table's row of one network and target; `folder` is theirs."""
    target = load_target(name)
    folder.mkdir(exist_ok=True)
    source, plain, around, out = (folder / f"{file}.onnx" for file in ("float", "int8", "around", "qat"))
    samples = Samples(train, balanced_indices(np.asarray(train.labels), COUNT, seed=0))
    if not plain.exists():
        onnx_from_torch(model.module, (3, 32, 32), source, opset=target.opset)
        quantize_onnx(source, plain, samples, count=COUNT, target=target, settings=QuantizeSettings(), around=around)
    start = time.monotonic()
    trained, fitted = qat(
        model,
        onnx.load(around),
        train,
        holdout,
        LossSettings(),
        TrainSettings(precision="fp32"),
        epochs=QAT_EPOCHS,
        seed=0,
        folder=folder,
        logits_folder=folder / "logits",
        emit=silent,
    )
    print(f"{name}: {time.monotonic() - start:.0f} s, held-out {fitted.scores}", file=sys.stderr, flush=True)
    write_trained(trained, source, out, samples, count=COUNT, target=target)
    labels = np.asarray(evaluation.labels)
    before, without, after = (logits_of(path, evaluation, target) for path in (source, plain, out))
    module = evaluate(OnnxNetwork(trained), evaluation, bf16=False).numpy()
    same = float((module.argmax(1) == after.argmax(1)).mean())
    median = float(np.median(np.abs(module - after)) / np.abs(module).max())
    cells = [f"{100 * float((before.argmax(1) == labels).mean()):.2f} %"]
    for found in (without, after):
        change = accuracy_change(before, found, labels, model.classes).change_points
        cells.append(f"{100 * float((found.argmax(1) == labels).mean()):.2f} %")
        cells.append(f"{change.estimate:+.2f} ({change.low:+.2f} to {change.high:+.2f})")
    broken = ", ".join(sorted({found.rule for found in check_model(onnx.load(out), target)})) or "clean"
    return f"| {kind} | {name} | {' | '.join(cells)} | {100 * same:.2f} %, {median:.1e} | {broken} |"


def main() -> None:
    """Print the table."""
    assets, folder, targets = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    folder.mkdir(exist_ok=True)
    splits = read_data(assets / "cifar10" / "images.zip")
    quarter, few = (splits.fit.subset(np.arange(0, len(splits.fit), step)) for step in (4, 12))
    train, again, holdout, evaluation = (
        prepare(part, PREPROCESS, cache=folder) for part in (quarter, few, splits.holdout, splits.evaluation)
    )
    model = trained_model(train, holdout, splits.classes, folder)
    print(COLUMNS)
    print("|---" * COLUMNS.count(" | ") + "|---|")
    models = {"as trained": model}
    models |= {f"{fold} apart": replace(model, module=uneven(model.module, fold)) for fold in FOLDS}
    for target in targets:
        for position, (kind, network) in enumerate(models.items()):
            own = folder / f"{target}-{position}"
            print(row(target, kind, network, again, holdout, evaluation, own), flush=True)


if __name__ == "__main__":
    main()
