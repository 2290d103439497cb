"""Seeded random tokens to compare two forms of a text model with."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from tlc.export.onnx import tolerance
from tlc.runtime.errors import TlcError
from tlc.runtime.tensor import Feeds


def random_tokens(inputs: Sequence[str], size: tuple[int, int], vocabulary: int) -> dict[str, NDArray[np.int64]]:
    """Return seeded feeds (N, T) of which all but the first text are padded, each more than the one before.

    inputs: of "input_ids", "attention_mask" and "token_type_ids"; TlcError for another one. vocabulary: tokens are
    below it.
    """
    rng = np.random.default_rng(0)
    count, length = size
    tokens = np.maximum(length - np.arange(count) * max(length // count, 1), 1)
    mask = (np.arange(length) < tokens[:, None]).astype(np.int64)
    types = ((np.arange(length) >= tokens[:, None] // 2) & (mask == 1)).astype(np.int64)
    made = {"input_ids": rng.integers(0, vocabulary, size), "attention_mask": mask, "token_type_ids": types}
    unknown = [name for name in inputs if name not in made]
    if unknown or not inputs:
        raise TlcError(
            f"a text model has no input {', '.join(unknown) or 'at all'}", hint=f"Inputs are {', '.join(made)}."
        )
    return {name: made[name] for name in inputs}


def probe_sizes(max_length: int) -> list[tuple[int, int]]:
    """Return the (N, T) at which two forms of a model are compared."""
    return [(1, min(max_length, 7)), (3, min(max_length, 33)), (2, min(max_length, 128))]


def tokens_that_count(feeds: Feeds, logits: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Return where (N, T) logits per token (N, T, K) mean anything, which is not in the padding; None for (N, K)."""
    return feeds["attention_mask"] == 1 if logits.ndim == 3 and "attention_mask" in feeds else None


def word_table(model: onnx.ModelProto) -> onnx.TensorProto | None:
    """Return the table (vocabulary, width) in which the graph looks its tokens, the first input, up; None if none."""
    tables: dict[str, onnx.TensorProto] = {
        tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2
    }
    ids = model.graph.input[0].name
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] == ids and node.input[0] in tables:
            return tables[node.input[0]]
    return None


def require_word_table(model: onnx.ModelProto, name: str) -> tuple[str, int]:
    """Return name and rows of `word_table`; TlcError for a file that has none."""
    table = word_table(model)
    if table is None:
        raise TlcError(
            f"{name} looks its first input up in no table: it is no text encoder",
            hint="Give the float32 ONNX file of a text model.",
        )
    return str(table.name), int(table.dims[0])


@dataclass(frozen=True)
class Difference:
    """How far the logits of two files are apart at one batch size and length."""

    size: tuple[int, int]
    largest: float
    """Infinite where shapes differ or a logit is no number."""
    limit: float
    """How far two ways to add up in float32 may be apart."""


def differences(expected: bytes, found: bytes, *, max_length: int, vocabulary: int) -> Iterator[Difference]:
    """Run two serialised ONNX files on the same seeded tokens, with padding, in ONNX Runtime on one thread."""
    sessions = [_session(content) for content in (expected, found)]
    inputs = [value.name for value in sessions[0].get_inputs()]
    for size in probe_sizes(max_length):
        feeds = random_tokens(inputs, size, vocabulary)
        first, second = (session.run(None, feeds)[0] for session in sessions)
        counted = tokens_that_count(feeds, first)
        largest = math.inf
        if first.shape == second.shape and np.isfinite(second).all():
            largest = float(np.abs(second - first)[slice(None) if counted is None else counted].max())
        yield Difference(size, largest, tolerance(first))


def _session(content: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
