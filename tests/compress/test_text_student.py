import copy
import csv
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import FAMILIES, reviews, tiny_tokenizer, write_tiny
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from tlc.compress import text_units
from tlc.compress.text_layers import encoder_of, self_attentions, transformer_layers
from tlc.compress.text_model import TextModel, load_saved_text, load_text_model, save_text_model
from tlc.compress.text_student import (
    TextStudentSpec,
    check_text_student,
    even_layers,
    factorise_embeddings,
    is_text_student,
    kept_layers,
    parse_text_student,
    text_student_from_teacher,
    trim_vocabulary,
)
from tlc.compress.text_units import keep_units, second_moments, units_of
from tlc.compress.vocabulary import trim_tokenizer
from tlc.runtime.errors import TlcError, UsageError

TEXTS = [text for text, _label in reviews(40)]


@functools.cache
def loaded(family: str, layers: int) -> TextModel:
    with tempfile.TemporaryDirectory() as folder:
        return load_text_model(write_tiny(Path(folder) / family, family, layers=layers))


def tiny(family: str = "bert", layers: int = 4) -> TextModel:
    model = loaded(family, layers)
    return replace(model, module=copy.deepcopy(model.module))


def feeds(model: TextModel, texts: Sequence[str] = TEXTS, size: int = 10) -> list[dict[str, Tensor]]:
    tokenizer = Tokenizer.from_str(model.tokenizer)
    made = []
    for start in range(0, len(texts), size):
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts[start : start + size]))]
        ids = torch.full((len(rows), max(map(len, rows))), model.text.pad_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


@torch.no_grad()
def logits(model: TextModel, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    return torch.cat([model.module(**batch) for batch in batches])


def closeness(model: TextModel) -> Callable[[nn.Module], float]:
    batches = feeds(model)
    wanted = logits(model, batches)
    return lambda module: -float((logits(replace(model, module=module), batches) - wanted).square().mean())


def reloaded(model: TextModel, folder: Path) -> TextModel:
    save_text_model(model, folder / "saved")
    return load_saved_text(folder / "saved")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_smaller_in_every_way_and_survives_saving(family: str, tmp_path: Path) -> None:
    teacher = tiny(family)
    batches, before = feeds(teacher), logits(teacher, feeds(teacher))
    layers = len(transformer_layers(teacher.module))
    spec = "depth:0.5+heads:0.5+intermediate:24+embedding:6+vocabulary:data"

    student, record = text_student_from_teacher(
        teacher, spec, score=closeness(teacher), batches=batches, texts=TEXTS, round_to=8
    )

    assert torch.equal(logits(teacher, batches), before)
    assert len(transformer_layers(student.module)) == len(record.kept_layers) == (layers + 1) // 2
    assert {(found.heads, found.head_width) for found in self_attentions(student.module)} == {(2, 8)}
    assert {units.count for units in units_of(student.module, "intermediate")} == {24}
    assert record.heads == (4, 2)
    assert record.intermediate == (64, 24)
    assert record.embedding[1] == 6
    assert record.vocabulary[1] == Tokenizer.from_str(student.tokenizer).get_vocab_size() < record.vocabulary[0]
    assert record.parameters[1] < 0.7 * record.parameters[0]
    assert len(student.history) == len(teacher.history) + 4
    own = feeds(student)
    assert max(int(batch["input_ids"].max()) for batch in own) < record.vocabulary[1]
    again = reloaded(student, tmp_path)
    assert torch.equal(logits(again, own), logits(student, own))
    assert kept_layers(teacher, again) == record.kept_layers
    assert again.text == student.text
    assert [found.heads for found in self_attentions(again.module)] == [2] * len(record.kept_layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["heads", "intermediate"])
def test_units_that_give_nothing_go_without_a_trace(family: str, kind: str) -> None:
    teacher = tiny(family, layers=2)
    empty = {"heads": [1, 2], "intermediate": [*range(3, 30), 40, 41, 42, 43, 63]}[kind]
    with torch.no_grad():
        for units in units_of(teacher.module, "heads" if kind == "heads" else "intermediate"):
            reader = teacher.module.get_submodule(units.reader)
            assert isinstance(reader, nn.Linear)
            reader.weight.reshape(-1, units.count, units.width)[:, empty] = 0
    batches = feeds(teacher)

    student, record = text_student_from_teacher(
        teacher, f"{kind}:{2 if kind == 'heads' else 32}", score=closeness(teacher), batches=batches
    )

    assert record.parameters[1] < record.parameters[0]
    torch.testing.assert_close(logits(student, batches), logits(teacher, batches), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_does_nothing_is_the_one_to_go(family: str, tmp_path: Path) -> None:
    teacher = tiny(family, layers=3)
    names = transformer_layers(teacher.module)
    if family == "albert":
        student, record = text_student_from_teacher(teacher, "depth:2", score=closeness(teacher), batches=[])
        assert (record.kept_layers, record.evaluations, record.teacher_score) == ((0, 2), 0, None)
        assert encoder_of(reloaded(student, tmp_path).module).config.num_hidden_layers == 2
        return
    with torch.no_grad():  # nothing is added; the norms behind the additions see normalised input
        for part in (encoder_of(teacher.module).family.attention_output, encoder_of(teacher.module).family.output):
            for parameter in teacher.module.get_submodule(f"{names[1]}.{part}").parameters():
                parameter.zero_()
        for norm in teacher.module.get_submodule(names[1]).modules():
            if "LayerNorm" in type(norm).__name__ and family != "modernbert":
                before = teacher.module.get_submodule(names[0])
                last = [part for part in before.modules() if "LayerNorm" in type(part).__name__][-1]
                for each in (norm, last):
                    each.get_parameter("weight").fill_(1.0)
                    each.get_parameter("bias").zero_()
    batches = feeds(teacher)

    student, record = text_student_from_teacher(
        teacher, f"depth:{len(names) - 1}", score=closeness(teacher), batches=batches
    )

    assert [block.name for block in record.removed] == [names[1]]
    assert record.kept_layers == tuple(index for index in range(len(names)) if index != 1)
    assert record.evaluations == len(names) + 1
    assert record.teacher_score == pytest.approx(0)
    torch.testing.assert_close(logits(student, batches), logits(teacher, batches), rtol=1e-3, atol=1e-3)


def test_units_that_others_repeat_go_first_and_are_stood_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_units, "_RIDGE", 1e-6)
    teacher = tiny(layers=1)
    (units,) = units_of(teacher.module, "intermediate")
    with torch.no_grad():  # the second half repeats the first
        for name, _copies in units.makers:
            value = teacher.module.get_parameter(name)
            value[32:] = value[:32]
    batches = feeds(teacher)
    before = logits(teacher, batches)
    (moments,) = second_moments(teacher.module, [units], batches)
    without = replace(teacher, module=copy.deepcopy(teacher.module))
    with torch.no_grad():
        without.module.get_parameter(f"{units.reader}.weight")[:, 32:] = 0

    keep_units(teacher.module, units, moments, 32)

    torch.testing.assert_close(logits(teacher, batches), before, rtol=1e-2, atol=1e-2)
    assert (logits(without, batches) - before).abs().max() > 0.2


def test_padding_does_not_count() -> None:
    teacher = tiny(layers=1)
    units = units_of(teacher.module, "heads")
    (batch,) = feeds(teacher, TEXTS[:1])
    padded = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 5), value=0),
        "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 5)),
    }

    (alone,), (with_padding,) = (second_moments(teacher.module, units, [each]) for each in (batch, padded))

    torch.testing.assert_close(alone, with_padding, rtol=1e-4, atol=1e-5)
    assert alone[-1, -1] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_of_low_rank_are_factorised_without_loss(family: str, tmp_path: Path) -> None:
    teacher = tiny(family, layers=1)
    table = teacher.module.get_submodule("model").get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        table.weight[:, 5:] = table.weight[:, :5] @ torch.randn(5, table.weight.shape[1] - 5)
    batches = feeds(teacher)

    student = factorise_embeddings(teacher, 5, batches)

    torch.testing.assert_close(logits(student, batches), logits(teacher, batches), rtol=1e-3, atol=1e-3)
    again = factorise_embeddings(student, 5, batches)
    torch.testing.assert_close(logits(again, batches), logits(teacher, batches), rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(reloaded(student, tmp_path), batches), logits(student, batches))


