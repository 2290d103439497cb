"""Distillation: cached teacher logits, inner features, label-free training, and untouched inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tiny import PREPROCESS, TinyNet, bars, seeded_net
from tlc.calibration.augment import Augment
from tlc.calibration.cache import Pixels
from tlc.compress.arch import Architecture
from tlc.compress.distill import LossSettings, TeacherLogits, distill, paired_layers
from tlc.compress.events import silent
from tlc.compress.image_train import ImageSamples, evaluate
from tlc.compress.model import Model
from tlc.compress.objective import Supervised
from tlc.compress.recipe import DistillSection
from tlc.compress.train import Fitted, TrainSettings, fit
from tlc.runtime.errors import TlcError

AUGMENT = Augment(crop="pad", padding=1, flip=False)
TRAINING = TrainSettings(epochs=6, batch_size=16, learning_rate=0.05, precision="fp32", augment=AUGMENT)


def _model(module: nn.Module) -> Model:
    return Model(module.eval(), Architecture(kind="file", name="net.py:tiny_net"), PREPROCESS, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pixels, Pixels]:
    return bars(tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="module")
def teacher(data: tuple[Pixels, Pixels], tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("teacher")
    settings = TRAINING.model_copy(update={"epochs": 14, "learning_rate": 0.1})
    train, holdout = ImageSamples(data[0], AUGMENT), ImageSamples(data[1])
    fitted = fit(seeded_net(), train, holdout, settings, Supervised(), seed=0, views=14, folder=folder, emit=silent)
    return _model(fitted.network)


def _distilled(
    teacher: Model, data: tuple[Pixels, Pixels], folder: Path, loss: LossSettings, training: TrainSettings = TRAINING
) -> tuple[Model, Fitted]:
    torch.manual_seed(1)
    student = _model(TinyNet(width=6, blocks=1))
    logits = folder / "logits"
    return distill(teacher, student, *data, loss, training, seed=0, folder=folder, logits_folder=logits, emit=silent)


@pytest.mark.parametrize(
    "loss",
    [
        LossSettings(),
        LossSettings(loss="decoupled"),
        LossSettings(label_free=True),
        LossSettings(feature="hint"),
        LossSettings(feature="attention"),
        LossSettings(feature="relation"),
    ],
    ids=["logits", "decoupled", "label-free", "hint", "attention", "relation"],
)
def test_every_loss_brings_the_student_nearer_to_the_teacher(
    teacher: Model, data: tuple[Pixels, Pixels], tmp_path: Path, loss: LossSettings
) -> None:
    torch.manual_seed(1)
    untrained = TinyNet(width=6, blocks=1).eval()
    wanted = evaluate(teacher.module, data[0], bf16=False).softmax(1)

    student, _ = _distilled(teacher, data, tmp_path, loss)

    before = (evaluate(untrained, data[0], bf16=False).softmax(1) - wanted).abs().mean()
    after = (evaluate(student.module, data[0], bf16=False).softmax(1) - wanted).abs().mean()
    assert after < 0.7 * before


def test_neither_model_is_changed_and_no_hook_stays(
    teacher: Model, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}

    student, _ = _distilled(teacher, data, tmp_path, LossSettings(feature="hint"))

    assert all(torch.equal(before[name], value) for name, value in teacher.module.state_dict().items())
    assert not any(layer._forward_hooks for layer in student.module.modules())
    assert student.history[-1].startswith("distill: 6 epochs")


def test_labels_do_not_matter_when_label_free(teacher: Model, data: tuple[Pixels, Pixels], tmp_path: Path) -> None:
    from dataclasses import replace

    wrong = tuple(replace(part, images=replace(part.images, labels=1 - part.images.labels)) for part in data)
    folders = [tmp_path / "right", tmp_path / "wrong"]
    for folder in folders:
        folder.mkdir()

    right, _ = _distilled(teacher, data, folders[0], LossSettings(label_free=True))
    other, _ = _distilled(teacher, (wrong[0], wrong[1]), folders[1], LossSettings(label_free=True))

    pairs = zip(right.module.state_dict().values(), other.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_teachers_logits_are_computed_once_per_view_and_kept(
    teacher: Model, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    class Counting(nn.Module):
        images = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher.module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.images += len(x)
            logits: torch.Tensor = self.inner(x)
            return logits

    def cached() -> TeacherLogits:
        return TeacherLogits(Counting(), data[0], AUGMENT, seed=0, bf16=False, folder=tmp_path, emit=silent)

    first = cached()
    zero, one = first.view(0), first.view(1)
    again = cached().view(0)

    assert Counting.images == 2 * len(data[0])
    assert np.array_equal(zero, again)
    assert not np.array_equal(zero, one)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["view-000.npy", "view-001.npy"]


def test_mixup_asks_the_teacher_about_the_mixed_images(
    teacher: Model, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    mixed = TRAINING.model_copy(update={"epochs": 1, "augment": AUGMENT.model_copy(update={"mixup": 0.2})})

    _distilled(teacher, data, tmp_path, LossSettings(), mixed)

    assert not (tmp_path / "logits").exists()


def test_layers_are_paired_by_resolution_and_the_last_of_each_counts() -> None:
    pairs = paired_layers(seeded_net(), TinyNet(width=6, blocks=1), torch.zeros(2, 1, 8, 8))

    assert pairs == [("layer1", "layer1")]


def test_networks_without_a_common_resolution_are_refused_with_both_lists() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    with pytest.raises(TlcError, match=r"No inner features of the student \(\[\]\) have the resolution"):
        paired_layers(seeded_net(), flat, torch.zeros(2, 1, 8, 8))


def test_a_loss_left_open_is_decided_by_what_is_trained() -> None:
    images, texts = LossSettings().resolved("images"), LossSettings().resolved("texts")

    assert (images.feature, images.temperature, images.label_weight) == ("none", 4.0, 0.1)
    assert (texts.feature, texts.temperature, texts.label_weight) == ("hint", 2.0, 0.0)
    assert LossSettings(feature="none", label_weight=0.0).resolved("texts").feature == "none"
    assert LossSettings(label_weight=0.0).resolved("images").label_weight == 0.0


def test_a_recipes_section_resolves_without_its_student() -> None:
    assert DistillSection(student="depth:0.5", views=3).resolved("texts") == LossSettings(views=3).resolved("texts")


def test_another_augmentation_has_other_logits_of_the_teacher(
    teacher: Model, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    short = TRAINING.model_copy(update={"epochs": 1})
    none = short.model_copy(update={"augment": Augment(crop="none", flip=False)})

    for training in (short, none, short):
        _distilled(teacher, data, tmp_path, LossSettings(), training)

    folders = list((tmp_path / "logits").iterdir())
    first, second = (np.load(folder / "view-000.npy") for folder in folders)
    assert len(folders) == 2
    assert not np.array_equal(first, second)
