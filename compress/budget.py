"""Which of the measured files ships within a budget, how the others stand to it, and what an unmet one lacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from tlc.runtime.budget import Budget, bytes_words, points_words
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Measurement

T = TypeVar("T")

AS_FAST_RATIO = 1.1
"""A file whose p50 is at most so many times the lowest counts as fast as that one."""
_CONFIDENT_LOSS = "loss at 95 % confidence"
_LEAST_POINTS = 0.1
"""What a loss over the budget is a share of where the budget is smaller: 0 points have no shares."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What ships of the measured files, and how all of them stand to the budget."""

    chosen: Measurement
    met: bool
    """Whether it keeps every limit."""
    confident: bool
    """Whether the whole 95 % interval of its loss of accuracy is within the budget."""
    front: list[str]
    """Names of the files that no other is at least as good as in everything and better than in something."""
    lost: dict[str, str]
    """By the name of every other file, a sentence: why it does not ship."""
    needed: str
    """Where the budget is not met, sentences: what comes closest, by how much it misses, and what meets which limit."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a budget, and what of a measured file it limits."""

    what: str
    value: Callable[[Measurement], float | None]
    largest: float
    whole: float
    """What an excess is a share of: the limit, which may not be 0."""
    words: Callable[[float], str]
    """A value with its unit."""

    def excess_ratio(self, row: Measurement) -> float:
        """Return by how much `row` is over the limit, as a share of it; 0 within.

        Raises TlcError where the value was not measured.
        """
        value = self.value(row)
        if value is None:
            raise TlcError(
                f"{self.what} of {row.name} was not measured, so no limit can be held on it.",
                hint="Leave that limit out, and hold it on the device: tlc gate --device.",
            )
        return max(0.0, value - self.largest) / self.whole

    def broken_by(self, row: Measurement) -> str:
        """Return by how much `row` is over the limit, as a clause."""
        value = self.value(row)
        assert value is not None
        more = f"{value - self.largest:.2f} more than the {self.largest:g} allowed"
        if self.what == "loss":
            return f"it loses {value:.2f} points, {more}"
        if self.what == _CONFIDENT_LOSS:
            return f"at 95 % confidence it may lose {value:.2f} points, {more}"
        allowed = self.words(self.largest)
        return f"its {self.what} of {self.words(value)} is {value / self.largest:.2f} times the {allowed} allowed"


def limits(budget: Budget) -> list[Limit]:
    """Return the limits that `budget` sets."""
    points, allowed = max(budget.max_drop_points, _LEAST_POINTS), budget.max_drop_points
    found = [Limit("loss", drop_points, allowed, points, points_words)]
    if budget.confident:
        found = [Limit(_CONFIDENT_LOSS, _largest_drop_points, allowed, points, points_words)]
    if (slowest := budget.max_latency_ms) is not None:
        found.append(Limit("p50", _p50_ms, slowest, slowest, lambda value: f"{value:.3g} ms"))
    if (most := budget.max_size_bytes) is not None:
        found.append(Limit("file", lambda row: row.size_bytes, most, most, bytes_words))
    if (most := budget.max_memory_bytes) is not None:
        found.append(Limit("peak memory", lambda row: row.peak_memory_bytes, most, most, bytes_words))
    return found


def drop_points(row: Measurement) -> float:
    """Return the estimated loss of top-1 against the original in points; negative for a gain."""
    return 0.0 if row.change is None else -row.change.change_points.estimate


def _largest_drop_points(row: Measurement) -> float:
    """Return the largest loss of top-1 in its 95 % interval."""
    return 0.0 if row.change is None else -row.change.change_points.low


def is_confident(row: Measurement, budget: Budget) -> bool:
    """Return whether the whole 95 % interval of the loss of accuracy is within the budget."""
    return row.change is None or row.change.change_points.low >= -budget.max_drop_points


def choose(rows: Sequence[Measurement], budget: Budget, *, name: str | None = None) -> Choice:
    """Return what ships of `rows`, the original first, or how things stand if the row called `name` ships.

    Of the files that keep every limit, the objective decides (`_best`). Where none does, the one comes closest whose
    excesses, as shares of their limits, have the least sum.

    Raises:
        TlcError: a limit on what was not measured, or no row of that name.

    """
    by_name = {row.name: row for row in rows}
    if name is not None and name not in by_name:
        raise TlcError(f"no file called {name} was measured.", hint=f"There are {', '.join(by_name)}.")
    held = limits(budget)
    excess = {row.name: [limit.excess_ratio(row) for limit in held] for row in rows}
    within = [row for row in rows if not any(excess[row.name])]
    original = None if any(excess[rows[0].name]) else rows[0]
    best = (
        _best(within, original, budget)
        if within
        else min(rows, key=lambda row: (sum(excess[row.name]), row.size_bytes))
    )
    chosen = best if name is None else by_name[name]
    met = any(row is chosen for row in within)
    costs = {what: cost for what, cost in _COSTS.items() if all(cost(row) is not None for row in rows)}
    front = _front(rows, costs)
    lost = {}
    for row in rows:
        if row is not chosen:
            rivals = [other for other in (chosen, *front) if _dominates(other, row, costs)]
            lost[row.name] = (
                _over(row, held)
                or (f"Dominated by {rivals[0].name}: as good or better in {_listed(list(costs))}." if rivals else "")
                or (f"{name} was named instead." if chosen is not best else "")
                or _worse(row, chosen, original, budget)
            )
    return Choice(
        chosen=chosen,
        met=met,
        confident=is_confident(chosen, budget),
        front=[row.name for row in front],
        lost=lost,
        needed="" if met else _needed(chosen, rows, front, held, any_within=bool(within)),
    )


