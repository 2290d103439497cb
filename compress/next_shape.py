"""Which shape the workers of a search try next: one between those that keep the budget and those that miss it."""

import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from tlc.compress.lock import alone
from tlc.compress.search_rules import NEAR_RATIO, next_speedup, settled
from tlc.compress.shape_speeds import ShapeSpeeds
from tlc.compress.space import Space
from tlc.compress.study import worth_of_best
from tlc.runtime.budget import Budget
from tlc.runtime.errors import TlcError

_FIRST_STRIDE = 2.5
"""How much faster than the original in INT8 the first student is, at least."""
_LONG_STRIDE = 2.0
"""How much faster than the fastest that keeps the budget the next shape is, where little of the budget is used."""
_STRIDE = 1.4
"""The same where more of it is."""
_UNDER_WAY = (TrialState.WAITING, TrialState.RUNNING)
_BUT_FAILED = (*_UNDER_WAY, TrialState.COMPLETE, TrialState.PRUNED)


class NextShape:
    """Queues shapes in the study that workers share; where it has none in mind, the sampler is asked."""

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        speeds: ShapeSpeeds,
        budget: Budget,
        *,
        usual: str | None,
        deviation_points: float,
        shared: Path,
    ) -> None:
        """`usual` is the student without a search, `deviation_points` that of a drop as it is told from few samples.

        `shared` is a folder of all workers on this machine: they choose one after the other.
        """
        self._study, self._space, self._speeds, self._budget = study, space, speeds, budget
        self._usual, self._deviation_points, self._shared = usual, deviation_points, shared

    def queue(self) -> None:
        """Queue a shape between the fastest that keeps the budget and the slowest of the faster ones that miss it.

        Where there is none, a shape that was stopped is trained on, and then the others are tried that are about as
        fast as the fastest that keeps it, or faster than can be expected of the best. What others are at counts as kept
        without a loss, unless a slower one has missed, or no shape is faster: workers that choose one after the other
        spread out, and faster shapes are trained sooner.
        Where another thing is wanted than speed, the first student alone is chosen like this.
        """
        if self._speeds.predicted:
            with alone(self._shared):
                self._queue()

    def _queue(self) -> None:
        kept, missed, at_work = [(1.0, 0.0)], [], []
        students = False
        for one in self._trials():
            spec, known = self._spec(one), one.user_attrs
            under_way = one.state in _UNDER_WAY
            if spec is None or not (under_way or "drop_points" in known or "drops_points" in known):
                continue  # it was never trained
            try:
                speedup = known.get("speedup") or self._speeds.of(spec)
            except TlcError:
                continue  # whoever is at it will say so
            drop_points = known.get("drop_points", math.inf if spec else 0.0)
            students |= bool(spec)
            if under_way and spec:
                at_work.append(speedup)
            elif drop_points <= self._budget.max_drop_points:
                kept.append((speedup, drop_points))
            elif spec:
                missed.append(speedup)
        fastest = max(kept)[0]
        if not students:
            self._queue_about(self._first_speedup(fastest), over=fastest)
        elif self._budget.objective == "fastest":
            least = min((speedup for speedup in missed if speedup > fastest), default=math.inf)
            hoped = [*kept, *((speedup, 0.0) for speedup in at_work if speedup < least)]
            between = self._queue_between(hoped, missed) or self._queue_between(kept, [*missed, *at_work])
            if not between and not self._queue_again():
                worth = math.exp(max(0.0, worth_of_best(self._study)))
                self._queue_about(fastest, over=min(worth, fastest * math.exp(-NEAR_RATIO)))

    def _first_speedup(self, of_int8: float) -> float:
        """Return how many times as fast as the original the first student is to be: no less than without a search."""
        return max(_FIRST_STRIDE * of_int8, self._speeds.of(self._usual) if self._usual else 0.0)

    def _queue_between(self, kept: Sequence[tuple[float, float]], missed: Sequence[float]) -> bool:
        """Queue a shape between the fastest of `kept` (speed-up, drop in points) and `missed`; say if there was one."""
        fastest, drop_points = max(kept)
        stride = _LONG_STRIDE if settled(self._budget, drop_points, self._deviation_points) else _STRIDE
        wanted = next_speedup(fastest, missed, stride)
        return wanted is not None and self._queue_about(wanted, over=fastest)

    def _queue_again(self) -> bool:
        """Queue the shape of most promise again that was stopped as others promised more; say if there was one."""
        trials = self._trials()
        again = {self._spec(one) for one in trials if one.user_attrs.get("again")}
        stopped = [one for one in trials if one.user_attrs.get("behind") and self._spec(one) not in again]
        if stopped:
            promised = max(stopped, key=lambda one: one.intermediate_values[max(one.intermediate_values)])
            self._study.enqueue_trial(promised.params, user_attrs={"again": True})
        return bool(stopped)

    def _queue_about(self, wanted: float, *, over: float) -> bool:
        """Queue a shape of more than `over` times the original's speed; say if there was one.

        It is the one of most promise about `wanted` times as fast, or as fast as `--max-latency` needs.
        """
        limit_ms = self._budget.max_latency_ms
        needed = self._speeds.original_ms / limit_ms if limit_ms else 1.0
        wanted = max(wanted, needed * (1 + NEAR_RATIO))
        tried = {self._spec(one) for one in self._trials()}
        shape = self._speeds.shape_about(wanted, math.log(wanted / over), tried)
        if shape is not None:
            self._study.enqueue_trial(self._space.indices(shape), skip_if_exists=True)
        return shape is not None

    def _trials(self) -> list[FrozenTrial]:
        """Return all trials but those that failed."""
        return self._study.get_trials(deepcopy=False, states=_BUT_FAILED)

    def _spec(self, trial: FrozenTrial) -> str | None:
        """Return which shape a trial is of; None before it has drawn one."""
        indices = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        space = self._space
        return space.spec(space.chosen(indices)) if len(indices) == len(space.choices) else None
