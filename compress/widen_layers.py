"""Copying the channels of one layer; what read a channel reads its copies, each with a part of the old weight."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SPREAD = 0.5
"""Parts of a weight are drawn from 1 +- this before they are scaled to add up to it."""
_ROWS = 256
"""So many are divided at once: a layer behind all pixels of a VGG holds hundreds of millions of weights."""
_Conv = nn.modules.conv._ConvNd
_WEIGHTED = (_Conv, nn.Linear)
KNOWN_LAYERS = (*_WEIGHTED, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


class NotAlongAxisError(Exception):
    """Channels do not lie along an axis as a layer hands them on."""


def channels_of(layer: nn.Module, *, reads: bool) -> int:
    """Return how many channels a layer of `KNOWN_LAYERS` reads, or makes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features if reads else layer.out_features
    if isinstance(layer, _Conv):
        return layer.in_channels if reads else layer.out_channels
    return len(layer.weight) if isinstance(layer, nn.PReLU) else _norm_width(layer)


def _norm_width(layer: nn.Module) -> int:
    if isinstance(layer, nn.LayerNorm):
        if len(layer.normalized_shape) > 1:
            raise NotAlongAxisError
        return layer.normalized_shape[0]
    return int(layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features)  # type: ignore[arg-type]


def widen_layer(
    layer: nn.Module, rows: Sequence[int] | None, columns: Sequence[int] | None, generator: torch.Generator
) -> None:
    """Copy channels of a layer of `KNOWN_LAYERS`, in place.

    `rows` and `columns` say of which old channel each new one is a copy, of those it makes and of those it reads; None
    leaves them as they are. Copies that are read share the old weights. Raises NotAlongAxisError where channels would
    leave their group.
    """
    if isinstance(layer, _WEIGHTED):
        _widen_weighted(layer, rows, columns, generator)
    elif rows is not None:
        _widen_norm(layer, rows)


def _widen_weighted(
    layer: nn.Module, rows: Sequence[int] | None, columns: Sequence[int] | None, generator: torch.Generator
) -> None:
    """Copy output channels `rows`, and let the copies of an input channel, `columns`, share its weights."""
    assert isinstance(layer, _WEIGHTED)
    groups = layer.groups if isinstance(layer, _Conv) else 1
    transposed = isinstance(layer, _Conv) and layer.transposed
    old_rows, old_columns = channels_of(layer, reads=False), channels_of(layer, reads=True)
    rows = range(old_rows) if rows is None else rows
    if groups == old_rows == old_columns > 1:
        # A depthwise convolution reads what it makes: nothing is added up, so nothing is shared out.
        layer.weight = _parameter(layer.weight, layer.weight.detach()[list(rows)])
        layer.in_channels = layer.groups = len(rows)
    else:
        columns = range(old_columns) if columns is None else columns
        weight = layer.weight.detach().transpose(0, 1) if transposed else layer.weight.detach()
        if transposed and groups > 1:
            raise NotAlongAxisError
        weight = _shared_out(weight, rows, columns, groups, generator)
        layer.weight = _parameter(layer.weight, weight.transpose(0, 1).contiguous() if transposed else weight)
        setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(columns))
    if layer.bias is not None:
        layer.bias = _parameter(layer.bias, layer.bias.detach()[list(rows)])
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(rows))


def _shared_out(
    weight: Tensor, rows: Sequence[int], columns: Sequence[int], groups: int, generator: torch.Generator
) -> Tensor:
    """Return `weight` (O, I / groups, ...) with copied rows, and columns that add up to the old ones."""
    old_rows, old_columns = weight.shape[0] // groups, weight.shape[1]
    if len(rows) % groups or len(columns) % groups:
        raise NotAlongAxisError
    height, width = len(rows) // groups, len(columns) // groups
    parts = []
    for group in range(groups):
        row = torch.tensor(rows[group * height : (group + 1) * height]) - group * old_rows
        column = torch.tensor(columns[group * width : (group + 1) * width]) - group * old_columns
        if not (_within(row, old_rows) and _within(column, old_columns)):
            raise NotAlongAxisError
        old = weight[group * old_rows : (group + 1) * old_rows]
        for some in torch.split(row, _ROWS):
            part = old[some][:, column]
            if width > old_columns:
                shares = _shares(len(some), column, old_columns, generator)
                part *= shares.to(part.dtype).reshape(len(some), width, *[1] * (weight.ndim - 2))
            parts.append(part)
    return torch.cat(parts)


def _shares(height: int, column: Tensor, old_columns: int, generator: torch.Generator) -> Tensor:
    """Return factors (height, width) that add up to 1 over the columns with one value of `column` (width,)."""
    share = 1 + _SPREAD * (2 * torch.rand(height, len(column), generator=generator, dtype=torch.float64) - 1)
    return share / torch.zeros(height, old_columns, dtype=torch.float64).index_add_(1, column, share)[:, column]


def _within(index: Tensor, size: int) -> bool:
    return bool(((index >= 0) & (index < size)).all())


def _widen_norm(layer: nn.Module, source: Sequence[int]) -> None:
    """Copy the entries of a norm or PReLU, one per channel."""
    index = torch.tensor(source)
    for key, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, key, _parameter(parameter, parameter.detach()[index]))
    for key in ("running_mean", "running_var"):
        if getattr(layer, key, None) is not None:
            setattr(layer, key, getattr(layer, key)[index])
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (len(source),)
    else:
        keys = ("num_features", "num_channels", "num_parameters")  # of batch and instance norms, group norm, PReLU
        setattr(layer, next(key for key in keys if hasattr(layer, key)), len(source))


def _parameter(old: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=old.requires_grad)
