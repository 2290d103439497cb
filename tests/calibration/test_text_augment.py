"""Variants of training texts."""

import numpy as np
import pytest
import tiny_tokens
from pydantic import ValidationError

from tlc.calibration.text_augment import TextAugment, augmented
from tlc.calibration.text_set import UNLABELED
from tlc.calibration.tokens import Tokens, encode, mask_token_id

JSON = tiny_tokens.wordpiece()
MASK = mask_token_id(JSON) or -1
CLS, SEP = 2, 3
NONE = TextAugment(span=0, splice=0, mask=0, drop=0)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def only(way: str, token_ratio: float = 0.15) -> TextAugment:
    return NONE.model_copy(update={way: 1.0, "token_ratio": token_ratio})


def texts(count: int = 200, *, paired: bool = False, max_length: int = 16) -> Tokens:
    """Return texts of which each has one letter only, so that it can be told where a part came from."""
    rng = np.random.default_rng(0)
    made = [" ".join("abcdefgh"[i % 8] * int(n)) for i, n in enumerate(rng.integers(5, 14, count))]
    pairs = [" ".join("hgfedcba"[i % 8] * 4) for i in range(count)] if paired else None
    labels = [i % 2 for i in range(count)]
    return encode(
        tiny_tokens.text_set(made, pairs=pairs, labels=labels),
        JSON,
        tiny_tokens.fed_by(JSON, max_length=max_length, inputs=INPUTS),
    )


def same(one: Tokens, other: Tokens) -> list[bool]:
    return [np.array_equal(a, b) for a, b in zip(one.ids, other.ids, strict=True)]


def test_a_view_is_a_function_of_seed_view_and_place() -> None:
    tokens = texts()
    first = augmented(tokens, seed=1, view=0, mask_id=MASK)
    assert all(same(first, augmented(tokens, seed=1, view=0, mask_id=MASK)))
    assert not all(same(first, augmented(tokens, seed=1, view=1, mask_id=MASK)))
    assert not all(same(first, augmented(tokens, seed=2, view=0, mask_id=MASK)))
    masked = augmented(tokens, seed=1, view=0, mask_id=MASK, augment=only("mask"))
    fewer = augmented(tokens.subset(range(50)), seed=1, view=0, mask_id=MASK, augment=only("mask"))
    assert all(same(fewer, masked.subset(range(50))))


def test_every_variant_is_a_valid_input_of_the_same_sample() -> None:
    tokens = texts()
    before = [ids.copy() for ids in tokens.ids]
    view = augmented(tokens, seed=0, view=3, mask_id=MASK)
    assert len(view) == len(tokens)
    for ids, types, parts in zip(view.ids, view.types, view.parts, strict=True):
        assert (ids[0], ids[-1]) == (CLS, SEP)
        assert len(ids) == len(types) == len(parts) <= tokens.fed.max_length
        assert parts.tolist() == [-1, *[0] * (len(ids) - 2), -1]
        assert len(ids) >= 3
    assert view.feeds(range(8))["input_ids"].shape == view.feeds(range(8))["attention_mask"].shape
    assert all(np.array_equal(a, b) for a, b in zip(before, tokens.ids, strict=True))


def test_ways_are_drawn_as_often_as_asked() -> None:
    tokens = texts(2000)
    view = augmented(tokens, seed=0, view=0, mask_id=MASK)
    masked = np.mean([MASK in ids for ids in view.ids])
    assert abs(np.mean(view.labels == UNLABELED) - 0.52) < 0.04  # spans and splices
    assert 0.08 < masked < 0.17  # of 16 %, some without a masked token
    known = view.labels != UNLABELED
    assert view.labels[known].tolist() == tokens.labels[known].tolist()
    assert all(same(augmented(tokens, seed=0, view=0, mask_id=MASK, augment=NONE), tokens))


def test_a_span_is_a_part_of_the_text() -> None:
    tokens = texts()
    view = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("span"))
    for ids, whole in zip(view.ids, tokens.ids, strict=True):
        assert len(ids) <= len(whole)
        assert set(ids[1:-1]) == set(whole[1:-1])
    assert (view.labels == UNLABELED).all()
    assert len({len(ids) for ids in view.ids}) > 5


