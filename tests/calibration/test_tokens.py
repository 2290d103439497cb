"""Encoding, padding, and putting a model's outputs back in order."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_tokens
from numpy.typing import NDArray

from tlc.calibration.text_set import UNLABELED
from tlc.calibration.texts import read_texts
from tlc.calibration.tokens import (
    MASKED_LOGIT,
    TextInput,
    Tokens,
    choose_max_length,
    encode,
    gather,
    load_tokenizer,
    mask_token_id,
    token_lengths,
)
from tlc.runtime.errors import TlcError

JSON = tiny_tokens.wordpiece()
PAD, UNK, CLS, SEP, MASK, A, B, C, D, E, F, G, H, X, Y, QUESTION, PARIS, ROME = range(18)
ALL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def sequences(texts: list[str], pairs: list[str] | None = None, **options: int) -> Tokens:
    texts_ = tiny_tokens.text_set(texts, pairs=pairs, labels=[i % 2 for i in range(len(texts))])
    return encode(texts_, JSON, tiny_tokens.fed_by(JSON, inputs=ALL_INPUTS, **options))  # type: ignore[arg-type]


def tagged(texts: list[str], tags: list[list[int]], max_length: int = 16) -> Tokens:
    fed = tiny_tokens.fed_by(JSON, "token-classification", max_length)
    texts_ = tiny_tokens.text_set(texts, task="token-classification", classes=("O", "P", "L"), tags=tags)
    return encode(texts_, JSON, fed)


def questions(max_length: int = 16) -> Tokens:
    texts_ = tiny_tokens.text_set(
        ["a b ?", "c ?", "d ?"],
        task="question-answering",
        classes=(),
        pairs=["e f paris rome g", "h h", "h h h h h h h h h h rome"],
        answers=[[("paris rome", 4), ("g", 15)], [], [("rome", 20)]],
    )
    return encode(texts_, JSON, tiny_tokens.fed_by(JSON, "question-answering", max_length))


def test_texts_become_ids_as_bert_has_them_and_are_padded_by_batch() -> None:
    tokens = sequences(["a bxy c", "Paris?", "q"])
    assert tokens.lengths.tolist() == [7, 4, 3]
    feeds = tokens.feeds([1, 0])
    assert list(feeds) == list(ALL_INPUTS)  # in the order of the model's inputs
    assert feeds["input_ids"].tolist() == [[CLS, PARIS, QUESTION, SEP, PAD, PAD, PAD], [CLS, A, B, X, Y, C, SEP]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert not feeds["token_type_ids"].any()
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}
    assert tokens.feeds(np.array([2]))["input_ids"].tolist() == [[CLS, UNK, SEP]]
    assert tokens.feeds([2], pad_to=8)["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert tokens.targets([2, 1], 8).tolist() == [0, 1]
    assert tokens.flat_labels.tolist() == [0, 1, 0]
    fed = tokens.fed.model_copy(update={"pad_id": 9})
    assert replace(tokens, fed=fed).feeds([2, 1])["input_ids"].tolist() == [[CLS, UNK, SEP, 9], [*tokens.ids[1]]]
    with pytest.raises(ValueError, match="cannot pad 7 tokens to 6"):
        tokens.feeds([0], pad_to=6)


def test_texts_over_the_limit_are_cut_and_counted() -> None:
    tokens = sequences(["a a a a a a", "a a a a a a a", "b b b b b b b b b b b"], max_length=8)
    assert tokens.lengths.tolist() == [8, 8, 8]
    assert (tokens.truncated, tokens.cut.tolist()) == (2, [False, True, True])
    assert tokens.subset([2, 0]).truncated == 1
    assert tokens.ids[2].tolist() == [CLS, *[B] * 6, SEP]


def test_of_a_pair_the_longer_text_is_cut_first() -> None:
    tokens = sequences(["a a a a a a a a"], ["b b"], max_length=8)
    assert tokens.ids[0].tolist() == [CLS, A, A, A, SEP, B, B, SEP]
    assert tokens.feeds([0])["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    assert tokens.parts[0].tolist() == [-1, 0, 0, 0, -1, 1, 1, -1]


def test_a_word_has_its_tag_at_its_first_token() -> None:
    tokens = tagged(["a bxy paris", "rome c"], [[0, 1, 2], [2, 0]])
    assert tokens.ids[0].tolist() == [CLS, A, B, X, Y, PARIS, SEP]
    assert tokens.targets([1, 0], 7).tolist() == [
        [-100, 2, 0, -100, -100, -100, -100],
        [-100, 0, 1, -100, -100, 2, -100],
    ]
    assert tokens.flat_labels.tolist() == [0, 1, 2, 2, 0]
    cut = tagged(["a bxyxyxyx c"], [[1, 2, 0]], max_length=8)
    assert (cut.flat_labels.tolist(), cut.truncated) == ([1, 2], 1)


def test_a_question_keeps_its_length_and_its_answer_is_a_span_of_tokens() -> None:
    tokens = questions(max_length=12)
    assert tokens.ids[0].tolist() == [CLS, A, B, QUESTION, SEP, E, F, PARIS, ROME, G, SEP]
    # The second has no answer; the third one's was cut off.
    assert tokens.targets([0, 1, 2], 12).tolist() == [[7, 8], [0, 0], [UNLABELED, UNLABELED]]
    assert tokens.truncated == 1
    assert questions(max_length=16).spans is not None
    assert questions(max_length=16).targets([2], 16).tolist() == [[14, 14]]
    long = tiny_tokens.text_set(
        ["a a a a a"], task="question-answering", pairs=["b paris? c d"], classes=(), answers=[[("paris", 2)]]
    )
    cut = encode(long, JSON, tiny_tokens.fed_by(JSON, "question-answering", 11))
    assert cut.ids[0].tolist() == [CLS, A, A, A, A, A, SEP, B, PARIS, QUESTION, SEP]  # The context alone is cut.
    assert cut.targets([0], 11).tolist() == [[8, 8]]
    with pytest.raises(TlcError, match=r"t:0: the question has 5 tokens; with 3 special ones that leaves no room .* 8"):
        encode(long, JSON, tiny_tokens.fed_by(JSON, "question-answering", 8))


def test_the_tokenizers_own_limits_do_not_count() -> None:
    texts = tiny_tokens.text_set(["a", "a b c d e f g h"])
    assert token_lengths(texts, JSON).tolist() == [3, 10]
    assert encode(texts, JSON, tiny_tokens.fed_by(JSON)).lengths.tolist() == [3, 10]


def test_batches_hold_every_sample_once_and_similar_lengths_together() -> None:
    rng = np.random.default_rng(0)
    tokens = sequences([" ".join("a" * int(n)) for n in rng.integers(1, 14, 50)])
    batches = list(tokens.batches(8))
    assert sorted(np.concatenate(batches).tolist()) == list(range(50))
    assert [len(batch) for batch in batches] == [8] * 6 + [2]
    lengths = tokens.lengths
    assert (np.diff(lengths[np.concatenate(batches)]) >= 0).all()


def test_outputs_come_back_in_the_order_of_the_samples() -> None:
    tokens = sequences([" ".join("abcdefgh"[: 1 + i % 8]) for i in range(20)])
    widths = set()

    def run(feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        widths.add(feeds["input_ids"].shape[1])
        sums = (feeds["input_ids"] * feeds["attention_mask"]).sum(axis=1)
        return np.stack([sums, -sums], axis=1).astype(np.float32)

    logits = gather(run, tokens, batch_size=3)
    assert logits[:, 0].tolist() == [float(ids.sum()) for ids in tokens.ids]
    assert logits.dtype == np.float32
    assert len(widths) > 3  # padded to the longest of each batch only


def test_outputs_of_tagged_tokens_are_flat() -> None:
    tokens = tagged(["a bxy paris", "c", "rome c"], [[0, 1, 2], [1], [2, 0]])
    logits = gather(lambda feeds: np.eye(18)[feeds["input_ids"]], tokens, batch_size=2)
    assert logits.argmax(axis=1).tolist() == [A, B, PARIS, C, ROME, C]
    assert len(logits) == len(tokens.flat_labels)


def test_answers_can_only_be_in_the_context_or_at_the_first_token() -> None:
    tokens = questions(max_length=12)
    logits = gather(
        lambda feeds: np.stack([feeds["input_ids"], 100 + feeds["input_ids"]], axis=2), tokens, batch_size=2
    )
    assert logits.shape == (3, 2, 12)
    masked = MASKED_LOGIT
    assert logits[0, 0].tolist() == [CLS, *[masked] * 4, E, F, PARIS, ROME, G, masked, masked]
    assert logits[1, 1].tolist() == [100 + CLS, *[masked] * 3, 100 + H, 100 + H, *[masked] * 6]
    assert np.isfinite(logits).all()


def test_sets_are_cut_and_joined_with_all_their_parts() -> None:
    tokens = questions()
    both = tokens.subset([2]).joined(tokens.subset([0, 1]))
    assert both.texts.texts == ("d ?", "a b ?", "c ?")
    assert both.targets([0, 1, 2], 16).tolist() == [[14, 14], [7, 8], [0, 0]]
    assert both.offsets is not None
    assert both.offsets[1][7].tolist() == [4, 9]
    tags = tagged(["a b", "c"], [[0, 1], [2]])
    assert tags.subset([1]).joined(tags).flat_labels.tolist() == [2, 0, 1, 2]
    with pytest.raises(ValueError, match="encoded alike"):
        tokens.joined(questions(max_length=12))


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([3], 512, 8),
        ([16], 512, 16),
        ([17], 512, 24),
        ([*[10] * 999, 400], 512, 16),  # one in a thousand may be cut
        ([*[10] * 998, 400, 400], 512, 400),
        ([500], 100, 100),
    ],
)
def test_the_length_limit_is_what_almost_all_texts_need(lengths: list[int], limit: int, expected: int) -> None:
    assert choose_max_length(np.array(lengths), limit) == expected


def test_no_lengths_are_no_choice() -> None:
    with pytest.raises(ValueError, match="no lengths"):
        choose_max_length(np.zeros(0, np.int64), 512)


def test_another_tokenizer_than_the_recorded_one_is_refused() -> None:
    other = TextInput(
        task="sequence-classification", max_length=8, inputs=("input_ids", "attention_mask"), pad_id=0,
        tokenizer_sha256="0" * 64,
    )  # fmt: skip
    with pytest.raises(TlcError, match="the model was made with 0000000000000000") as caught:
        encode(tiny_tokens.text_set(["a"]), JSON, other)
    assert "beside the model" in caught.value.hint


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(TlcError, match="is not a tokenizer: ") as caught:
        load_tokenizer('{"version": "1.0"}')
    assert "save_pretrained" in caught.value.hint


def test_texts_without_the_tokenizers_library_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TlcError, match="texts need the tokenizers library") as caught:
        load_tokenizer(JSON)
    assert caught.value.hint == "Run: pip install tokenizers."


def test_an_input_that_texts_cannot_fill_is_refused() -> None:
    texts = tiny_tokens.text_set(["a"])
    tokens = encode(texts, JSON, tiny_tokens.fed_by(JSON, inputs=("input_ids", "bbox")))
    with pytest.raises(TlcError, match="takes an input 'bbox'"):
        tokens.feeds([0])


def test_the_mask_token_is_found() -> None:
    assert mask_token_id(JSON) == MASK
    assert mask_token_id(JSON.replace("[MASK]", "[GAP]")) is None


def test_ids_are_those_that_transformers_makes() -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(JSON), pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    texts, pairs = ["a b c d e f g h", "bxy ?", "Paris"], ["c", "a b c d e f g h rome", "b"]
    expected = theirs(
        texts, pairs, truncation=True, max_length=10, padding=True, return_tensors="np", return_token_type_ids=True
    )
    found = sequences(texts, pairs, max_length=10).feeds(range(3))
    for name in ALL_INPUTS:
        assert found[name].tolist() == expected[name].tolist(), name


@pytest.mark.assets
def test_the_real_tokenizer_on_real_reviews(assets: Path) -> None:
    folder = assets / "movie-sentiment"
    content = (folder / "model" / "tokenizer.json").read_text(encoding="utf-8")
    splits = read_texts(folder, task="sequence-classification")
    lengths = token_lengths(splits.fit, content)
    assert choose_max_length(lengths, 512) == 64
    fed = tiny_tokens.fed_by(content, max_length=64)
    assert encode(splits.fit, content, fed).truncated == (lengths > 64).sum()
