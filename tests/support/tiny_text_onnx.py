"""Small text networks and token batches for tests of export."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import tiny_text
import torch
from torch import nn

from tlc.compress.hf_text import TextLogits
from tlc.export.text_onnx import text_onnx_from_torch

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
def tiny_onnx(path: Path, family: str, task: str = "sequence-classification", inputs: tuple[str, ...] = PLAIN) -> Path:
    """Export `tiny_module`; once per path."""
    return text_onnx_from_torch(tiny_module(family, task), inputs, path, opset=18, max_length=MAX_LENGTH).path


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
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], dict(feeds))
    return np.asarray(logits)