def fastest(files: Sequence[tuple[float, int, T]]) -> T:
    """Return the file with the lowest p50, or the smallest of those that are as fast; (p50 in ms, bytes, file) each."""
    limit_ms = AS_FAST_RATIO * min(p50_ms for p50_ms, _size, _file in files)
    return min((entry for entry in files if entry[0] <= limit_ms), key=lambda entry: (entry[1], entry[0]))[2]


def _best(rows: list[Measurement], original: Measurement | None, budget: Budget) -> Measurement:
    """Return the row that the objective asks for; `original` where that keeps every limit.

    The fastest is the smallest of those that are as fast (`fastest`), and never slower than the original; where latency
    was not measured, it is the row with the most steps: the last.
    """
    if budget.objective == "smallest":
        return min(rows, key=lambda row: (row.size_bytes, _p50_ms(row) or 0))
    if budget.objective == "most-accurate":
        return min(rows, key=lambda row: (-row.accuracy.top1, _p50_ms(row) or 0, row.size_bytes))
    timed = [(row.latency.p50_ms, row.size_bytes, row) for row in rows if row.latency is not None]
    if len(timed) < len(rows):
        return rows[-1]
    slowest_ms = float("inf") if original is None or original.latency is None else original.latency.p50_ms
    return fastest([entry for entry in timed if entry[0] <= slowest_ms])


def _p50_ms(row: Measurement) -> float | None:
    return None if row.latency is None else row.latency.p50_ms


_Costs: TypeAlias = dict[str, Callable[[Measurement], float | None]]
_COSTS: _Costs = {
    "p50": _p50_ms,
    "size": lambda row: row.size_bytes,
    "memory": lambda row: row.peak_memory_bytes,
    "accuracy": lambda row: -row.accuracy.top1,
}
"""What makes a file better than another: less of each."""


def _front(rows: Sequence[Measurement], costs: _Costs) -> list[Measurement]:
    """Return the Pareto front, by rising p50, or size where that is unknown."""
    front = [row for row in rows if not any(_dominates(other, row, costs) for other in rows)]
    return sorted(front, key=lambda row: (_p50_ms(row) or 0, row.size_bytes))


def _dominates(one: Measurement, other: Measurement, costs: _Costs) -> bool:
    """Return whether `one` is nowhere worse than `other` and somewhere better, by the estimates."""
    pairs = [(cost(one) or 0, cost(other) or 0) for cost in costs.values()]
    return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)


def _listed(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _over(row: Measurement, held: Sequence[Limit]) -> str:
    broken = [limit.broken_by(row) for limit in held if limit.excess_ratio(row)]
    return f"Over the budget: {'; '.join(broken)}." if broken else ""


def _worse(row: Measurement, chosen: Measurement, original: Measurement | None, budget: Budget) -> str:
    """Return in what `row` is further from the objective than `chosen`."""
    p50_ms, least_ms = _p50_ms(row), _p50_ms(chosen)
    larger = f"its file is {row.size_bytes / chosen.size_bytes:.2f} times as large as that of {chosen.name}"
    if budget.objective == "smallest" and row.size_bytes > chosen.size_bytes:
        return f"Not the smallest: {larger}."
    if budget.objective == "most-accurate" and row.accuracy.top1 < chosen.accuracy.top1:
        behind = 100 * (chosen.accuracy.top1 - row.accuracy.top1)
        return f"Not the most accurate: its top-1 is {behind:.2f} points below that of {chosen.name}."
    if p50_ms is None or least_ms is None:
        return f"{chosen.name} has more steps, and latency was not measured."
    if original is not None and original.latency is not None and p50_ms > original.latency.p50_ms:
        return f"Slower than the original: its p50 is {p50_ms:.3g} ms, not below {original.latency.p50_ms:.3g} ms."
    if p50_ms <= AS_FAST_RATIO * least_ms and row.size_bytes > chosen.size_bytes:
        return f"As fast as {chosen.name}, with a p50 of {p50_ms:.3g} ms, but {larger}."
    return f"Slower: its p50 is {p50_ms:.3g} ms, {p50_ms / least_ms:.2f} times that of {chosen.name}."


def _needed(
    chosen: Measurement, rows: Sequence[Measurement], front: list[Measurement], held: list[Limit], *, any_within: bool
) -> str:
    """Return what `chosen` misses the budget by, and which files of the front keep which limit."""
    missed = "; ".join(limit.broken_by(chosen) for limit in held if limit.excess_ratio(chosen))
    if any_within:  # another was chosen by its name
        return f"{chosen.name} does not meet the budget: {missed}."
    kept = []
    for limit in held:
        names = _listed([row.name for row in front if not limit.excess_ratio(row)])
        if not names:
            least = min(rows, key=lambda row: limit.excess_ratio(row))
            names = f"no file (least: {limit.words(limit.value(least) or 0)} of {least.name})"
        kept.append(f"a {limit.what} of at most {limit.words(limit.largest)} by {names}")
    return (
        f"No measured file meets the budget. {chosen.name} comes closest: {missed}. "
        f"Each limit by itself is kept: {'; '.join(kept)}."
    )
