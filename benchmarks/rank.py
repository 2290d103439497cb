"""Whether `tlc rank` puts first what fine-tuning puts first: networks ranked, then each fine-tuned on the same images.

    python benchmarks/rank.py ASSETS WORK --table results/rank.md

ASSETS holds `cifar10/` and `ants-bees/` with images and weights. Each candidate is ranked on its probe and LogME, from
images of train; then all of its weights are trained on train, and asked about val, which the ranking never saw.
"""

import argparse
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import nn

from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.data import Splits, read_data
from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import build, parse_arch
from tlc.compress.checkpoint import load_saved, save_model
from tlc.compress.features import first_inputs, last_layer, with_classes
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.compress.model import Model
from tlc.compress.rank import rank
from tlc.compress.recipe import read_recipe
from tlc.runtime.rank_report import RankReport

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PER_CLASS = {"train": 100, "val": 100}
_BATCH = 32
_RATES = (1e-3, 1e-4)
_PLAIN = '''"""ResNet-20 for 32x32 images; shortcuts drop pixels and add empty channels (He et al. 2015, option A)."""

from torch import nn
from torch.nn import functional as F


class Shorter(nn.Module):
    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))


class Block(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if before == width else Shorter()

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i and j == 0 else 1)
                            for j in range(3))) for i in range(3)
        )
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20(num_classes=10):
    return Net(num_classes)
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seen", type=int, default=1600, help="Images that fine-tuning sees, some of them again.")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    tasks = {"CIFAR-10": _few_cifar(given.assets, given.work), "ants and bees": given.assets / "ants-bees/images.zip"}
    text = [line for name, data in tasks.items() for line in _task(name, data, given.assets, given.work, given.seen)]
    print("\n".join(text))
    if given.table:
        given.table.write_text("\n".join(text) + "\n", encoding="utf-8")


def _few_cifar(assets: Path, work: Path) -> Path:
    """Write 100 images a class of train and 100 of val, the first by name."""
    path = work / "cifar.zip"
    if not path.exists():
        taken: dict[tuple[str, ...], int] = {}
        with zipfile.ZipFile(assets / "cifar10/images.zip") as source, zipfile.ZipFile(path, "w") as out:
            for name in sorted(source.namelist()):
                key = tuple(name.split("/")[-3:-1])
                if name.endswith("/") or len(key) < 2 or taken.get(key, 0) >= _PER_CLASS[key[0]]:
                    continue
                taken[key] = taken.get(key, 0) + 1
                out.writestr("/".join(name.split("/")[-3:]), source.read(name))
    return path


def _candidates(assets: Path, work: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield name, folder and architecture of each network, saved with how it is fed."""
    source = assets / "cifar10/cifar_resnet.py"
    plain = work / "resnet20_plain.py"
    plain.write_text(_PLAIN, encoding="utf-8")
    small = PreprocessOptions(input=(3, 32, 32), resize=(32, 32), mean=_MEAN, std=_STD)
    weights = {
        "ResNet-56, CIFAR-10": (assets / "cifar10/resnet56-cifar10.pt", f"{source}:resnet56", small),
        "ResNet-20, CIFAR-10": (
            assets / "checkpoint-formats/akamaster_resnet20-12fca82f.th", f"{plain}:resnet20", small,
        ),
        "ResNet-20, random": (None, f"{source}:resnet20", small),
        "ShuffleNet, random": (None, "torchvision:shufflenet_v2_x0_5", small),
        "SqueezeNet, ants and bees": (
            assets / "ants-bees/squeezenet1_0-ants-bees.pt", "torchvision:squeezenet1_0",
            PreprocessOptions(input=(3, 64, 64), resize=(64, 64)),
        ),
    }  # fmt: skip
    for name, (path, arch, options) in weights.items():
        folder = work / name.replace(", ", "-").replace(" ", "-")
        if not folder.exists():
            if path is None:
                fed = Preprocess(size=(32, 32), resize=(32, 32), mean=_MEAN, std=_STD)
                parsed = parse_arch(arch).with_classes(10)
                model = Model(build(parsed), parsed, fed, 10)
            else:
                model = load_model(path, arch=arch, preprocess=options)
            folder.mkdir()
            save_model(model, folder)
        yield name, folder, arch


def _task(name: str, data: Path, assets: Path, work: Path, seen: int) -> Iterator[str]:
    networks = list(_candidates(assets, work))
    names = {f"{folder}@{arch}": label for label, folder, arch in networks}
    # Which network is faster shows in few rounds: they differ by factors.
    given = {"model.path": networks[0][1], "data.path": data, "measure.rounds": 10, "measure.launches": 1}
    recipe = read_recipe(None, given)
    stored = work / f"{data.parent.name}-{data.stem}.json"
    if not stored.exists():
        stored.write_text(rank(list(names), recipe).model_dump_json())
    report = RankReport.model_validate_json(stored.read_text())
    splits = read_data(data)
    tuned = {}
    for label, folder, arch in networks:
        kept = work / f"{stored.stem}-{folder.name}-{seen}.txt"
        if not kept.exists():
            kept.write_text(json.dumps(_fine_tuned(load_saved(folder, arch=arch), splits, seen)))
        tuned[label] = float(json.loads(kept.read_text()))
    yield f"## {name}"
    yield ""
    yield (
        f"{report.fit_samples} images of train, "
        + (f"{report.folds} folds" if report.folds else f"{report.held_out_samples} held out")
        + f"; fine-tuned on {len(splits.fit)} until {seen} were seen, asked about the {len(splits.evaluation)} of val; "
        f"{report.runtime}, {report.threads} thread."
    )
    yield ""
    yield "| network | probe % [95 %] | LogME | p50 ms | MB | front | fine-tuned, val % |"
    yield "|---|---|---|---|---|---|---|"
    for row in report.rows:
        probe = row.probe_ratio
        yield (
            f"| {names[row.name]} | {100 * probe.estimate:.1f} [{100 * probe.low:.1f}, {100 * probe.high:.1f}] "
            f"| {row.logme:.3f} | {row.fp32.p50_ms:.2f} | {row.fp32.size_bytes / 1e6:.2f} "
            f"| {'*' if row.on_front else ''} | {100 * tuned[names[row.name]]:.1f} |"
        )
    order = [tuned[names[row.name]] for row in report.rows]
    by_probe = spearmanr([row.probe_ratio.estimate for row in report.rows], order).statistic
    by_logme = spearmanr([row.logme for row in report.rows], order).statistic
    yield ""
    yield f"Spearman's rank correlation with fine-tuning: probe {by_probe:.2f}, LogME {by_logme:.2f}."
    yield ""


def _fine_tuned(model: Model, splits: Splits, seen: int) -> float:
    """Train all weights at two rates, and return top-1 on val of the one that is better on held-out images."""
    parts = (splits.fit, splits.holdout, splits.evaluation)
    train, held, val = (prepare(part, model.preprocess) for part in parts)
    tuned = [_trained(model, train, len(splits.classes), seen, rate) for rate in _RATES]
    return _accuracy(max(tuned, key=lambda module: _accuracy(module, held)), val)


def _trained(model: Model, train: Pixels, count: int, seen: int, rate: float) -> nn.Module:
    """Return the network after `seen` images, some of them again, by AdamW with one cycle up to `rate`."""
    inputs = first_inputs(train)
    layer = last_layer(model.module, inputs)
    module = with_classes(model.module, layer, count, inputs).train()
    head: Any = module.get_submodule(layer.name)
    nn.init.normal_(head.weight, std=0.01)  # a ReLU may follow: none of its classes starts out silent
    nn.init.zeros_(head.bias)
    module = module.to(memory_format=torch.channels_last)
    epochs = -(-seen // len(train))
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * -(-len(train) // _BATCH))
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for _epoch in range(epochs):
        order = rng.permutation(len(train))
        for start in range(0, len(order), _BATCH):
            picked = order[start : start + _BATCH]
            images = train.batch(picked)
            if rng.random() < 0.5:
                images = np.ascontiguousarray(images[..., ::-1])
            loss = nn.functional.cross_entropy(
                module(torch.from_numpy(images).contiguous(memory_format=torch.channels_last)),
                torch.from_numpy(train.labels[picked]),
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return module.eval()


def _accuracy(module: nn.Module, pixels: Pixels) -> float:
    right = 0
    with torch.inference_mode():
        for images, labels in pixels.iterate(_BATCH):
            right += int((module(torch.from_numpy(images)).argmax(1).numpy() == labels).sum())
    return right / len(pixels)


if __name__ == "__main__":
    main()
