"""Training is repeatable, survives a kill, and does what its settings say."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tiny import bars, seeded_net
from tlc.compress.events import Event, silent
from tlc.compress.image_train import ImageSamples, evaluate
from tlc.compress.objective import Supervised
from tlc.compress.train import Fitted, TrainSettings, fit, parameter_blocks
from tlc.runtime.errors import TlcError

SETTINGS = TrainSettings(epochs=3, batch_size=16, learning_rate=0.1, precision="fp32", ema_decay=0.5)


def _fit(folder: Path, settings: TrainSettings = SETTINGS, emit=silent) -> Fitted:  # type: ignore[no-untyped-def]
    folder.mkdir(exist_ok=True)
    train, holdout = map(ImageSamples, bars(folder))
    return fit(seeded_net(), train, holdout, settings, Supervised(), seed=0, views=2, folder=folder, emit=emit)


def _equal(one: Fitted, other: Fitted) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_learns_the_bars(tmp_path: Path) -> None:
    fitted = _fit(tmp_path, SETTINGS.model_copy(update={"epochs": 12, "ema_decay": 0.0}))

    assert fitted.best_score is not None
    assert fitted.best_score > 0.9


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    assert _equal(_fit(tmp_path / "a"), _fit(tmp_path / "b"))


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_killed_in_the_middle_goes_on_to_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    settings = SETTINGS.model_copy(update={"optimizer": optimizer, "learning_rate": 0.01})
    whole = _fit(tmp_path / "whole", settings)

    def killer(event: Event) -> None:
        if getattr(event, "done", 0) > 9:  # in the second epoch of six steps each
            raise _KilledError

    with pytest.raises(_KilledError):
        _fit(tmp_path / "killed", settings, killer)
    assert (tmp_path / "killed" / "epoch.pt").exists()

    assert _equal(whole, _fit(tmp_path / "killed", settings))
    assert not (tmp_path / "killed" / "epoch.pt").exists()


def test_no_epochs_leave_the_weights_as_they_are(tmp_path: Path) -> None:
    fitted = _fit(tmp_path, SETTINGS.model_copy(update={"epochs": 0}))

    assert fitted.best_score is None
    assert torch.equal(fitted.network.state_dict()["head.weight"], seeded_net().state_dict()["head.weight"])


def test_patience_stops_when_the_score_stands_still(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 30, "learning_rate": 1e-9, "patience": 2, "ema_decay": 0.0})

    scores = _fit(tmp_path, settings).scores

    assert len(scores) < 30


def test_frozen_parameters_do_not_move_and_the_others_do(tmp_path: Path) -> None:
    fitted = _fit(tmp_path, SETTINGS.model_copy(update={"freeze": ("stem.*",), "ema_decay": 0.0}))

    before, after = seeded_net().state_dict(), fitted.network.state_dict()
    assert torch.equal(before["stem.weight"], after["stem.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_a_freeze_pattern_that_matches_nothing_is_an_error_with_a_real_name() -> None:
    with pytest.raises(TlcError, match=r"freeze = 'backbone\.\*' matches none of the \d+ parameters, such as stem"):
        parameter_blocks(seeded_net(), ["backbone.*"])


def test_freezing_everything_is_an_error() -> None:
    with pytest.raises(TlcError, match="leaves no parameter to train"):
        parameter_blocks(seeded_net(), ["*"])


def test_blocks_are_ordered_from_the_input_and_split_at_the_first_numbered_name() -> None:
    sizes = [len(block) for block in parameter_blocks(seeded_net(), [])]

    assert sizes == [2, 9, 2]


def test_blocks_of_a_network_inside_another_are_the_same() -> None:
    wrapped = nn.ModuleDict({"model": nn.ModuleDict({"inner": seeded_net()})})

    assert [len(block) for block in parameter_blocks(wrapped, [])] == [2, 9, 2]


def test_a_loss_that_is_not_finite_stops_with_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match=r"The loss is not finite in epoch 1, step \d+ \(learning rate 1e\+20\)"):
        _fit(tmp_path, SETTINGS.model_copy(update={"learning_rate": 1e20, "clip_norm": 1e20, "ema_decay": 0.0}))


def test_evaluation_gives_one_row_per_sample_in_order(tmp_path: Path) -> None:
    train, _ = bars(tmp_path)

    logits = evaluate(seeded_net(), train, bf16=False)

    direct = seeded_net()(torch.from_numpy(train.batch([5])))
    assert logits.shape == (len(train), 2)
    assert torch.allclose(logits[5], direct[0], atol=1e-6)


def test_settings_left_open_are_decided_by_what_is_trained() -> None:
    images, texts = TrainSettings().resolved("images"), TrainSettings().resolved("texts")

    assert (images.optimizer, images.epochs, images.batch_size) == ("sgd", 10, 128)
    assert (images.learning_rate, images.weight_decay, images.clip_norm) == (0.05, 5e-4, 5.0)
    assert (texts.optimizer, texts.epochs, texts.batch_size) == ("adamw", 20, 64)
    assert (texts.learning_rate, texts.weight_decay, texts.clip_norm) == (1e-4, 0.01, 1.0)


def test_settings_that_were_given_stay() -> None:
    given = TrainSettings(epochs=0, optimizer="adamw", weight_decay=0.0, patience=3, precision="bf16")

    resolved = given.resolved("images")

    assert (resolved.epochs, resolved.optimizer, resolved.weight_decay) == (0, "adamw", 0.0)
    assert (resolved.patience, resolved.precision, resolved.learning_rate) == (3, "bf16", 1e-3)
    assert resolved.resolved("images") == resolved
    assert TrainSettings(optimizer="sgd").resolved("texts").learning_rate == 0.05
