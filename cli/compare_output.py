"""What `tlc compare` found, for a terminal, a pull request, and a page with the samples that changed."""

import base64
from collections.abc import Sequence
from itertools import zip_longest

from tlc.cli import wording
from tlc.cli.table import columns
from tlc.cli.templates import rendered
from tlc.runtime.bench_report import ModelBench
from tlc.runtime.compare_report import (
    ENOUGH_ROUNDS,
    ChangedSample,
    ClassChange,
    CompareReport,
    DataComparison,
    PairedChange,
)

_CLASSES_LISTED = 6
_CLASSES_SHOWN = 30
_BAR_WIDTH, _BAR_HEIGHT = 120, 18


def lines(report: CompareReport) -> list[str]:
    """Return the report as lines of text."""
    found = [headline(report), "", *columns(_MODEL_HEADER, model_rows(report)), ""]
    if report.latency_ratio is not None:
        found += [f"B's latency over A's: {ratio_words(report)}", ""]
    found += columns(_DATA_HEADER, [data_row(data) for data in report.data])
    found += ["", *(f"worse: {sentence}" for sentence in alerts(report))] if alerts(report) else []
    for data in report.data:
        found += ["", wording.printable(data.path)]
        found += [f"  {_drift_line(data, place)}" for place in range(len(data.drift))]
        found += [f"  not compared: {wording.printable(sentence)}" for sentence in data.not_compared]
        found.append(f"  {changed_words(data)}")
    last = _problems(report) + _cautions(report)
    return found + ([""] if last else []) + last


_MODEL_HEADER = ("", "", "p50 ms", "p90", "p99", "memory", "size")
_DATA_HEADER = ("data", "samples", "A top-1 %", "B top-1 %", "change, points, 95 %", "lost", "won", "p", "")


def model_rows(report: CompareReport) -> list[list[str]]:
    """Return letter, name, latency quantiles in ms, peak memory and size of A and B."""
    measured: Sequence[ModelBench] = report.bench.models if report.bench else ()
    rows = []
    for model, letter in zip_longest(measured, "AB"):
        name, runtime = (report.a, report.runtime_a) if letter == "A" else (report.b, report.runtime_b)
        times, memory = ["–"] * 3, "–"
        if model is not None and model.latency is not None:
            times = [wording.significant(model.latency.quantile(rank).ms) for rank in (50, 90, 99)]
            memory = wording.size(max(launch.memory.peak_bytes for launch in model.launches))
        size_bytes = report.size_bytes_a if letter == "A" else report.size_bytes_b
        shown = f"{wording.printable(name)} ({wording.printable(runtime)})"
        rows.append([letter, shown, *times, memory, wording.size(size_bytes)])
    return rows


def data_row(data: DataComparison) -> list[str]:
    """Return what changed on one data set, and whether that is shown."""
    change = data.change
    return [
        wording.printable(data.path),
        wording.grouped(data.samples),
        wording.percent(change.before_ratio),
        wording.percent(change.after_ratio),
        wording.points_interval(change.change_points),
        wording.grouped(change.lost),
        wording.grouped(change.won),
        wording.probability(change.adjusted_p),
        finding_words(change),
    ]


def finding_words(change: PairedChange) -> str:
    """Return `WORSE`, `better`, or that no difference is shown."""
    return {"worse": "WORSE", "better": "better", "not shown": "no change shown"}[change.finding]


def headline(report: CompareReport) -> str:
    """Return how B differs from A in speed, accuracy and size, in one line."""
    return f"B is {_speed(report)}; {_accuracy(report)}; {wording.size_words(report.size_bytes_a, report.size_bytes_b)}"


def _speed(report: CompareReport) -> str:
    ratio = report.latency_ratio
    if ratio is None:
        return "not timed"
    if report.rounds < ENOUGH_ROUNDS:
        return "not timed for long enough"
    if ratio.high < 1:
        return f"{wording.significant(1 / ratio.estimate)}× faster"
    if ratio.low > 1:
        return f"{wording.significant(ratio.estimate)}× slower"
    return "as fast as far as can be told"


