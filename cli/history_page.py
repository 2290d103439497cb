"""The history as one HTML page: what changed, and a plot of every series."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from tlc.cli import history_wording, wording
from tlc.cli.svg import BAD, GOOD, INK, MUTED, SERIES, svg
from tlc.cli.templates import rendered
from tlc.runtime.artifact import write_text
from tlc.runtime.history_facts import metric
from tlc.runtime.history_trend import Trend

MAX_PLOTS = 60
"""Plots in a page; those with changes come first."""
_DOUBTFUL = ("throttled", "noisy_neighbour", "unstable")  # warnings of a run whose numbers may be off


def write_page(path: Path, trends: Sequence[Trend], machines: Mapping[str, Mapping[str, Any]], alpha: float) -> None:
    """Write `trends` as a page that needs nothing else. Raises TlcError where it cannot be written."""
    changed_first = sorted(trends, key=lambda each: not each.changes)
    drawn = changed_first[:MAX_PLOTS]
    groups: dict[str, list[Trend]] = {}
    for trend in drawn:
        groups.setdefault(history_wording.series_words(trend.series, machines), []).append(trend)
    changes = sorted(
        ((trend, change) for trend in trends for change in trend.changes),
        key=lambda pair: (pair[1].first.time_utc, pair[1].first.run),
        reverse=True,
    )
    context = {
        "changes": changes,
        "groups": groups,
        "trends": trends,
        "left_out": len(trends) - len(drawn),
        "runs": len({point.run for trend in trends for point in trend.series.points}),
        "alpha": alpha,
        "machines": machines,
        "words": wording,
        "history_words": history_wording,
        "metric": metric,
        "plot": plot,
    }
    write_text(path, rendered("history.html.j2", context))


def plot(trend: Trend, number: int) -> str:
    """Draw every point over the number of the run in the series, its levels, and where they change."""
    series = trend.series
    scale, unit = _scale(series.metric, max(abs(point.value) for point in series.points))
    values = np.array([point.value for point in series.points]) * scale
    places = np.arange(len(values))
    doubtful = np.array([any(code in point.warnings for code in _DOUBTFUL) for point in series.points])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=True)
        size = 4.5 if len(values) < 60 else 3
        axes.plot(places[~doubtful], values[~doubtful], "o", color=SERIES[1], markersize=size, alpha=0.75, mew=0)
        axes.plot(places[doubtful], values[doubtful], "o", mfc="none", mec=SERIES[1], markersize=size)
        for level in trend.levels:
            axes.plot([level.start - 0.5, level.stop - 0.5], [level.value * scale] * 2, color=INK, linewidth=1.8)
        for level, change in zip(trend.levels[1:], trend.changes, strict=True):
            colour = GOOD if change.better else BAD
            axes.axvline(level.start - 0.5, color=colour, linewidth=1.4, dashes=(4, 2))
            axes.annotate(
                history_wording.step_words(series.metric, change),
                (level.start - 0.5, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="left" if level.start < len(values) / 2 else "right",
                color=colour,
                fontsize=10,
            )
        ticks = sorted({round(place) for place in np.linspace(0, len(values) - 1, min(4, len(values)))})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.set_xticklabels([series.points[tick].time_utc[:10] for tick in ticks])
        axes.set_xlim(-0.5, len(values) - 0.5)
        if float(np.ptp(values)) < 1e-9 * float(np.max(np.abs(values))):  # else matplotlib magnifies rounding
            axes.set_ylim(0.9 * values[0], 1.1 * values[0] or 1)
        else:
            axes.margins(y=0.1)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_ylabel(f"{metric(series.metric).title}{f', {unit}' if unit else ''}", color=MUTED)

    said = "; ".join(history_wording.change_words(series.metric, change) for change in trend.changes) or "no change"
    label = wording.printable(f"{metric(series.metric).title} of {series.model}, {len(values)} runs: {said}")
    return svg(draw, height=230, name=f"trend-{number}", label=label)


def _scale(name: str, largest: float) -> tuple[float, str]:
    """Return what the values of a metric are multiplied with for the axis, and the unit that they have then."""
    unit = metric(name).unit
    if unit == "share of 1":
        return 100, "%"
    if unit != "bytes":
        return 1, "" if unit == "ratio" else unit
    return next(
        (factor, text)
        for factor, text in ((1e-9, "GB"), (1e-6, "MB"), (1e-3, "kB"), (1, "B"))
        if largest * factor >= 1 or text == "B"
    )
