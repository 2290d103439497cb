"""Numbers and findings as a reader gets them: rounded, with their unit, and never claiming more than was measured."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlc.compress.budget import limits
from tlc.runtime.report import Accuracy, ClassChange, Interval, LatencyRecord, LayerPrecisions, Measurement, Report
from tlc.runtime.search_report import SearchRecord, TrialRecord

_Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


def printable(text: str) -> str:
    """Return `text` on one line, with control characters replaced: names come from files, and files may be hostile."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def shortened(text: str, limit: int) -> str:
    """Return `text` printable and cut to `limit` characters."""
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def significant(value: float, digits: int = 3) -> str:
    """Return `value` with that many significant digits, never in exponent form.

    >>> significant(0.45678), significant(9.996), significant(1234.6)
    ('0.457', '10.0', '1235')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    value = float(f"{value:.{digits - 1}e}") if abs(value) < 10**digits else value
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    unit = 0
    while float(f"{value:.2e}") >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    digits = f"{value:.0f}" if unit == 0 else significant(value)
    return f"{digits} {units[unit]}".strip()


def size(value_bytes: int) -> str:
    """Return a size in decimal units: 3 620 000 is `3.62 MB`."""
    return _scaled(value_bytes, ("B", "kB", "MB", "GB", "TB"))


def count(value: int) -> str:
    """Return a count in decimal units: 1 270 000 is `1.27 M`."""
    return _scaled(value, ("", "k", "M", "G", "T"))


def grouped(value: int) -> str:
    """Return an exact count with its thousands apart: `10,000`."""
    return f"{value:,}"


def plural(value: int, noun: str) -> str:
    """Return `1 file` or `2 files`."""
    return f"{grouped(value)} {noun}{'' if value == 1 else 's'}"


def percent(ratio: float | None) -> str:
    """Return a ratio in percent with two decimals; a dash for None."""
    return "–" if ratio is None else f"{100 * ratio:.2f}"


def points(value: float) -> str:
    """Return percentage points with sign and two decimals; zero has no sign."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def points_interval(change: Interval) -> str:
    """Return `−0.60 [−1.02, −0.18]`."""
    return f"{points(change.estimate)} [{points(change.low)}, {points(change.high)}]"


def times_interval(speedup: Interval) -> str:
    """Return `4.41× [4.35, 4.48]`."""
    return f"{significant(speedup.estimate)}× [{significant(speedup.low)}, {significant(speedup.high)}]"


def probability(p: float) -> str:
    """Return a p-value with two significant digits, or a bound where it is tiny."""
    return "< 0.001" if p < 0.001 else significant(p, 2)


def duration(seconds: float) -> str:
    """Return `42 s`, `3 min 5 s` or `1 h 12 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def as_json(value: object) -> str:
    """Return JSON for people: objects over several lines, lists of plain values on one."""
    return _json(value, "\n")


def _json(value: object, newline: str) -> str:
    inner = newline + " "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(str(key), ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(items) + newline + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        return "[" + inner + ("," + inner).join(_json(item, inner) for item in value) + newline + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for every leaf of a nested mapping."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        elif isinstance(item, (list, tuple)):
            yield prefix + key, ", ".join(str(part) for part in item)
        else:
            yield prefix + key, "–" if item is None else str(item)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of measurements."""

    title: str
    unit: str
    cell: Callable[[Measurement], str]
    rank: int
    """A narrow terminal drops the columns of the highest rank first."""

    @property
    def heading(self) -> tuple[str, str]:
        """(title, unit)"""
        return self.title, self.unit


def latency(row: Measurement) -> LatencyRecord:
    """Return the latency of a row of a report that measured it."""
    assert row.latency is not None, "this report has no latencies"
    return row.latency


def columns(report: Report) -> list[Column]:
    """Return the columns of the report's table; those of what was not measured are left out."""
    return [column for column in _COLUMNS if not (report.not_measured and column.title in _MEASURED_THERE)]


_MEASURED_THERE = ("p50", "p90", "p99", "speed-up", "memory")
_COLUMNS: tuple[Column, ...] = (
    Column("p50", "ms", lambda row: significant(latency(row).p50_ms), 0),
    Column("p90", "ms", lambda row: significant(latency(row).p90_ms), 5),
    Column("p99", "ms", lambda row: significant(latency(row).p99_ms), 4),
    Column("speed-up", "99 %", lambda row: times_interval(latency(row).speedup) if row.change else "1", 1),
    Column("size", "file", lambda row: size(row.size_bytes), 3),
    Column("memory", "peak", lambda row: "–" if row.peak_memory_bytes is None else size(row.peak_memory_bytes), 7),
    Column("params", "", lambda row: count(row.parameters), 8),
    Column("MACs", "", lambda row: count(row.macs), 9),
    Column("top-1", "%", lambda row: percent(row.accuracy.top1), 0),
    Column("change", "points, 95 %", lambda row: change_cell(row), 2),
    Column("same top-1", "%", lambda row: agreement_cell(row), 6),
)
"""After the name; the original is compared with nothing."""


