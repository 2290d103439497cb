"""At which ONNX opsets do torchvision's families export with torch's own outputs, and for which targets?

    OMP_NUM_THREADS=1 python benchmarks/torchvision_opsets.py [NAME ...] > table.md

Random weights. `onnx_from_torch` compares every file with torch in ONNX Runtime; a cell holds the largest error as a
share of the largest logit, or why there is no file. Targets: violations of `tlc check` that their runtime refuses.
Images of 64 pixels, 224 for ViT and 299 for Inception: operators do not depend on the size.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torchvision import models

from tlc.export.contract import check_model
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError
from tlc.runtime.target import load_target

sys.path.insert(0, str(Path(__file__).parent))
from torchvision_export import FAMILIES

OPSETS = (13, 16, 17, 18, 19)
TARGETS = ("jetson-nano", "jetson-xavier", "jetson-orin", "cuda")
SIZES = {"vit_b_16": 224, "inception_v3": 299}


def network(name: str) -> nn.Module:
    """Return the family with random weights; a head of zeros gets some."""
    torch.manual_seed(0)
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = models.get_model(name, weights=None, **kwargs).eval()
    for part in module.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
    return module


def row(name: str, folder: Path) -> list[str]:
    """Export at every opset, and check the files of the targets."""
    module = network(name)
    size = SIZES.get(name, 64)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, size, size), dtype=np.float32))
    with torch.no_grad():
        largest = float(module(images).abs().max())
    cells, files = [], {}
    for opset in OPSETS:
        path = folder / f"{opset}.onnx"
        try:
            export = onnx_from_torch(module, (3, size, size), path, opset=opset)
            cells.append(f"{export.max_abs_error / largest:.0e}" + ("" if export.simplified else f" ({export.note})"))
            files[opset] = path
        except TlcError as error:
            cells.append(error.message)
    for target in map(load_target, TARGETS):
        if target.opset not in files:
            cells.append("no file")
            continue
        found = [
            broken for broken in check_model(onnx.load(files[target.opset]), target) if broken.severity == "refused"
        ]
        cells.append(
            "clean" if not found else "; ".join(sorted({f"{broken.rule}: {broken.op_type}" for broken in found}))
        )
    return [name, *cells]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    columns = ["model", *(f"opset {opset}" for opset in OPSETS), *TARGETS]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(row(name, Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main()
