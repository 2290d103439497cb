"""A wider network that computes what the narrow one computed, to be trained further.

Net2WiderNet (Chen, Goodfellow, Shlens 2016, https://arxiv.org/abs/1511.05641): channels are copied with all that is
coupled to them, and what read a channel now reads its copies, each with a part of the old weight. The parts add up to
the weight but are drawn unevenly, element by element: equal ones would get equal gradients, and copies that learn
nothing of their own. So symmetry is broken without noise, and the function is kept until training changes it.

A coupling is widened only if a copy of the network with random weights was seen to compute the same after it.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tlc.compress.cost import parameters
from tlc.compress.coupling import Coupling, Graph, proven, with_random_weights
from tlc.compress.model import Model
from tlc.compress.prune import without_auxiliary
from tlc.compress.widen_layers import KNOWN_LAYERS, NotAlongAxisError, channels_of, widen_layer
from tlc.runtime.errors import TlcError

_EXACT = 1e-6
"""Largest relative difference that rounding in float64 may leave, far below what a wrong copy does."""
_ALIKE = 1e-3
"""The same for the given weights in float32, which deep networks amplify."""
_NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, slots=True)
class Widening:
    """One coupling and how its channels are copied."""

    root: str
    """The layer whose output channels these are."""
    source: tuple[int, ...]
    """Of which old channel each new one is a copy; the old ones are among them, in order within each repeat."""
    channels: int
    """How many there were."""
    places: Mapping["_Place", tuple[tuple[int, int], ...]] = field(repr=False)
    """Where they are: (position along the axis, channel)."""


@dataclass(frozen=True, slots=True)
class _Place:
    """An axis of a layer's weights, or of a bare parameter, that has one entry per channel."""

    name: str
    reads: bool
    """Whether channels come in here to be multiplied by weights and added up."""
    axis: int = 0
    """Of a bare parameter."""


_Entries: TypeAlias = dict[int, tuple[Widening, int]]
"""Position along an axis -> what is widened there, and its channel."""


