"""The report's plots, each an `<svg>` element: accuracy against latency, distributions, confusion, classes, stages."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox, BboxBase
from numpy.typing import NDArray

from tlc.cli.svg import BAD, GOOD, GRID, INK, MUTED, ON_FILL, SERIES, svg
from tlc.cli.wording import by_name, latency, lineage, points, shortened, significant, top1_interval
from tlc.runtime.report import ClassChange, Interval, Measurement, Report

MAX_CLASSES = 20
"""Of a confusion matrix or a per-class plot; above, only those that changed most are drawn."""
_MOST_CHANGED = 12  # classes of a confusion matrix that cannot show all
_MAX_COUNTS = 12  # classes up to which the cells have room for their counts

_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (3, 1.5)), (0, (1, 1.2)), (0, (7, 1.5, 1.2, 1.5)), (0, (9, 3)))


def _style(report: Report, row: Measurement) -> tuple[str, str, Any]:
    """Return the (colour, marker, dashes) that a measurement has in every plot."""
    index = [other.name for other in report.measurements].index(row.name)
    return SERIES[index % len(SERIES)], _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)]


def accuracy_against_latency(report: Report) -> str:
    """Each measurement as a labelled point: p50 with the 10th to 90th percentile, top-1 with its 95 % interval."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=True)
        for row in report.measurements:
            colour, marker, _ = _style(report, row)
            top1 = top1_interval(row.accuracy)
            low, high = np.quantile(latency(row).samples_ms, [0.1, 0.9]).tolist()
            p50_ms = latency(row).p50_ms
            axes.errorbar(
                [p50_ms],
                [100 * top1.estimate],
                xerr=_reach(Interval(estimate=p50_ms, low=low, high=high)),
                yerr=100 * np.array(_reach(top1)),
                fmt=marker,
                color=colour,
                markerfacecolor=colour if row.name in report.front else "none",
                markersize=10 if row.name == report.chosen else 6,
                elinewidth=1.2,
                capsize=3,
            )
        slowest_ms = max(latency(row).p50_ms for row in report.measurements)
        limit_ms = report.budget.max_latency_ms
        if limit_ms is not None and limit_ms < 2 * slowest_ms:
            axes.axvline(limit_ms, color=MUTED, linewidth=1, dashes=(4, 3))
            slowest_ms = max(slowest_ms, limit_ms)
        axes.set_xlim(0, 1.15 * slowest_ms)
        front = front_line(report)
        axes.plot([latency(row).p50_ms for row in front], [100 * row.accuracy.top1 for row in front], color=MUTED, lw=1)
        floor = 100 * report.measurements[0].accuracy.top1 - report.budget.max_drop_points
        axes.axhline(floor, color=MUTED, linewidth=1, dashes=(4, 3))
        axes.margins(y=0.15)
        axes.set_xlabel("p50 latency, ms (left is better)")
        axes.set_ylabel("top-1, % (up is better)")
        figure.draw_without_rendering()  # lays out, so that places are final
        _label_points(axes, report, floor)

    said = (
        f"{row.name} {significant(latency(row).p50_ms)} ms and {100 * row.accuracy.top1:.2f} %"
        for row in report.measurements
    )
    return svg(draw, height=340, name="accuracy-latency", label="Top-1 against p50 latency: " + "; ".join(said))


def search_curve(report: Report) -> str:
    """What the best finished shape so far was worth over the time of the search, as a step line."""
    assert report.search is not None
    accurate = report.budget.objective == "most-accurate"
    finished = sorted(
        (one.ended_s / 60, one.value if accurate else math.exp(one.value))
        for one in report.search.trials
        if one.ended_s is not None and one.value is not None
    )
    if not finished:
        return ""
    end = max(one.ended_s or one.began_s for one in report.search.trials) / 60
    what = {"fastest": "expected speed-up", "smallest": "expected reduction of size"}.get(
        report.budget.objective, "expected change, points"
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=True)
        minutes, worth = [minute for minute, _ in finished], [value for _, value in finished]
        best = list(accumulate(worth, max))
        axes.plot(minutes, worth, "o", color=SERIES[0], markersize=6)
        axes.step([*minutes, end], [*best, best[-1]], where="post", color=SERIES[0])
        axes.set_xlim(0, None)
        axes.set_xlabel("minutes")
        axes.set_ylabel(what)

    last = max(value for _, value in finished)
    return svg(draw, height=280, name="search", label=f"{what} of the best shape over time, {last:.2f} at the end")


