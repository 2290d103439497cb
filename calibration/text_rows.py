"""Rows of tables as labelled samples of a task: which column is what, and what a row must hold."""

import ast
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict

from tlc.calibration.splits import listed_names
from tlc.calibration.tables import Row, Table
from tlc.calibration.text_set import Answer, Task, TextSet
from tlc.runtime.artifact import sha256_json
from tlc.runtime.errors import TlcError, UsageError

PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
)
"""Columns of two texts that are classified together, as GLUE and others name them."""

_TEXT_NAMES = ("text", "sentence", "review", "content", "comment", "utterance", "document", "tweet", "message", "query")
_LABEL_NAMES = ("label", "labels", "sentiment", "class", "category", "target", "intent", "emotion")
_WORD_NAMES = ("tokens", "words")
_TAG_NAMES = ("ner_tags", "tags", "labels", "ner", "pos_tags", "chunk_tags")
_FIRST: dict[Task, tuple[str, ...]] = {
    "sequence-classification": _TEXT_NAMES,
    "token-classification": _WORD_NAMES,
    "question-answering": ("question",),
}
_LAST: dict[Task, tuple[str, ...]] = {
    "sequence-classification": _LABEL_NAMES,
    "token-classification": _TAG_NAMES,
    "question-answering": ("answers", "answer"),
}
_ANSWERS = '{"text": [...], "answer_start": [...]}'


class Columns(BaseModel):
    """Names of a table's columns; None: found by their usual names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    text: str | None = None
    """The text, the words of token classification, or the question."""
    pair: str | None = None
    """The second text of a pair, or the context of a question."""
    label: str | None = None
    """The class, the words' tags, or the answers."""


@dataclass(slots=True)
class RawTexts:
    """Samples with labels by name, before the classes are known. Lists that the task does not need stay empty."""

    task: Task
    paired: bool = False
    keys: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    answers: list[tuple[Answer, ...]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """`key: reason` of each row that is no sample."""

    def class_names(self) -> set[str]:
        """Return the names of all labels, or tags."""
        return set(self.labels).union(*self.tags)

    def with_classes(self, classes: tuple[str, ...]) -> TextSet:
        """Return the samples with labels as positions in `classes`."""
        index = {name: position for position, name in enumerate(classes)}
        count = len(self.keys)
        labels = [index[name] for name in self.labels] or [0] * count
        tokens, questions = self.task == "token-classification", self.task == "question-answering"
        pairs = tuple(self.pairs) if self.paired else None
        words = tuple(map(tuple, self.words)) if tokens else None
        return TextSet(
            task=self.task,
            classes=classes,
            texts=tuple(self.texts),
            labels=np.array(labels, np.int64),
            keys=tuple(self.keys),
            digests=content_digests(self.texts, pairs, words),
            pairs=pairs,
            words=words,
            tags=tuple(tuple(index[name] for name in tags) for tags in self.tags) if tokens else None,
            answers=tuple(self.answers) if questions else None,
        )


def content_digests(
    texts: Sequence[str], pairs: Sequence[str] | None = None, words: Sequence[Sequence[str]] | None = None
) -> tuple[str, ...]:
    """Return the SHA-256, hex, of each sample's text, pair and words."""
    if words is not None:
        return tuple(sha256_json(list(sample)) for sample in words)
    if pairs is not None:
        return tuple(sha256_json(list(both)) for both in zip(texts, pairs, strict=True))
    return tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)


def samples_of_table(table: Table, task: Task, columns: Columns) -> RawTexts:
    """Return the samples of a table; rows that lack something are in `bad`, with the reason.

    Raises UsageError when a named column is not there, TlcError when a column that was not named cannot be found.
    """
    text, pair, label = _found(table, task, columns)
    samples = RawTexts(task, paired=pair is not None, bad=list(table.bad))
    for row in table.rows:
        try:
            _add(samples, row, text, pair, label)
        except ValueError as error:
            samples.bad.append(f"{row.key}: {error}")
    if samples.labels and set(samples.labels) == {"-1"}:
        raise TlcError(
            f"{table.name}: every {label} is -1, which stands for an unknown one",
            hint="Remove this file, so that another split with labels is measured on.",
        )
    return samples


def column_of_texts(table: Table, column: str | None) -> str:
    """Return the name of the table's column of texts: `column`, or found by the usual names."""
    if column is not None:
        return _named(table, column, "text")
    return _required(table, _TEXT_NAMES, "text")


def text_value(row: Row, column: str) -> str:
    """Return the row's text. Raises ValueError with the reason when there is none."""
    value = row.values.get(column)
    if not isinstance(value, str):
        raise ValueError(f"{column} is {'missing' if value is None else f'{value!r}, not a text'}")
    if not value.strip():
        raise ValueError(f"{column} is empty")
    _require_unicode(value, column)
    return value


