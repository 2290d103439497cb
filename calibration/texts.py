"""Texts with labels: one split of a data set, its three splits, and how files become them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tlc.runtime.artifact import sha256_json

Task = Literal["sequence-classification", "token-classification", "question-answering"]
"""What a model's head answers: one class per text (or pair), one class per word, or a part of the context."""
Answer = tuple[str, int]
"""Text of an answer and the character of the context where it starts."""
UNLABELED = -100
"""Label of a text without one; torch's cross entropy leaves it out."""

_T = TypeVar("_T")


class Columns(BaseModel):
    """Names of a table's columns; None: found by their usual names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    text: str | None = None
    """The text, the words of token classification, or the question."""
    pair: str | None = None
    """The second text of a pair, or the context of a question."""
    label: str | None = None
    """The class, the words' tags, or the answers."""


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


@dataclass(frozen=True, slots=True)
class TextSplits:
    """A data set's samples by what they may be used for."""

    fit: TextSet
    """Trained and calibrated on."""
    holdout: TextSet
    """Never fitted: early stopping, and every choice that the pipeline makes."""
    evaluation: TextSet
    """Measured once, at the end."""
    skipped: tuple[str, ...]
    """`key: reason` of each sample left out."""
    path: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.fit.classes

    @property
    def digest(self) -> str:
        """SHA-256 over every sample's split, content and label."""
        return sha256_json([part.digest for part in (self.fit, self.holdout, self.evaluation)])
