"""The search for the student that a budget asks for: shapes that are fast enough, trained as far as they promise.

A trial of the study is a shape. Its time is measured before any training (`tlc.compress.shape_times`), and what cannot
win is dropped there. The others are trained in portions, each with a learning rate schedule of its own (warm restarts:
Loshchilov and Hutter 2017, arXiv 1608.03983), and stopped by asynchronous successive halving between two of them. They
are ranked by what can be expected of them: the logarithm of the speed-up times the probability that the drop stays
within the budget, since otherwise the original ships.
"""

import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from tlc.compress.cost import macs, parameters
from tlc.compress.estimate import keeps_answers, seconds_per_sample
from tlc.compress.events import Emit, StageDone
from tlc.compress.latency_table import LatencyTable, latency_table
from tlc.compress.measure import Candidate, latencies
from tlc.compress.model import Model
from tlc.compress.pipeline import Pipeline, Version
from tlc.compress.plan import Network, Plan
from tlc.compress.run import RunFolder, StageResult
from tlc.compress.shape_times import ORIGINAL, measure_shapes, undisturbed_ms
from tlc.compress.shapes import shapes_of
from tlc.compress.space import Space, Value
from tlc.compress.work import AnyWork
from tlc.runtime.artifact import sha256_file
from tlc.runtime.budget import Budget
from tlc.runtime.errors import TlcError

