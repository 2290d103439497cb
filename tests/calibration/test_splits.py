"""Splits are disjoint, stratified, a function of the seed, and keep copies together."""

import numpy as np
import pytest

from tlc.calibration.splits import holdout_count, stratified


def distinct(count: int) -> tuple[str, ...]:
    return tuple(f"{i:08d}" for i in range(count))


@pytest.mark.parametrize("seed", range(20))
def test_every_class_gives_in_proportion_and_keeps_at_least_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 200, rng.integers(2, 12))
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
    count = holdout_count(len(labels))
    mask = stratified(labels, distinct(len(labels)), count, seed=seed)
    taken = np.bincount(labels[mask], minlength=len(sizes))
    assert (taken >= 1).all()
    assert (taken < sizes).all()
    assert (np.abs(taken - np.maximum(1, sizes * count / len(labels))) <= 1).all()
    assert abs(int(mask.sum()) - count) <= len(sizes)


def test_the_seed_decides_and_nothing_else() -> None:
    labels = np.repeat(np.arange(4), 50).astype(np.int64)
    first, again, other = (stratified(labels, distinct(200), 40, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert first.sum() == other.sum() == 40


def test_copies_of_a_sample_are_chosen_together() -> None:
    rng = np.random.default_rng(0)
    digests = tuple(str(value) for value in rng.integers(0, 60, 300))
    labels = rng.integers(0, 3, 300)
    mask = stratified(labels, digests, 60, seed=0)
    chosen, rest = ({d for d, m in zip(digests, mask, strict=True) if m is np.bool_(side)} for side in (True, False))
    assert chosen
    assert not chosen & rest


def test_a_class_with_one_distinct_image_keeps_it() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1], np.int64)
    digests = ("same", "same", "same", "a", "b", "c", "d")
    mask = stratified(labels, digests, 3, seed=0)
    assert not mask[:3].any()
    assert 1 <= mask[3:].sum() <= 3


def test_a_class_of_two_gives_one() -> None:
    mask = stratified(np.array([0, 0, 1, 1], np.int64), distinct(4), 1, seed=3)
    assert mask[:2].sum() == mask[2:].sum() == 1


@pytest.mark.parametrize(("train", "held"), [(10, 2), (245, 49), (50_000, 2_500), (2_000_000, 2_500)])
def test_the_holdout_is_large_enough_to_decide_and_small_enough_to_spare(train: int, held: int) -> None:
    assert holdout_count(train) == held


def test_a_larger_holdout_can_be_asked_for() -> None:
    assert holdout_count(1_000, 0.3) == 300
