"""The stages for text models."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlc.calibration.calibration_set import balanced_indices
from tlc.calibration.metrics import accuracy_change, agreement
from tlc.calibration.text_metrics import (
    answers_of,
    comparable,
    entity_f1,
    question_scores,
    right,
    samples_exact,
)
from tlc.calibration.texts import TextSet, TextSplits
from tlc.calibration.tokens import TextInput, Tokens, encode, gather
from tlc.compress.budget import fastest
from tlc.compress.events import Emit, Progress, silent
from tlc.compress.losses import softened_kl
from tlc.compress.measure import Timing, latencies, p50_ms
from tlc.compress.quantize import FEWEST_SAMPLES, QAT_EPOCHS, check_calibration, quantize_for_timing, quantize_onnx
from tlc.compress.recipe import Recipe
from tlc.compress.runner import Runner
from tlc.compress.text_distill import distill_text
from tlc.compress.text_layers import transformer_layers
from tlc.compress.text_model import TextModel, load_saved_text, save_text_model
from tlc.compress.text_qat import qat_text
from tlc.compress.text_student import TextStudentRecord, kept_layers, text_student_from_teacher
from tlc.compress.train import Fitted, TrainSettings, bf16_is_fast
from tlc.compress.work import (
    CHOICE_EVALUATIONS,
    ENOUGH_TO_JUDGE,
    Answers,
    Data,
    Feeds,
    Outcome,
    Quantized,
    Work,
    counted,
    some,
)
from tlc.export.dynamic_int8 import dynamic_int8
from tlc.export.fp16 import RANGE_SAMPLES, Fp16Record, fp16_from_float
from tlc.export.metadata import write_metadata
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.export.transformer import fuse_for_onnxruntime
from tlc.runtime.artifact import write_text
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Accuracy, AccuracyChange, Agreement, TextLengths
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.target import Target
from tlc.runtime.tensor import Samples

_CHOICE_SAMPLES = 256
_CHOICE_BATCH = 32
_CHECK_SAMPLES = 32
_BUCKET = 32
_TIMED_TEXTS = 8
_RECOVERY_RATE = 5e-5


def text_work(
    recipe: Recipe,
    target: Target,
    fed: TextInput,
    tokenizer: str,
    splits: TextSplits,
    cache: Path,
    unlabeled: TextSet | None = None,
) -> "TextWork":
    """Encode every part of the data once, and return the stages."""
    holdout, fit = splits.holdout, splits.fit
    judge = holdout if len(holdout) >= ENOUGH_TO_JUDGE else holdout.joined(fit.subset(some(len(fit))))

    def encoded(texts: TextSet) -> Tokens:
        return encode(texts, tokenizer, fed)

    data = Data(encoded(fit), encoded(holdout), encoded(splits.evaluation), encoded(judge), cache)
    more = None if unlabeled is None else encoded(unlabeled)
    return TextWork(recipe, target, fed, splits.classes, data, tokenizer, more)


class TextWork(Work[TextModel, TextInput, Tokens]):
    """What the stages do with a text model and labelled texts."""

    noun = "texts"
    network_files = ("model.json", "model.safetensors", "tokenizer.json")

    def __init__(
        self,
        recipe: Recipe,
        target: Target,
        fed: TextInput,
        classes: tuple[str, ...],
        data: Data[Tokens],
        tokenizer: str,
        unlabeled: Tokens | None = None,
    ) -> None:
        super().__init__(recipe, target, fed, classes, data)
        self.tokenizer, self.unlabeled = tokenizer, unlabeled

    def for_network(self, network: TextModel) -> "TextWork":
        """Return the same work with the data as `network`, whose vocabulary may be smaller, is fed with it."""
        if network.text == self.fed:
            return self

        def encoded(part: Tokens) -> Tokens:
            return encode(part.texts, network.tokenizer, network.text)

        data = self.data
        again = Data(
            encoded(data.fit), encoded(data.holdout), encoded(data.evaluation), encoded(data.judge), data.cache
        )
        more = None if self.unlabeled is None else encoded(self.unlabeled)
        return TextWork(self.recipe, self.target, network.text, self.classes, again, network.tokenizer, more)

    def save(self, model: TextModel, folder: Path) -> None:
        """Write a checkpoint."""
        save_text_model(model, folder)

    def load(self, folder: Path, _arch: str | None) -> TextModel:
        """Read a checkpoint."""
        return load_saved_text(folder)

    def start_student(
        self, teacher: TextModel, spec: str, emit: Emit, evaluations: int = CHOICE_EVALUATIONS
    ) -> tuple[TextModel, dict[str, Any]]:
        """Return the student made of the teacher as `spec` says, not yet trained, and what was found on the way.

        Which layers stay is decided by how much the teacher's answers change without them.
        """
        student, record = self._made_smaller(teacher, spec, emit, evaluations)
        return student, {"built": record.model_dump(mode="json")}

    def train_student(
        self,
        teacher: TextModel,
        student: TextModel,
        training: TrainSettings,
        *,
        teacher_key: str,
        folder: Path,
        emit: Emit,
    ) -> tuple[TextModel, Fitted]:
        """Return `student` trained towards the teacher; `folder` keeps the state after each epoch."""
        layers = kept_layers(teacher, student)
        return self._distilled(teacher, student, layers, training, teacher_key, folder, emit, "distill")

    def make_pruned(
        self, teacher: TextModel, model: TextModel, ratio: float, *, teacher_key: str, folder: Path, emit: Emit
    ) -> tuple[TextModel, dict[str, Any]]:
        """Return `model` with `ratio` of its heads and inner channels removed in equal steps, each with recovery."""
        settings = self.recipe.prune
        rate = settings.recovery_learning_rate or _RECOVERY_RATE
        training = self.recipe.train.model_copy(update={"epochs": settings.recovery_epochs, "learning_rate": rate})
        scores: list[float] = []
        for step in range(1, settings.steps + 1):
            # Each step keeps the same share of what the one before left.
            kept = (1 - ratio) ** (1 / settings.steps)
            model, _record = self.for_network(model)._made_smaller(model, f"width:{kept:.6g}", emit)
            if settings.recovery_epochs:
                own = folder / f"step{step}"
                own.mkdir(exist_ok=True)
                what = f"recover {step}/{settings.steps}"
                layers = kept_layers(teacher, model)
                model, fitted = self._distilled(teacher, model, layers, training, teacher_key, own, emit, what)
                scores += fitted.scores
                own.rmdir()
        return model, {"ratio": ratio, "steps": settings.steps, "scores": scores}

    def _made_smaller(
        self, model: TextModel, spec: str, emit: Emit, evaluations: int = CHOICE_EVALUATIONS
    ) -> tuple[TextModel, TextStudentRecord]:
        batches, texts = self._choice_batches(), self.data.fit.texts
        return text_student_from_teacher(
            model,
            spec,
            score=counted(_answers_kept(model.module, batches), emit, evaluations),
            batches=batches,
            texts=_all_texts(texts if self.unlabeled is None else texts.joined(self.unlabeled.texts)),
            max_evaluations=evaluations,
        )

    def _choice_batches(self) -> list[dict[str, Tensor]]:
        fit = self.data.fit
        few = fit.subset(some(len(fit), _CHOICE_SAMPLES))
        return [
            {name: torch.from_numpy(values) for name, values in few.feeds(indices).items()}
            for indices in few.batches(_CHOICE_BATCH)
        ]

    def _distilled(
        self,
        teacher: TextModel,
        student: TextModel,
        layers: Sequence[int],
        training: TrainSettings,
        teacher_key: str,
        folder: Path,
        emit: Emit,
        what: str,
    ) -> tuple[TextModel, Fitted]:
        return distill_text(
            teacher,
            student,
            self.data.fit,
            self.data.holdout,
            self.recipe.distill,
            training,
            unlabeled=self.unlabeled,
            layer_map=layers,
            seed=self.recipe.seed,
            folder=folder,
            logits_folder=self.data.cache / f"teacher-{teacher_key[:16]}",
            emit=emit,
            what=what,
        )

    def export(self, model: TextModel, path: Path) -> Agreement:
        """Write the model as float32 ONNX and return how far it is from torch on real texts."""
        fed = self.fed
        text_onnx_from_torch(model.module, fed.inputs, path, opset=self.target.opset, max_length=fed.max_length)
        # What takes the file wants to know how long a text may be.
        write_metadata(path, path, fed, self.classes)
        few = self.data.fit.subset(some(len(self.data.fit), _CHECK_SAMPLES))

        def by_torch(feeds: Feeds) -> Answers:
            with torch.inference_mode():
                output: Tensor = model.module(*(torch.from_numpy(feeds[name]) for name in fed.inputs))
            return output.float().numpy()

        with OrtSession(path) as session:
            return self.agreement(gather(by_torch, few), self.answers(session, few), few)

    def fp16(self, float_onnx: Path, out: Path) -> Fp16Record:
        """Write the float16 file of `float_onnx`; what leaves float16's range on training texts stays in float32."""
        return fp16_from_float(
            float_onnx, out, samples=self.calibration(float_onnx, min(RANGE_SAMPLES, len(self.data.fit)))
        )

    def fused(self, float_onnx: Path, folder: Path) -> tuple[Path, str]:
        """Return the file in ONNX Runtime's own operators where that is the target's runtime."""
        if self.target.runtime != "onnxruntime":
            return float_onnx, ""
        out = folder / f"{float_onnx.stem}-fused.onnx"
        try:
            fuse_for_onnxruntime(float_onnx, out, max_length=self.fed.max_length)
        except TlcError as refusal:
            return float_onnx, f"{float_onnx.stem} stays as it was exported: {refusal.message}."
        return out, ""

    def quantize(
        self, network: TextModel | None, float_onnx: Path, folder: Path, runner: Runner, emit: Emit
    ) -> tuple[list[Quantized], dict[str, Any], str]:
        """Write every INT8 form that the target's runtime has and, where all miss the budget, one trained for it."""
        files, drops = self._int8_files(network, float_onnx, folder, runner, emit)
        summary = ", ".join(
            f"{file.suffix.removeprefix('-') or 'int8'} {_points(drops[file.suffix])}" for file in files
        )
        return files, {"drop_points": drops}, f"{summary} on the texts that choices are made on."

    def int8_for_timing(self, float_onnx: Path, folder: Path) -> list[Quantized]:
        """Write the static file or, in ONNX Runtime, the dynamic ones: there a static one takes 1.4 times as long."""
        if self._is_dynamic:
            return [
                self._dynamic(float_onnx, folder / "matmul.onnx", "-matmul", silent, mode="matmul"),
                self._dynamic(float_onnx, folder / "dynamic.onnx", "-dynamic", silent),
            ]
        out = folder / "static.onnx"
        samples = self.calibration(float_onnx, FEWEST_SAMPLES)
        quantize_for_timing(float_onnx, out, samples, target=self.target, settings=self.recipe.quantize)
        return [Quantized("", out)]

    def quantize_within_budget(
        self, network: TextModel | None, float_onnx: Path, out: Path, runner: Runner, emit: Emit
    ) -> Outcome:
        """Write the fastest INT8 form within the budget; where none is, the one that loses least."""
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            files, drops = self._int8_files(network, float_onnx, Path(folder), runner, emit)
            within = [file for file in files if drops[file.suffix] <= self.recipe.budget.max_drop_points]
            best = min(files, key=lambda file: drops[file.suffix])
            if within and not runner.missing:
                best = self._fastest(within, runner, emit)
            best.path.replace(out)
        form = best.suffix.removeprefix("-") or "int8"
        return Outcome(f"{form}, {_points(drops[best.suffix])}", bool(within))

    def _fastest(self, files: list[Quantized], runner: Runner, emit: Emit) -> Quantized:
        settings = self.recipe.measure
        timing = Timing(rounds=settings.rounds, launches=1, seed=self.recipe.seed)
        feeds = self.timing_feeds()
        measured = latencies({file.suffix: (file.path, feeds) for file in files}, runner, timing, emit)
        return fastest([(p50_ms(measured[file.suffix]), file.path.stat().st_size, file) for file in files])

    def _int8_files(
        self, network: TextModel | None, float_onnx: Path, folder: Path, runner: Runner, emit: Emit
    ) -> tuple[list[Quantized], dict[str, float]]:
        """Return the INT8 files, and what each loses of the accuracy, in points, on the judging part."""
        judge, budget = self.data.judge, self.recipe.budget.max_drop_points
        before = self.accuracy(self.judged(float_onnx, runner, judge), judge)

        def dropped(file: Quantized) -> float:
            return 100 * (before - self.accuracy(self.judged(file.path, runner, judge), judge))

        files = self._forms(float_onnx, folder, emit)
        drops = {file.suffix: dropped(file) for file in files}
        epochs = self.recipe.quantize.qat_epochs
        if epochs is None:
            epochs = 0 if min(drops.values()) <= budget else QAT_EPOCHS
        if epochs and network is not None:
            trained = self._qat(network, epochs, folder, emit)
            plain = folder / "qat-float.onnx"
            self.export(trained, plain)
            # Of dynamic forms the one that training imitated.
            form = self._dynamic if self._is_dynamic else self._static
            file = form(plain, folder / "qat.onnx", "-qat", emit)
            files.append(file)
            drops[file.suffix] = dropped(file)
        return files, drops

    def _forms(self, float_onnx: Path, folder: Path, emit: Emit) -> list[Quantized]:
        """Write the forms of INT8 that need no training: static and, in ONNX Runtime, dynamic ones."""
        if not self._is_dynamic:
            return [self._static(float_onnx, folder / "static.onnx", "", emit)]
        return [
            self._static(float_onnx, folder / "static.onnx", "-static", emit),
            self._dynamic(float_onnx, folder / "matmul.onnx", "-matmul", emit, mode="matmul"),
            self._dynamic(float_onnx, folder / "dynamic.onnx", "-dynamic", emit),
        ]

    def _static(self, float_onnx: Path, out: Path, suffix: str, emit: Emit) -> Quantized:
        count = check_calibration(len(self.data.fit), self.recipe.quantize)
        quantize_onnx(
            float_onnx,
            out,
            self.calibration(float_onnx, count),
            count=count,
            target=self.target,
            settings=self.recipe.quantize,
            on_progress=lambda done, total: emit(Progress("calibrate", done, total)),
        )
        return Quantized(suffix, out)

    @property
    def _is_dynamic(self) -> bool:
        """Whether the target's runtime quantises activations while it runs."""
        return self.target.contract.startswith("ort")

    def _dynamic(
        self, float_onnx: Path, out: Path, suffix: str, _emit: Emit, *, mode: Literal["all", "matmul"] = "all"
    ) -> Quantized:
        fused, _note = self.fused(float_onnx, out.parent)
        dynamic_int8(
            fused,
            out,
            mode=mode,
            max_length=self.fed.max_length,
            reduced_range=self.target.weights_reduced_range,
        )
        return Quantized(suffix, out)

    def _qat(self, network: TextModel, epochs: int, folder: Path, emit: Emit) -> TextModel:
        """Return the network trained to answer, rounded to INT8, as it does without."""
        own = folder / "qat"
        own.mkdir(exist_ok=True)
        trained, _fitted = qat_text(
            network,
            network,
            self.data.fit,
            self.data.holdout,
            self.recipe.distill,
            self.recipe.train,
            epochs=epochs,
            weight_bits=7 if self.target.weights_reduced_range else 8,
            unlabeled=self.unlabeled,
            layer_map=range(len(transformer_layers(network.module))),
            seed=self.recipe.seed,
            folder=own,
            logits_folder=own,
            emit=emit,
        )
        shutil.rmtree(own)
        return trained

    def calibration(self, _float_onnx: Path, count: int) -> Samples:
        """Return training texts."""
        indices = balanced_indices(self.data.fit.texts.labels, count, seed=self.recipe.seed)
        return _OneByOne(self.data.fit, indices)

    def answers(self, session: Session, part: Tokens, *, batch_size: int = 64) -> Answers:
        """Return the logits of all texts: (N, K), (M, K) of M labelled words, or (N, 2, T) of starts and ends."""
        output = session.outputs[0].name
        wanted = [spec.name for spec in session.inputs]

        def run(feeds: Feeds) -> Answers:
            return session.run({name: feeds[name] for name in wanted})[output]

        return gather(run, part, batch_size=min(batch_size, 32))

    def labels(self, part: Tokens) -> NDArray[np.int64]:
        """Return the class of every text, or of every labelled word."""
        return part.flat_labels

    def timing_feeds(self) -> list[Feeds]:
        """Return eight evaluation texts whose lengths are the quantiles of all lengths."""
        return [self.data.evaluation.feeds([index]) for index in self._by_length()]

    def other_feeds(self) -> dict[str, list[Feeds]]:
        """Return long texts, and ordinary ones padded to a bucket or to the limit."""
        part, limit = self.data.evaluation, self.fed.max_length
        longest = int(np.argsort(part.lengths, kind="stable")[round(0.99 * (len(part) - 1))])
        ordinary = self._by_length()
        buckets = [min(limit, -(-int(part.lengths[i]) // _BUCKET) * _BUCKET) for i in ordinary]
        return {
            "long": [part.feeds([longest])],
            "bucketed": [part.feeds([i], pad_to=size) for i, size in zip(ordinary, buckets, strict=True)],
            "padded": [part.feeds([i], pad_to=limit) for i in ordinary],
        }

    def _by_length(self) -> list[int]:
        """Return the positions of `_TIMED_TEXTS` evaluation texts at evenly spaced ranks of length."""
        order = np.argsort(self.data.evaluation.lengths, kind="stable")
        ranks = (np.arange(_TIMED_TEXTS) + 0.5) / _TIMED_TEXTS * len(order)
        return [int(order[int(rank)]) for rank in ranks]

    @property
    def unlabeled_samples(self) -> int:
        """Number of texts without labels."""
        return 0 if self.unlabeled is None else len(self.unlabeled)

    @property
    def lengths(self) -> TextLengths:
        """Lengths of the evaluation texts."""
        found, data = self.data.evaluation.lengths, self.data
        p50, p99 = (int(np.percentile(found, rank, method="inverted_cdf")) for rank in (50, 99))
        truncated = data.fit.truncated + data.holdout.truncated + data.evaluation.truncated
        limit = self.fed.max_length
        return TextLengths(p50=p50, p99=p99, longest=int(found.max()), limit=limit, truncated=truncated)

    @property
    def typical_sizes(self) -> dict[str, int]:
        """The median length."""
        return {"T": self.lengths.p50}

    @property
    def largest_sizes(self) -> dict[str, int]:
        """The limit."""
        return {"T": self.fed.max_length}

    def accuracy(self, answers: Answers, part: Tokens) -> float:
        """Return the share of right answers; of questions, of exact ones."""
        return float(right(answers, part).mean())

    def score(self, answers: Answers, part: Tokens) -> Accuracy:
        """Return all scores."""
        if part.spans is not None:
            return _question_scores(answers, part)
        scores = super().score(answers, part)
        if part.tags is None:
            return scores
        exact = float(samples_exact(answers, part).mean())
        return scores.model_copy(update={"entity_f1": entity_f1(answers, part), "exact_ratio": exact})

    def change(self, before: Answers, after: Answers, part: Tokens) -> AccuracyChange:
        """Return the paired change."""
        if part.spans is None:
            return super().change(before, after, part)
        lost, kept = ((~right(answers, part)).astype(np.int64) for answers in (before, after))
        return accuracy_change(lost, kept, np.zeros(len(part), np.int64), ("answered exactly",))

    def agreement(self, reference: Answers, candidate: Answers, part: Tokens) -> Agreement:
        """Return how far the candidate's answers are from the reference's."""
        return agreement(comparable(reference, part), comparable(candidate, part))

    def write_metadata(self, source: Path, path: Path) -> None:
        """Write what texts go through and the class names into the file, and the tokenizer beside it."""
        write_metadata(source, path, self.fed, self.classes)
        write_text(path.with_name(tokenizer_name(self.fed)), self.tokenizer)


def _points(drop: float) -> str:
    return f"{0 - drop:+.2f} points"


def tokenizer_name(fed: TextInput) -> str:
    """Return the name of the tokenizer's file in a folder of files that may have different ones."""
    return f"tokenizer-{fed.tokenizer_sha256[:8]}.json"


def _all_texts(texts: TextSet) -> list[str | tuple[str, ...]]:
    """Return every text of the samples, the second ones too."""
    if texts.words is not None:
        return list(texts.words)
    return [*texts.texts, *(texts.pairs or ())]


def _answers_kept(module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Callable[[nn.Module], float]:
    """Return a score for a network: minus its softened KL divergence from `module` on some training texts."""
    bf16 = bf16_is_fast()

    def logits(network: nn.Module) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            rows = [network(*batch.values()).float() for batch in batches]
        # Classes last, whatever the head answers; padding counts little, and for all alike.
        return torch.cat([row.reshape(-1, row.shape[-1]) for row in rows])

    wanted = logits(copy.deepcopy(module).eval())
    return lambda network: -float(softened_kl(logits(network.eval()), wanted, temperature=2.0))


def _question_scores(answers: Answers, part: Tokens) -> Accuracy:
    exact, f1 = question_scores(answers_of(answers, part), part)
    return Accuracy(
        samples=len(exact),
        correct=int(exact.sum()),
        top1=float(exact.mean()),
        top5=None,
        macro_precision=None,
        macro_recall=None,
        macro_f1=None,
        roc_auc=None,
        matthews=None,
        calibration_error=None,
        answer_f1=float(f1.mean()),
        entity_f1=None,
        exact_ratio=None,
        per_class=[],
        confusion=[],
    )


@dataclass(frozen=True, slots=True)
class _OneByOne:
    """Inputs of single texts, again and again."""

    tokens: Tokens
    indices: NDArray[np.int64]

    def __iter__(self) -> Iterator[Feeds]:
        return (self.tokens.feeds([index]) for index in self.indices)