_SCORES: tuple[tuple[str, str, Callable[[Accuracy], float | None]], ...] = (
    ("top-1", "%", lambda scores: scores.top1),
    ("top-5", "%", lambda scores: scores.top5),
    ("precision", "macro, %", lambda scores: scores.macro_precision),
    ("recall", "macro, %", lambda scores: scores.macro_recall),
    ("F1", "macro, %", lambda scores: scores.macro_f1),
    ("ROC-AUC", "macro, %", lambda scores: scores.roc_auc),
    ("Matthews", "× 100", lambda scores: scores.matthews),
    ("calibration error", "%", lambda scores: scores.calibration_error),
    ("entity F1", "%", lambda scores: scores.entity_f1),
    ("texts all right", "%", lambda scores: scores.exact_ratio),
    ("answer F1", "words, %", lambda scores: scores.answer_f1),
)


def score_columns(report: Report) -> list[tuple[str, str, Callable[[Accuracy], float | None]]]:
    """Return title, unit and value of the scores that are defined for the report's task."""
    return scores_defined([row.accuracy for row in report.measurements])


def scores_defined(found: Sequence[Accuracy]) -> list[tuple[str, str, Callable[[Accuracy], float | None]]]:
    """Return title, unit and value of the scores that at least one of `found` has."""
    return [column for column in _SCORES if any(column[2](scores) is not None for scores in found)]


def input_words(report: Report) -> str:
    """Return `input 3 × 32 × 32`, or `up to 64 tokens`."""
    shape = report.model.input_shape
    if report.data.lengths is not None:
        return f"up to {shape[0]} tokens"
    return f"input {' × '.join(map(str, shape))}"


def length_words(report: Report) -> str:
    """Return how long the evaluation texts are, and what was cut."""
    lengths = report.data.lengths
    if lengths is None:
        return ""
    cut = f"{plural(lengths.truncated, 'text')} of all were longer and cut" if lengths.truncated else "none was cut"
    return (
        f"Evaluation texts have {lengths.p50} tokens (median), {lengths.p99} (99th percentile), {lengths.longest} "
        f"(longest); the limit is {lengths.limit}, and {cut}."
    )


def inputs_measured(report: Report) -> list[str]:
    """Return the kinds of other inputs that latency was measured with."""
    return list(report.measurements[0].p50_ms_by_input)


def change_cell(row: Measurement) -> str:
    """Return the change of top-1 with its interval, or a dash for the original."""
    return points_interval(row.change.change_points) if row.change else "–"


def agreement_cell(row: Measurement) -> str:
    """Return the share of samples with the same answer as the row's source, in percent."""
    return percent(row.agreement.top1_agreement) if row.agreement else "–"


def speed_words(row: Measurement) -> str:
    """Return `4.41× faster`, that no difference is distinguishable, or that it was not measured."""
    if row.latency is None:
        return "speed not measured"
    speedup = row.latency.speedup
    if speedup.low > 1:
        return f"{significant(speedup.estimate)}× faster"
    if speedup.high < 1:
        return f"{significant(1 / speedup.estimate)}× slower"
    return "no change in speed distinguishable"


