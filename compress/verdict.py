"""The sentence that says what ships, what was gained and lost, and how sure that is."""

from collections.abc import Sequence

from tlc.compress.budget import Choice, drop_points
from tlc.runtime.budget import Budget
from tlc.runtime.report import Measurement


def verdict(rows: Sequence[Measurement], choice: Choice, budget: Budget, noun: str = "images") -> str:
    """Return one sentence on what ships of `rows`, the original first and what has every step last.

    `noun` is for samples.
    """
    original, chosen, final = rows[0], choice.chosen, rows[-1]
    if chosen.change is None:
        return _nothing_better(choice, final, budget)
    change = chosen.change.change_points
    sentence = (
        f"{chosen.name} {_gained(original, chosen)}, at {100 * chosen.accuracy.top1:.2f} % top-1: "
        f"{change.estimate:+.2f} points [{change.low:+.2f}, {change.high:+.2f}] "
        f"on {chosen.accuracy.samples} {noun}, {budget.max_drop_points:g} allowed"
    )
    if not choice.met:
        sentence = f"The budget is not met: {sentence}"
    if chosen.name != final.name:
        reason = choice.lost[final.name]
        sentence += f"; {final.name} was left out ({reason[0].lower()}{reason[1:].removesuffix('.')})"
    return sentence + "."


def _nothing_better(choice: Choice, final: Measurement, budget: Budget) -> str:
    speed = f" at {final.latency.speedup.estimate:.2f}x its speed" if final.latency else ""
    lost = f"{final.name} loses {0 + drop_points(final):.2f} points of {budget.max_drop_points:g} allowed{speed}"
    if choice.met:
        return f"Nothing beats the original within the budget: {lost}."
    return f"The budget is not met, and the original comes closest to it: {lost}."


def _gained(original: Measurement, chosen: Measurement) -> str:
    smaller = f"{original.size_bytes / chosen.size_bytes:.1f}x smaller"
    if chosen.latency is None:
        return f"is {smaller} than the original with {original.macs / chosen.macs:.2f}x fewer multiply-accumulates"
    speed = chosen.latency.speedup
    return f"is {speed.estimate:.2f}x [{speed.low:.2f}, {speed.high:.2f}] as fast as the original, {smaller}"
