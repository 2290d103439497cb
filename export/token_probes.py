"""Seeded random tokens to compare two forms of a text model with."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

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
    tables = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    ids = model.graph.input[0].name
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] == ids and node.input[0] in tables:
            return tables[node.input[0]]
    return None
