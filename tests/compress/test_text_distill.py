"""Distillation of text models: every loss, head and family, texts without labels, other vocabularies, and resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_text
import torch
from torch import nn

from tlc.calibration.text_augment import TextAugment
from tlc.calibration.texts import read_texts, unlabeled_set
from tlc.calibration.tokens import Tokens, encode
from tlc.compress.distill import LossSettings
from tlc.compress.events import Event, silent
from tlc.compress.objective import Epoch, share_right
from tlc.compress.text_distill import distill_text, teachers_ids
from tlc.compress.text_features import LayerFeatures
from tlc.compress.text_layers import transformer_layers
from tlc.compress.text_model import TextModel, load_text_model
from tlc.compress.text_train import TextSamples, evaluate_texts
from tlc.compress.train import Fitted, TrainSettings
from tlc.runtime.errors import TlcError, UsageError

TRAINING = TrainSettings(epochs=6, batch_size=16, learning_rate=3e-3, precision="fp32")
WRITERS = {
    "sequence-classification": tiny_text.write_reviews,
    "token-classification": tiny_text.write_entities,
    "question-answering": tiny_text.write_questions,
}


def _model(folder: Path, task: str, family: str = "bert", **shape: int) -> TextModel:
    labels = tiny_text.TAGS if task == "token-classification" else ("negative", "positive")
    return load_text_model(tiny_text.write_tiny(folder, family, task, labels=labels, **shape))


def _data(model: TextModel, folder: Path) -> tuple[Tokens, Tokens]:
    task = model.text.task
    path = WRITERS[task](folder / f"{task}.jsonl" if task != "sequence-classification" else folder / "reviews.csv", 120)
    splits = read_texts(path, task=task)
    return encode(splits.fit, model.tokenizer, model.text), encode(splits.holdout, model.tokenizer, model.text)


@pytest.fixture(scope="module", params=list(WRITERS))
def heads(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextModel, TextModel, tuple[Tokens, Tokens]]:
    """A teacher of three layers, another model of two, and data, for each head."""
    folder = tmp_path_factory.mktemp("heads")
    teacher = _model(folder / "teacher", request.param, layers=3)
    student = _model(folder / "student", request.param, layers=2, seed=1)
    return teacher, student, _data(teacher, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextModel, TextModel, tuple[Tokens, Tokens]]:
    """As `heads`, for one class per text; the student is narrower and has other heads."""
    folder = tmp_path_factory.mktemp("pair")
    teacher = _model(folder / "teacher", "sequence-classification", layers=3)
    student = _model(folder / "student", "sequence-classification", layers=2, hidden=24, heads=3, seed=1)
    return teacher, student, _data(teacher, folder)


def _distilled(
    teacher: TextModel,
    student: TextModel,
    data: tuple[Tokens, Tokens],
    folder: Path,
    loss: LossSettings,
    training: TrainSettings = TRAINING,
    **others: object,
) -> tuple[TextModel, Fitted]:
    folder.mkdir(exist_ok=True)
    fixed = {"layer_map": (0, 2), "seed": 0, "folder": folder, "logits_folder": folder / "logits", "emit": silent}
    return distill_text(teacher, student, *data, loss, training, **{**fixed, **others})  # type: ignore[arg-type]


def _distance(teacher: TextModel, student: TextModel, tokens: Tokens) -> float:
    theirs = evaluate_texts(teacher.module, tokens, bf16=False).softmax(-1)
    ours = evaluate_texts(student.module, tokens, bf16=False).softmax(-1)
    return float((theirs - ours).abs().mean())


@pytest.mark.parametrize("feature", ["none", "hint", "attention", "relation"])
def test_every_head_and_loss_brings_the_student_nearer_to_the_teacher(
    heads: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path, feature: str
) -> None:
    teacher, student, data = heads

    trained, fitted = _distilled(teacher, student, data, tmp_path, LossSettings(feature=feature))

    assert _distance(teacher, trained, data[0]) < 0.7 * _distance(teacher, student, data[0])
    assert len(fitted.scores) == 6
    assert trained.history[-1].startswith("distill: 6 epochs")


@pytest.mark.parametrize("feature", ["hint", "attention", "relation"])
def test_widths_and_head_counts_may_differ(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path, feature: str
) -> None:
    teacher, student, data = pair

    trained, _ = _distilled(teacher, student, data, tmp_path, LossSettings(feature=feature))

    assert _distance(teacher, trained, data[0]) < 0.7 * _distance(teacher, student, data[0])


def test_neither_model_is_changed_and_no_hook_stays(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    teacher, student, data = pair
    before = [{k: v.clone() for k, v in model.module.state_dict().items()} for model in (teacher, student)]

    trained, _ = _distilled(teacher, student, data, tmp_path, LossSettings(feature="attention"))

    for model, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in model.module.state_dict().items())
    for layer in trained.module.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_labels_do_not_matter_when_label_free(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    teacher, student, data = pair
    wrong = tuple(replace(part, labels=1 - part.labels) for part in data)
    loss, short = LossSettings(label_free=True, label_weight=0.5), TRAINING.model_copy(update={"epochs": 2})

    right, _ = _distilled(teacher, student, data, tmp_path / "right", loss, short)
    other, _ = _distilled(teacher, student, (wrong[0], wrong[1]), tmp_path / "wrong", loss, short)

    assert _equal(right.module, other.module)


def test_labels_matter_where_they_have_a_weight(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    teacher, student, data = pair
    loss = LossSettings(label_weight=1.0, feature="none")

    longer = TRAINING.model_copy(update={"epochs": 24})
    trained, _ = _distilled(teacher, student, data, tmp_path, loss, longer, augment=_plain())

    logits = evaluate_texts(trained.module, data[0], bf16=False)
    assert share_right(logits, torch.from_numpy(data[0].labels)) > 0.9


def _plain() -> TextAugment:
    return TextAugment(span=0, splice=0, mask=0, drop=0)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("feature", ["none", "hint"])
def test_a_training_killed_in_the_middle_goes_on_to_the_same_weights(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path, feature: str
) -> None:
    teacher, student, data = pair
    loss = LossSettings(feature=feature, views=2)
    short = TRAINING.model_copy(update={"epochs": 3})
    whole, _ = _distilled(teacher, student, data, tmp_path / "whole", loss, short)

    def killer(event: Event) -> None:
        if getattr(event, "what", "") == "distill" and getattr(event, "done", 0) > 8:
            raise _KilledError

    with pytest.raises(_KilledError):
        _distilled(teacher, student, data, tmp_path / "killed", loss, short, emit=killer)
    assert (tmp_path / "killed" / "epoch.pt").exists()

    assert _equal(whole.module, _distilled(teacher, student, data, tmp_path / "killed", loss, short)[0].module)


def test_the_teachers_logits_are_cached_per_view_without_a_feature_loss(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    teacher, student, data = pair
    short = TRAINING.model_copy(update={"epochs": 4})

    _distilled(teacher, student, data, tmp_path, LossSettings(feature="none", views=2), short)
    _distilled(teacher, student, data, tmp_path, LossSettings(), short)

    (folder,) = (tmp_path / "logits").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["view-000.npy", "view-001.npy"]
    assert np.load(folder / "view-000.npy").shape == (len(data[0]), 2)


def test_texts_without_labels_are_trained_on_too(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    teacher, student, data = pair
    splits = read_texts(tiny_text.write_reviews(tmp_path / "few.csv", 60), task="sequence-classification")
    texts = unlabeled_set([text for text, _ in tiny_text.reviews(80, seed=9)], splits)
    seen: list[int] = []

    def watch(event: Event) -> None:
        if getattr(event, "what", "") == "distill":
            seen.append(event.total)  # type: ignore[union-attr]

    _distilled(
        teacher,
        student,
        data,
        tmp_path / "run",
        LossSettings(label_weight=0.3),
        TRAINING.model_copy(update={"epochs": 1}),
        unlabeled=encode(texts, teacher.tokenizer, teacher.text),
        emit=watch,
    )

    assert seen[-1] == (len(data[0]) + len(texts)) // 16


def test_a_student_with_a_part_of_the_vocabulary_learns_from_the_same_texts(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    import hashlib
    import json

    teacher, student, data = pair
    content = json.loads(student.tokenizer)
    used = {int(index) for part in data for ids in part.ids for index in ids}
    vocabulary = content["model"]["vocab"]
    kept = [token for token, index in vocabulary.items() if index in used or index < 5]
    content["model"]["vocab"] = {token: index for index, token in enumerate(kept)}
    tokenizer = json.dumps(content)
    module = _module_with_rows(student, [vocabulary[token] for token in kept])
    text = student.text.model_copy(update={"tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest()})
    smaller = replace(student, module=module, tokenizer=tokenizer, text=text)
    short = TRAINING.model_copy(update={"epochs": 2})

    trained, _ = _distilled(teacher, smaller, data, tmp_path / "part", LossSettings(), short, augment=_no_mask())
    wanted, _ = _distilled(teacher, student, data, tmp_path / "whole", LossSettings(), short, augment=_no_mask())

    own = encode(data[0].texts, tokenizer, text)
    assert torch.allclose(
        evaluate_texts(trained.module, own, bf16=False), evaluate_texts(wanted.module, data[0], bf16=False), atol=1e-4
    )


def _no_mask() -> TextAugment:
    return TextAugment(mask=0)


def _module_with_rows(model: TextModel, rows: list[int]) -> nn.Module:
    import copy

    module = copy.deepcopy(model.module)
    name = next(n for n, part in module.named_modules() if n.endswith("word_embeddings"))
    words = module.get_submodule(name)
    assert isinstance(words, nn.Embedding)
    made = nn.Embedding(len(rows), words.embedding_dim, padding_idx=0)
    made.weight.data = words.weight.data[rows].clone()
    module.set_submodule(name, made)
    return module


def test_a_token_that_the_teacher_lacks_is_named() -> None:
    import json

    tokenizer = tiny_text.tiny_tokenizer()
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"]["zebra"] = len(content["model"]["vocab"])

    with pytest.raises(TlcError, match=r"1 of the student's \d+ tokens are not the teacher's, such as 'zebra'"):
        teachers_ids(tokenizer.to_str(), json.dumps(content))


def test_decoupled_kd_is_refused_because_varied_texts_have_no_label(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r'distill\.loss = "decoupled" needs the label of every text'):
        _distilled(*pair, tmp_path, LossSettings(loss="decoupled"))


def test_a_layer_map_of_another_length_is_an_error(
    pair: tuple[TextModel, TextModel, tuple[Tokens, Tokens]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"layer_map \[0\] for a student of 2 layers and a teacher of 3"):
        _distilled(*pair, tmp_path, LossSettings(), layer_map=(0,))


@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_the_features_of_every_family_are_those_of_its_layers(family: str, tmp_path: Path) -> None:
    model = _model(tmp_path, "sequence-classification", family)
    tokens, _ = _data(model, tmp_path)
    inputs = tuple(torch.from_numpy(tokens.feeds([0, 1])[name]) for name in tokens.fed.inputs)
    count = len(transformer_layers(model.module))
    outputs, attended = LayerFeatures(model.module, inputs=False), LayerFeatures(model.module, inputs=True)

    with torch.no_grad():
        model.module(*inputs)

    width = inputs[0].shape[1]
    assert [tuple(states.shape) for states in outputs.take()] == [(2, width, 32)] * count
    states = attended.take()
    assert len(states) == count
    assert all(part.shape == (2, 4, width, 8) for k in range(count) for part in attended.attend(k, states[k]))
    assert not outputs.take()
    with torch.inference_mode():
        model.module(*inputs)
    assert not outputs.take()
    outputs.close()
    attended.close()


def test_an_epoch_has_every_text_once_and_batches_of_similar_lengths(tmp_path: Path) -> None:
    model = _model(tmp_path, "sequence-classification")
    tokens, _ = _data(model, tmp_path)
    samples = TextSamples(tokens, augment=_plain())
    steps = len(tokens) // 8
    epoch = Epoch(1, view=1, seed=0, steps=steps, batch_size=8, device=torch.device("cpu"))

    batches = list(samples.batches(epoch))

    seen = np.concatenate([batch.indices for _, batch in batches])
    assert len(set(seen.tolist())) == steps * 8
    padding = 1 - np.mean([float(inputs[1].double().mean()) for inputs, _ in batches])
    shuffled = 1 - np.mean(
        [tokens.lengths[i : i + 8].mean() / tokens.lengths[i : i + 8].max() for i in range(0, 80, 8)]
    )
    assert padding < 0.5 * shuffled


def test_processes_share_a_step_and_pad_on_their_own(tmp_path: Path) -> None:
    model = _model(tmp_path, "sequence-classification")
    tokens, _ = _data(model, tmp_path)
    samples = TextSamples(tokens, augment=_plain())
    both = [
        [batch.indices for _, batch in samples.batches(Epoch(0, 0, 0, 3, 8, torch.device("cpu"), process, 2))]
        for process in range(2)
    ]

    alone = [batch.indices for _, batch in samples.batches(Epoch(0, 0, 0, 3, 8, torch.device("cpu")))]

    assert [sorted([*one, *other]) for one, other in zip(*both, strict=True)] == [sorted(step) for step in alone]


@pytest.mark.parametrize("family", [family for family in tiny_text.FAMILIES if family not in ("bert", "minilm")])
@pytest.mark.parametrize("feature", ["hint", "relation"])
def test_every_family_learns(family: str, feature: str, tmp_path: Path) -> None:
    teacher = _model(tmp_path / "teacher", "sequence-classification", family)
    student = _model(tmp_path / "student", "sequence-classification", family, layers=1, seed=1)
    data = _data(teacher, tmp_path)
    short, loss = TRAINING.model_copy(update={"epochs": 3}), LossSettings.model_validate({"feature": feature})

    trained, _ = _distilled(teacher, student, data, tmp_path / "run", loss, short, layer_map=(1,))

    assert _distance(teacher, trained, data[0]) < 0.9 * _distance(teacher, student, data[0])
