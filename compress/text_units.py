"""Heads and intermediate channels of text encoders: what they are worth, and how they go.

Both are channels that one linear layer, the reader, takes in. Those go whose part in the reader's output the others
can take over best, and the reader's weights are changed so that they do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tlc.compress.text_layers import Family, SelfAttention, encoder_of, self_attentions, transformer_layers
from tlc.runtime.errors import TlcError

UnitKind: TypeAlias = Literal["heads", "intermediate"]

_TOKENS_PER_CHANNEL = 16
"""Bounds the work of the second moments."""
_RIDGE = 0.1
"""Share of the mean variance added to each channel's: few tokens say little about many channels."""
_ROUNDS = 32
"""How often the costs are seen anew while units go."""


@dataclass(frozen=True, slots=True)
class Units:
    """Heads or intermediate channels of one layer; linear layers by their names in the model."""

    kind: UnitKind
    layer: str
    count: int
    width: int
    """Channels of one unit, as the reader sees them."""
    makers: tuple[tuple[str, int], ...]
    """Parameters whose first dimension is made of the units, and how many times over."""
    reader: str


def units_of(module: nn.Module, kind: UnitKind) -> tuple[Units, ...]:
    """Return the heads or the intermediate channels of every layer, in order; a shared layer is there once.

    Raises TlcError for heads that are mixed with each other (DeBERTa's talking_head).
    """
    family = encoder_of(module).family
    attentions = dict(zip(transformer_layers(module), self_attentions(module), strict=True))
    return tuple(
        _heads(module, family, layer, attention) if kind == "heads" else _intermediate(module, family, layer)
        for layer, attention in attentions.items()
    )


def _heads(module: nn.Module, family: Family, layer: str, attention: SelfAttention) -> Units:
    if getattr(module.get_submodule(attention.name), "head_logits_proj", None) is not None:
        raise TlcError(
            f"{attention.name} mixes its heads (talking_head): none of them can be removed alone",
            hint="Leave heads and width out of --student.",
        )
    copies = 3 if attention.packing == "part" else 1
    names = {f"{name}.{leaf}": copies for name in attention.qkv for leaf in ("weight", "bias")}
    names |= {f"{attention.name}.{name}.{leaf}": 1 for name in family.positions for leaf in ("weight", "bias")}
    names |= {f"{attention.name}.{leaf}": 1 for leaf in ("q_bias", "v_bias")}
    makers = _present(module, names)
    return Units("heads", layer, attention.heads, attention.head_width, makers, f"{layer}.{family.attention_output}")


def _intermediate(module: nn.Module, family: Family, layer: str) -> Units:
    name, reader = f"{layer}.{family.intermediate}", f"{layer}.{family.output}"
    makers = _present(module, {f"{name}.{leaf}": 2 if family.gated else 1 for leaf in ("weight", "bias")})
    count = module.get_parameter(f"{reader}.weight").shape[1]
    return Units("intermediate", layer, count, 1, makers, reader)


