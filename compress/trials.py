"""The search for the student that a budget asks for: shapes that are fast enough, trained as far as they promise.

A trial of the study is a shape. Its time is measured before any training (`tlc.compress.shape_times`), and what cannot
win is dropped there. The others are trained in portions, each with a learning rate schedule of its own (warm restarts:
Loshchilov and Hutter 2017, arXiv 1608.03983), and stopped by asynchronous successive halving between two of them. They
are ranked by what can be expected of them: the logarithm of the speed-up times the probability that the drop stays
within the budget, since otherwise the original ships.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tlc.compress.cost import parameters
from tlc.compress.estimate import keeps_answers, seconds_per_sample
from tlc.compress.events import Emit, StageDone
from tlc.compress.measure import Candidate, latencies
from tlc.compress.next_shape import NextShape
from tlc.compress.pipeline import Pipeline, Version
from tlc.compress.plan import Network, Plan
from tlc.compress.quantize import QAT_EPOCHS
from tlc.compress.run import RunFolder, StageResult
from tlc.compress.search_rules import fitting_epochs, may_be_best, merit, out_of_reach, portions, settled
from tlc.compress.shape_speeds import ShapeSpeeds
from tlc.compress.shape_times import ORIGINAL, undisturbed_ms
from tlc.compress.space import Space
from tlc.compress.study import finalists, worth_of_best
from tlc.compress.work import AnyWork
from tlc.runtime.artifact import sha256_file
from tlc.runtime.errors import TlcError

_LEARNS_RATIO = 0.5
"""Standard deviation of what more training brings, over what it brought to others."""
_TRAINING_SHARE = 0.2
"""Of the time limit, for the longest training of one shape."""
_STUDENT_COST = 0.4
"""Of training the original: what a student that is worth training takes, without the teacher's answers."""
_MOST_EPOCHS = 60
_QAT_EPOCH_RATIO = 2.0
"""What an epoch with INT8's rounding takes, over one without."""
_INHERITED_DEVIATION = 0.1
"""Standard deviation of the share of what the original knows by heart that a student inherits; half of it on average.

The drops of twelve students of two networks on the held-out part and on new data differed by no more than the noise.
"""
_CHOICE_EVALUATIONS = 30
"""Networks tried to choose a shape's blocks: training makes up for a worse choice, and most are tried once a search."""
_BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a search has to end."""

    end: float
    """On `time.monotonic`."""

    @property
    def left_s(self) -> float:
        """Seconds until then, 0 after it."""
        return max(0.0, self.end - time.monotonic())


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
        self.speeds = ShapeSpeeds(
            self.work, self.network, self.runner, space, cache=run.cache, seed=plan.recipe.seed, emit=emit
        )
        self._held_out_accuracy = self._held_out(self.original.work, self.original.deployed)
        self.reference, self._reference_deviation_points = self._reference()
        usual = plan.student.value
        self._next = NextShape(
            study,
            space,
            self.speeds,
            self.budget,
            usual=usual if isinstance(usual, str) else None,
            deviation_points=self._deviation_points,
            shared=run.cache / "queue",
        )

    def try_shapes(self, count: int | None) -> None:
        """Try shapes until the time is over, `count` were tried, or the grid is finished."""

        def choose_next(*_ended: object) -> None:
            if self.settings.sampler == "tpe" and self.deadline.left_s:  # the others are there to be compared with
                self._next.queue()

        self._take_up_own()
        if not self.study.trials:
            self.study.enqueue_trial(self.space.indices(self.space.teacher))
        else:  # others are at it, or were
            choose_next()
        if self.deadline.left_s:
            self.study.optimize(self._tried, n_trials=count, timeout=self.deadline.left_s, callbacks=[choose_next])

    def version(self, name: str, found: StageResult, *, qat: bool) -> Version:
        """Export the network that `found` holds; `qat` says whether there is time to train it for INT8."""
        model = self.work.load(found.path, self.original.arch)
        version = self.pipeline.exported(name, found, model, made_from=self.original.name, arch=self.original.arch)
        return replace(version, qat=qat)

    def _tried(self, trial: optuna.Trial) -> float:
        indices = {
            choice.name: trial.suggest_int(choice.name, 0, len(choice.values) - 1) for choice in self.space.choices
        }
        spec = self.space.spec(self.space.chosen(indices))
        trial.set_user_attr("spec", spec)
        trial.set_user_attr("worker", self.run.path.name)
        others = [one.user_attrs for one in self._others(trial, *_BEGUN)]
        tried = any(one.get("spec") == spec and not one.get("out_of_time") for one in others)
        if tried and not trial.user_attrs.get("again"):
            raise self._stopped(trial, spec, "tried before")
        try:
            times = self.speeds.times_ms(spec)
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
        stage, epoch_s = self._trained(trial, spec, faster)
        qat_s = _QAT_EPOCH_RATIO * epoch_s * (self.plan.recipe.quantize.qat_epochs or QAT_EPOCHS)
        qat = qat_s <= self.deadline.left_s
        trial.set_user_attr("network", {"path": str(stage.path.absolute()), "key": stage.key, "qat": qat})
        if not qat:
            trial.set_user_attr("why", "no time was left to train it for INT8")
        version = self.version(f"student-{trial.number}", stage, qat=qat)
        return self._finished(trial, spec, version, faster, self.reference, self._deviation_points)

    def _trained(self, trial: optuna.Trial, spec: str, faster: float) -> tuple[StageResult, float]:
        """Train a shape for as long as it promises more than others and does not keep the budget well.

        Returns the network, and how long an epoch took, in seconds.
        """
        stage, done = self._started(spec), 0
        epochs = portions(self.study.user_attrs["epochs"], self.settings.factor, self.settings.portions)
        int8_bytes = stage.found["parameters"]  # a byte for each
        if (limit := self.budget.max_size_bytes) is not None and int8_bytes > limit:
            raise self._stopped(trial, spec, f"its {int8_bytes} weights in INT8 are over the limit of {limit} bytes")
        first_s, left_s = epochs[0] * self._least_epoch_s, self.deadline.left_s
        if first_s > left_s:
            trial.set_user_attr("out_of_time", True)
            self.study.stop()
            raise self._stopped(trial, spec, f"its first portion takes some {first_s:.0f} s, {left_s:.0f} are left")
        gain = self._gain(faster, int8_bytes)
        drops: list[float] = []
        epoch_s = 0.0
        for portion in epochs:
            if fitting := fitting_epochs(portion, done, epoch_s, self.deadline.left_s):
                stage = self._portion(stage, fitting, done)
                epoch_s = stage.seconds / fitting
                trial.set_user_attr("epoch_s", epoch_s)
                done += fitting
                drops.append(100 * (self.reference - stage.found["accuracy"]))
                trial.set_user_attr("drops_points", drops)
            out_of_time = fitting < portion
            expected = self._at_end(drops, len(drops) if out_of_time else len(epochs))
            if out_of_time:
                trial.set_user_attr("out_of_time", True)  # with more of it, it may be tried again
            else:
                trial.report(merit(self.budget, gain, *expected), done)
            more_to_come = done < sum(epochs)
            trained = f"{-drops[-1]:+.2f} points after {done} epoch{'s' if done > 1 else ''}"
            if more_to_come and finalists(self.study, 1) and out_of_reach(self.budget, *expected):
                raise self._stopped(trial, spec, f"{trained}, too far from the budget")
            if out_of_time:
                break
            behind = (
                more_to_come
                and trial.should_prune()
                and not may_be_best(self.budget, gain, *expected, worth_of_best(self.study))
            )
            if behind and not trial.user_attrs.get("again"):
                trial.set_user_attr("behind", True)
                raise self._stopped(trial, spec, f"{trained}, others promise more")
            if settled(self.budget, drops[-1], self._deviation_points):
                break
        return stage, epoch_s

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
        about half of that. What the original would score there without is its accuracy on the evaluation part. No
        other file is judged on the evaluation part before the search has ended.
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
        return (new + known) / 2, 100 * abs(known - new) * _INHERITED_DEVIATION

    def _hopeless(self, p50_ms: float, faster: float) -> str:
        """Return why a shape is not worth training, if so."""
        limit_ms = self.budget.max_latency_ms
        if limit_ms is not None and p50_ms > limit_ms:
            return f"{p50_ms:.3g} ms are over the limit of {limit_ms:g} ms"
        if self.budget.objective == "fastest" and math.log(faster) <= worth_of_best(self.study):
            return f"{faster:.2f}x as fast as the original is not enough: another shape already promises more"
        return ""

    @property
    def _least_epoch_s(self) -> float:
        """How long an epoch of the shapes that were trained took at least, in seconds; 0 where there are none."""
        return min(
            (one.user_attrs["epoch_s"] for one in self._others(None, *_BEGUN) if "epoch_s" in one.user_attrs),
            default=0.0,
        )

    def _at_end(self, drops_points: Sequence[float], count: int) -> tuple[float, float]:
        """Return the drop to expect after all portions, and its standard deviation, in points.

        From what the rest of the training brought to shapes that had all of it; before any had, each portion is taken
        to halve the drop, where there is one.
        """
        done, now = len(drops_points), drops_points[-1]
        finished = [one.user_attrs for one in self._others(None, TrialState.COMPLETE)]
        known = [found.get("drops_points", []) for found in finished if not found.get("out_of_time")]
        gains = [drops[done - 1] - drops[-1] for drops in known if len(drops) == count]
        gained = median(gains) if gains else max(0.0, now) * (1 - 0.5 ** (count - done))
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
