"""Scores by hand on small cases, and by scikit-learn's own definitions."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tlc.calibration.cache import prepare
from tlc.calibration.data import read_data
from tlc.calibration.metrics import accuracy_change, agreement, predict, score
from tlc.calibration.preprocess import Preprocess
from tlc.runtime.errors import TlcError

Make = Callable[[Mapping[str, int]], Path]


def logits_for(predicted: list[int], classes: int) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[predicted]


def test_scores_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    accuracy = score(logits_for([0, 0, 1, 1, 1, 0], 3), labels, ("a", "b", "c"))
    assert (accuracy.samples, accuracy.correct, accuracy.top5) == (6, 4, None)
    assert accuracy.top1 == pytest.approx(4 / 6)
    assert accuracy.confusion == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert [c.recall for c in accuracy.per_class] == [pytest.approx(2 / 3), 1.0, 0.0]
    assert [c.precision for c in accuracy.per_class] == [pytest.approx(2 / 3), pytest.approx(2 / 3), 0.0]
    assert [c.support for c in accuracy.per_class] == [3, 2, 1]
    assert accuracy.macro_recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert accuracy.macro_f1 == pytest.approx((2 / 3 + 0.8 + 0) / 3)


def test_top5_counts_the_true_class_among_the_first_five() -> None:
    logits = np.tile(np.arange(8, 0, -1, dtype=np.float32), (8, 1))
    accuracy = score(logits, np.arange(8), tuple("abcdefgh"))
    assert accuracy.top5 == pytest.approx(5 / 8)
    assert accuracy.top1 == pytest.approx(1 / 8)


def test_ties_go_to_the_lower_class_in_every_count() -> None:
    accuracy = score(np.zeros((6, 6), np.float32), np.arange(6), tuple("abcdef"))
    assert accuracy.correct == 1 == np.trace(np.array(accuracy.confusion))
    assert accuracy.top5 == pytest.approx(5 / 6)


def test_roc_auc_of_two_classes_is_the_share_of_pairs_in_order() -> None:
    logits = np.array([[0, 0.1], [0, 0.4], [0, 0.35], [0, 0.8]], np.float32)
    assert score(logits, np.array([0, 0, 1, 1]), ("a", "b")).roc_auc == pytest.approx(0.75)


def test_roc_auc_is_absent_when_a_class_is() -> None:
    assert score(logits_for([0, 1, 1], 3), np.array([0, 1, 1]), ("a", "b", "c")).roc_auc is None


def test_roc_auc_of_many_classes_is_one_when_all_are_separated() -> None:
    accuracy = score(10 * logits_for([0, 1, 2, 0], 3), np.array([0, 1, 2, 0]), ("a", "b", "c"))
    assert (accuracy.roc_auc, accuracy.top1) == (1.0, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    logits = np.zeros((3, 2), np.float32)
    logits[1, 0] = value
    with pytest.raises(TlcError, match="hold NaN or infinity for 1 of 3 samples"):
        score(logits, np.array([0, 1, 0]), ("a", "b"))
    with pytest.raises(TlcError, match="hold NaN or infinity for 1 of 3 samples"):
        accuracy_change(np.zeros((3, 2)), logits, np.array([0, 1, 0]), ("a", "b"))


def test_change_counts_what_only_one_of_them_gets_right() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    before, after = [0, 0, 1, 1, 1, 1, 0, 1], [0, 1, 0, 0, 0, 1, 1, 1]
    change = accuracy_change(logits_for(before, 2), np.array(after), labels, ("a", "b"))
    assert (change.regressed, change.improved) == (3, 2)
    assert change.change_points.estimate == pytest.approx(-12.5)
    assert change.mcnemar_p == pytest.approx(1.0)
    first, second = change.per_class
    assert (first.support, second.support) == (3, 5)
    assert [first.before, first.after, second.before, second.after] == pytest.approx([2 / 3, 2 / 3, 0.8, 0.6])
    assert second.change_points.estimate == pytest.approx(-20.0)
    assert second.change_points.low < -20.0 < second.change_points.high


def test_change_carries_tangos_interval_in_points() -> None:
    # Tango 1998: 4 pairs right in both, 9 and 3 in one, 16 in none: 18.8 points (-2.7, 39.0).
    right_before = [True] * 4 + [False] * 9 + [True] * 3 + [False] * 16
    right_after = [True] * 13 + [False] * 19
    change = accuracy_change(
        1 - np.array(right_before, int), 1 - np.array(right_after, int), np.zeros(32, np.int64), ("a", "b")
    )
    interval = change.change_points
    assert interval.estimate == pytest.approx(18.75)
    assert [interval.low, interval.high] == pytest.approx([-2.7, 39.0], abs=0.05)
    assert (change.per_class[1].support, change.per_class[1].change_points.low) == (0, -100.0)


def test_equal_models_have_no_change_but_an_interval() -> None:
    predicted = np.array([0, 1, 1, 0])
    change = accuracy_change(predicted, predicted, np.array([0, 1, 0, 0]), ("a", "b"))
    assert (change.regressed, change.improved, change.mcnemar_p) == (0, 0, 1.0)
    assert change.change_points.low < 0 < change.change_points.high


def test_agreement_finds_the_worst_sample() -> None:
    reference = np.array([[1, 0], [0, 2], [3, 4]], np.float32)
    candidate = np.array([[1, 0], [0, 2], [4, 3]], np.float32)
    found = agreement(reference, candidate)
    assert (found.samples, found.max_abs_error) == (3, 1.0)
    assert found.cosine == pytest.approx(24 / 25)
    assert found.top1_agreement == pytest.approx(2 / 3)


def test_agreement_of_zero_outputs() -> None:
    zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    assert agreement(zero, zero).cosine == 1.0
    assert agreement(one, zero).cosine == 0.0


def test_predict_keeps_the_order_over_batches(make: Make) -> None:
    images = read_data(make({"ant": 10, "bee": 10})).fit
    pixels = prepare(images, Preprocess(size=(8, 8), resize=10, mean=(0.5,) * 3, std=(0.5,) * 3))
    sizes = []

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes.append(len(inputs))
        return np.asarray(inputs.mean(axis=(2, 3)))

    logits = predict(run, pixels, batch_size=4)
    assert sizes == [4, 4, 4, 1]
    np.testing.assert_allclose(logits, pixels.batch(range(13)).mean(axis=(2, 3)))