def _add(samples: RawTexts, row: Row, text: str, pair: str | None, label: str) -> None:
    if samples.task == "token-classification":
        words, tags = _words(row, text), [_name(tag, label) for tag in _listed(row, label)]
        if len(words) != len(tags):
            raise ValueError(f"{len(words)} {text} but {len(tags)} {label}")
        samples.words.append(words)
        samples.tags.append(tags)
        samples.texts.append(" ".join(words))
    else:
        first = text_value(row, text)
        second = None if pair is None else text_value(row, pair)
        if samples.task == "question-answering":
            samples.answers.append(_answers(row.values.get(label), label, second or ""))
        else:
            samples.labels.append(_name(row.values.get(label), label))
        samples.texts.append(first)
        if second is not None:
            samples.pairs.append(second)
    samples.keys.append(row.key)


def _found(table: Table, task: Task, columns: Columns) -> tuple[str, str | None, str]:
    """Return the columns of the text, the pair and the label."""
    pair = None if columns.pair is None else _named(table, columns.pair, "pair")
    if pair is not None and task == "token-classification":
        raise UsageError("token classification has no second text", hint="Leave --pair-column out.")
    if columns.text is not None:
        text = _named(table, columns.text, "text")
    else:
        both = _pair_columns(table) if task == "sequence-classification" and pair is None else None
        text, pair = both or (_required(table, _FIRST[task], "text"), pair)
    if task == "question-answering" and pair is None:
        pair = _required(table, ("context",), "pair")
    label = _named(table, columns.label, "label") if columns.label else _required(table, _LAST[task], "label")
    if len({text, pair, label}) < 3:
        raise UsageError(
            f"{table.name}: column {text if text in (pair, label) else label!r} is asked to be two things at once",
            hint="Name three different columns with --text-column, --pair-column and --label-column.",
        )
    return text, pair, label


def _named(table: Table, name: str, what: str) -> str:
    if name not in table.columns:
        raise UsageError(
            f"{table.name} has no column {name!r}; it has {listed_names(table.columns)}",
            hint=f"Name one of these with --{what}-column.",
        )
    return name


def _required(table: Table, usual: tuple[str, ...], what: str) -> str:
    found = _usual(table, usual)
    if found is None:
        raise TlcError(
            f"{table.name} has no column called {' or '.join(usual)}; it has {listed_names(table.columns)}",
            hint=f"Name the right one with --{what}-column, or begin the file with a row of column names.",
        )
    return found


def _usual(table: Table, usual: tuple[str, ...]) -> str | None:
    """Return the first column that has one of the `usual` names, in their order and whatever their case."""
    by_name = {column.lower(): column for column in reversed(table.columns)}
    return next((by_name[name] for name in usual if name in by_name), None)


def _pair_columns(table: Table) -> tuple[str, str] | None:
    for first, second in PAIR_NAMES:
        found = _usual(table, (first,)), _usual(table, (second,))
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    return None


def _name(value: object, column: str) -> str:
    """Return a label's name; whole numbers are the same as text, integer or float (pandas writes 1.0)."""
    if value is None or (isinstance(value, float) and value != value):
        raise ValueError(f"{column} is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{column} is {value!r}, not one class")
    name = str(value).strip()
    if not name:
        raise ValueError(f"{column} is empty")
    _require_unicode(name, column)
    return name


def _words(row: Row, column: str) -> list[str]:
    words = _listed(row, column)
    if not words:
        raise ValueError(f"{column} is empty")
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"{column} holds {word!r}, not a word")
        _require_unicode(word, column)
    return [str(word) for word in words]


def _listed(row: Row, column: str) -> list[object]:
    """Return a list: as it is, written as JSON or Python, or separated by spaces."""
    value = row.values.get(column)
    if isinstance(value, str):
        bracketed = value.strip().startswith("[") and value.strip().endswith("]")
        value = _literal(value, column, "a list") if bracketed else value.split()
    if not isinstance(value, list):
        raise ValueError(f"{column} is {'missing' if value is None else f'{value!r}, not a list'}")
    return value


def _literal(text: str, column: str, what: str) -> object:
    """Return a value that a CSV holds as JSON, or as pandas writes Python values."""
    parsers: tuple[Callable[[str], object], ...] = (json.loads, ast.literal_eval)
    for parse in parsers:
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"{column} is not {what}: {text[:60]!r}")


def _answers(value: object, column: str, context: str) -> tuple[Answer, ...]:
    """Return the answers, checked against the context; none where the lists are empty, as in SQuAD 2.0."""
    if isinstance(value, str):
        value = _literal(value, column, _ANSWERS)
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {name: [entry.get(name) for entry in value] for name in ("text", "answer_start")}
    texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    if isinstance(texts, str) and isinstance(starts, int):
        texts, starts = [texts], [starts]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise ValueError(f"{column} is {'missing' if value is None else f'not {_ANSWERS}'}")
    answers = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text or not isinstance(start, int):
            raise ValueError(f"{column} holds {text!r} at {start!r}, not a text and its first character")
        if start < 0 or context[start : start + len(text)] != text:
            raise ValueError(f"the context has no {text[:60]!r} at character {start}")
        answers.append((text, start))
    return tuple(answers)


def _require_unicode(text: str, column: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{column} holds half a character, U+{ord(text[error.start]):04X}") from error
