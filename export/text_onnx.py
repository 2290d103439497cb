"""PyTorch text encoder -> float32 ONNX file with dynamic batch and length, checked against the module."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tlc.export.onnx import (
    OnnxExport,
    Probe,
    check_opset,
    evaluating,
    exported_by_torch,
    tolerance,
    torch_outputs,
    write_checked,
)
from tlc.export.token_probes import probe_sizes, random_tokens, tokens_that_count, word_table
from tlc.export.view import View
from tlc.runtime.errors import TlcError
from tlc.runtime.tensor import BATCH_NAME, LENGTH_NAME

MASKED = -10_000.0
"""Added to the attention scores of padding. exp(-10,000) is 0 in float32, as that of the smallest float32 is, which
transformers adds; unlike that one, this number exists in float16 and does not stretch a quantiser's range."""

_SHORTEST = 2  # the two special tokens around an empty text
_ATTENTION = "tlc_matmul"


def text_onnx_from_torch(
    module: nn.Module, inputs: tuple[str, ...], path: Path, *, opset: int, max_length: int
) -> OnnxExport:
    """Write `module` as ONNX: int64 inputs ("N", "T") under the names `inputs`, output `logits`.

    The guarantees are those of `tlc.export.onnx.onnx_from_torch`; the logits are compared on seeded random tokens at
    several batch sizes and lengths, with padding. Attention is written as MatMul, Mul, Add, Softmax, MatMul, with the
    mask as a bias that is 0 for tokens and -10,000 for padding, whatever implementation the module is set to.

    Args:
        module: int64 (N, T) by position -> float32 logits (N, K) or (N, T, K).
        inputs: the names of its arguments: "input_ids", "attention_mask" (1 token, 0 padding), "token_type_ids".
        path: the file to write.
        opset: ONNX operator set, 13 or newer.
        max_length: the largest T.

    Raises:
        TlcError: torch cannot export the module, the graph fixes batch size or length, an operator does not exist in
            `opset`, or the outputs differ from torch's.

    """
    check_opset(opset)
    name = type(module).__name__
    length = torch.export.Dim(LENGTH_NAME, min=_SHORTEST, max=max_length)
    shape = {0: torch.export.Dim(BATCH_NAME), 1: length}
    tokens = random_tokens(inputs, (2, min(max_length, 8)), vocabulary=2)
    examples = {key: torch.from_numpy(values) for key, values in tokens.items()}
    with evaluating(module):
        with _plain_attention(module):
            exported = exported_by_torch(module, examples, tuple(shape for _ in inputs), opset)
        _require_dynamic_shapes(exported, name)
        _drop_allowzero(exported)
        _bound_masks(exported)
        vocabulary = _vocabulary(exported, name)
        probes = [_probe(module, inputs, size, vocabulary, name) for size in probe_sizes(max_length)]
    return write_checked(exported, probes, path, opset=opset, name=name)


def _probe(module: nn.Module, inputs: Sequence[str], size: tuple[int, int], vocabulary: int, name: str) -> Probe:
    feeds = random_tokens(inputs, size, vocabulary)
    try:
        logits = torch_outputs(module, feeds, name, ("N", "K"), ("N", "T", "K"))
    except RuntimeError as problem:
        raise TlcError(
            f"{name} does not run on {size[0]} texts of {size[1]} tokens: {str(problem).splitlines()[0]}",
            hint="Let the module take batch size and length from its inputs, and reach the length that is asked for.",
        ) from problem
    return Probe(feeds, logits, tolerance(logits), tokens_that_count(feeds, logits))


def _vocabulary(model: onnx.ModelProto, name: str) -> int:
    """Return the rows of the table in which the graph looks its tokens up."""
    table = word_table(model)
    if table is None:
        raise TlcError(
            f"{name} looks its tokens up in no table, so that no valid tokens are known to check its ONNX file with",
            hint="Let the module's first argument be the tokens, looked up in an nn.Embedding.",
        )
    return int(table.dims[0])


def _require_dynamic_shapes(model: onnx.ModelProto, name: str) -> None:
    for value in model.graph.input:
        found = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if found != [BATCH_NAME, LENGTH_NAME]:
            raise TlcError(
                f"{name} fixes a size: {value.name} has shape {found}, not [{BATCH_NAME}, {LENGTH_NAME}]",
                hint="Let the module take batch size and length from its inputs, not from constants.",
            )


def _drop_allowzero(model: onnx.ModelProto) -> None:
    """Let Reshape read a size of 0 as "as in the input", as before opset 14: batch size and length are never 0."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] not in constants:
            node.ClearField("attribute")


def _bound_masks(model: onnx.ModelProto) -> None:
    """Let Where mask scores with -10,000 too, as in DeBERTa, whose own attention writes the smallest float32."""
    view = View(model)
    bounded = "attention/masked"
    for node in view.nodes:
        if node.op_type != "Where" or {reader.op_type for reader in view.readers(node.output[0])} != {"Softmax"}:
            continue
        for place in (1, 2):
            value = view.value(node.input[place])
            if value is None or value.size != 1 or not value.item() < MASKED:
                continue
            if all(tensor.name != bounded for tensor in model.graph.initializer):
                number = numpy_helper.from_array(np.asarray(MASKED, value.dtype), bounded)
                model.graph.initializer.append(number)
            node.input[place] = bounded


@contextlib.contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Let the transformers models in `module` calculate attention and its mask as below, as long as it is exported.

    Their own fused attention exports with clutter around the Softmax, and their mask with a GatherND.
    """
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    chosen = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
    if not chosen:
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, _mask)
    before = [config._attn_implementation for config in chosen]
    try:
        for config in chosen:
            config._attn_implementation = _ATTENTION
        yield
    finally:
        for config, implementation in zip(chosen, before, strict=True):
            config._attn_implementation = implementation


def _attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax(Q K^T * scaling + mask) V of (N, heads, T, width); returns (N, T, heads, width)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    return torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2), None


def _mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Any,
    attention_mask: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    **_: Any,
) -> Tensor | None:
    """Return what is added to the scores: (N, 1, 1, T) for padding, (N, 1, T, T) where a window limits attention."""
    from transformers.masking_utils import bidirectional_mask_function

    bias = None if attention_mask is None else (1 - attention_mask[:, None, None, :].to(dtype)) * MASKED
    if mask_function is bidirectional_mask_function:
        return bias
    ends = torch.arange(q_length, device=device)[:, None], torch.arange(kv_length, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.long, device=device)
    window: Tensor = (1 - mask_function(zero, zero, *ends).to(dtype)) * MASKED
    return window if bias is None else bias + window
