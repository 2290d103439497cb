"""Make the quantised files beside this one; see README.md."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent


class Small(nn.Module):
    """(N, 3, 16, 16) -> (N, 10)"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.left = nn.Conv2d(16, 16, 1)
        self.right = nn.Conv2d(16, 16, 3, padding=1)
        self.join = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        x = torch.relu(self.depthwise(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        logits: torch.Tensor = self.head(torch.relu(self.join(x)).mean((2, 3)))
        return logits


def _tools() -> ModuleType:
    path = HERE.parent.parent / "benchmarks" / "contract_table.py"
    spec = importlib.util.spec_from_file_location("contract_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(modelopt: str) -> None:
    tools = _tools()
    torch.manual_seed(0)
    model = Small().eval()
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((1, 3, 16, 16), dtype=np.float32) for _ in range(16)]
    tools.write_float(model, data[0], HERE / "float.onnx")
    tools.by_torch(model, HERE / "torch.onnx", data)
    tools.by_modelopt(modelopt, HERE / "float.onnx", HERE / "modelopt.onnx", data)
    (HERE / "modelopt.npy").unlink()


if __name__ == "__main__":
    main(sys.argv[1])
