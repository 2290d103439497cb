"""Encoded texts: one split of a data set as a model with a recorded tokenizer sees it, padded batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tlc.calibration.text_set import UNLABELED, Task, TextSet
from tlc.runtime.errors import TlcError

Ints = NDArray[np.int64]
Ragged = tuple[Ints, ...]


class TextInput(BaseModel):
    """How texts become a model's input. It travels with the model, so that no step tokenises in its own way."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: Task
    """What the model's head answers."""
    max_length: int = Field(ge=8)
    """Most tokens of one input, special ones included; longer texts are cut."""
    inputs: tuple[str, ...] = Field(min_length=2)
    """Names of the model's inputs, in its order: input_ids, attention_mask, and token_type_ids where it takes them."""
    pad_id: int = Field(ge=0)
    """Token that fills shorter inputs up; masked by attention_mask."""
    tokenizer_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the content of tokenizer.json."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One set of texts, encoded for a model: for each sample one array (T,) of its own length, without padding."""

    texts: TextSet
    fed: TextInput
    ids: Ragged = field(repr=False)
    types: Ragged = field(repr=False)
    """0 in the first text and 1 in the second, as the tokenizer says."""
    parts: Ragged = field(repr=False)
    """0 in the first text, 1 in the second, -1 for the special tokens around them."""
    labels: Ints = field(repr=False)
    """(N,) class of each sample, or `UNLABELED`; zeros for the other tasks."""
    cut: NDArray[np.bool_] = field(repr=False)
    """(N,) whether a sample was longer than `fed.max_length`."""
    tags: Ragged | None = field(default=None, repr=False)
    """Token classification: class of each word at its first token, `UNLABELED` elsewhere."""
    spans: Ints | None = field(default=None, repr=False)
    """Question answering: (N, 2) first and last token of the first answer; (0, 0) where the context has none,
    `UNLABELED` where it was cut off."""
    offsets: Ragged | None = field(default=None, repr=False)
    """Question answering: (T, 2) first character of each token in its text and the one after its last."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Ints:
        """(N,) tokens of each sample, special ones included."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))

    @property
    def truncated(self) -> int:
        """How many samples were cut."""
        return int(self.cut.sum())

    @property
    def flat_labels(self) -> Ints:
        """What the rows of `gather` should answer: (N,) classes, or (M,) tags of the tokens that have one."""
        if self.tags is None:
            return self.labels
        flat: Ints = np.concatenate(self.tags) if self.tags else np.zeros(0, np.int64)
        known: Ints = flat[flat != UNLABELED]
        return known

    def subset(self, indices: Ints | Sequence[int]) -> "Tokens":
        """Return the samples at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)

        def picked(values: Ragged) -> Ragged:
            return tuple(values[i] for i in chosen.tolist())

        return replace(
            self,
            texts=self.texts.subset(chosen),
            ids=picked(self.ids),
            types=picked(self.types),
            parts=picked(self.parts),
            labels=self.labels[chosen],
            cut=self.cut[chosen],
            tags=None if self.tags is None else picked(self.tags),
            spans=None if self.spans is None else self.spans[chosen],
            offsets=None if self.offsets is None else picked(self.offsets),
        )

    def joined(self, other: "Tokens") -> "Tokens":
        """Return these samples followed by those of `other`, encoded for the same model."""
        if self.fed != other.fed:
            raise ValueError("only texts that were encoded alike can be joined")
        return replace(
            self,
            texts=self.texts.joined(other.texts),
            ids=self.ids + other.ids,
            types=self.types + other.types,
            parts=self.parts + other.parts,
            labels=np.concatenate([self.labels, other.labels]),
            cut=np.concatenate([self.cut, other.cut]),
            tags=None if self.tags is None or other.tags is None else self.tags + other.tags,
            spans=None if self.spans is None or other.spans is None else np.concatenate([self.spans, other.spans]),
            offsets=None if self.offsets is None or other.offsets is None else self.offsets + other.offsets,
        )

    def feeds(self, indices: Ints | Sequence[int], *, pad_to: int | None = None) -> dict[str, Ints]:
        """Return the model's inputs by name, each (n, T) int64, padded to the longest of the samples or to `pad_to`."""
        chosen = np.asarray(indices, np.int64).tolist()
        longest = max((len(self.ids[i]) for i in chosen), default=0)
        width = longest if pad_to is None else pad_to
        if width < longest:
            raise ValueError(f"cannot pad {longest} tokens to {width}")
        return {name: self._padded(name, chosen, width) for name in self.fed.inputs}

    def targets(self, indices: Ints | Sequence[int], width: int) -> Ints:
        """Return the right outputs for inputs of `width` tokens: (n,), (n, T) with -100 where none, or (n, 2)."""
        chosen = np.asarray(indices, np.int64)
        if self.tags is not None:
            return _filled([self.tags[i] for i in chosen.tolist()], width, UNLABELED)
        return self.labels[chosen] if self.spans is None else self.spans[chosen]

    def batches(self, batch_size: int) -> Iterator[Ints]:
        """Yield the indices of all samples, those of similar length together and the shortest first: (n,) each."""
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]

    def _padded(self, name: str, chosen: list[int], width: int) -> Ints:
        match name:
            case "input_ids":
                return _filled([self.ids[i] for i in chosen], width, self.fed.pad_id)
            case "attention_mask":
                lengths = np.array([len(self.ids[i]) for i in chosen], np.int64).reshape(-1, 1)
                return (np.arange(width) < lengths).astype(np.int64)
            case "token_type_ids":
                return _filled([self.types[i] for i in chosen], width, 0)
        raise TlcError(
            f"the model takes an input {name!r}", hint="Give a model of input_ids, attention_mask and token_type_ids."
        )


def _filled(rows: list[Ints], width: int, value: int) -> Ints:
    """Return (n, width) with the rows at the left and `value` after them."""
    filled = np.full((len(rows), width), value, np.int64)
    for target, row in zip(filled, rows, strict=True):
        target[: len(row)] = row
    return filled
