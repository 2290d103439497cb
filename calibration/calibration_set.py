"""Which samples quantization is calibrated on."""

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.errors import TlcError


def balanced_indices(labels: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Return `count` different positions in `labels`, as many of each class as there are, chosen by `seed`.

    Classes take turns, so every prefix is balanced too; a class that runs out leaves its turns to the others.
    Raises TlcError when there are fewer than `count` samples.

    >>> balanced_indices(np.array([0, 0, 0, 0, 1, 1]), 4, seed=0).tolist()
    [5, 3, 4, 2]
    """
    if not 1 <= count <= len(labels):
        raise TlcError(
            f"{count} calibration samples asked for, {len(labels)} are available",
            hint=f"Ask for at most {len(labels)}, or add training images." if count > 0 else "Ask for at least 1.",
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    classes, position = np.unique(labels[shuffled], return_inverse=True)
    turn = np.empty(len(labels), np.int64)
    for label in range(len(classes)):
        members = np.flatnonzero(position == label)
        turn[members] = np.arange(len(members))
    order = np.lexsort((rng.permutation(len(classes))[position], turn))
    return shuffled[order[:count]].astype(np.int64)