def ratio_words(report: CompareReport) -> str:
    """Return the latency ratio with its interval, and whether it can be relied on."""
    assert report.latency_ratio is not None, "this report has no latencies of both"
    few = f", of {wording.plural(report.rounds, 'round')}: too few to rely on" * (report.rounds < ENOUGH_ROUNDS)
    return f"{wording.times_interval(report.latency_ratio)} (99 % interval{few})"


def _accuracy(report: CompareReport) -> str:
    worse = [data for data in report.data if data.change.finding == "worse"]
    better = [data for data in report.data if data.change.finding == "better"]
    if worse:
        worst = min(worse, key=lambda data: data.change.change_points.estimate)
        where = f" on {wording.printable(worst.path)}" if len(report.data) > 1 else ""
        return f"{wording.points(worst.change.change_points.estimate)} points of accuracy{where}"
    if better:
        where = f" on {len(better)} of {len(report.data)} data sets" if len(report.data) > 1 else ""
        best = max(better, key=lambda data: data.change.change_points.estimate)
        return f"{wording.points(best.change.change_points.estimate)} points of accuracy{where}"
    return "no change in accuracy shown"


def alerts(report: CompareReport) -> list[str]:
    """Return a sentence for every data set, and every class, that is shown to be worse."""
    found = []
    worse = [data for data in report.data if data.change.finding == "worse"]
    for data in worse:
        rest = len(report.data) - len(worse)
        others = f" {wording.plural(rest, 'other data set')} {'show' if rest > 1 else 'shows'} no loss." if rest else ""
        found.append(_alert(wording.printable(data.path), data.change, len(report.data), "data sets") + others)
    for data in report.data:
        classes = worse_classes(data)
        for change in classes[:_CLASSES_LISTED]:
            name = f"class {wording.shortened(change.name, 40)} of {wording.printable(data.path)}"
            found.append(_alert(name, change, len(data.per_class), "classes"))
        if len(classes) > _CLASSES_LISTED:
            found.append(f"{len(classes) - _CLASSES_LISTED} more classes of {wording.printable(data.path)}.")
    return found


def _alert(what: str, change: PairedChange, looked_at: int, kind: str) -> str:
    together = f", adjusted for {looked_at} {kind}" if looked_at > 1 else ""
    return (
        f"{what}: {wording.points_interval(change.change_points)} points, {wording.grouped(change.lost)} of "
        f"{wording.grouped(change.rows)} lost and {wording.grouped(change.won)} won "
        f"(p {wording.probability(change.adjusted_p)}{together})."
    )


def worse_classes(data: DataComparison) -> list[ClassChange]:
    """Return the classes that are shown to be worse, the largest loss first."""
    return [change for change in by_change(data) if change.finding == "worse"]


def by_change(data: DataComparison) -> list[ClassChange]:
    """Return the classes that have samples, the largest loss first."""
    return sorted(
        (change for change in data.per_class if change.rows), key=lambda change: change.change_points.estimate
    )


def changed_words(data: DataComparison) -> str:
    """Return how many samples have another answer, and how many of these were right before and after."""
    counts = {kind: sum(sample.outcome == kind for sample in data.changed) for kind in ("lost", "won", "other")}
    share = wording.percent(len(data.changed) / data.samples)
    return (
        f"{wording.grouped(len(data.changed))} of {wording.grouped(data.samples)} {data.noun} ({share} %) have another "
        f"answer: {counts['lost']} lost, {counts['won']} won, {counts['other']} neither"
    )


def decibels(value: float | None) -> str:
    """Return a signal-to-noise ratio; a dash where there is no noise, or no signal."""
    return "–" if value is None else f"{value:.1f}".replace("-", "−")