def test_embeddings_of_frequent_tokens_stay_closest() -> None:
    teacher = tiny(layers=1)
    often = torch.full((50, 20), 7)
    batches = [{"input_ids": often, "attention_mask": torch.ones_like(often)}]

    student = factorise_embeddings(teacher, 4, batches)

    ids = torch.arange(teacher.module.get_submodule("model").get_input_embeddings().num_embeddings)  # type: ignore[operator]
    path = encoder_of(teacher.module).path(encoder_of(teacher.module).family.words)
    before, after = (model.module.get_submodule(path)(ids) for model in (teacher, student))
    errors = (before - after).norm(dim=1)
    assert errors[7] < 0.1 * errors.mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_trimmed_vocabulary_gives_the_same_tokens_and_outputs(family: str, tmp_path: Path) -> None:
    teacher = tiny(family, layers=1)
    texts = TEXTS[:10]

    trimmed = trim_vocabulary(teacher, texts)

    old, new = Tokenizer.from_str(teacher.tokenizer), Tokenizer.from_str(trimmed.tokenizer)
    assert [e.tokens for e in new.encode_batch(texts)] == [e.tokens for e in old.encode_batch(texts)]
    pairs = list(itertools.pairwise(texts))
    assert [e.tokens for e in new.encode_batch(pairs)] == [e.tokens for e in old.encode_batch(pairs)]
    assert new.get_vocab_size() < old.get_vocab_size()
    assert torch.equal(logits(trimmed, feeds(trimmed, texts)), logits(teacher, feeds(teacher, texts)))
    again = reloaded(trimmed, tmp_path)
    assert torch.equal(logits(again, feeds(again, texts)), logits(trimmed, feeds(trimmed, texts)))
    assert encoder_of(again.module).config.vocab_size == new.get_vocab_size()
    assert new.id_to_token(again.text.pad_id) == old.id_to_token(teacher.text.pad_id)


