"""The calibration set is balanced, repeatable, and refused when there are too few samples."""

import numpy as np
import pytest

from tlc.calibration.calibration_set import balanced_indices
from tlc.runtime.errors import TlcError


@pytest.mark.parametrize("seed", range(10))
def test_classes_are_equal_as_far_as_there_are_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, 6)
    labels = rng.permutation(np.repeat(np.arange(6), sizes)).astype(np.int64)
    count = int(rng.integers(1, len(labels) + 1))
    indices = balanced_indices(labels, count, seed=seed)
    assert len(set(indices.tolist())) == len(indices) == count
    taken = np.bincount(labels[indices], minlength=6)
    full = taken == sizes
    assert taken[~full].max(initial=0) - taken[~full].min(initial=1 << 30) <= 1
    assert full.all() or taken[full].max(initial=0) <= taken[~full].max()


def test_every_prefix_is_balanced() -> None:
    labels = np.repeat(np.arange(5), 20).astype(np.int64)
    indices = balanced_indices(labels, 50, seed=0)
    for length in range(5, 51, 5):
        assert np.bincount(labels[indices[:length]]).tolist() == [length // 5] * 5


def test_the_seed_decides() -> None:
    labels = np.repeat(np.arange(5), 20).astype(np.int64)
    first, again, other = (balanced_indices(labels, 30, seed=seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_fewer_samples_than_classes() -> None:
    labels = np.repeat(np.arange(50), 3).astype(np.int64)
    assert len(set(labels[balanced_indices(labels, 10, seed=0)].tolist())) == 10


@pytest.mark.parametrize("count", [11, 0, -1])
def test_too_few_samples_are_refused(count: int) -> None:
    with pytest.raises(TlcError, match=f"{count} calibration samples asked for, 10 are available"):
        balanced_indices(np.zeros(10, np.int64), count, seed=0)
