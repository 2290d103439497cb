"""Structured pruning: fewer channels and attention heads, the same function signature.

Four questions, four places: what goes together (`tlc.compress.coupling`, `tlc.compress.heads`), what matters
(`tlc.compress.importance`), how much goes (`_budgets`), and the removal itself (`Graph.remove`).
"""

import copy
import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tlc.compress.cost import macs, parameters
from tlc.compress.coupling import Coupling, Cut, Graph, couplings
from tlc.compress.heads import Attention, prunable_attention, remove_heads
from tlc.compress.importance import Batches, Importance, Ranked, ranking
from tlc.compress.model import Model
from tlc.runtime.errors import TlcError

_SEARCH_STEPS = 8


class PruneSettings(BaseModel):
    """How much to remove, and how to choose it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ratio: float | None = Field(None, ge=0, lt=1)
    """Share of channels to remove, of every layer (uniform) or of all together (global)."""
    macs_ratio: float | None = Field(None, gt=0, lt=1)
    """Share of multiply-accumulates to remove, instead of `ratio`."""
    params_ratio: float | None = Field(None, gt=0, lt=1)
    """Share of parameters to remove, instead of `ratio`."""
    scope: Literal["uniform", "global"] = "uniform"
    """uniform: the same share of every layer; global: the channels that matter least, wherever they are."""
    importance: Importance = "magnitude"
    """magnitude: L2 norm of all coupled weights; bn_scale: batch norm's factors; taylor: |weight x gradient|; hessian:
    weight^2 x squared gradient per sample."""
    round_to: int | None = Field(None, ge=1)
    """Widths are multiples of this; absent, of what the target's kernels like."""
    steps: int = Field(1, ge=1)
    """Prune in so many equal steps, each followed by recovery training."""
    max_ratio: float = Field(0.8, gt=0, lt=1)
    """No layer loses a larger share than this, whatever the scope says."""
    exclude: tuple[str, ...] = ()
    """Layers to leave alone, by name: patterns such as "layer1.*"."""
    heads: bool = False
    """Remove whole attention heads too."""

    @model_validator(mode="after")
    def _consistent(self) -> "PruneSettings":
        given = [key for key in ("ratio", "macs_ratio", "params_ratio") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; keep one")
        if self.heads and self.importance == "bn_scale":
            raise ValueError("heads have no batch norm to be ranked by; keep heads or bn_scale")
        return self


@dataclass(frozen=True, slots=True)
class Prunable:
    """What of a network can be pruned, proven."""

    couplings: tuple[Coupling, ...]
    attention: tuple[Attention, ...] = ()


def check_prunable(model: Model, settings: PruneSettings = PruneSettings()) -> Prunable:  # noqa: B008
    """Return what can be pruned of `model`, which stays as it is.

    Every coupling was removed in part from a copy and the result compared with the same network in which nobody reads
    these channels; what does not agree is left out.

    Raises TlcError: nothing can be pruned, or not as the settings want; before any work.
    """
    example = torch.zeros(1, *model.preprocess.input_shape)
    _check_patterns(model, settings.exclude)
    try:
        found = couplings(model.module, example)
    except RuntimeError as error:
        raise TlcError(
            f"{model.arch.text} cannot be pruned: it does not run on an input of {tuple(example.shape)}: {error}",
            hint="Give its input size: --input CxHxW.",
        ) from error
    kept = tuple(c for c in found if not any(_excluded(name, settings.exclude) for name in c.producers))
    attention = prunable_attention(model.module, example) if settings.heads else ()
    attention = tuple(a for a in attention if not _excluded(a.name, settings.exclude))
    if settings.heads and not attention:
        raise TlcError(
            f"{model.arch.text} has no attention whose heads can be removed: none, or tied to the network's width "
            "(nn.MultiheadAttention, Swin).",
            hint="Leave heads out (prune.heads = false); channels can still be pruned.",
        )
    if not kept and not attention:
        why = "all of them are excluded" if found else "none was proven safe to narrow"
        raise TlcError(
            f"{model.arch.text} has no channels that can be pruned: {why}.",
            hint="Skip pruning with --prune 0, or choose a smaller --student.",
        )
    if settings.importance == "bn_scale" and not any(_has_batchnorm(model.module, c) for c in kept):
        raise TlcError(
            f"{model.arch.text} has no batch norm behind a layer that can be pruned, so bn_scale ranks nothing.",
            hint="Use importance = magnitude.",
        )
    return Prunable(kept, attention)


def prune_step(
    model: Model,
    settings: PruneSettings,
    *,
    ratio: float | None = None,
    step: int = 1,
    round_to: int = 8,
    original: Model | None = None,
    batches: Batches = (),
) -> Model:
    """Return `model` after step number `step` of `settings.steps`; `model` itself stays as it is.

    `ratio` is the share of channels that all steps together remove, where the settings do not say (they win).
    `original` is what the first step started from: with it, widths and costs are shares of the original's, so that
    rounding does not add up over steps. `settings.round_to` wins over `round_to`. A layer with fewer than two
    multiples of it is rounded to half of the multiple, a quarter, ...: it would lose all or nothing otherwise.

    `batches` are (images (n, C, H, W) float32, labels (n,) int64), for taylor and hessian.

    Raises TlcError: nothing can be pruned; no batches where gradients are needed; the target is out of reach.
    """
    prunable = check_prunable(model, settings)
    goal = next((g for g in (settings.macs_ratio, settings.params_ratio, settings.ratio, ratio) if g is not None), None)
    if goal is None or not 0 <= goal < 1:
        raise TlcError(f"A ratio of {goal} cannot be pruned (limits: 0 to below 1).", hint="Set prune.ratio = 0.3.")
    module = without_auxiliary(model.module)
    reference = module if original is None else without_auxiliary(original.module)
    example = torch.zeros(2, *model.preprocess.input_shape)
    sources: list[Coupling | Attention] = [*prunable.couplings, *prunable.attention]
    work = _Work(
        module=module,
        example=example,
        settings=settings,
        ranked=ranking(module, example, sources, settings.importance, batches),
        dense={_name(source): _size(reference, source) for source in sources},
        multiple=settings.round_to or round_to,
    )
    share = _share(goal, step, settings.steps, relative=original is None)
    by_cost = settings.macs_ratio is not None or settings.params_ratio is not None
    pruned = _pruned_to_cost(work, reference, share) if by_cost else _pruned(work, share)
    _check_result(model, pruned)
    before, after = parameters(model.module), parameters(pruned)
    return model.after(f"pruned {step}/{settings.steps}: {before:,} to {after:,} parameters", pruned)


def reestimate_batchnorm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the statistics of every batch norm, in place, by their averages over `batches`.

    Each batch is (n, C, H, W) float32; batches of one size count equally. Weights and the module's mode stay. Pruned
    and shortened networks have statistics of activations that no longer occur.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    if not norms:
        return
    modes = {layer: layer.training for layer in module.modules()}
    momenta = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        for part, mode in modes.items():
            part.training = mode


@dataclass(frozen=True, slots=True)
class _Work:
    """A network to prune and what is known of it."""

    module: nn.Module
    example: Tensor
    settings: PruneSettings
    ranked: Sequence[Ranked]
    dense: dict[str, int]
    """Channels or heads of each entry that shares are shares of."""
    multiple: int


def _share(goal: float, step: int, steps: int, *, relative: bool) -> float:
    """Return the share that is gone after `step`: of the original, or of what the step before left.

    >>> [round(_share(0.5, step, 2, relative=True), 3) for step in (1, 2)]
    [0.25, 0.333]
    """
    now, before = goal * step / steps, goal * (step - 1) / steps
    return 1 - (1 - now) / (1 - before) if relative else now


def _budgets(work: _Work, share: float) -> dict[str, float]:
    """Return how many channels or heads each entry should keep, before rounding."""
    ranked, dense, settings = work.ranked, work.dense, work.settings
    least = {r.name: max(r.unit, math.ceil(dense[r.name] * (1 - settings.max_ratio))) for r in ranked}
    if settings.scope == "uniform":
        return {r.name: max(least[r.name], dense[r.name] * (1 - share)) for r in ranked}
    keep = {r.name: r.size for r in ranked}
    surplus = sum(keep.values()) - sum(dense[r.name] for r in ranked) * (1 - share)
    # Ties go to the earlier layer, so that the same weights always give the same network.
    units = sorted((float(score), place) for place, r in enumerate(ranked) for score in r.scores)
    for _, place in units:
        entry = ranked[place]
        if surplus < entry.unit / 2:
            break
        if keep[entry.name] - entry.unit >= least[entry.name]:
            keep[entry.name] -= entry.unit
            surplus -= entry.unit
    return {name: float(width) for name, width in keep.items()}


def rounded_width(width: float, dense: int, multiple: int, unit: int = 1) -> int:
    """Return the multiple of `multiple` (and of `unit`) nearest to `width`, at least one and at most `dense`.

    Where `dense` holds fewer than two multiples, the multiple is halved until it does: 12 channels by 8 go to 4 or 8.

    >>> [rounded_width(0.7 * dense, dense, 8) for dense in (64, 24, 12, 6, 1)]
    [48, 16, 8, 4, 1]
    """
    while multiple > 1 and dense < 2 * math.lcm(multiple, unit):
        multiple //= 2
    grain = math.lcm(multiple, unit)
    if grain > dense:
        return dense
    return min(dense, max(grain, grain * math.floor(width / grain + 0.5)))


def _pruned(work: _Work, share: float) -> nn.Module:
    """Return a copy of the network without `share` of its channels and heads."""
    budgets = _budgets(work, share)
    cuts, result = [], copy.deepcopy(work.module)
    for entry in work.ranked:
        grain = work.multiple if isinstance(entry.source, Coupling) else 1
        surplus = entry.size - rounded_width(budgets[entry.name], work.dense[entry.name], grain, entry.unit)
        if surplus <= 0:
            continue
        order = torch.argsort(entry.scores, stable=True)[: surplus // entry.unit].sort().values.tolist()
        if isinstance(entry.source, Coupling):
            units = entry.source.units
            cuts.append(Cut(entry.name, tuple(u + r * units for r in range(entry.unit) for u in order)))
        else:
            remove_heads(result, entry.source, order)
    frozen = {name for name, p in work.module.named_parameters() if not p.requires_grad}
    Graph(result, work.example).remove(cuts)
    for name, parameter in result.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(name not in frozen)
    return result


def _pruned_to_cost(work: _Work, reference: nn.Module, share: float) -> nn.Module:
    """Return the copy with the smallest share of channels removed that costs at most 1 - `share` of `reference`."""
    by_macs = work.settings.macs_ratio is not None

    def cost(network: nn.Module) -> int:
        return macs(network, work.example) if by_macs else parameters(network)

    whole, low, high = cost(reference), 0.0, work.settings.max_ratio
    best = _pruned(work, high)
    if cost(best) > (1 - share) * whole:
        raise TlcError(
            f"Removing {share:.0%} of the {'MACs' if by_macs else 'parameters'} is out of reach: with at most "
            f"{high:.0%} of each layer gone, {1 - cost(best) / whole:.0%} can be removed.",
            hint=f"Ask for less, or raise prune.max_ratio (now {high}).",
        )
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        candidate = _pruned(work, middle)
        if cost(candidate) <= (1 - share) * whole:
            best, high = candidate, middle
        else:
            low = middle
    return best


def _name(source: Coupling | Attention) -> str:
    return source.root if isinstance(source, Coupling) else source.name


def _size(module: nn.Module, source: Coupling | Attention) -> int:
    part = module.get_submodule(_name(source))
    if isinstance(source, Attention):
        return int(getattr(part, source.count))
    return int(part.out_features if isinstance(part, nn.Linear) else part.out_channels)  # type: ignore[arg-type]


def without_auxiliary(module: nn.Module) -> nn.Module:
    """Return a copy without the classifiers that torchvision's Inception networks have for training from scratch.

    They take no part in the logits, so nobody would see that pruning broke them until training calls them.
    """
    result = copy.deepcopy(module).eval()
    if getattr(result, "aux_logits", False):
        result.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if getattr(result, name, None) is not None:
                setattr(result, name, nn.Identity())
    return result


def _check_result(model: Model, pruned: nn.Module) -> None:
    example = torch.zeros(2, *model.preprocess.input_shape)
    with torch.no_grad():
        shape, finite = pruned(example).shape, bool(pruned(example).isfinite().all())
    if shape != (2, model.num_classes) or not finite:
        raise TlcError(
            f"Pruning {model.arch.text} gave outputs of {tuple(shape)}, {'finite' if finite else 'not finite'}; "
            f"wanted {(2, model.num_classes)}, finite.",
            hint="Check the weights for NaN, or skip pruning with --prune 0.",
        )


def _check_patterns(model: Model, patterns: tuple[str, ...]) -> None:
    names = [name for name, layer in model.module.named_modules() if name and not any(layer.children())]
    for pattern in patterns:
        if not any(_excluded(name, (pattern,)) for name in names):
            shown = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
            raise TlcError(
                f"exclude = {pattern!r} matches no layer of {model.arch.text}.",
                hint=f"Choose from its layers: {shown}.",
            )


def _excluded(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern matches the layer or something that holds it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:n]), p) for p in patterns for n in range(1, len(parts) + 1))


def _has_batchnorm(module: nn.Module, coupling: Coupling) -> bool:
    layers = (module.get_submodule(name) for name in coupling.producers)
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
