"""Training image networks with INT8's rounding in them, towards the float network's logits: QAT and QAD.

The quantised file itself is trained (`tlc.compress.onnx_network`). Other ways lose the target's contract on the way to
ONNX: NNCF's torch backend places quantisers for OpenVINO alone and leaves FakeQuantize modules, for which torch's
exporter has no translation (pytorch/pytorch#167063), and torchao's PT2E has quantisers for x86, ARM and XPU, but none
for TensorRT (pytorch/ao#3469).
"""

from dataclasses import replace
from pathlib import Path

import onnx
from pydantic import BaseModel, ConfigDict

from tlc.calibration.cache import Pixels
from tlc.compress.distill import LossSettings, distill
from tlc.compress.events import Emit
from tlc.compress.model import Model
from tlc.compress.onnx_network import OnnxNetwork
from tlc.compress.train import Fitted, TrainSettings

FEWEST_SAMPLES = 500
"""Training on fewer fits these and tells nothing of others; where the settings leave it open, it is left out."""
LEARNING_RATE = 1e-3
"""Of SGD with momentum. A MobileNet of which rounding took 17.6 points was worse after four epochs at 0.01."""


class QatRecord(BaseModel):
    """What came of training for INT8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[float, ...] = ()
    """Held-out score after each epoch, computed by the rounded network; empty where nothing was trained."""
    best_epoch: int = 0
    """From 1."""
    drop_points: float | None = None
    """Top-1 that the file loses against the float one on the judging part, percentage points."""
    why_not: str = ""
    """Why nothing was trained, without a full stop."""

    @property
    def summary(self) -> str:
        """A clause without a full stop."""
        if self.drop_points is None:
            return self.why_not
        return f"{0 - self.drop_points:+.2f} points trained for INT8, epoch {self.best_epoch} of {len(self.scores)}"


def qat(
    teacher: Model,
    quantized: onnx.ModelProto,
    train: Pixels,
    holdout: Pixels,
    loss: LossSettings,
    training: TrainSettings,
    *,
    epochs: int,
    learning_rate: float = LEARNING_RATE,
    seed: int,
    folder: Path,
    logits_folder: Path,
    emit: Emit,
    what: str = "qat",
) -> tuple[onnx.ModelProto, Fitted]:
    """Train the weights and scales of `quantized` towards `teacher`; return the file with the best held-out ones.

    Of `training`, the batch size, weight decay, precision, augmentation and so on count; the epochs and the learning
    rate are given here, no layer is frozen, and inner features are not compared. Scores are those of the rounded
    network, computed in float32.

    Args:
        teacher: the network that the file was made of.
        quantized: with float32 around the INT8 layers, batch norms folded.
        train: as for `distill`, like the arguments not named here.
        holdout: decides which epoch is the best.
        loss: as for `distill`.
        training: see above.
        epochs: passes over `train`.
        learning_rate: the highest, of SGD.
        seed: as for `distill`.
        folder: keeps the state after each epoch.
        logits_folder: as for `distill`.
        emit: told of the progress.
        what: what the progress is called.

    Raises:
        TlcError: the file has an operator that cannot be trained; the loss is not finite.

    """
    network = OnnxNetwork(quantized)
    settings = training.model_copy(
        update={
            "epochs": epochs,
            "learning_rate": learning_rate,
            "optimizer": "sgd",
            "freeze": (),
            "layer_decay": 1.0,
            "unfreeze_ratio": 0.0,
        }
    )
    _, fitted = distill(
        teacher,
        replace(teacher, module=network),
        train,
        holdout,
        loss.model_copy(update={"feature": "none"}),
        settings,
        seed=seed,
        folder=folder,
        logits_folder=logits_folder,
        emit=emit,
        what=what,
    )
    assert isinstance(fitted.network, OnnxNetwork)
    return fitted.network.to_onnx(), fitted