_FIRST_STRIDE = 2.5
"""How much faster than the original in INT8 the first student is."""
_LONG_STRIDE = 2.0
"""How much faster than the fastest that keeps the budget the next shape is, where little of the budget is used."""
_STRIDE = 1.4
"""The same where more of it is."""
_CLOSE = 1.1
"""Between speeds closer than this nothing more is looked for, but by the sampler."""
_FEW_SHAPES = 16
_MOST_PREDICTED = 4000
_MOST_BUILT = 12
_NEAR_RATIO = 0.08
"""How far off the speed that is looked for a shape may be, as a logarithm."""
_WHOLE_RATIO = 0.2
"""The same for shapes that keep whole blocks: some networks have few of these."""
_LEARNS_RATIO = 0.5
"""Standard deviation of what more training brings, over what it brought to others."""
_SETTLED_RATIO = 0.2
"""Of the drop that the budget allows: a shape that has lost no more is trained no further."""
_LEAST_PROBABILITY = 0.1
"""Of keeping the budget after all of its training: a shape with less is trained no further."""
_TRAINING_SHARE = 0.2
"""Of the time limit, for the longest training of one shape."""
_STUDENT_COST = 0.4
"""Of training the original: what a student that is worth training takes, without the teacher's answers."""
_MOST_EPOCHS = 60
_CHOICE_EVALUATIONS = 30
"""Networks tried to choose a shape's blocks: training makes up for a worse choice, and most are tried once a search."""
_RUNNING = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
_QUEUED = (TrialState.WAITING, *_RUNNING)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a search has to end."""

    end: float
    """On `time.monotonic`."""

    @property
    def left_s(self) -> float:
        """Seconds until then, 0 after it."""
        return max(0.0, self.end - time.monotonic())


def portions(epochs: int, factor: int, count: int) -> tuple[int, ...]:
    """Return the epochs of each of `count` portions: after one a shape has had `factor` times as many as before it.

    >>> portions(18, 3, 3)
    (2, 4, 12)
    """
    ends = [0, *(max(1, round(epochs / factor**left)) for left in reversed(range(count)))]
    return tuple(end - start for start, end in itertools.pairwise(ends) if end > start)


def most_epochs(plan: Plan, limit_s: float) -> int:
    """Return for how many epochs one shape is trained at most: as asked for, or what fits into the time limit.

    Where that is fewer than students take without a search, it is up to twice the share of the time.
    """
    usual = plan.recipe.train.resolved(plan.kind).epochs
    if plan.recipe.train.epochs is not None:
        return usual
    step_s, forward_s = seconds_per_sample(plan, plan.model.module)
    sample_s = _STUDENT_COST * step_s + (0.0 if keeps_answers(plan) else forward_s)
    fitting = _TRAINING_SHARE * limit_s / (sample_s * len(plan.splits.fit))
    settings = plan.recipe.search
    fewest: int = settings.factor ** (settings.portions - 1)
    return min(_MOST_EPOCHS, max(fewest, round(fitting), min(usual, round(2 * fitting))))


def merit(budget: Budget, gain: float, drop_points: float, deviation_points: float) -> float:
    """Return what to expect of a network that loses `drop_points` +- `deviation_points`; more is better.

    `gain` is the logarithm of how many times it is faster than the original, or smaller, whatever the budget asks for.
    Where that is accuracy, the limits on time and size have been checked before.
    """
    if budget.objective == "most-accurate":
        return -drop_points
    return gain * NormalDist(drop_points, max(deviation_points, 1e-6)).cdf(budget.max_drop_points)


def settled(budget: Budget, drop_points: float) -> bool:
    """Return whether a network keeps the budget so well that its training may end: rounding will cost it some more.

    >>> settled(Budget(max_drop_points=1.0), 0.1), settled(Budget(max_drop_points=1.0), 0.8)
    (True, False)
    """
    return budget.objective != "most-accurate" and drop_points <= _SETTLED_RATIO * budget.max_drop_points


def out_of_reach(budget: Budget, drop_points: float, deviation_points: float) -> bool:
    """Return whether a network that is expected to lose `drop_points` +- `deviation_points` hardly keeps the budget.

    >>> out_of_reach(Budget(max_drop_points=1.0), 2.0, 1.0), out_of_reach(Budget(max_drop_points=1.0), 2.0, 0.5)
    (False, True)
    """
    return (
        budget.objective != "most-accurate" and merit(budget, 1.0, drop_points, deviation_points) < _LEAST_PROBABILITY
    )


def next_speedup(fastest: float, missed: Sequence[float], stride: float) -> float | None:
    """Return how many times as fast as the original the next shape is to be; None where nothing is left between.

    `fastest` is the speed-up of the fastest that stays within the budget, at least the original's; `missed` holds those
    of what does not. Where nothing faster is known to miss it, `stride` times the fastest.

    >>> next_speedup(2.0, [1.5], 2.5)
    5.0
    >>> next_speedup(2.0, [8.0, 18.0], 2.5)
    4.0
    >>> next_speedup(2.0, [2.1], 2.5) is None
    True
    """
    above = min((speedup for speedup in missed if speedup > fastest), default=fastest * stride**2)
    return math.sqrt(fastest * above) if above / fastest > _CLOSE else None


def nearest(shapes: Sequence[tuple[float, bool]], wanted: float, reach_ratio: float) -> list[int]:
    """Return which of `shapes` (speed-up, whether its blocks are whole) are about as fast as `wanted`.

    None further off than `reach_ratio`, in logarithms. Where there are any with whole blocks, only those: some networks
    have few, so the nearest of them counts even from further off. Where there are none about as fast, the nearest.

    >>> nearest([(3.0, True), (4.0, False), (4.6, True), (8.0, True)], 4.0, 0.5)
    [2]
    >>> nearest([(3.0, True), (4.0, False), (4.6, True), (8.0, True)], 4.0, 0.1)
    [1]
    >>> nearest([(3.0, True), (5.2, False)], 4.0, 0.3), nearest([(3.0, True), (5.2, False)], 4.0, 0.2)
    ([1], [])
    """
    off = [abs(math.log(speedup / wanted)) for speedup, _whole in shapes]
    within = sorted((ratio, index) for index, ratio in enumerate(off) if ratio < reach_ratio)
    whole = [(ratio, index) for ratio, index in within if shapes[index][1] and ratio < _WHOLE_RATIO]
    found = whole or within
    limit_ratio = max(_NEAR_RATIO, found[0][0]) if found else 0.0
    return [index for ratio, index in found if ratio <= limit_ratio]


def fitting_epochs(portion: int, done: int, epoch_s: float, left_s: float) -> int:
    """Return how many epochs of a portion there is time for, of a network that has been trained for `done` epochs.

    0 if fewer than those: a restart that short loses more than it brings.

    >>> fitting_epochs(12, 6, 60.0, 480.0), fitting_epochs(12, 6, 60.0, 300.0)
    (8, 0)
    """
    if portion * epoch_s <= left_s:
        return portion
    possible = int(left_s / epoch_s)
    return possible if possible >= done else 0


def comparable(others: Sequence[FrozenTrial], epochs: int, factor: int) -> bool:
    """Return whether as many others were trained for `epochs` that one in `factor` can be told from the rest."""
    return sum(epochs in one.intermediate_values for one in others) >= factor


class Trials:
    """One worker of a study: its plan, its folder, and what it knows of the original."""

    def __init__(
        self, plan: Plan, run: RunFolder, study: optuna.Study, space: Space, deadline: Deadline, emit: Emit
    ) -> None:
        self.plan, self.run, self.study, self.space, self.deadline, self.emit = plan, run, study, space, deadline, emit
        self.budget, self.settings = plan.recipe.budget, plan.recipe.search
        self.pipeline = Pipeline(plan, run, emit)
        self.work, self.runner = self.pipeline.work, self.pipeline.runner
        self.original = self.pipeline.original()
        self.network: Network = self.work.load(self.original.stage.path, self.original.arch)
        self._held_out_accuracy = self._held_out(self.original.work, self.original.deployed)
        self.reference, self._reference_deviation_points = self._reference()

    def try_shapes(self, count: int | None) -> None:
        """Try shapes until the time is over, `count` were tried, or the grid is finished."""
        self._take_up_own()
        if not self.study.trials:
            self.study.enqueue_trial(self.space.indices(self.space.teacher))
        else:  # others are at it, or were
            self._queue_next()
        if self.deadline.left_s:
            self.study.optimize(self._tried, n_trials=count, timeout=self.deadline.left_s, callbacks=[self._queue_next])

    def version(self, name: str, found: StageResult) -> Version:
        """Export the network that `found` holds."""
        model = self.work.load(found.path, self.original.arch)
        return self.pipeline.exported(name, found, model, made_from=self.original.name, arch=self.original.arch)

    def _tried(self, trial: optuna.Trial) -> float:
        indices = {
            choice.name: trial.suggest_int(choice.name, 0, len(choice.values) - 1) for choice in self.space.choices
        }
        spec = self.space.spec(self.space.chosen(indices))
        trial.set_user_attr("spec", spec)
        trial.set_user_attr("worker", self.run.path.name)
        others = [one.user_attrs for one in self._others(trial, *_RUNNING)]
        if any(one.get("spec") == spec and not one.get("out_of_time") for one in others):
            raise self._stopped(trial, spec, "tried before")
        try:
            times = self._times(spec)
        except TlcError as error:  # widths that do not go together, an operator that does not run
            if not spec:
                raise
            raise self._stopped(trial, spec, error.message) from error
        faster = times[ORIGINAL] / times[spec]
        trial.set_user_attr("speedup", faster)
        if not spec:
            return self._finished(trial, spec, self.original, faster, self._held_out_accuracy, self._noise_points)
        if reason := self._hopeless(times[spec], faster):
            raise self._stopped(trial, spec, reason)
        stage = self._trained(trial, spec, faster)
        trial.set_user_attr("network", {"path": str(stage.path.absolute()), "key": stage.key})
        version = self.version(f"student-{trial.number}", stage)
        return self._finished(trial, spec, version, faster, self.reference, self._deviation_points)

    def _trained(self, trial: optuna.Trial, spec: str, faster: float) -> StageResult:
        """Train a shape for as long as it promises more than others and does not keep the budget well."""
        stage, done = self._started(spec), 0
        epochs = portions(self.study.user_attrs["epochs"], self.settings.factor, self.settings.portions)
        int8_bytes = stage.found["parameters"]  # a byte for each
        if (limit := self.budget.max_size_bytes) is not None and int8_bytes > limit:
            raise self._stopped(trial, spec, f"its {int8_bytes} weights in INT8 are over the limit of {limit} bytes")
        gain = self._gain(faster, int8_bytes)
        drops: list[float] = []
        epoch_s = 0.0
        for portion in epochs:
            if fitting := fitting_epochs(portion, done, epoch_s, self.deadline.left_s):
                stage = self._portion(stage, fitting, done)
                epoch_s = stage.seconds / fitting
                done += fitting
                drops.append(100 * (self.reference - stage.found["accuracy"]))
                trial.set_user_attr("drops_points", drops)
            if fitting < portion:
                trial.set_user_attr("out_of_time", True)  # with more of it, it may be tried again
                if merit(self.budget, gain, *self._at_end(drops, len(drops))) <= self._best:
                    raise self._stopped(trial, spec, f"{-drops[-1]:+.2f} points after {done} epochs, and no more time")
                break
            expected = self._at_end(drops, len(epochs))
            trial.report(merit(self.budget, gain, *expected), done)
            if done < sum(epochs) and finalists(self.study, 1) and out_of_reach(self.budget, *expected):
                raise self._stopped(
                    trial, spec, f"{-drops[-1]:+.2f} points after {done} epochs, too far from the budget"
                )
            others = self._others(trial, *_RUNNING)
            if done < sum(epochs) and comparable(others, done, self.settings.factor) and trial.should_prune():
                raise self._stopped(trial, spec, f"{-drops[-1]:+.2f} points after {done} epochs, others promise more")
            if settled(self.budget, drops[-1]):
                break
        return stage

    def _finished(
        self,
        trial: optuna.Trial,
        spec: str,
        version: Version,
        fastest: float,
        reference: float,
        deviation_points: float,
    ) -> float:
        """Return what the best file of a network is worth, judged on the held-out part.

        Its fastest file is `fastest` times as fast as the original, as the untrained shape was: what a machine is at
        changes from one session to the next, and shapes are compared with each other.
        """
        files = self.pipeline.quantized(version, "int8", trained=bool(spec))
        if not files:
            files = [Candidate("float", version.deployed, version.work, "fp32", version.onnx, None)]
        feeds = version.work.timing_feeds()
        timed = {one.name: (one.path, feeds) for one in files}
        launches = latencies(timed, self.runner, replace(self.pipeline.timing, launches=1), self.emit)
        times_ms = {name: undisturbed_ms(found, len(feeds)) for name, found in launches.items()}
        worth = []
        for one in files:
            drop_points = 100 * (reference - self._held_out(version.work, one.path))
            faster = fastest * min(times_ms.values()) / times_ms[one.name]
            gain = self._gain(faster, one.path.stat().st_size)
            worth.append((merit(self.budget, gain, drop_points, deviation_points), faster, drop_points))
        value, faster, drop_points = max(worth)
        trial.set_user_attr("speedup", faster)
        trial.set_user_attr("drop_points", drop_points)
        self._say(spec, "kept", f"{faster:.2f}x as fast, {-drop_points:+.2f} points on the held-out part.")
        return value

    def _started(self, spec: str) -> StageResult:
        def make(folder: Path) -> dict[str, Any]:
            student, found = self.work.start_student(self.network, spec, self.emit, _CHOICE_EVALUATIONS)
            self.work.save(student, folder)
            return {**found, "parameters": parameters(student.module)}

        inputs = {
            "teacher": self.original.stage.key,
            "student": spec,
            "multiple": self.pipeline.target.channel_multiple,
            **self.pipeline.common,
        }
        return self.run.stage("start", inputs, make)

    def _portion(self, before: StageResult, epochs: int, done: int) -> StageResult:
        """Train a network for so many epochs more."""
        training = self.plan.recipe.train.model_copy(update={"epochs": epochs})

        def make(folder: Path) -> dict[str, Any]:
            student, fitted = self.work.train_student(
                self.network,
                self.work.load(before.path, self.original.arch),
                training,
                teacher_key=self.original.stage.key,
                folder=folder,
                emit=self.emit,
            )
            self.work.save(student, folder)
            work, judged = self.work.for_network(student), folder / "judged.onnx"
            work.export(student, judged)
            accuracy = self._held_out(work, judged)  # the score of training may be another
            judged.unlink()
            return {"accuracy": accuracy, "scores": list(fitted.scores)}

        inputs = {
            "network": before.key,
            "done": done,
            "loss": self.plan.recipe.distill.resolved(self.plan.kind).model_dump(mode="json"),
            "train": training.resolved(self.plan.kind).model_dump(mode="json"),
            **self.pipeline.common,
        }
        return self.run.stage("train", inputs, make, resumable=True)

    def _reference(self) -> tuple[float, float]:
        """Return the accuracy that students are held against on the held-out part, and its deviation in points.

        The original was fine-tuned on the held-out part and knows it by heart; a student that was made of it inherits
        some of that. What the original would score there without is its accuracy on the evaluation part; how much a
        student inherits is anybody's guess, so halfway between is taken, with the deviation of a uniform distribution.
        No other file is judged on the evaluation part before the search has ended.
        """

        def make(_folder: Path) -> dict[str, Any]:
            evaluation = self.work.data.evaluation
            return {
                "accuracy": self.work.accuracy(
                    self.work.judged(self.original.deployed, self.runner, evaluation), evaluation
                )
            }

        inputs = {"onnx": sha256_file(self.original.deployed), "runtime": self.runner.runtime, **self.pipeline.common}
        new = float(self.run.stage("reference", inputs, make).found["accuracy"])
        known = self._held_out_accuracy
        return (new + known) / 2, 100 * abs(known - new) / math.sqrt(12)

    def _spec(self, trial: FrozenTrial) -> str | None:
        """Return which shape a trial is of; None before it has drawn one."""
        indices = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        return self.space.spec(self.space.chosen(indices)) if len(indices) == len(self.space.choices) else None

    def _times(self, spec: str) -> dict[str, float]:
        """Return the p50, in ms, of the original and of a shape; measured once for all workers that share a folder."""
        return measure_shapes(self.work, self.network, [spec], self.runner, cache=self.run.cache, emit=self.emit)

    def _speedup(self, spec: str) -> float:
        times = self._times(spec)
        return times[ORIGINAL] / times[spec]

    @cached_property
    def _table(self) -> LatencyTable:
        return latency_table(
            self.work, self.network, self.runner, cache=self.run.cache, widths=self.space.widths, emit=self.emit
        )

    @cached_property
    def _predicted(self) -> list[tuple[float, dict[str, Value]]]:
        """Shapes of one width with the speed-up that the latency table predicts; nothing where there are few to try."""
        if self.space.size <= _FEW_SHAPES:
            return []
        found = []
        for shape in self.space.even(_MOST_PREDICTED, self.plan.recipe.seed):
            if shape == self.space.teacher:
                continue
            try:
                found.append((self._table.original_ms / self._table.predict(self.space.spec(shape)).p50_ms, shape))
            except TlcError:
                continue  # of no shape that the table was fitted to; the sampler may still propose it
        return found

    def _queue_shape_of_speed(self, wanted: float, reach_ratio: float) -> None:
        """Queue the shape of most arithmetic about `wanted` times as fast as the original, `reach_ratio` off at most.

        Shapes with blocks of the original as they are go first: they know most before any training. Of two shapes that
        take the same time the one that computes more is likely to learn more.
        """
        tried = {self._spec(one) for one in self._others(None, *_QUEUED)}
        untried = [(faster, shape) for faster, shape in self._predicted if self.space.spec(shape) not in tried]
        speeds = [(faster, self.space.keeps_blocks(shape)) for faster, shape in untried]
        near = [untried[index][1] for index in nearest(speeds, wanted, reach_ratio)]
        if near := random.Random(self.plan.recipe.seed).sample(near, min(_MOST_BUILT, len(near))):
            chosen = max(near, key=lambda shape: self._arithmetic(self.space.spec(shape)))
            self.study.enqueue_trial(self.space.indices(chosen), skip_if_exists=True)

    def _queue_next(self, *_ended: object) -> None:
        """Queue a shape between the fastest that keeps the budget and the slowest of the faster ones that miss it.

        What others are at counts as kept before any student has ended, and then as missed, so that workers spread out.
        Where another thing is wanted than speed, the first student alone is chosen like this; samplers other than tpe
        are left alone, to be compared with.
        """
        if self.settings.sampler != "tpe" or not self._predicted:
            return
        kept, missed, pending, ended = [(1.0, 0.0)], [], [], False
        for one in self._others(None, *_QUEUED):
            spec, known = self._spec(one), one.user_attrs
            at_work = one.state in (TrialState.WAITING, TrialState.RUNNING)
            if spec is None or not (at_work or "drop_points" in known or "drops_points" in known):
                continue  # it was never trained
            try:
                speedup = known.get("speedup") or self._speedup(spec)
            except TlcError:
                continue  # whoever is at it will say so
            drop_points = known.get("drop_points", math.inf if spec else 0.0)
            ended |= bool(spec) and not at_work
            if at_work and spec:
                pending.append(speedup)
            elif drop_points <= self.budget.max_drop_points:
                kept.append((speedup, drop_points))
            elif spec:
                missed.append(speedup)
        students = ended or bool(pending)
        if ended:
            missed += pending
        else:
            kept += [(speedup, self.budget.max_drop_points) for speedup in pending]
        if students and self.budget.objective != "fastest":
            return
        fastest, drop_points = max(kept)
        stride = _LONG_STRIDE if settled(self.budget, drop_points) else _STRIDE
        if wanted := next_speedup(fastest, missed, stride if students else _FIRST_STRIDE):
            needed = self._table.original_ms / self.budget.max_latency_ms if self.budget.max_latency_ms else 1.0
            wanted = max(wanted, needed * (1 + _NEAR_RATIO))
            self._queue_shape_of_speed(wanted, math.log(wanted / fastest))

    def _arithmetic(self, spec: str) -> int:
        """Return the multiply-accumulates of a shape; of a text model the parameters, which they go with."""
        model = shapes_of(self.work, self.network).shape(spec).build()
        if isinstance(model, Model):
            return macs(model.module, torch.zeros(1, *model.preprocess.input_shape))
        return parameters(model.module)

    def _hopeless(self, p50_ms: float, faster: float) -> str:
        """Return why a shape is not worth training, if so."""
        limit_ms = self.budget.max_latency_ms
        if limit_ms is not None and p50_ms > limit_ms:
            return f"{p50_ms:.3g} ms are over the limit of {limit_ms:g} ms"
        if self.budget.objective == "fastest" and math.log(faster) <= self._best:
            return f"{faster:.2f}x as fast as the original is not enough: another shape already promises more"
        return ""

    @property
    def _best(self) -> float:
        """What the best finished network is worth."""
        finished = [one.value for one in self._others(None, TrialState.COMPLETE) if one.value is not None]
        return max(finished, default=-math.inf)

    def _at_end(self, drops_points: Sequence[float], count: int) -> tuple[float, float]:
        """Return the drop to expect after all portions, and its standard deviation, in points.

        From what the rest of the training brought to shapes that had all of it; before any had, each portion is taken
        to halve the drop.
        """
        done, now = len(drops_points), drops_points[-1]
        finished = [one.user_attrs for one in self._others(None, TrialState.COMPLETE)]
        known = [found.get("drops_points", []) for found in finished if not found.get("out_of_time")]
        gains = [drops[done - 1] - drops[-1] for drops in known if len(drops) == count]
        gained = median(gains) if gains else now * (1 - 0.5 ** (count - done))
        return now - gained, math.hypot(self._deviation_points, _LEARNS_RATIO * gained)

    @property
    def _deviation_points(self) -> float:
        """Standard deviation of a student's drop, as it is told from the held-out part."""
        return math.hypot(self._noise_points, self._reference_deviation_points)

    @property
    def _noise_points(self) -> float:
        """Standard deviation of an accuracy on the held-out part, in points."""
        count = len(self.work.labels(self.work.data.holdout))
        return 100 * math.sqrt(max(self.reference * (1 - self.reference), 1 / count) / count)

    def _gain(self, faster: float, size_bytes: float) -> float:
        if self.budget.objective == "smallest":
            return math.log(self.original.deployed.stat().st_size / size_bytes)
        return math.log(faster)

    def _held_out(self, work: AnyWork, path: Path) -> float:
        holdout = work.data.holdout
        return work.accuracy(work.judged(path, self.runner, holdout), holdout)

    def _others(self, trial: optuna.Trial | None, *states: TrialState) -> list[FrozenTrial]:
        found = self.study.get_trials(deepcopy=False, states=states)
        return [one for one in found if trial is None or one.number != trial.number]

    def _take_up_own(self) -> None:
        """Queue again what this worker was at when it was killed: nobody else has its folder."""
        for one in self._others(None, TrialState.RUNNING):
            if one.user_attrs.get("worker") == self.run.path.name:
                self.study.tell(one.number, state=TrialState.FAIL)
                self.study.enqueue_trial(one.params)

    def _stopped(self, trial: optuna.Trial, spec: str, reason: str) -> optuna.TrialPruned:
        trial.set_user_attr("why", reason)
        self._say(spec, "dropped", f"{reason}.")
        return optuna.TrialPruned(reason)

    def _say(self, spec: str, status: str, reason: str) -> None:
        self.emit(StageDone(spec or "original", status, reason, 0.0))


def finalists(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Return the `count` finished students that are worth most, best first."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    students = [one for one in finished if "network" in one.user_attrs]
    return sorted(students, key=lambda one: -float(one.value or 0))[:count]