def widenings(
    module: nn.Module, example: Tensor, factor_of: Callable[[Coupling], float], *, multiple: int = 1, seed: int = 0
) -> tuple[Widening, ...]:
    """Return what can be widened without changing what `module` computes, in the order of the trace.

    `example` is (N, C, H, W) float32 and gives the shape only. `factor_of` gives the wanted width of a coupling over
    its present one; 1 or less leaves it alone. Widths are multiples of `multiple` (of halves of it in layers with fewer
    than two), except behind a norm over channels: that keeps its statistics only if every channel has as many copies.

    Raises TlcError, with the reason, if nothing can be widened.
    """
    dense = with_random_weights(module).double()
    example = torch.rand((2, *example.shape[1:]), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    generator = torch.Generator().manual_seed(seed)
    found, same, uneven = [], 0, 0
    taken: set[tuple[_Place, int]] = set()
    for coupling, group in _unattended(Graph(dense, example)):
        factor = factor_of(coupling)
        if factor <= 1:
            continue
        whole = any(isinstance(dependency.target.module, _NORMS_OVER_CHANNELS) for dependency, _ in group)
        units = round(coupling.units * factor) if whole else wider_width(coupling, factor, multiple) // coupling.repeats
        places = _places(dense, group)
        positions = {(place, position) for place, entries in (places or {}).items() for position, _ in entries}
        if whole and units % coupling.units:
            uneven += 1
        elif units == coupling.units:
            same += 1
        elif places is not None and not positions & taken:
            taken |= positions
            source = _copies(coupling, units, generator)
            found.append(Widening(coupling.root, source, coupling.channels, places))
    with torch.no_grad():
        reference = dense(example)

    def keeps_function(chosen: Sequence[Widening]) -> bool:
        try:
            wider = widened(dense, chosen, seed=seed)
            with torch.no_grad():
                return _alike(wider(example), reference, _EXACT)
        # What a forward pass raises that counts on the old width is not a closed set.
        except Exception:
            return False

    chosen = tuple(proven(found, keeps_function))
    if not chosen:
        raise _refusal(len(found), same, uneven, multiple)
    return chosen


def widened(module: nn.Module, chosen: Iterable[Widening], *, seed: int = 0) -> nn.Module:
    """Return a copy of `module` with the channels of `chosen` copied; its outputs are the same up to rounding.

    How weights are divided among copies is a function of `seed`.
    """
    result = copy.deepcopy(module)
    owners: dict[_Place, _Entries] = {}
    for widening in chosen:
        for place, entries in widening.places.items():
            owners.setdefault(place, {}).update({position: (widening, channel) for position, channel in entries})
    generator = torch.Generator().manual_seed(seed)
    by_name: dict[str, dict[_Place, _Entries]] = {}
    for place, taken in owners.items():
        by_name.setdefault(place.name, {})[place] = taken
    for name in sorted(by_name):
        _widen_part(result, name, by_name[name], generator)
    return result


def widen_step(
    model: Model, factor_of: Callable[[Coupling], float], *, round_to: int = 8, seed: int = 0
) -> tuple[Model, dict[str, tuple[int, int]]]:
    """Return the wider `model`, which gives the same outputs up to rounding, and widths before and after by layer.

    As `widenings` says, which also says what is raised; `model` itself stays as it is.
    """
    module = without_auxiliary(model.module)
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn((2, *model.preprocess.input_shape), generator=generator)
    chosen = widenings(module, example, factor_of, multiple=round_to, seed=seed)
    wider = widened(module, chosen, seed=seed)
    _check_same_outputs(module, wider, example)
    widths = {widening.root: (widening.channels, len(widening.source)) for widening in chosen}
    step = f"{len(chosen)} groups of channels widened: {parameters(module):,} to {parameters(wider):,} parameters"
    return model.after(step, wider), widths


def _check_same_outputs(before: nn.Module, after: nn.Module, example: Tensor) -> None:
    with torch.no_grad():
        wanted, got = before(example), after(example)
    if not _alike(got, wanted, _ALIKE):
        far = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        raise TlcError(
            f"The wider network's outputs differ by {far:.1e} of the largest (limit {_ALIKE:g}).",
            hint="Check the weights for NaN and for values that float32 hardly holds.",
        )


def wider_width(coupling: Coupling, factor: float, multiple: int) -> int:
    """Return the multiple of `multiple` (and of the repeats) nearest to `factor` times the width, at least that width.

    >>> layer = lambda channels: Coupling("conv", ("conv",), channels, 1)
    >>> [wider_width(layer(channels), 1.5, 8) for channels in (64, 24, 12, 6, 1)]
    [96, 40, 20, 10, 2]
    """
    while multiple > 1 and coupling.channels < 2 * math.lcm(multiple, coupling.repeats):
        multiple //= 2
    grain = math.lcm(multiple, coupling.repeats)
    nearest = grain * math.floor(coupling.channels * factor / grain + 0.5)
    return max(coupling.channels, nearest)


def _unattended(graph: Graph) -> Iterable[tuple[Coupling, Any]]:
    """Yield the couplings that are not the width of an nn.MultiheadAttention."""
    for coupling, group in graph.groups():
        if not any(isinstance(dependency.target.module, nn.MultiheadAttention) for dependency, _ in group):
            yield coupling, group


def _copies(coupling: Coupling, units: int, generator: torch.Generator) -> tuple[int, ...]:
    """Return the old channel of each new one; every channel gets as many copies as any other, or one more."""
    order = torch.randperm(coupling.units, generator=generator).tolist()
    more = [order[n % coupling.units] for n in range(units - coupling.units)]
    source = [*range(coupling.units), *more]
    return tuple(unit + repeat * coupling.units for repeat in range(coupling.repeats) for unit in source)


def _places(module: nn.Module, group: Any) -> dict[_Place, tuple[tuple[int, int], ...]] | None:
    """Return where the channels of a group are, or None if a layer is among them that is not known here."""
    layers = {layer: name for name, layer in module.named_modules()}
    bare = {id(parameter): name for name, parameter in module.named_parameters()}
    places: dict[_Place, tuple[tuple[int, int], ...]] = {}
    for item in group:
        target = item.dep.target
        entries = tuple(sorted(zip(item.idxs, item.root_idxs, strict=True)))
        if isinstance(target.module, nn.Parameter):
            places[_Place(bare[id(target.module)], False, int(target.pruning_dim))] = entries
        elif target.module in layers:
            if not isinstance(target.module, KNOWN_LAYERS):
                return None
            if isinstance(target.module, nn.PReLU) and target.module.num_parameters == 1:
                continue  # one slope for all channels
            reads = item.dep.handler.__name__ == "prune_in_channels"
            places[_Place(layers[target.module], reads)] = entries
    return places


def _widen_part(module: nn.Module, name: str, owners: Mapping[_Place, _Entries], generator: torch.Generator) -> None:
    """Copy the channels of one layer or bare parameter, in place."""
    path, _, leaf = name.rpartition(".")
    bare = dict(module.get_submodule(path).named_parameters(recurse=False)).get(leaf)
    if bare is not None:
        for place, taken in owners.items():
            index = torch.tensor(_source(taken, bare.shape[place.axis]))
            bare = nn.Parameter(bare.detach().index_select(place.axis, index), requires_grad=bare.requires_grad)
        setattr(module.get_submodule(path), leaf, bare)
        return
    layer = module.get_submodule(name)
    sources = {place.reads: _source(taken, channels_of(layer, reads=place.reads)) for place, taken in owners.items()}
    widen_layer(layer, sources.get(False), sources.get(True), generator)


def _source(taken: _Entries, size: int) -> list[int]:
    """Return of which old position along an axis of `size` each new one is a copy.

    A channel is one position, or after flattening as many in a row as the image had pixels; a concatenation holds
    several couplings one behind the other.
    """
    source: list[int] = []
    at = 0
    while at < size:
        if at not in taken:
            source.append(at)
            at += 1
            continue
        widening, _ = taken[at]
        run = 1
        while taken.get(at + run) == taken[at]:
            run += 1
        wanted = [(widening, channel) for channel in range(widening.channels) for _ in range(run)]
        if [taken.get(at + n) for n in range(len(wanted))] != wanted:
            raise NotAlongAxisError
        source += [at + channel * run + pixel for channel in widening.source for pixel in range(run)]
        at += len(wanted)
    return source


def _alike(got: Tensor, wanted: Tensor, limit: float) -> bool:
    return got.shape == wanted.shape and bool((got - wanted).abs().max() <= limit * wanted.abs().max())


def _refusal(tried: int, same: int, uneven: int, multiple: int) -> TlcError:
    """Return the error for a network of which nothing could be widened."""
    if tried:
        return TlcError(
            f"The network cannot be widened: copying channels changed its answers in each of {tried} places.",
            hint="Use --student depth:, or name a wider architecture.",
        )
    if uneven:
        return TlcError(
            f"The network cannot be widened by that: {uneven} groups of channels are normalised together, which a "
            "whole factor keeps and no other.",
            hint="Use a whole factor: --student width:2.",
        )
    if same:
        return TlcError(
            f"Widths are rounded to multiples of {multiple}, and all {same} groups of channels round to what they are.",
            hint="Use a larger factor: --student width:1.5.",
        )
    return TlcError(
        "The network cannot be widened: no channels were found that stay inside it.",
        hint="Use --student depth:, or name a wider architecture.",
    )