def front_line(report: Report) -> list[Measurement]:
    """Return, by rising p50, the rows that no other beats in both p50 and top-1."""
    line: list[Measurement] = []
    for row in sorted(report.measurements, key=lambda row: (latency(row).p50_ms, -row.accuracy.top1)):
        if not line or row.accuracy.top1 > line[-1].accuracy.top1:
            line.append(row)
    return line


def _label_points(axes: Axes, report: Report, floor: float) -> None:
    """Write each label at the nearest place where it covers no point and no other label."""
    places = [(latency(row).p50_ms, 100 * row.accuracy.top1) for row in report.measurements]
    centres = [axes.transData.transform(place) for place in places]
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in centres]
    stops = sorted([0.0, *(x for x, _ in places)])
    _, middle = max((right - left, (left + right) / 2) for left, right in pairwise(stops))
    budget = _note(axes, f"budget: {points(-report.budget.max_drop_points)} points", (middle, floor), MUTED)
    budget.set(ha="center", va="top", position=(0, -3), fontsize=10)
    taken.append(budget.get_window_extent())
    limit_ms = report.budget.max_latency_ms
    if limit_ms is not None and limit_ms < axes.get_xlim()[1]:
        slowest = _note(axes, f"budget: {significant(limit_ms)} ms", (limit_ms, axes.get_ylim()[1]), MUTED)
        slowest.set(ha="left", va="top", position=(3, -2), fontsize=10)
        taken.append(slowest.get_window_extent())
    for row, place, (x, y) in zip(report.measurements, places, centres, strict=True):
        text = f"{row.name} (ships)" if row.name == report.chosen else row.name
        label = _note(axes, text, place, INK)
        left, bottom, far = _free_place((x, y), label.get_window_extent().size, axes.bbox, taken)
        box = Bbox.from_bounds(x + left, y + bottom, *label.get_window_extent().size)
        taken.append(box)
        label.set_position((left, bottom))
        if far:
            ends = (np.clip(x, box.x0, box.x1) - x, np.clip(y, box.y0, box.y1) - y)
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 5}
            axes.annotate("", place, ends, textcoords="offset points", arrowprops=line).set_in_layout(False)


def _note(axes: Axes, text: str, place: tuple[float, float], colour: str) -> Annotation:
    note = axes.annotate(text, place, (0, 0), textcoords="offset points", color=colour)
    note.set_in_layout(False)
    return note


