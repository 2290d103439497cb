"""Random variants of training texts, which a teacher labels anew; a function of seed, view and sample alone."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tlc.calibration.text_set import UNLABELED
from tlc.calibration.token_set import Ints, Tokens

_FEWEST = 3  # Shorter texts have no parts worth taking.


class TextAugment(BaseModel):
    """How often training texts are varied, and how. What remains of 1 is the share that stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    span: float = Field(0.28, ge=0, le=1)
    """A random part of the text stands for it."""
    splice: float = Field(0.24, ge=0, le=1)
    """A random part is followed by one of another text."""
    mask: float = Field(0.16, ge=0, le=1)
    """Tokens become the mask token."""
    drop: float = Field(0.12, ge=0, le=1)
    """Tokens are left out."""
    token_ratio: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that are masked or dropped."""

    @model_validator(mode="after")
    def _consistent(self) -> "TextAugment":
        if self.varied > 1 + 1e-9:
            raise ValueError(f"span, splice, mask and drop are probabilities, but their sum is {self.varied}")
        return self

    @property
    def varied(self) -> float:
        """Share of the texts that change."""
        return self.span + self.splice + self.mask + self.drop


def augmented(tokens: Tokens, *, seed: int, view: int, mask_id: int, augment: TextAugment | None = None) -> Tokens:
    """Return pass number `view` over `tokens`: as many samples, each varied by numbers that depend on its place alone.

    For token classification and question answering, where the other ways would move what is to be found, tokens (of
    the question) are masked as often as all ways together. Of a pair, one text is varied. A text that a span or splice
    may have given another meaning has the label `UNLABELED`: it is for a teacher to say.
    """
    how = augment or TextAugment()
    whole = tokens.tags is not None or tokens.spans is not None
    thresholds = np.cumsum([0.0, 0.0, how.varied, 0.0] if whole else [how.span, how.splice, how.mask, how.drop])
    ids, types, parts = list(tokens.ids), list(tokens.types), list(tokens.parts)
    labels = tokens.labels.copy()
    for i in range(len(tokens)):
        rng = np.random.default_rng([seed, view, i])
        way = int(np.searchsorted(thresholds, rng.random(), side="right"))
        part = int(rng.integers(2)) if tokens.texts.pairs is not None and tokens.spans is None else 0
        places = np.flatnonzero(tokens.parts[i] == part)
        if way == len(thresholds) or (len(places) < _FEWEST and not whole) or not len(places):
            continue
        if way == 2:
            ids[i] = ids[i].copy()
            ids[i][places[rng.random(len(places)) < how.token_ratio]] = mask_id
            continue
        inside = tokens.ids[i][places]
        if way == 3:
            kept = inside[rng.random(len(inside)) >= how.token_ratio]
            inside = kept if len(kept) else inside[:1]
        else:
            inside = _span(inside, rng)
            if way == 1:
                j = int(rng.integers(len(tokens)))
                inside = np.concatenate([inside, _span(tokens.ids[j][tokens.parts[j] == part], rng)])
            labels[i] = UNLABELED
        room = tokens.fed.max_length - len(ids[i]) + len(places)
        inside = inside[:room]
        first, stop = int(places[0]), int(places[-1]) + 1
        ids[i] = _replaced(ids[i], first, stop, inside)
        types[i] = _replaced(types[i], first, stop, np.full(len(inside), types[i][first]))
        parts[i] = _replaced(parts[i], first, stop, np.full(len(inside), part))
    return replace(tokens, ids=tuple(ids), types=tuple(types), parts=tuple(parts), labels=labels)


def _span(values: Ints, rng: np.random.Generator) -> Ints:
    """Return a random part, of uniform length from 1 on; nothing of nothing."""
    if not len(values):
        return values
    count = int(rng.integers(1, len(values) + 1))
    start = int(rng.integers(0, len(values) - count + 1))
    return values[start : start + count]


def _replaced(values: Ints, first: int, stop: int, inside: NDArray[np.int64]) -> Ints:
    return np.concatenate([values[:first], inside, values[stop:]])