def test_words_that_no_text_used_are_spelt() -> None:
    trimmed, _ids = trim_tokenizer(tiny_tokenizer().to_str(), ["good film"])

    encoding = Tokenizer.from_str(trimmed).encode("good movie")

    assert encoding.tokens == ["[CLS]", "good", "m", "##o", "##v", "##i", "##e", "[SEP]"]


def test_words_are_cut_as_words() -> None:
    words = [("good", "film"), ("anna", "ben")]
    before = tiny_tokenizer("roberta")

    trimmed, _ids = trim_tokenizer(before.to_str(), words)

    after = Tokenizer.from_str(trimmed)
    for some in words:
        assert after.encode(some, is_pretokenized=True).tokens == before.encode(some, is_pretokenized=True).tokens


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "<unk>", "[CLS]", "[SEP]"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.add_special_tokens(["[MASK]"])
    return tokenizer


def test_unigram_keeps_unknown_characters_unknown() -> None:
    before = unigram()
    texts = [*TEXTS[:5], "good \u4e00\u4e01 film \U0001f600", "[MASK] scene"]

    trimmed, ids = trim_tokenizer(before.to_str(), texts)

    after = Tokenizer.from_str(trimmed)
    assert [e.tokens for e in after.encode_batch(texts)] == [e.tokens for e in before.encode_batch(texts)]
    assert after.get_vocab_size() == len(ids) < before.get_vocab_size()
    assert after.token_to_id("[MASK]") == len(ids) - 1
    assert np.array_equal(ids, np.sort(ids))


def test_vocabulary_refuses_what_it_cannot_trim_exactly() -> None:
    whole = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str()
    with pytest.raises(TlcError, match="the tokenizer is a WordLevel"):
        trim_tokenizer(whole, ["a"])
    marked = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")).to_str()
    with pytest.raises(TlcError, match="marks parts of words"):
        trim_tokenizer(marked, ["a"])
    with pytest.raises(TlcError, match="no texts to choose a vocabulary by"):
        trim_tokenizer(tiny_tokenizer().to_str(), [])
    padded = tiny_tokenizer()
    padded.enable_padding(pad_id=9999, pad_token="[PAD]")
    with pytest.raises(TlcError, match=r"tokenizer\.json uses the id 9999, which is no token of it"):
        trim_tokenizer(padded.to_str(), ["good"])


def test_padding_stays_where_positions_count_from_it() -> None:
    teacher = tiny("roberta", layers=1)
    content = json.loads(teacher.tokenizer)
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    far = vocabulary[last]
    vocabulary["<pad>"], vocabulary[last] = far, vocabulary["<pad>"]
    (pad,) = (token for token in content["added_tokens"] if token["content"] == "<pad>")
    pad["id"] = far
    teacher.module.get_submodule("model.roberta.embeddings").padding_idx = far
    moved = replace(teacher, tokenizer=json.dumps(content), text=teacher.text.model_copy(update={"pad_id": far}))

    with pytest.raises(TlcError, match=rf"the padding token would move from {far} to \d+, and this model counts"):
        trim_vocabulary(moved, TEXTS[:3])


