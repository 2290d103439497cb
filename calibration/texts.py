"""Reading labelled texts: their layout, splits and class order, and everything that can be wrong with them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.archive import open_archive
from tlc.calibration.splits import (
    EVALUATION_RATIO,
    HOLDOUT_RATIO,
    holdout_count,
    listed_lines,
    listed_names,
    require_ratio,
    stratified,
)
from tlc.calibration.tables import TABLE_SUFFIXES, read_table, text_lines
from tlc.calibration.text_files import file_bytes, member_bytes, read_samples
from tlc.calibration.text_rows import Columns, column_of_texts, content_digests, text_value
from tlc.calibration.text_set import UNLABELED, Answer, Task, TextSet
from tlc.runtime.artifact import sha256_json
from tlc.runtime.errors import TlcError, UsageError

__all__ = [
    "UNLABELED",
    "Answer",
    "Columns",
    "Task",
    "TextSet",
    "TextSplits",
    "read_texts",
    "read_unlabeled",
    "unlabeled_set",
]

_TWINS_RATIO = 0.1  # A few short texts are written twice by chance; more are one file given twice.
_SKIP_HINT = "Repair or remove them, or go on without them with --skip-bad."


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

    def for_model(self, num_classes: int, classes: tuple[str, ...]) -> "TextSplits":
        """Return the same samples with labels in the order of the model's `classes`, where it has names.

        The data's labels are the model's names, exactly or whatever their case, or its class indices from 0. Without
        names, other labels are taken in sorted order. Nothing changes for question answering.

        Raises TlcError when the data's labels are not the model's.
        """
        if self.fit.task == "question-answering":
            return self
        to_model = _model_order(self.path, self.classes, classes, num_classes)
        names = classes or (self.classes if len(self.classes) == num_classes else tuple(map(str, range(num_classes))))
        parts = [_relabeled(part, to_model, names) for part in (self.fit, self.holdout, self.evaluation)]
        if self.fit.task == "sequence-classification":
            _require_every_class(self.path, parts[0], "train")
            _require_every_class(self.path, parts[2], "the evaluation split")
        return replace(self, fit=parts[0], holdout=parts[1], evaluation=parts[2])


def read_texts(
    path: Path,
    *,
    task: Task,
    columns: Columns | None = None,
    holdout_ratio: float = HOLDOUT_RATIO,
    evaluation_ratio: float = EVALUATION_RATIO,
    seed: int = 0,
    skip_bad: bool = False,
) -> TextSplits:
    """Read labelled texts and split them.

    `path` is a table (`TABLE_SUFFIXES`), or a folder or archive with `train.*` and, if there are, `val.*` (or
    validation, valid, dev) and `test.*`, or with a folder of .txt files for each class, inside train/, val/ and test/
    or without. With three splits they are fit, holdout and evaluation; with two, the other one is the evaluation and
    `holdout_count` samples of train are held out; with one, `evaluation_ratio` of it is split off first. All splitting
    is stratified and a function of `seed`. Classes are sorted, as numbers where they are numbers.

    Training samples that are also in another split are left out of training, and listed in `skipped`.

    Raises TlcError for anything that would make training or measuring wrong: rows without text or label and bytes that
    are not UTF-8 (unless `skip_bad`), columns that are not there, or much of the evaluation in train. Raises UsageError
    for ratios outside of (0, 0.5] and for named columns that are not there.
    """
    require_ratio("holdout_ratio", holdout_ratio)
    require_ratio("evaluation_ratio", evaluation_ratio)
    parts = read_samples(path, task, columns or Columns())
    bad = [reason for part in parts.values() for reason in part.bad]
    if bad and not skip_bad:
        total = len(bad) + sum(len(part.keys) for part in parts.values())
        raise TlcError(
            f"{path}: {len(bad):,} of {total:,} samples cannot be used:\n  {listed_lines(bad)}", hint=_SKIP_HINT
        )
    classes = _sorted_classes(set[str]().union(*(part.class_names() for part in parts.values())))
    sets = {name: part.with_classes(classes) for name, part in parts.items()}
    fit = sets["train"]
    evaluation = sets.get("test", sets.get("val"))
    if evaluation is None:
        fit, evaluation = _split_off(fit, round(evaluation_ratio * len(fit)), seed)
    skipped = bad
    fit = _without_twins(path, fit, evaluation, skipped)
    if "test" in sets and "val" in sets:
        holdout = _without_twins(path, sets["val"], evaluation, skipped)
        fit = _without_twins(path, fit, holdout, skipped)
    else:
        fit, holdout = _split_off(fit, holdout_count(len(fit), holdout_ratio), seed)
    _require_samples(path, fit, holdout, evaluation)
    return TextSplits(fit=fit, holdout=holdout, evaluation=evaluation, skipped=tuple(skipped), path=path)


def read_unlabeled(path: Path, column: str | None = None) -> tuple[str, ...]:
    """Return different texts without labels, in their order.

    `path` is a .txt file with a text a line, a table, of which `column` is read (None: found by its usual names), or a
    folder or archive of .txt files with a text each. Raises TlcError for what cannot be read, and where there is none.
    """
    name = path.name.lower()
    if name.endswith(".txt") and path.is_file():
        texts = text_lines(path.name, file_bytes(path))
    elif name.endswith(TABLE_SUFFIXES) and path.is_file():
        texts = _column(path, column)
    else:
        archive = open_archive(path)
        files = [name for name in archive.names if name.lower().endswith(".txt")]
        texts = [" ".join(text_lines(name, member_bytes(path, archive, name))) for name in files]
    different = tuple(dict.fromkeys(text for text in texts if text))
    if not different:
        raise TlcError(f"{path} has no texts", hint="Give a .txt file with a text a line, or a table with a column.")
    return different


def unlabeled_set(texts: Sequence[str], splits: TextSplits) -> TextSet:
    """Return `texts` as samples without labels, of the task and classes of `splits`; words are split at spaces.

    Texts that `splits` has already are left out: those of train are there twice, the others must not be seen.
    """
    like = splits.fit
    if like.pairs is not None:
        raise UsageError(
            "texts without labels are single, but this model takes two texts at a time", hint="Leave --unlabeled out."
        )
    tokens = like.task == "token-classification"
    words = [tuple(text.split()) for text in texts] if tokens else None
    digests = content_digests(texts, None, words)
    known = {digest for part in (splits.fit, splits.holdout, splits.evaluation) for digest in part.digests}
    everything = TextSet(
        task=like.task,
        classes=like.classes,
        texts=tuple(texts),
        labels=np.full(len(texts), 0 if tokens else UNLABELED, np.int64),
        keys=tuple(f"unlabeled:{number}" for number in range(1, len(texts) + 1)),
        digests=digests,
        words=None if words is None else tuple(words),
        tags=None if words is None else tuple((UNLABELED,) * len(sample) for sample in words),
    )
    return everything.subset([i for i, digest in enumerate(digests) if digest not in known])


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _model_order(path: Path, found: tuple[str, ...], known: tuple[str, ...], num_classes: int) -> NDArray[np.int64]:
    """Return the model's class index of each of the data's classes, (K',)."""
    indices = {str(index): index for index in range(num_classes)}
    exact = {name: index for index, name in enumerate(known)}
    folded = {name.casefold(): index for index, name in enumerate(known)}
    if set(found) <= set(exact):
        return np.array([exact[name] for name in found], np.int64)
    if len(folded) == len(known) and {name.casefold() for name in found} <= set(folded):
        return np.array([folded[name.casefold()] for name in found], np.int64)
    if set(found) <= set(indices):
        return np.array([indices[name] for name in found], np.int64)
    if not known and len(found) == num_classes and not any(re.fullmatch(r"-?\d+", name) for name in found):
        return np.arange(num_classes)
    names = f"calls its classes {listed_names(known)}" if known else f"has {num_classes} classes without names"
    raise TlcError(
        f"{path} has {len(found)} labels, {listed_names(found)}; the model {names}",
        hint=f"Rename the labels to the model's names, or number them 0 to {num_classes - 1} in its order.",
    )


def _relabeled(part: TextSet, to_model: NDArray[np.int64], classes: tuple[str, ...]) -> TextSet:
    if part.tags is None:
        return replace(part, classes=classes, labels=to_model[part.labels])
    order = to_model.tolist()
    return replace(part, classes=classes, tags=tuple(tuple(order[tag] for tag in tags) for tags in part.tags))


def _split_off(part: TextSet, count: int, seed: int) -> tuple[TextSet, TextSet]:
    """Return the rest and about `count` samples."""
    mask = stratified(part.labels, part.digests, count, seed=seed)
    return part.subset(np.flatnonzero(~mask)), part.subset(np.flatnonzero(mask))


def _without_twins(path: Path, part: TextSet, other: TextSet, skipped: list[str]) -> TextSet:
    """Return `part` without the samples whose text is also in `other`, naming them in `skipped`."""
    keys = dict(zip(other.digests, other.keys, strict=True))
    twins = [i for i, digest in enumerate(part.digests) if digest in keys]
    count = len({part.digests[i] for i in twins})
    if count > _TWINS_RATIO * len(keys):
        lines = [f"{part.keys[i]} = {keys[part.digests[i]]}" for i in twins]
        raise TlcError(
            f"{path}: {count:,} of {len(keys):,} texts to measure on are also in another split:\n  "
            + listed_lines(lines),
            hint="Remove them from train: accuracy on samples that were trained on proves nothing.",
        )
    skipped += [f"{part.keys[i]}: the same text as {keys[part.digests[i]]}, which is measured on" for i in twins]
    return part.subset(np.flatnonzero([digest not in keys for digest in part.digests]))


def _require_every_class(path: Path, part: TextSet, where: str) -> None:
    counts = Counter(part.labels.tolist())
    missing = [name for label, name in enumerate(part.classes) if not counts[label]]
    if missing:
        raise TlcError(
            f"{path}: {len(missing)} of {len(part.classes)} classes have no samples in {where}: "
            f"{listed_names(missing)}",
            hint="Add samples of these classes; a student would forget them, and nothing would show it.",
        )


def _require_samples(path: Path, fit: TextSet, holdout: TextSet, evaluation: TextSet) -> None:
    counts = {"to train on": len(fit), "to hold out": len(holdout), "to evaluate on": len(evaluation)}
    empty = [what for what, count in counts.items() if not count]
    if empty:
        raise TlcError(
            f"{path}: of {sum(counts.values()):,} samples, none is left {' and '.join(empty)}",
            hint="Add samples: at least three different ones of each class.",
        )


def _column(path: Path, column: str | None) -> list[str]:
    table = read_table(path.name, file_bytes(path))
    name = column_of_texts(table, column)
    texts, bad = [], list(table.bad)
    for row in table.rows:
        try:
            texts.append(text_value(row, name).strip())
        except ValueError as error:
            bad.append(f"{row.key}: {error}")
    if bad:
        raise TlcError(
            f"{path}: {len(bad):,} of {len(bad) + len(texts):,} rows cannot be used:\n  {listed_lines(bad)}",
            hint="Repair or remove them.",
        )
    return texts
