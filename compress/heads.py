"""Attention whose heads can be removed one by one: what stays computes exactly what it did before."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlc.compress.coupling import agrees, with_random_weights

_COUNTS = ("num_heads", "num_attention_heads")
_INPUTS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
_OUTPUTS = ("proj", "o_proj", "out_proj")
_INNER_WIDTHS = ("attn_dim", "inner_dim", "all_head_size")


@dataclass(frozen=True, slots=True)
class Attention:
    """One module of multi-head attention: its linear layers by name, and how its heads lie in them."""

    name: str
    count: str
    """The attribute that holds the number of heads."""
    heads: int
    head_width: int
    inputs: tuple[str, ...]
    """One layer that makes queries, keys and values, or one for each."""
    output: str


def prunable_attention(module: nn.Module, example: Tensor) -> tuple[Attention, ...]:
    """Return the attention modules of which heads can be removed, proven on a copy with random weights.

    `example` is (N, C, H, W) float32 and gives the shape only.

    nn.MultiheadAttention and attention with a learned bias per head (Swin) are not among them: their width is tied to
    the width of the network.
    """
    found = [attention for name, part in module.named_modules() if (attention := _described(name, part))]
    if not found:
        return ()
    example = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
    dense = with_random_weights(module)
    return tuple(attention for attention in found if attention.heads > 1 and _removable(dense, example, attention))


def remove_heads(module: nn.Module, attention: Attention, heads: Sequence[int]) -> None:
    """Remove heads, by number, in place."""
    part = module.get_submodule(attention.name)
    kept = [head for head in range(attention.heads) if head not in heads]
    inner = attention.heads * attention.head_width
    for name in attention.inputs:
        layer = _linear(part, name)
        index = torch.cat([_rows(attention, kept) + start for start in range(0, layer.out_features, inner)])
        layer.weight = nn.Parameter(layer.weight.detach()[index].clone())
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[index].clone())
        layer.out_features = len(index)
    output = _linear(part, attention.output)
    output.weight = nn.Parameter(output.weight.detach()[:, _rows(attention, kept)].clone())
    output.in_features = output.weight.shape[1]
    for name in _INNER_WIDTHS:
        if getattr(part, name, None) == inner:
            setattr(part, name, output.in_features)
    setattr(part, attention.count, len(kept))


def head_scores(module: nn.Module, attention: Attention, weights: Mapping[str, Tensor]) -> Tensor:
    """Return one score per head, shape (heads,) float32: the mean of `weights` over all that belongs to the head.

    `weights` maps the names of the module's parameters to an importance of each element, of the parameter's shape.
    """
    part = module.get_submodule(attention.name)
    inner = attention.heads * attention.head_width
    total = torch.zeros(attention.heads)
    for name in attention.inputs:
        rows = weights[f"{attention.name}.{name}.weight"].sum(1)
        for start in range(0, _linear(part, name).out_features, inner):
            total += rows[start : start + inner].reshape(attention.heads, -1).sum(1)
    columns = weights[f"{attention.name}.{attention.output}.weight"].sum(0)
    return total + columns.reshape(attention.heads, -1).sum(1)


def _described(name: str, part: nn.Module) -> Attention | None:
    count = next((key for key in _COUNTS if isinstance(getattr(part, key, None), int)), None)
    children = {key for key, child in part.named_children() if isinstance(child, nn.Linear)}
    inputs = next((keys for keys in _INPUTS if children.issuperset(keys)), None)
    output = next((key for key in _OUTPUTS if key in children), None)
    if count is None or inputs is None or output is None:
        return None
    heads, inner = int(getattr(part, count)), _linear(part, output).in_features
    fits = sum(_linear(part, key).out_features for key in inputs) == 3 * inner and inner % heads == 0
    return Attention(name, count, heads, inner // heads, inputs, output) if fits else None


def _removable(dense: nn.Module, example: Tensor, attention: Attention) -> bool:
    silent, removed = copy.deepcopy(dense), copy.deepcopy(dense)
    try:
        with torch.no_grad():
            _linear(silent.get_submodule(attention.name), attention.output).weight[:, _rows(attention, [0])] = 0
            remove_heads(removed, attention, [0])
            return agrees(removed(example), silent(example), dense(example))
    # A forward pass that counts on the old width may raise anything.
    except Exception:
        return False


def _rows(attention: Attention, heads: Sequence[int]) -> Tensor:
    return (torch.tensor(heads)[:, None] * attention.head_width + torch.arange(attention.head_width)).reshape(-1)


def _linear(part: nn.Module, name: str) -> nn.Linear:
    layer = part.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