def test_spec_is_read() -> None:
    assert parse_text_student("depth:3+width:0.5") == TextStudentSpec(3, 0.5, 0.5)
    assert parse_text_student("depth:1") == TextStudentSpec(1.0)
    assert parse_text_student("heads:6+intermediate:768+embedding:64+vocabulary:data") == TextStudentSpec(
        None, 6, 768, 64, True
    )
    assert is_text_student("vocabulary:data")
    assert not is_text_student("hf:depth")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("length:3", "'length:3' is not understood"),
        ("depth:0", r"depth:0 in 'depth:0' is out of range: the share to keep is above 0 and at most 1"),
        ("depth:1.5", "out of range"),
        ("width:2", "out of range"),
        ("heads:half", "out of range"),
        ("width:0.5+heads:2", "says heads twice"),
        ("depth:2+depth:3", "says depth twice"),
        ("embedding:0.5", "is no number of dimensions"),
        ("embedding:0", "is no number of dimensions"),
        ("vocabulary:en", "vocabulary:en in 'vocabulary:en' is not understood"),
        ("depth:9", "depth:9 keeps more than there are: the model has 2 layers"),
        ("heads:5", "the model has 4 heads per layer"),
        ("intermediate:65", "the model has 64 intermediate channels per layer"),
        ("embedding:32", "embedding:32 is not smaller: the word embeddings have 32 dimensions"),
    ],
)
def test_wrong_spec_is_refused_before_any_work(spec: str, message: str) -> None:
    teacher = tiny(layers=2)
    with pytest.raises(UsageError, match=message):
        check_text_student(teacher, spec)


def test_measuring_needs_texts() -> None:
    with pytest.raises(TlcError, match=r"'width:0.5' needs training texts"):
        text_student_from_teacher(tiny(layers=1), "width:0.5", score=lambda _module: 0.0, batches=[])


def test_mixed_heads_are_refused() -> None:
    teacher = tiny("deberta", layers=1)
    attention = teacher.module.get_submodule(self_attentions(teacher.module)[0].name)
    attention.head_logits_proj = nn.Linear(4, 4)
    with pytest.raises(TlcError, match="mixes its heads"):
        check_text_student(teacher, "heads:2")


def test_progress_reaches_its_end() -> None:
    teacher = tiny(layers=4)
    seen: list[tuple[int, int]] = []

    text_student_from_teacher(
        teacher,
        "depth:2+width:0.5",
        score=closeness(teacher),
        batches=feeds(teacher),
        on_progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == [(done, 12) for done in range(1, 13)]  # the teacher, 4 + 3 students, 4 batches


def test_share_that_keeps_all_changes_nothing() -> None:
    teacher = tiny(layers=2)

    student, record = text_student_from_teacher(
        teacher, "depth:1+width:1", score=lambda _module: 0.0, batches=feeds(teacher)
    )

    assert student is teacher
    assert record.parameters[0] == record.parameters[1]


@pytest.mark.assets
@pytest.mark.slow
def test_half_of_a_real_network_answers_nearly_as_all_of_it(assets: Path) -> None:
    folder = assets / "movie-sentiment"
    teacher = load_text_model(folder / "model")
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    seen, unseen = feeds(teacher, texts[:200], 50), feeds(teacher, texts[-200:], 50)

    student, record = text_student_from_teacher(
        teacher, "width:0.5+vocabulary:data", score=lambda _module: 0.0, batches=seen, texts=texts
    )

    assert (record.heads, record.intermediate) == ((12, 6), (1536, 768))
    assert record.vocabulary[1] < 0.5 * record.vocabulary[0]
    found = logits(student, feeds(student, texts[-200:], 50))
    agreement = (found.argmax(1) == logits(teacher, unseen).argmax(1)).float().mean()
    assert agreement > 0.85


def test_layers_are_paired_evenly_where_they_are_not_the_teachers() -> None:
    teacher, other = tiny(layers=2), tiny("electra", layers=2)

    assert even_layers(12, 3) == (3, 7, 11)
    assert even_layers(2, 4) == (0, 0, 0, 1)
    with pytest.raises(TlcError, match="not made of this teacher's layers"):
        kept_layers(teacher, other)
