"""Which of the measured files ships, and the sentence that says so."""

from tlc.runtime.report import AccuracyChange, Measurement


def choose(rows: list[Measurement], max_drop_points: float) -> tuple[Measurement, bool]:
    """Return the row with the lowest p50 among those within the budget, and whether the last row is one of them.

    The first row is the original, which is always within. Where latency was not measured, it is the row with the most
    steps: the last one within the budget.
    """
    within = [row for row in rows if row.change is None or -row.change.change_points.estimate <= max_drop_points]
    fastest = min(within, key=lambda row: row.latency.p50_ms if row.latency else 0.0)
    return fastest if rows[0].latency else within[-1], rows[-1] in within


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
    return f"its p50 is {final.latency.p50_ms:.3g} ms, not below {chosen.latency.p50_ms:.3g} ms"
