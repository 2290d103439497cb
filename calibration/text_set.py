"""Labelled texts: one split of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.artifact import sha256_json

Task = Literal["sequence-classification", "token-classification", "question-answering"]
"""What a model's head answers: one class per text (or pair), one class per word, or a part of the context."""
Answer = tuple[str, int]
"""Text of an answer and the character of the context where it starts."""
UNLABELED = -100
"""Label of a text without one; torch's cross entropy leaves it out."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class TextSet:
    """Texts with labels, in a fixed order."""

    task: Task
    classes: tuple[str, ...]
    """Names of the labels or tags; empty for question answering."""
    texts: tuple[str, ...]
    """The text, the question, or the words joined by spaces."""
    labels: NDArray[np.int64]
    """(N,), positions in `classes`, or `UNLABELED`; zeros for the other tasks."""
    keys: tuple[str, ...]
    """Name of each sample: its file and line, `train.csv:12`, or the path of its own file."""
    digests: tuple[str, ...]
    """SHA-256 of each sample's text, pair and words, hex."""
    pairs: tuple[str, ...] | None = None
    """The second text of each sample, or the question's context."""
    words: tuple[tuple[str, ...], ...] | None = None
    """Words of each sample, for token classification only."""
    tags: tuple[tuple[int, ...], ...] | None = None
    """Position in `classes`, or `UNLABELED`, of each word, for token classification only."""
    answers: tuple[tuple[Answer, ...], ...] | None = None
    """Right answers of each sample, none where the context has none, for question answering only."""

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, indices: NDArray[np.int64] | Sequence[int]) -> "TextSet":
        """Return the samples at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)

        def picked(values: tuple[_T, ...] | None) -> tuple[_T, ...] | None:
            return None if values is None else tuple(values[i] for i in chosen.tolist())

        return replace(
            self,
            texts=picked(self.texts) or (),
            labels=self.labels[chosen],
            keys=picked(self.keys) or (),
            digests=picked(self.digests) or (),
            pairs=picked(self.pairs),
            words=picked(self.words),
            tags=picked(self.tags),
            answers=picked(self.answers),
        )

    def joined(self, other: "TextSet") -> "TextSet":
        """Return these samples followed by those of `other`, which has the same task, classes and parts."""
        if (self.task, self.classes, self.pairs is None) != (other.task, other.classes, other.pairs is None):
            raise ValueError("only sets of one task, with the same classes and parts, can be joined")

        def both(mine: tuple[_T, ...] | None, theirs: tuple[_T, ...] | None) -> tuple[_T, ...] | None:
            return None if mine is None or theirs is None else mine + theirs

        return replace(
            self,
            texts=self.texts + other.texts,
            labels=np.concatenate([self.labels, other.labels]),
            keys=self.keys + other.keys,
            digests=self.digests + other.digests,
            pairs=both(self.pairs, other.pairs),
            words=both(self.words, other.words),
            tags=both(self.tags, other.tags),
            answers=both(self.answers, other.answers),
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the samples' contents, labels and class names, in order."""
        return sha256_json(
            [self.task, self.classes, self.labels.tolist(), self.tags, self.answers, self.digests],
        )