def _free_place(
    point: tuple[float, float], size: Sequence[float], frame: BboxBase, taken: Sequence[BboxBase]
) -> tuple[float, float, bool]:
    """Return (left, bottom, needs a line) relative to `point` of the nearest free place for a box of that size."""
    (x, y), (width, height) = point, size
    left, bottom = 9.0, 9.0
    for radius in (9, 22, 36, 52, 70, 90):
        for angle in (45, 135, -45, -135, 0, 180, 90, -90):
            dx, dy = round(math.cos(math.radians(angle)), 3), round(math.sin(math.radians(angle)), 3)
            # The corner or edge of the box that faces the point lies on the circle.
            left, bottom = radius * dx - width * (1 - dx) / 2, radius * dy - height * (1 - dy) / 2
            box = Bbox.from_bounds(x + left, y + bottom, width, height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and box.count_overlaps(taken) == 0:
                return left, bottom, radius > 9
    return left, bottom, True


def latency_distributions(report: Report) -> str:
    """The share of inferences that finished within a time, one curve a measurement (ECDF), on a logarithmic axis."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=True)
        axes.set_xscale("log")
        for row in report.measurements:
            colour, _, dashes = _style(report, row)
            ordered = np.sort(latency(row).samples_ms)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            width = 2.4 if row.name == report.chosen else 1.5
            axes.step(
                np.concatenate([ordered[:1], ordered]),
                np.concatenate([[0.0], share]),
                where="post",
                color=colour,
                linestyle=dashes,
                linewidth=width,
                label=f"{row.name}, p50 {significant(latency(row).p50_ms)} ms",
            )
        low = min(latency(row).min_ms for row in report.measurements)
        high = max(float(np.quantile(latency(row).samples_ms, 0.995)) for row in report.measurements)
        _log_ticks(axes, 0.9 * low, 1.1 * high)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1], ["0", "25", "50", "75", "90", "100"])
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("latency, ms (logarithmic)")
        axes.set_ylabel("finished within, % of inferences")
        figure.legend(loc="outside lower center", ncols=2, fontsize=10)

    said = (
        f"{row.name} p50 {significant(latency(row).p50_ms)}, p99 {significant(latency(row).p99_ms)} ms"
        for row in report.measurements
    )
    return svg(draw, height=340, name="latency", label="Latency distributions: " + "; ".join(said))


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    """Set limits, and ticks at 1, 2, 5 x 10^n, finer where the range is small."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(i / 10 for i in range(10, 100, 2))):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= 3:
            break
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def confusion_classes(report: Report) -> list[int]:
    """Return the indices of the classes that the confusion matrices show: all, or those that changed most."""
    before = np.asarray(report.measurements[0].accuracy.confusion)
    change = np.abs(np.asarray(by_name(report, report.chosen).accuracy.confusion) - before)
    if len(before) <= MAX_CLASSES:
        return list(range(len(before)))
    effect = change.sum(0) + change.sum(1)
    return sorted(np.argsort(-effect, kind="stable")[:_MOST_CHANGED].tolist())


def confusion(report: Report, name: str) -> str:
    """The confusion matrix of one measurement: rows are true classes. Colour is the share of the row."""
    shown = confusion_classes(report)
    row = by_name(report, name)
    counts, shares = _cells(row, shown)
    worst = max(
        float(np.max(_errors(_cells(other, shown)[1]), initial=0.0))
        for other in (report.measurements[0], by_name(report, report.chosen))
    )
    labels = [shortened(report.data.classes[i], 14) for i in shown]
    columns = [*labels, "others"] if counts.shape[1] > len(shown) else labels

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        font = 10 if len(shown) <= _MAX_COUNTS else 8
        for (i, j), value in np.ndenumerate(counts):
            right = i == j
            strength = shares[i, j] if right else shares[i, j] / worst if worst else 0.0
            if value:
                alpha = 0.06 + 0.9 * float(strength)
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=SERIES[1 if right else 2], alpha=alpha, lw=0))
            if value and len(shown) <= _MAX_COUNTS:
                colour = ON_FILL if strength > 0.55 else INK
                size = 8 if counts.max() >= 1000 else 9
                axes.text(j, i, str(value), ha="center", va="center", color=colour, fontsize=size)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=font)
        axes.set_yticks(range(len(shown)), labels, fontsize=font)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(GRID)
        axes.set_aspect("equal")

    label = f"Confusion matrix of {name}: {row.accuracy.correct} of {row.accuracy.samples} samples on the diagonal"
    return svg(draw, height=440, name="before" if row is report.measurements[0] else "after", label=label)


