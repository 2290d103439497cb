"""What `tlc sensitivity` found: as a table for a terminal, JSON for machines, and a heat map on one HTML page."""

import math
from pathlib import Path

from tlc.cli import wording
from tlc.cli.table import columns
from tlc.cli.templates import rendered
from tlc.compress.sensitivity_report import TREATMENTS, Effect, Row, Sensitivity, Treatment
from tlc.runtime.artifact import write_text
from tlc.runtime.report import Interval

TITLES: dict[Treatment, str] = {
    "int8": "INT8",
    "channels-25": "25 % narrower",
    "channels-50": "50 % narrower",
    "removed": "removed",
}
UNCLEAR_RATIO = 0.02
"""Two processes of the same model differ by so much in time: less is no effect that one launch could show."""
_DECADES = 4
"""Divergences over so many powers of ten have colours of their own."""
_BEST = 6
"""Rows listed as the cheapest of a treatment."""


def write(found: Sensitivity, folder: Path) -> None:
    """Write `sensitivity.json` and `sensitivity.html` into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "sensitivity.json", wording.as_json(found.model_dump(mode="json")) + "\n")
    write_text(folder / "sensitivity.html", html(found))


def treatments(found: Sensitivity) -> list[Treatment]:
    """Return the treatments that at least one row has."""
    return [treatment for treatment in TREATMENTS if any(treatment in row.effects for row in found.rows)]


def lines(found: Sensitivity) -> list[str]:
    """Return the table with what it stands on, for a terminal."""
    timed = found.p50_ms is not None
    header = ["", "MACs %"]
    for treatment in treatments(found):
        header += [TITLES[treatment], "KL", *(["p50 %"] if timed else [])]
    return [
        *columns(header, [_cells(found, row, timed=timed) for row in found.rows]),
        "",
        basis(found),
        *(wording.printable(note) for note in notes(found)),
    ]


def _cells(found: Sensitivity, row: Row, *, timed: bool) -> list[str]:
    name = wording.printable(row.name)
    cells = [f"  {name}" if row.block else name, wording.significant(100 * macs_ratio(found, row), 2)]
    for treatment in treatments(found):
        effect = row.effects.get(treatment)
        if effect is None:
            cells += [""] * (3 if timed else 2)
            continue
        cells += [wording.points(effect.change_points.estimate), divergence(effect)]
        cells += [time(effect)] if timed else []
    return cells


def macs_ratio(found: Sensitivity, row: Row) -> float:
    """Return the row's share of the multiply-accumulates of all layers."""
    return row.macs / max(1, sum(each.macs for each in found.rows if each.kind == "layer"))


def divergence(effect: Effect) -> str:
    """Return the divergence with two digits; what is below the noise of arithmetic as a bound."""
    return small(effect.divergence)


def small(value: float) -> str:
    """Return a number that may be tiny in two digits.

    >>> small(0.01234), small(3e-9), small(1.26)
    ('1.2e-2', '< 1e-6', '1.3')
    """
    if value >= 0.1:
        return wording.significant(value, 2)
    return "< 1e-6" if value < 1e-6 else f"{value:.1e}".replace("e-0", "e-")


def time(effect: Effect) -> str:
    """Return the change of p50 in percent; `≈` where it is too small to tell; a dash where it was not measured."""
    ratio = effect.latency_ratio
    if ratio is None:
        return "–"
    return "≈" if unclear(ratio) else f"{100 * (ratio.estimate - 1):+.1f}".replace("-", "−")


def unclear(ratio: Interval) -> bool:
    """Return whether a ratio may be 1, seen against what two processes of one model differ in."""
    return ratio.low < 1 + UNCLEAR_RATIO and ratio.high > 1 - UNCLEAR_RATIO


def basis(found: Sensitivity) -> str:
    """Return what the numbers stand on."""
    held = "held out"
    if found.held_out < found.samples:
        held = f"{wording.grouped(found.held_out)} of them held out"
    p50 = "" if found.p50_ms is None else f"; p50 {wording.significant(found.p50_ms)} ms on {found.target}"
    cuts = ""
    if found.cuts_top1_ratio != found.top1_ratio:
        top1 = wording.percent(found.cuts_top1_ratio)
        cuts = f" Cuts are compared with {top1} %, the network with batch norms re-estimated as theirs."
    return (
        f"Untreated: {wording.percent(found.top1_ratio)} % top-1 on {wording.grouped(found.samples)} {found.noun}, "
        f"{held}{p50}. Changes of top-1 have 95 % intervals of ±{reach(found)} points or wider.{cuts}"
    )


def reach(found: Sensitivity) -> str:
    """Return half the width of the narrowest interval of a change, in points."""
    widths = [e.change_points.high - e.change_points.low for row in found.rows for e in row.effects.values()]
    return wording.significant(min(widths) / 2, 2) if widths else "–"


def notes(found: Sensitivity) -> list[str]:
    """Return what was left out."""
    return [*found.notes, *([f"No latencies: {found.not_measured}"] if found.not_measured else [])]


def heat(effect: Effect, worst: float) -> int:
    """Return 0 to 60, the strength of a cell's colour in percent: the logarithm of the divergence under the worst."""
    if effect.divergence <= 0 or worst <= 0:
        return 0
    share = 1 + math.log10(effect.divergence / worst) / _DECADES
    return round(60 * min(1.0, max(0.0, share)))


def time_heat(effect: Effect, most: float) -> int:
    """Return 0 to 60: how large the change of p50 is against the largest one; 0 where it is unclear."""
    ratio = effect.latency_ratio
    if ratio is None or unclear(ratio) or most <= 0:
        return 0
    return round(60 * min(1.0, abs(ratio.estimate - 1) / most))


def hover(effect: Effect) -> str:
    """Return the whole of an effect in words."""
    said = [f"{wording.points_interval(effect.change_points)} points", f"{effect.lost} lost, {effect.won} won"]
    said.append(f"divergence {divergence(effect)}")
    if effect.share_ratio < 1:
        said.append(f"{100 * effect.share_ratio:.0f} % went")
    if effect.latency_ratio is not None:
        said.append(f"p50 {wording.times_interval(effect.latency_ratio)}, measured on {effect.timed_as}")
    changed = ", ".join(effect.changed[:6]) + (f" and {len(effect.changed) - 6} more" * (len(effect.changed) > 6))
    return "; ".join([*said, f"changes {changed}"])


def cheapest(found: Sensitivity, treatment: Treatment) -> list[Row]:
    """Return the rows that a treatment costs least, of blocks where it is about blocks."""
    return list(found.cheapest(treatment))[:_BEST]


def html(found: Sensitivity) -> str:
    """Return one page that needs nothing else."""
    effects = [effect for row in found.rows for effect in row.effects.values()]
    changes = [abs(e.latency_ratio.estimate - 1) for e in effects if e.latency_ratio is not None]
    context = {
        "found": found,
        "words": wording,
        "treatments": treatments(found),
        "titles": TITLES,
        "worst": max((effect.divergence for effect in effects), default=0.0),
        "most": max(changes, default=0.0),
        "timed": found.p50_ms is not None,
        "basis": basis(found),
        "notes": notes(found),
        **{f.__name__: f for f in (macs_ratio, divergence, time, heat, time_heat, hover, cheapest, row_name)},
    }
    return rendered("sensitivity.html.j2", context)


def row_name(row: Row) -> str:
    """Return a layer's name without that of its block."""
    name = row.name.removeprefix(f"{row.block}.") if row.block else row.name
    return wording.shortened(name, 60)
