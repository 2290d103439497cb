"""The versions of a network that `tlc.compress.sensitivity` tries: made, judged, and timed by their shapes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from tlc.compress.events import Emit, Progress
from tlc.compress.image_surgery import ImageSurgery
from tlc.compress.int8_alone import Int8Alone, int8_alone, require_int8
from tlc.compress.losses import softened_kl
from tlc.compress.measure import Timing, latencies, p50_ms
from tlc.compress.model import Model
from tlc.compress.runner import Runner
from tlc.compress.sensitivity_report import SHARES, Treatment
from tlc.compress.surgery import Part, Surgery
from tlc.compress.text_model import TextModel
from tlc.compress.text_surgery import TextSurgery
from tlc.compress.work import Answers, AnyWork, some
from tlc.runtime.bench_report import Launch
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Interval
from tlc.runtime.session import OrtSession
from tlc.runtime.statistics import ratio_interval

_TEMPERATURES = {"images": 4.0, "texts": 2.0}
"""As where blocks are chosen for students."""
_TIMED_TOGETHER = 7
"""Files beside the untreated one in one session: each is a process, and all are loaded at once."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One version of the network, and the rows that it is an effect on."""

    treatment: Treatment
    subject: tuple[str, ...]
    """Groups of channels, layers in INT8, or the block that goes."""
    rows: list[Part] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tried:
    """What a version answered, and what its time depends on."""

    share: float
    change_points: Interval
    lost: int
    won: int
    divergence: float
    cost: object


def surgery_for(work: AnyWork, network: Model | TextModel) -> Surgery:
    """Return what can be done to the network."""
    return TextSurgery(work, network) if isinstance(network, TextModel) else ImageSurgery(work, network)  # type: ignore[arg-type]


class Study:
    """The untreated network, what was tried on it, and the files to time."""

    def __init__(
        self,
        work: AnyWork,
        network: Model | TextModel,
        runner: Runner,
        folder: Path,
        samples: int,
        timing: Timing | None,
        emit: Emit,
    ) -> None:
        self.work, self.runner, self.folder, self.timing, self.emit = work, runner, folder, timing, emit
        self.surgery = surgery_for(work, network)
        self.judged = self.surgery.judged(samples)
        # The judging part begins with what was held out; see `Data.judge`.
        self.held_out = int((some(len(work.data.judge), samples) < len(work.data.holdout)).sum())
        self.temperature = _TEMPERATURES[work.noun]
        self.before = self.surgery.answers(network, self.judged)
        self.before_cuts = self.surgery.answers(self.surgery.untreated(), self.judged)
        self.notes: list[str] = []
        self.files: dict[object, tuple[Path, str]] = {}
        """By what time depends on: the file, and the row that it was made for."""
        self.int8: Int8Alone | None = None

    @cached_property
    def float_onnx(self) -> Path:
        """The untreated network in ONNX's own operators."""
        path = self.folder / "float.onnx"
        self.work.export(self.surgery.network, path)
        return path

    @cached_property
    def deployed(self) -> Path:
        """The untreated network in the operators of the target's runtime."""
        path, note = self.work.fused(self.float_onnx, self.folder)
        self.notes += [note] if note else []
        return path

    @cached_property
    def costs(self) -> dict[str, tuple[object, ...]]:
        """What the time of each layer of the untreated network depends on."""
        return dict(self.surgery.costs(self.surgery.network))

    def open_int8(self) -> None:
        """Prepare INT8 of single layers, or note why there is none."""
        target = self.work.target
        try:
            require_int8(target)
            self.int8 = int8_alone(self.surgery, self.float_onnx, self.deployed, target, self.folder)
        except TlcError as refusal:
            self.notes.append(f"INT8 was left out: {refusal.message}.")
            return
        self.before_onnx = self._by_onnx(self.deployed)

    def try_all(self, trials: Sequence[Trial]) -> list[tuple[Trial, Tried]]:
        """Return what each version of the network answered."""
        found = []
        for done, trial in enumerate(trials, 1):
            tried = self._int8(trial) if trial.treatment == "int8" else self._cut(trial)
            found.append((trial, tried))
            self.emit(Progress("treatments", done, len(trials), {"points": tried.change_points.estimate}))
        return found

    def _cut(self, trial: Trial) -> Tried:
        if trial.treatment == "removed":
            network, share = self.surgery.without(trial.rows[0]), 1.0
        else:
            network, share = self.surgery.narrowed(trial.subject, SHARES[trial.treatment])
        cost = frozenset(Counter(cost for _name, cost in self.surgery.costs(network)).items())
        if cost not in self.files and self.timing is not None:
            plain = self.folder / f"{len(self.files)}.onnx"
            self.work.export(network, plain)
            self.files[cost] = (self.work.fused(plain, self.folder)[0], trial.rows[0].name)
        return self._judged(self.before_cuts, self.surgery.answers(network, self.judged), share, cost)

    def _int8(self, trial: Trial) -> Tried:
        assert self.int8 is not None
        cost = ("int8", tuple(self.costs[name] for name in trial.subject), self.int8.place(trial.subject))
        if cost not in self.files and self.timing is not None:
            timed = self.folder / f"{len(self.files)}-int8.onnx"
            self.int8.write_timed(trial.subject, timed)
            self.files[cost] = (timed, trial.rows[0].name)
        path = self.folder / "alone.onnx"
        self.int8.write(trial.subject, path)
        return self._judged(self.before_onnx, self._by_onnx(path), 1.0, cost)

    def _by_onnx(self, path: Path) -> Answers:
        """Return a file's answers in ONNX Runtime: what rounding does to them differs little between runtimes."""
        with OrtSession(path, threads=torch.get_num_threads()) as session:
            return self.work.answers(session, self.judged)

    def _judged(self, before: Answers, after: Answers, share: float, cost: object) -> Tried:
        change = self.work.change(before, after, self.judged)
        rows = [torch.from_numpy(answers.reshape(-1, answers.shape[-1])).double() for answers in (after, before)]
        divergence = max(0.0, float(softened_kl(rows[0], rows[1], self.temperature)))
        return Tried(share, change.change_points, change.regressed, change.improved, divergence, cost)

    def timed(self) -> tuple[dict[object, Interval], float | None]:
        """Return each file's p50 over that of the untreated network, by what time depends on; and p50 of that in ms."""
        feeds, timing = self.work.timing_feeds(), self.timing
        ratios: dict[object, Interval] = {}
        original: list[Launch] = []
        if timing is None or not self.files:
            return ratios, None
        for start in range(0, len(self.files), _TIMED_TOGETHER):
            costs = list(self.files)[start : start + _TIMED_TOGETHER]
            files = {"untreated": (self.deployed, feeds)}
            files |= {str(place): (self.files[cost][0], feeds) for place, cost in enumerate(costs)}
            launches = latencies(files, self.runner, timing, _within(self.emit, start, len(self.files)))
            original += launches["untreated"]
            for place, cost in enumerate(costs):
                ratios[cost] = ratio_interval(launches["untreated"], launches[str(place)], seed=timing.seed)
        return ratios, p50_ms(original)


def _within(emit: Emit, done: int, total: int) -> Emit:
    """Return `emit` that says how many files are done instead of rounds."""
    return lambda event: emit(Progress("files timed", done, total)) if isinstance(event, Progress) else emit(event)
