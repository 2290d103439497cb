"""How many channels a student has: fewer of the teacher's, or copies of them besides."""

from collections.abc import Sequence

from tlc.compress.coupling import Coupling
from tlc.compress.model import Model
from tlc.compress.prune import PruneSettings, check_prunable, prune_step
from tlc.compress.widen import widen_step
from tlc.runtime.errors import UsageError


def with_width(
    model: Model, width: float | tuple[float, ...], groups: Sequence[str], *, round_to: int = 8
) -> tuple[Model, dict[str, tuple[int, int]]]:
    """Return `model` with `width` times its channels, untrained, and (before, after) of each layer that is wider.

    A tuple holds one factor for each of `groups`, containers of blocks ("layer1"): for all channels that one of its
    blocks makes, so also for a stem that the blocks' outputs are added to. Of channels that several groups make, the
    first counts; those that none makes stay. Counts are multiples of `round_to`.

    Raises UsageError for another number of factors than groups; TlcError if there is nothing to remove or to copy.
    """
    if isinstance(width, float):
        if width < 1:
            return prune_step(model, PruneSettings(ratio=1 - width), round_to=round_to), {}
        return widen_step(model, lambda _coupling: width, round_to=round_to) if width > 1 else (model, {})
    if len(width) != len(groups):
        text, shown = ",".join(f"{factor:g}" for factor in width), ", ".join(name or "the network" for name in groups)
        raise UsageError(
            f"width:{text} gives {len(width)} factors, {model.arch.text} has {len(groups)} groups of blocks"
            f"{': ' if shown else ''}{shown}.",
            hint="Give one factor for each group, or one for all: width:2.",
        )
    factors = {f"{name}." if name else "": factor for name, factor in zip(groups, width, strict=True)}

    def factor_of(coupling: Coupling) -> float:
        return next((factors[g] for g in factors if any(name.startswith(g) for name in coupling.producers)), 1.0)

    for factor in sorted({factor for factor in width if factor < 1}):
        others = tuple(c.root for c in check_prunable(model).couplings if factor_of(c) != factor)
        model = prune_step(model, PruneSettings(ratio=1 - factor, exclude=others), round_to=round_to)
    return widen_step(model, factor_of, round_to=round_to) if max(width) > 1 else (model, {})
