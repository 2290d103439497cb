"""The INT8 files of an image network: everything in INT8, and others where that misses the accuracy budget."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tlc.calibration.cache import Pixels
from tlc.compress.events import Emit, Progress
from tlc.compress.model import Model
from tlc.compress.qat import FEWEST_SAMPLES, QatRecord, qat
from tlc.compress.quantize import QAT_EPOCHS, QuantizeRecord, quantize_within_budget, write_trained
from tlc.compress.recipe import Recipe
from tlc.compress.work import Data, Outcome, Quantized
from tlc.runtime.errors import TlcError
from tlc.runtime.target import Target
from tlc.runtime.tensor import Samples


@dataclass(frozen=True, slots=True)
class Int8Images:
    """What turns one float file into INT8 files."""

    float_onnx: Path
    network: Model | None
    """What the file was made of; without it nothing is trained."""
    recipe: Recipe
    target: Target
    data: Data[Pixels]
    samples: Samples
    """Of the calibration."""
    count: int
    """How many of them are used."""
    drop_points: Callable[[Path], float]
    """What a file loses of the float file's top-1 on the judging part, percentage points."""
    emit: Emit

    def files(self, folder: Path) -> tuple[list[Quantized], dict[str, Any], str]:
        """Write the file with everything in INT8 and, where that misses the budget, others; say what was found.

        One of the others has layers left in float, one was trained for INT8.
        """
        for leftover in folder.glob(".*"):  # of a run that was killed
            shutil.rmtree(leftover)
        best, full, around = (folder / f"{name}.onnx" for name in ("best", "full", "around"))
        record = self._without_training(best, around, full)
        files = [Quantized("", full)]
        if record.chosen > 0:
            files.insert(0, Quantized("-mixed", best))
        found, summary = record.model_dump(mode="json"), quantize_summary(record)
        trained = self._trained(record, around, folder / "qat.onnx")
        around.unlink()
        if trained is not None:
            found["qat"], summary = trained.model_dump(mode="json"), f"{summary}; {trained.summary}"
            if trained.drop_points is not None:
                files.append(Quantized("-qat", folder / "qat.onnx"))
        return files, found, f"{summary}."

    def one_file(self, out: Path) -> Outcome:
        """Write the best of these files: within the budget, then without layers in float, then by what it loses."""
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            around, qat_onnx = Path(scratch) / "around.onnx", Path(scratch) / "qat.onnx"
            record = self._without_training(out, around)
            trained = self._trained(record, around, qat_onnx)
            summary, met = quantize_summary(record), record.met
            if trained is not None:
                summary = f"{summary}; {trained.summary}"
            if trained is not None and trained.drop_points is not None:
                within = trained.drop_points <= record.budget_points
                drop = record.attempts[record.chosen].drop_points
                if (not within, False, trained.drop_points) < (not met, record.chosen > 0, drop):
                    qat_onnx.replace(out)
                    met = within
        return Outcome(summary, met)

    def _without_training(self, out: Path, around: Path, full: Path | None = None) -> QuantizeRecord:
        return quantize_within_budget(
            self.float_onnx,
            out,
            self.samples,
            count=self.count,
            target=self.target,
            settings=self.recipe.quantize,
            drop_points=self.drop_points,
            budget_points=self.recipe.budget.max_drop_points,
            full=full,
            around=around,
            on_progress=lambda done, total: self.emit(Progress("calibrate", done, total)),
        )

    def _trained(self, record: QuantizeRecord, around: Path, out: Path) -> QatRecord | None:
        """Write the file trained for INT8, and return what came of it; None where it is not wanted or not needed."""
        fit, epochs = self.data.fit, self.recipe.quantize.qat_epochs
        missed = record.attempts[0].drop_points > record.budget_points
        if self.network is None or epochs == 0 or (epochs is None and not missed):
            return None
        if epochs is None and len(fit) < FEWEST_SAMPLES:
            return QatRecord(why_not=f"{len(fit)} images, too few to train for INT8: the limit is {FEWEST_SAMPLES}")
        own = out.with_name("qat")
        own.mkdir(exist_ok=True)
        try:
            trained, fitted = qat(
                self.network,
                onnx.load(around),
                fit,
                self.data.holdout,
                self.recipe.distill,
                self.recipe.train,
                epochs=QAT_EPOCHS if epochs is None else epochs,
                seed=self.recipe.seed,
                folder=own,
                logits_folder=own,
                emit=self.emit,
            )
        except TlcError as refusal:
            if epochs is not None:
                raise
            return QatRecord(why_not=f"not trained for INT8: {refusal.message}")
        shutil.rmtree(own)
        write_trained(trained, self.float_onnx, out, self.samples, count=self.count, target=self.target)
        return QatRecord(scores=fitted.scores, best_epoch=fitted.best_epoch, drop_points=self.drop_points(out))


def quantize_summary(record: QuantizeRecord) -> str:
    """Return what was tried to meet the budget, as a sentence without a full stop."""
    drops = [f"{0 - attempt.drop_points:+.2f} points" for attempt in record.attempts]
    summary = f"{drops[0]} on the images that choices are made on"
    if record.chosen:
        layers = len(record.attempts[record.chosen].excluded)
        summary += f", over the budget; {drops[record.chosen]} with {layers} layers left in float"
    return summary if record.met else f"{summary}: over the budget of {record.budget_points:g}"