def test_a_splice_is_followed_by_a_part_of_another_text() -> None:
    tokens = texts(max_length=16)
    view = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("splice"))
    two = sum(len(set(ids[1:-1].tolist())) == 2 for ids in view.ids)
    assert two > 100
    assert all(ids[1] == whole[1] for ids, whole in zip(view.ids, tokens.ids, strict=True))
    assert view.lengths.max() == 16  # cut to the limit


def test_tokens_are_masked_or_dropped_but_never_the_special_ones() -> None:
    tokens = texts(500)
    masked = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("mask", 0.3))
    share = np.mean(np.concatenate([ids[1:-1] == MASK for ids in masked.ids]))
    assert abs(share - 0.3) < 0.03
    assert masked.lengths.tolist() == tokens.lengths.tolist()
    assert masked.labels.tolist() == tokens.labels.tolist()
    dropped = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("drop", 0.3))
    kept = (dropped.lengths - 2).sum() / (tokens.lengths - 2).sum()
    assert abs(kept - 0.7) < 0.03
    assert all(ids[0] == CLS and ids[-1] == SEP for ids in (*masked.ids, *dropped.ids))
    emptied = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("drop", 0.99))
    assert emptied.lengths.min() == 3


def test_of_a_pair_one_text_is_varied_and_types_stay_true() -> None:
    tokens = texts(paired=True, max_length=24)
    view = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("span"))
    changed = set()
    for i, (ids, parts) in enumerate(zip(view.ids, view.parts, strict=True)):
        assert view.types[i].tolist() == [*[0] * (int(np.argmax(parts == 1))), *[1] * (int((parts == 1).sum()) + 1)]
        for part in (0, 1):
            if (parts == part).sum() != (tokens.parts[i] == part).sum():
                changed.add(part)
            assert set(ids[parts == part]) == set(tokens.ids[i][tokens.parts[i] == part])
        assert any((parts == part).sum() == (tokens.parts[i] == part).sum() for part in (0, 1))
    assert changed == {0, 1}


def test_short_texts_stay_whole() -> None:
    tokens = encode(tiny_tokens.text_set(["a b"] * 20, labels=[1] * 20), JSON, tiny_tokens.fed_by(JSON))
    view = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("span"))
    assert all(same(view, tokens))
    assert view.labels.tolist() == [1] * 20


def test_words_with_tags_are_masked_in_place() -> None:
    words = tiny_tokens.text_set(
        ["a paris b"] * 50, task="token-classification", classes=("O", "L"), tags=[[0, 1, 0]] * 50
    )
    tokens = encode(words, JSON, tiny_tokens.fed_by(JSON, "token-classification"))
    view = augmented(tokens, seed=0, view=0, mask_id=MASK, augment=only("span", 0.5))
    assert view.lengths.tolist() == tokens.lengths.tolist()
    changed = np.concatenate([a[a != b] for a, b in zip(view.ids, tokens.ids, strict=True)])
    assert set(changed.tolist()) == {MASK}
    assert view.flat_labels.tolist() == tokens.flat_labels.tolist()


def test_of_a_question_the_context_stays_as_it_is() -> None:
    asked = tiny_tokens.text_set(
        ["a b c ?"] * 50, task="question-answering", classes=(), pairs=["d paris e"] * 50, answers=[[("paris", 2)]] * 50
    )
    tokens = encode(asked, JSON, tiny_tokens.fed_by(JSON, "question-answering"))
    view = augmented(tokens, seed=0, view=0, mask_id=MASK)
    assert any(MASK in ids for ids in view.ids)
    for ids, whole, parts in zip(view.ids, tokens.ids, tokens.parts, strict=True):
        assert np.array_equal(ids[parts != 0], whole[parts != 0])
    assert view.spans is tokens.spans


def test_probabilities_beyond_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"their sum is 1\.2"):
        TextAugment(span=0.5, splice=0.5, mask=0.2, drop=0)
