"""Series and changes of the history as a reader gets them."""

from collections.abc import Mapping
from typing import Any

from tlc.cli.wording import points, printable, significant, size
from tlc.runtime.history import Series
from tlc.runtime.history_facts import metric
from tlc.runtime.history_trend import Change


def machine_words(machine: str, machines: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of a machine in the history with its processor."""
    cpu = machines[machine].get("cpu_model")
    return printable(f"machine {machine} ({cpu})" if cpu else f"machine {machine}")


def series_words(series: Series, machines: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what a series is of: model, setting and machine."""
    return printable(f"{series.model}: {series.setting}; {machine_words(series.machine, machines)}")


def level_words(name: str, value: float) -> str:
    """Return a value of the metric `name` with its unit.

    >>> level_words("p50_ms", 1.2345), level_words("size_bytes", 3620000), level_words("top1_ratio", 0.9)
    ('1.23 ms', '3.62 MB', '90.00 %')
    """
    unit = metric(name).unit
    if unit == "bytes":
        return size(round(value))
    if unit == "share of 1":
        return f"{100 * value:.2f} %"
    return (
        f"{significant(value)}{'×' if unit == 'ratio' else ' a second' if name == 'throughput_per_s' else f' {unit}'}"
    )


def step_words(name: str, change: Change) -> str:
    """Return how much a metric changed: percent, or points where it is a share itself."""
    if metric(name).unit == "share of 1":
        return f"{points(100 * (change.after - change.before))} points"
    if change.ratio is None:
        return f"from 0 to {level_words(name, change.after)}"
    return f"{100 * (change.ratio - 1):+.1f} %".replace("-", "−")


def change_words(name: str, change: Change) -> str:
    """Return one line: the step, from where to where, when, and whether the file is another one since."""
    label = f", {change.first.label}" if change.first.label else ""
    return printable(
        f"{step_words(name, change)} ({'better' if change.better else 'worse'}) at run {change.first.run} of "
        f"{change.first.time_utc[:10]}{label}: {level_words(name, change.before)} to "
        f"{level_words(name, change.after)}, {'another' if change.file_changed else 'the same'} file"
    )