def _present(module: nn.Module, names: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    present = {name for name, _value in module.named_parameters()}
    return tuple((name, copies) for name, copies in names.items() if name in present)


def second_moments(
    module: nn.Module,
    units: Sequence[Units],
    batches: Sequence[Mapping[str, Tensor]],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Return for each of `units` the mean over tokens of x xᵀ, x being the reader's input and a constant 1.

    (channels + 1, channels + 1) float64, over the first tokens of `batches`, some 16 for each channel; padding does not
    count. `module` stays as it is.

    batches: inputs by name, int64 (n, T), with attention_mask. on_progress: called with batches done and their number.
    """
    sums = [torch.zeros(unit.count * unit.width + 1, unit.count * unit.width + 1) for unit in units]
    for done, batch in enumerate(batches, 1):
        mask = batch["attention_mask"].bool()
        hooks = [
            module.get_submodule(unit.reader).register_forward_pre_hook(_adding(total, mask))
            for unit, total in zip(units, sums, strict=True)
        ]
        try:
            with torch.no_grad():
                module(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        if on_progress is not None:
            on_progress(done, len(batches))
    return [total.double() / total[-1, -1].double() for total in sums]


def _adding(total: Tensor, mask: Tensor) -> Callable[[nn.Module, Any], None]:
    def add(_reader: nn.Module, args: Any) -> None:
        if total[-1, -1] < _TOKENS_PER_CHANNEL * len(total):
            seen = args[0][mask]
            seen = torch.cat((seen, torch.ones(len(seen), 1)), dim=1)
            total.add_(seen.T @ seen)

    return add


def keep_units(module: nn.Module, units: Units, moments: Tensor, count: int) -> None:
    """Remove all but `count` units, in place: those that cost least, a few at a time.

    The cost of a unit is the squared error of the reader's output without it, once the other channels (and a constant,
    where the reader has a bias) stand in for it by the best linear estimate: tr(W_u ((C⁻¹)_uu)⁻¹ W_uᵀ), C being the
    covariance of the reader's input. The reader gets the weights of that estimate, C⁻¹ loses the unit, and the costs of
    those left are seen anew (Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain
    Surgeon", for the error of a linear layer). `moments` as `second_moments` returns them.
    """
    reader = module.get_submodule(units.reader)
    assert isinstance(reader, nn.Linear)
    before = reader.weight.detach().double()
    covariance, mean = _covariance(moments, centred=reader.bias is not None)
    weight, kept = _removed_one_by_one(before, covariance, units, count)
    if reader.bias is not None:
        constant = before @ mean - weight @ mean[_channels(kept, units.width)]
        reader.bias = nn.Parameter((reader.bias.detach().double() + constant).float())
    reader.weight, reader.in_features = nn.Parameter(weight.float()), weight.shape[1]
    for name, copies in units.makers:
        path, _, leaf = name.rpartition(".")
        layer = module.get_submodule(path)
        value = layer.get_parameter(leaf).detach()
        parts = value.reshape(copies, units.count, -1, *value.shape[1:])[:, kept]
        value = parts.reshape(-1, *value.shape[1:]).clone()
        setattr(layer, leaf, nn.Parameter(value))
        if isinstance(layer, nn.Linear):
            layer.out_features = len(value)
    if units.kind == "heads":
        _count_heads(module, units, count)


def _covariance(moments: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Return the covariance and the mean of the channels, about 0 where no constant can be estimated with."""
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean) if centred else moments[:-1, :-1].clone()
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny)
    return covariance, mean


def _removed_one_by_one(weight: Tensor, covariance: Tensor, units: Units, count: int) -> tuple[Tensor, Tensor]:
    """Return the reader's weights (outputs, channels) for the units that stay, and which these are, ascending."""
    inverse, kept = torch.linalg.inv(covariance), torch.arange(units.count)
    at_once = max(1, (units.count - count) // _ROUNDS)
    while len(kept) > count:
        order = _costs(weight, inverse, units.width).argsort(stable=True)
        going = min(at_once, len(kept) - count)
        staying = order[going:].sort().values
        gone, stay = _channels(order[:going], units.width), _channels(staying, units.width)
        taken_over = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stay])
        weight = weight[:, stay] - weight[:, gone] @ taken_over
        inverse = inverse[stay][:, stay] - inverse[stay][:, gone] @ taken_over
        kept = kept[staying]
    return weight, kept


def _costs(weight: Tensor, inverse: Tensor, width: int) -> Tensor:
    """Return the cost of losing each unit, (units,) float64."""
    count = len(inverse) // width
    own = inverse.reshape(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    weights = weight.reshape(-1, count, width).permute(1, 2, 0)  # (units, width, outputs)
    costs: Tensor = (weights * torch.linalg.solve(own, weights)).sum((1, 2))
    return costs


def _channels(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width)).flatten()


def _count_heads(module: nn.Module, units: Units, count: int) -> None:
    """Write the number of heads and of their channels where the attention keeps them."""
    family = encoder_of(module).family
    attention = module.get_submodule(f"{units.layer}.{family.attention}")
    for attribute, value in zip(family.counts, (count, count * units.width), strict=False):
        setattr(attention, attribute, value)
