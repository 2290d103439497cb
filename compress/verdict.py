"""Which of the measured files ships, and the sentence that says so."""

from collections.abc import Sequence
from typing import TypeVar

from tlc.runtime.report import AccuracyChange, Measurement

T = TypeVar("T")


AS_FAST_RATIO = 1.1
"""A file whose p50 is at most so many times the lowest counts as fast as that one."""


def choose(rows: list[Measurement], max_drop_points: float) -> tuple[Measurement, bool]:
    """Return the row that ships, and whether the last row is within the budget.

    Of the rows within the budget it is the fastest, see `fastest`. The first row is the original, which is always
    within, and what is slower than it never ships. Where latency was not measured, it is the row with the most steps:
    the last one within the budget.
    """
    within = [row for row in rows if row.change is None or -row.change.change_points.estimate <= max_drop_points]
    original = rows[0].latency
    if original is None:
        return within[-1], rows[-1] in within
    timed = [(row.latency.p50_ms, row.size_bytes, row) for row in within if row.latency is not None]
    return fastest([entry for entry in timed if entry[0] <= original.p50_ms]), rows[-1] in within


def fastest(files: Sequence[tuple[float, int, T]]) -> T:
    """Return the file with the lowest p50, or the smallest of those that are as fast; (p50 in ms, bytes, file) each."""
    limit_ms = AS_FAST_RATIO * min(p50_ms for p50_ms, _size, _file in files)
    return min((entry for entry in files if entry[0] <= limit_ms), key=lambda entry: (entry[1], entry[0]))[2]


def verdict(
    original: Measurement, chosen: Measurement, final: Measurement, max_drop_points: float, noun: str = "images"
) -> str:
    """Return one sentence: what ships, what was gained and lost, and how sure that is; `noun` is for samples."""
    if chosen.change is None:
        speed = f" at {final.latency.speedup.estimate:.2f}x its speed" if final.latency else ""
        lost = -final.change.change_points.estimate if final.change else 0.0
        return (
            f"Nothing beats the original within the budget: {final.name} loses {lost:.2f} points "
            f"of {max_drop_points:g} allowed{speed}."
        )
    change = chosen.change.change_points
    sentence = (
        f"{chosen.name} {_gained(original, chosen)}, at {100 * chosen.accuracy.top1:.2f} % top-1: "
        f"{change.estimate:+.2f} points [{change.low:+.2f}, {change.high:+.2f}] "
        f"on {chosen.accuracy.samples} {noun}, {max_drop_points:g} allowed"
    )
    if chosen.name != final.name and final.change is not None:
        sentence += f"; {final.name} was left out ({_left_out(final.change, chosen, final, max_drop_points)})"
    return sentence + "."


def _gained(original: Measurement, chosen: Measurement) -> str:
    smaller = f"{original.size_bytes / chosen.size_bytes:.1f}x smaller"
    if chosen.latency is None:
        return f"is {smaller} than the original with {original.macs / chosen.macs:.2f}x fewer multiply-accumulates"
    speed = chosen.latency.speedup
    return f"is {speed.estimate:.2f}x [{speed.low:.2f}, {speed.high:.2f}] as fast as the original, {smaller}"


def _left_out(change: AccuracyChange, chosen: Measurement, final: Measurement, max_drop_points: float) -> str:
    lost = -change.change_points.estimate
    if lost > max_drop_points:
        return f"it loses {lost:.2f} points"
    assert final.latency is not None  # else the last one within the budget is chosen
    assert chosen.latency is not None
    if final.latency.p50_ms <= AS_FAST_RATIO * chosen.latency.p50_ms:
        return (
            f"its p50 is {final.latency.p50_ms:.3g} ms, its file {final.size_bytes / chosen.size_bytes:.1f}x as large"
        )
    return f"its p50 is {final.latency.p50_ms:.3g} ms, not below {chosen.latency.p50_ms:.3g} ms"
