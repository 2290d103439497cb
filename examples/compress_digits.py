"""Train the network of net.py on scikit-learn's digits, then compress it: python compress_digits.py OUT."""

import sys
from pathlib import Path

import numpy as np
import torch
from net import build
from sklearn.datasets import load_digits
from torch import nn

from tlc.compress.events import Event, StageDone
from tlc.compress.pipeline import compress
from tlc.compress.recipe import read_recipe


def train(folder: Path) -> None:
    """Write digits.npz and model.pt."""
    digits = load_digits()
    np.savez(folder / "digits.npz", x=np.round(digits.images * 255 / 16).astype(np.uint8), y=digits.target)
    torch.manual_seed(0)
    network = build()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    images = (torch.from_numpy(digits.images[:, None]).float() / 16 - 0.3) / 0.35
    labels = torch.from_numpy(digits.target)
    for _ in range(60):
        batch = torch.randperm(1200)[:128]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    torch.save(network.state_dict(), folder / "model.pt")


def show(event: Event) -> None:
    """Print what each stage came to."""
    if isinstance(event, StageDone):
        print(f"{event.name}: {event.status}. {event.reason}")


def main(out: Path) -> None:
    """Train, compress, print the measured rows."""
    out.mkdir(parents=True, exist_ok=True)
    train(out)
    recipe = read_recipe(
        None,
        {
            "model.path": out / "model.pt",
            "model.arch": f"{Path(__file__).with_name('net.py')}:build",
            "model.preprocess.input": (1, 8, 8),
            "model.preprocess.mean": (0.3,),
            "model.preprocess.std": (0.35,),
            "data.path": out / "digits.npz",
            "distill.student": "depth:0.5",
            "distill.feature": "attention",
            "train.epochs": 3,
            "train.augment": {"crop": "pad", "padding": 1, "flip": False},
            "prune.ratio": 0,
            "budget.max_drop_points": 3,
        },
    )
    report = compress(recipe, out / "run", resume=True, emit=show)
    for row in report.measurements:
        print(f"{row.name:14} {row.latency.p50_ms:.3f} ms  {row.size_bytes:7} bytes  top-1 {row.accuracy.top1:.4f}")
    print(report.verdict)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits"))
