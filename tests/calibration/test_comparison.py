"""Paired changes: counts, what several looks cost, whole samples resampled, and the list of what changed."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from tlc.calibration.comparison import (
    Judged,
    bootstrapped_change,
    bootstrapped_macro_f1,
    changed_samples,
    class_changes,
    judged,
    paired_changes,
    samples_of_rows,
    words_shown,
)
from tlc.calibration.text_set import UNLABELED, TextSet
from tlc.calibration.token_set import TextInput, Tokens
from tlc.runtime.statistics import difference_interval, holm, mcnemar_p

CLASSES = ("ant", "bee", "cat")


def logits_of(predicted: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.eye(3, dtype=np.float32)[predicted] * 4


def pair(labels: NDArray[np.int64], lost: int, won: int) -> tuple[Judged, Judged]:
    """A is wrong about the last `won`, B about the first `lost`."""
    before, after = labels.copy(), labels.copy()
    after[:lost] = (after[:lost] + 1) % 3
    if won:
        before[-won:] = (before[-won:] + 1) % 3
    return judged(logits_of(before), labels, CLASSES), judged(logits_of(after), labels, CLASSES)


def test_changes_of_several_data_sets_share_the_error() -> None:
    labels = np.arange(90) % 3
    counts = [(7, 0), (3, 4), (0, 9)]

    found = paired_changes([pair(labels, lost, won) for lost, won in counts])

    assert [(change.lost, change.won) for change in found] == counts
    p_values = [mcnemar_p(lost, won) for lost, won in counts]
    assert [change.p for change in found] == p_values
    assert [change.adjusted_p for change in found] == holm(p_values)
    assert [change.finding for change in found] == ["worse", "not shown", "better"]
    assert found[0].change_points.estimate == pytest.approx(100 * -7 / 90)
    low, high = difference_interval(7, 0, 90)
    assert (found[0].change_points.low, found[0].change_points.high) == (100 * low, 100 * high)
    assert (found[0].before_ratio, found[0].after_ratio) == (1, 83 / 90)


def test_a_class_without_samples_makes_no_other_harder_to_show() -> None:
    labels = np.repeat([0, 1], 30)
    a, b = pair(labels, 6, 0)

    found = class_changes(a, b, labels, CLASSES)

    assert [(change.name, change.rows, change.lost) for change in found] == [
        ("ant", 30, 6),
        ("bee", 30, 0),
        ("cat", 0, 0),
    ]
    assert [change.adjusted_p for change in found] == [2 * mcnemar_p(6, 0), 1.0, 1.0]
    assert found[2].finding == "not shown"


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, before, after = (rng.integers(0, 3, 60) for _ in range(3))
    a, b = (judged(logits_of(predicted), labels, CLASSES) for predicted in (before, after))

    found = bootstrapped_macro_f1(a, b, labels, np.arange(60), 60, 3)

    assert found is not None
    known = [f1_score(labels, predicted, average="macro") for predicted in (before, after)]
    assert found.estimate == pytest.approx(100 * (known[1] - known[0]))
    assert found.low < found.estimate < found.high


def test_words_of_one_text_count_together() -> None:
    labels = np.zeros(400, np.int64)
    a, b = pair(labels, 100, 0)
    alone, together = np.arange(400), np.arange(400) // 20  # All losses are in 5 of 20 texts.

    independent = bootstrapped_change(a, b, alone, 400)
    clustered = bootstrapped_change(a, b, together, 20)

    assert independent.estimate == clustered.estimate == -25
    assert clustered.high - clustered.low > 3 * (independent.high - independent.low)


def test_changed_samples_come_lost_first() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    a = judged(logits_of(np.array([1, 1, 2, 0, 0])), labels, CLASSES)
    b = judged(logits_of(np.array([2, 0, 2, 0, 1])), labels, CLASSES)

    found = changed_samples(
        a, b, np.arange(5), keys=list("vwxyz"), texts=None, truths=[CLASSES[label] for label in labels]
    )

    assert [(sample.key, sample.outcome) for sample in found] == [("w", "lost"), ("z", "won"), ("v", "other")]
    first = found[0]
    assert (first.position, first.truth, first.answer_a, first.answer_b) == (1, "bee", "bee", "ant")
    assert first.confidence_a == pytest.approx(np.exp(4) / (np.exp(4) + 2))


def test_of_tagged_words_those_that_changed_are_named() -> None:
    names = ("O", "LOC", "PER")
    texts = TextSet(
        "token-classification", names, ("anna in rome", "ben"), np.zeros(2, np.int64), ("k:1", "k:2"), ("d", "e"),
        words=(("anna", "in", "rome"), ("ben",)), tags=((2, 0, 1), (2,)),
    )  # fmt: skip
    fed = TextInput(
        task="token-classification", max_length=8, inputs=("input_ids", "attention_mask"), pad_id=0,
        tokenizer_sha256="0" * 64,
    )  # fmt: skip
    placed = (np.array([UNLABELED, 2, 0, 1, UNLABELED]), np.array([UNLABELED, 2, UNLABELED]))
    tokens = Tokens(texts, fed, placed, placed, placed, texts.labels, np.zeros(2, bool), tags=placed)
    labels = tokens.flat_labels
    a = judged(logits_of(labels), labels, names)
    b = judged(logits_of(np.array([0, 0, 2, 2])), labels, names)
    words = words_shown(tokens)

    (found,) = changed_samples(
        a, b, samples_of_rows(tokens), keys=texts.keys, texts=texts.texts,
        truths=[names[label] for label in labels.tolist()], words=words,
    )  # fmt: skip

    assert words == ["anna", "in", "rome", "ben"]
    assert found.answer_a == found.truth == "anna: PER; rome: LOC"
    assert found.answer_b == "anna: O; rome: PER"
    assert (found.outcome, found.confidence_a, found.text) == ("lost", None, "anna in rome")