def _cells(row: Measurement, shown: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return counts and shares of the true class, (shown, shown), with a last column for all other predictions."""
    matrix = np.asarray(row.accuracy.confusion, dtype=np.int64)
    rows = matrix[list(shown)]
    counts = rows[:, list(shown)]
    if len(shown) < len(matrix):
        counts = np.column_stack([counts, rows.sum(1) - counts.sum(1)])
    return counts, counts / np.maximum(rows.sum(1, keepdims=True), 1)


def _errors(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    errors = shares.copy()
    np.fill_diagonal(errors, 0.0)
    return errors


def _reach(interval: Interval) -> list[list[float]]:
    """Return the lengths of an error bar to the left and to the right."""
    middle = interval.estimate
    return [[max(0.0, middle - interval.low)], [max(0.0, interval.high - middle)]]


def changes_shown(changes: Sequence[ClassChange]) -> list[ClassChange]:
    """Return the classes that the per-class plot shows: worst first, the worst `MAX_CLASSES` if there are more."""
    return sorted(changes, key=lambda item: item.change_points.estimate)[:MAX_CLASSES]


def class_changes(report: Report, changes: Sequence[ClassChange]) -> str:
    """Change of each class's recall in points with its 95 % interval, worst first."""
    shown = changes_shown(changes)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=True, axis="x")
        axes.axvline(0, color=INK, linewidth=1)
        for place, item in enumerate(shown):
            change = item.change_points
            sure = change.high < 0 or change.low > 0
            colour = MUTED if not sure else BAD if change.high < 0 else GOOD
            marker = "o" if not sure else "v" if change.high < 0 else "^"
            axes.errorbar(
                [change.estimate],
                [place],
                xerr=_reach(change),
                fmt=marker,
                color=colour,
                markersize=6,
                markerfacecolor=colour if sure else "none",
                elinewidth=1.4,
                capsize=2.5,
            )
        axes.set_yticks(range(len(shown)), [f"{shortened(item.name, 22)} ({item.support})" for item in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        )
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("change of recall, points (right is better)")

    worst = f"; worst {shown[0].name} {points(shown[0].change_points.estimate)} points" if shown else ""
    label = f"Change of recall per class from {report.measurements[0].name} to {report.chosen}{worst}"
    return svg(draw, height=80 + 19.0 * max(3, len(shown)), name="classes", label=label)


def stage_contributions(report: Report) -> str:
    """From the original to the chosen file, step by step: p50, and the change of top-1 against the original.

    Where latency was not measured, the size of the file stands in the place of p50.
    """
    chain = lineage(report)
    what, unit = ("file size", "MB") if report.not_measured else ("p50", "ms")
    costs = [row.size_bytes / 1e6 if row.latency is None else row.latency.p50_ms for row in chain]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
        left.grid(visible=True, axis="x")
        right.grid(visible=True, axis="x")
        right.axvline(0, color=INK, linewidth=1)
        right.axvline(-report.budget.max_drop_points, color=MUTED, linewidth=1, dashes=(4, 3))
        for place, (row, cost) in enumerate(zip(chain, costs, strict=True)):
            colour, marker, _ = _style(report, row)
            left.barh([place], [cost], height=0.55, color=colour)
            text = f"{significant(cost)} {unit}"
            text += f", ÷{significant(costs[place - 1] / cost)}" if place else ""
            _step_label(left, (cost, place), text, inside=cost > 0.5 * max(costs))
            change = row.change.change_points if row.change else Interval(estimate=0, low=0, high=0)
            right.errorbar([change.estimate], [place], xerr=_reach(change), fmt=marker, color=colour, capsize=3)
        left.set_yticks(range(len(chain)), [row.name for row in chain])
        left.set_ylim(len(chain) - 0.4, -0.7)
        left.set_xlim(0, max(costs) * 1.02)
        left.set_xlabel(f"{what}, {unit}")
        right.set_xlabel("top-1 against original, points")
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
        right.xaxis.set_major_locator(MaxNLocator(5))
        left.tick_params(axis="y", length=0)
        right.tick_params(axis="y", length=0)
        right.spines["left"].set_visible(False)
        figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]

    said = (f"{row.name} {significant(cost)} {unit}" for row, cost in zip(chain, costs, strict=True))
    return svg(draw, height=90 + 40.0 * len(chain), name="stages", label=f"{what} after each step: " + ", ".join(said))


def _step_label(axes: Axes, end: tuple[float, float], text: str, *, inside: bool) -> None:
    axes.annotate(
        text,
        end,
        (-5 if inside else 5, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center",
        color=ON_FILL if inside else INK,
        fontsize=10,
    )
