import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from tlc.export.fp16 import fp16_from_float
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 4))


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": batch})[0])


def test_half_the_size_and_nearly_the_same_float32_logits(tmp_path: Path, network: nn.Sequential) -> None:
    single, half = tmp_path / "m.onnx", tmp_path / "h.onnx"
    onnx_from_torch(network, (3, 16, 16), single, opset=18)
    fp16_from_float(single, half)
    batch = np.random.default_rng(0).standard_normal((3, 3, 16, 16), dtype=np.float32)
    found, expected = run(half, batch), run(single, batch)
    assert found.dtype == np.float32
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 5e-3
    weights = {tensor.data_type for tensor in onnx.load(half).graph.initializer if len(tensor.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert half.stat().st_size < 0.7 * single.stat().st_size


def test_the_same_file_gives_the_same_bytes(tmp_path: Path, network: nn.Sequential) -> None:
    onnx_from_torch(network, (3, 16, 16), tmp_path / "m.onnx", opset=18)
    for name in ("a.onnx", "b.onnx"):
        fp16_from_float(tmp_path / "m.onnx", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_weight_beyond_the_range_is_refused_by_name(tmp_path: Path, network: nn.Sequential) -> None:
    with torch.no_grad():
        network.get_parameter("4.weight")[1, 2] = -70000.0
    onnx_from_torch(network, (3, 16, 16), tmp_path / "m.onnx", opset=18)
    with pytest.raises(TlcError, match=r"m.onnx cannot be float16: 4.weight holds 70000, the limit is 65504"):
        fp16_from_float(tmp_path / "m.onnx", tmp_path / "h.onnx")
    assert not (tmp_path / "h.onnx").exists()


class Attention(nn.Module):
    """Patches and self-attention with the batch moved to the second axis, as torchvision's ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.patches(image).flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        logits: Tensor = self.head((tokens + mixed).mean(1))
        return logits


SCRIPT = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"


def test_attention_loads_without_crashing_the_process(tmp_path: Path) -> None:
    onnx_from_torch(Attention(), (3, 16, 16), tmp_path / "m.onnx", opset=18)
    fp16_from_float(tmp_path / "m.onnx", tmp_path / "h.onnx")
    assert subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "h.onnx")], check=False).returncode == 0
