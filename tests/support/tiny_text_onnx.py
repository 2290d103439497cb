"""Small text networks and token batches for tests of export."""

import atexit
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
import tiny_text
import torch
from torch import Tensor, nn

from tlc.compress.hf_text import TextLogits
from tlc.export.onnx import OnnxExport
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.export.transformer import FusionRecord, fuse_for_onnxruntime

MAX_LENGTH = 48
PLAIN = ("input_ids", "attention_mask")
TYPED = (*PLAIN, "token_type_ids")


def tiny_module(family: str, task: str = "sequence-classification", **shape: int) -> nn.Module:
    """Return a network with random weights and biases, float32, in evaluation mode."""
    config = tiny_text.tiny_config(family, 100, positions=MAX_LENGTH, **shape)
    torch.manual_seed(0)
    model = tiny_text._AUTO[task].from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms of fresh models are all 0 or 1
            parameter.data += torch.randn_like(parameter) * 0.05
    return TextLogits(model)


@cache
def tiny_onnx(family: str, task: str = "sequence-classification", inputs: tuple[str, ...] = PLAIN) -> OnnxExport:
    """Export `tiny_module`, once per test process: it takes seconds."""
    path = _folder() / f"{family}-{task}-{len(inputs)}.onnx"
    return text_onnx_from_torch(tiny_module(family, task), inputs, path, opset=18, max_length=MAX_LENGTH)


@cache
def tiny_fused(family: str, task: str = "sequence-classification") -> tuple[FusionRecord, Path]:
    """Fuse `tiny_onnx`, once per test process."""
    source = tiny_onnx(family, task).path
    out = source.with_suffix(".fused.onnx")
    return fuse_for_onnxruntime(source, out, max_length=MAX_LENGTH), out


@cache
def _folder() -> Path:
    folder = TemporaryDirectory(prefix="tiny-text-onnx-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


class OwnAttention(nn.Module):
    """Attention in the usual form, with any scale, fewer channels than its input, and no biases."""

    def __init__(self, factor: float, *, first: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 32)
        self.query, self.key, self.value = (nn.Linear(32, 16, bias=False) for _ in range(3))
        self.output, self.norm, self.head = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 3)
        self.factor, self.first = factor, first

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits of the first token, (N, 3), or of every token."""
        x = self.table(input_ids)
        q, k, v = (part(x).reshape(*x.shape[:2], 2, 8).transpose(1, 2) for part in (self.query, self.key, self.value))
        bias = (1 - attention_mask[:, None, None, :].to(torch.float32)) * -10_000.0
        weights = torch.softmax(q @ k.transpose(2, 3) * self.factor + bias, -1)
        y = self.norm(x + self.output((weights @ v).transpose(1, 2).reshape(*x.shape[:2], 16)))
        logits: Tensor = self.head(y[:, 0] if self.first else y)
        return logits


def token_batch(count: int, length: int, inputs: tuple[str, ...] = PLAIN, seed: int = 1) -> dict[str, np.ndarray]:
    """Return int64 (count, length) feeds; the first text is whole, the others are padded."""
    rng = np.random.default_rng(seed)
    real = np.concatenate([[length], rng.integers(2, length + 1, count - 1)])
    mask = (np.arange(length) < real[:, None]).astype(np.int64)
    types = ((np.arange(length) > real[:, None] // 2) & (mask == 1)).astype(np.int64)
    feeds = {"input_ids": rng.integers(5, 100, (count, length)), "attention_mask": mask, "token_type_ids": types}
    return {name: feeds[name] for name in inputs}


def torch_logits(module: nn.Module, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Run the network in torch."""
    with torch.inference_mode():
        return np.asarray(module(*(torch.from_numpy(values) for values in feeds.values())))


def ort_logits(path: Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Run an ONNX file in ONNX Runtime."""
    (logits,) = _session(path, path.stat().st_mtime_ns).run(["logits"], dict(feeds))
    return np.asarray(logits)


def assert_same(first: Path, second: Path, inputs: tuple[str, ...], *, per_token: bool = False) -> None:
    """Fail where two files answer differently, but for the rounding of float32."""
    for count, length in ((1, 2), (1, 13), (4, MAX_LENGTH)):
        feeds = token_batch(count, length, inputs)
        counted = feeds["attention_mask"] == 1 if per_token else slice(None)
        np.testing.assert_allclose(ort_logits(second, feeds)[counted], ort_logits(first, feeds)[counted], atol=2e-5)


def signal_to_noise_db(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far `found` is from `expected`, in decibels."""
    centred = expected - expected.mean()
    return float(10 * np.log10((centred**2).sum() / ((found - expected) ** 2).sum()))


@lru_cache(maxsize=4)
def _session(path: Path, _written_ns: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