def layer_words(layers: LayerPrecisions) -> str:
    """Return `40 int8, 3 fp32`, the most frequent precision first."""
    counts = sorted(layers.layers.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {precision}" for precision, number in counts)


def time_words(layers: LayerPrecisions) -> str:
    """Return `int8 93 %, fp32 7 %`, the largest share first; a dash where the runtime does not tell."""
    shares = sorted(layers.time_ratios.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{precision} {100 * ratio:.0f} %" for precision, ratio in shares) or "–"


def not_measured_words(report: Report) -> str:
    """Return why there are no latencies, and what gives them."""
    return f"Latency on {report.target} was not measured. {report.not_measured}"


def change_words(change: Interval) -> str:
    """Return `−0.60 points`, or that no change is distinguishable when the interval includes 0."""
    if change.low <= 0 <= change.high:
        return "no change in accuracy distinguishable"
    return f"{points(change.estimate)} points"


def size_words(before_bytes: int, after_bytes: int) -> str:
    """Return `9.05× smaller`, `1.20× larger` or `same size`."""
    if before_bytes == after_bytes or min(before_bytes, after_bytes) <= 0:
        return "same size" if before_bytes == after_bytes else f"{size(before_bytes)} → {size(after_bytes)}"
    if before_bytes > after_bytes:
        return f"{significant(before_bytes / after_bytes)}× smaller"
    return f"{significant(after_bytes / before_bytes)}× larger"


def by_name(report: Report, name: str) -> Measurement:
    """Return the measurement of that name."""
    return next(row for row in report.measurements if row.name == name)


def lineage(report: Report) -> list[Measurement]:
    """Return the chosen measurement and all it was made from, the original first."""
    chain: list[Measurement] = []
    name: str | None = report.chosen
    while name is not None and all(row.name != name for row in chain):
        chain.insert(0, by_name(report, name))
        name = chain[0].made_from
    return chain


def best_trials(search: SearchRecord) -> list[TrialRecord]:
    """Return the trials of a search: the finished ones, best first, then the others in their order."""
    return sorted(search.trials, key=lambda one: -math.inf if one.value is None else one.value, reverse=True)


def trial_speed(trial: TrialRecord) -> str:
    """Return a trial's speed-up."""
    return "–" if trial.speedup is None else f"{trial.speedup:.2f}×"


def trial_change(trial: TrialRecord) -> str:
    """Return the last change of accuracy that a trial saw, in points."""
    lost = trial.drop_points if trial.drop_points is not None else next(reversed(trial.drops_points), None)
    return "–" if lost is None else points(-lost)


def budget_words(report: Report) -> str:
    """Return how the chosen file stands to the budget, and what that leaves open."""
    row = by_name(report, report.chosen)
    if not report.budget_met:
        return report.needed
    costs = [
        f"{limit.what} {limit.words(limit.value(row) or 0)} of {limit.words(limit.largest)}"
        for limit in limits(report.budget)
        if not limit.what.startswith("loss")
    ]
    kept = f" Kept as well: {', '.join(costs)}." if costs else ""
    if row.change is None:
        return f"The original itself ships: nothing that was tried was worth shipping.{kept}"
    drop, limit = row.change.change_points, f"the budget of {report.budget.max_drop_points:.2f} points"
    if report.confident:
        return f"Within {limit}, and so is the whole 95 % interval: {points_interval(drop)} points.{kept}"
    return (
        f"Within {limit} as measured; the 95 % interval [{points(drop.low)}, {points(drop.high)}] "
        f"does not exclude a larger drop.{kept}"
    )


def regressions(report: Report) -> list[ClassChange]:
    """Return the chosen file's classes whose interval lies wholly below zero, worst first."""
    change = by_name(report, report.chosen).change
    worse = [item for item in change.per_class if item.change_points.high < 0] if change else []
    return sorted(worse, key=lambda item: item.change_points.estimate)


def regression_words(report: Report) -> str:
    """Return how many classes changed beyond their interval, and how many would by chance alone."""
    change = by_name(report, report.chosen).change
    if change is None:
        return "Nothing to compare: the original ships."
    total, worse = len(change.per_class), len(regressions(report))
    better = sum(item.change_points.low > 0 for item in change.per_class)
    lost = f"{worse} of {total:,} classes lost recall" if worse else f"No class of {total:,} lost recall"
    gained = f"{better} gained" if better else "none gained"
    return (
        f"{lost} by an interval that excludes zero; {gained}. The 95 % intervals are per class: "
        f"of {total:,} unchanged classes about {round(0.05 * total, 1):g} would exclude zero by chance."
    )


def top1_interval(accuracy: Accuracy) -> Interval:
    """Return the 95 % Wilson score interval of top-1 (Wilson 1927, JASA 22:209), as ratios.

    It says how sure one row's accuracy is. Two rows saw the same samples: compare them by the paired interval.
    """
    n, p = accuracy.samples, accuracy.correct / accuracy.samples
    centre = (p + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(p * (1 - p) / n + _Z95**2 / (4 * n * n))
    return Interval(estimate=p, low=max(0.0, centre - half), high=min(1.0, centre + half))


def confusion_changes(report: Report, limit: int = 10) -> list[tuple[str, str, int, int]]:
    """Return (true class, predicted class, before, after) of the confusions whose counts changed most."""
    before = report.measurements[0].accuracy.confusion
    after = by_name(report, report.chosen).accuracy.confusion
    changed = [
        (abs(new - old), i, j, old, new)
        for i, (row, new_row) in enumerate(zip(before, after, strict=True))
        for j, (old, new) in enumerate(zip(row, new_row, strict=True))
        if i != j and old != new
    ]
    changed.sort(key=lambda item: (-item[0], item[1], item[2]))
    names = report.data.classes
    return [(names[i], names[j], old, new) for _, i, j, old, new in changed[:limit]]