def _drift_line(data: DataComparison, place: int) -> str:
    drift = data.drift[place]
    return (
        f"output {wording.printable(drift.output)}: SNR {decibels(drift.snr_db)} dB, "
        f"difference {wording.significant(drift.mean_abs)} on average, {wording.significant(drift.max_abs)} at most, "
        f"cosine {wording.significant(drift.cosine_mean, 4)} on average, "
        f"{wording.significant(drift.cosine_worst, 4)} at worst, "
        f"same arg-max {wording.percent(drift.argmax_equal_ratio)} %"
    )


def _problems(report: CompareReport) -> list[str]:
    """Return why there are no latencies, where there are none."""
    found = [f"not timed: {report.not_measured}"] if report.not_measured else []
    for model in report.bench.models if report.bench else ():
        if model.status != "ok":
            found.append(f"not timed: {model.name} ({model.status}): {model.problem}")
    return [wording.printable(line) for line in found]


def _cautions(report: CompareReport) -> list[str]:
    """Return what makes the latencies worth less."""
    warnings = report.bench.warnings if report.bench else ()
    return [wording.printable(f"warning ({warning.code}): {warning.message}") for warning in warnings]


def markdown(report: CompareReport) -> str:
    """Return the report as Markdown; names of files and classes cannot be markup in it."""
    return rendered("compare.md.j2", _context(report))


def html(report: CompareReport, pictures: Sequence[Sequence[bytes]], *, limit: int) -> str:
    """Return one page without anything to load; of each data set the first `limit` samples that changed.

    pictures: JPEGs of the first changed samples of each data set; fewer or none are shown as text.
    """
    samples: list[list[tuple[ChangedSample, str]]] = [
        [(sample, _data_uri(picture)) for sample, picture in zip_longest(data.changed[:limit], own[:limit])]
        for data, own in zip(report.data, pictures, strict=True)
    ]
    return rendered("compare.html.j2", {**_context(report), "samples": samples})


def _context(report: CompareReport) -> dict[str, object]:
    shown = [by_change(data)[:_CLASSES_SHOWN] for data in report.data]
    return {
        "report": report,
        "words": wording,
        "headline": headline(report),
        "alerts": alerts(report),
        "problems": _problems(report),
        "cautions": _cautions(report),
        "models": model_rows(report),
        "measured": report.bench.models if report.bench else [],
        "data_rows": [data_row(data) for data in report.data],
        "classes": shown,
        "changed_words": changed_words,
        "finding_words": finding_words,
        "decibels": decibels,
        "ratio_words": ratio_words,
        "bar": interval_bar,
        "reach": reach,
    }


def _data_uri(picture: bytes | None) -> str:
    return "" if picture is None else f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def reach(changes: Sequence[PairedChange]) -> float:
    """Return the points that the bars of a table reach to either side."""
    bounds = [abs(bound) for change in changes for bound in (change.change_points.low, change.change_points.high)]
    return max([1.0, *bounds])


def interval_bar(change: PairedChange, reach_points: float) -> str:
    """Return an `<svg>` of a change and its interval around a line at zero."""

    def x(points: float) -> float:
        return round(_BAR_WIDTH / 2 * (1 + 0.96 * points / reach_points), 1)

    points = change.change_points
    colour = {"worse": "--bad", "better": "--good", "not shown": "--muted"}[change.finding]
    middle, zero = _BAR_HEIGHT / 2, x(0)
    return (
        f'<svg class="bar" role="img" aria-label="{wording.points_interval(points)} points" '
        f'viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}">'
        f'<path d="M{zero} 0V{_BAR_HEIGHT}" stroke="var(--muted)" stroke-width="1" opacity=".6"/>'
        f'<path d="M{x(points.low)} {middle}H{x(points.high)}" stroke="var({colour})" stroke-width="2"/>'
        f'<circle cx="{x(points.estimate)}" cy="{middle}" r="4" fill="var({colour})"/></svg>'
    )
