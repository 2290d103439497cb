"""Two models on the same samples: who is right where, how sure the difference is, and which samples changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.text_metrics import Logits, answers_of, question_scores
from tlc.calibration.text_set import UNLABELED
from tlc.calibration.token_set import Ints, Tokens
from tlc.runtime.compare_report import ChangedSample, ClassChange, PairedChange
from tlc.runtime.compare_report import Outcome as Kind
from tlc.runtime.report import Interval
from tlc.runtime.statistics import bootstrap_interval, difference_interval, holm, mcnemar_p

RESAMPLES = 2000
_TAIL = 0.025  # of a 95 % interval

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What one model says about the R rows of some samples: a row is a sample, or a word that has a class."""

    right: Flags
    """(R,)"""
    said: tuple[str, ...]
    """Each row's class, or the answer to the question."""
    predicted: Ints | None
    """(R,) position of the class; None for questions."""
    confidence: NDArray[np.float64] | None
    """(R,) largest softmax; None for questions."""


def judged(logits: Logits, labels: Ints, classes: Sequence[str]) -> Judged:
    """Return what logits (R, K) say about rows of classes `labels` (R,)."""
    predicted = np.asarray(logits.argmax(axis=1), np.int64)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return Judged(
        right=predicted == labels,
        said=tuple(classes[label] for label in predicted.tolist()),
        predicted=predicted,
        confidence=1 / np.exp(shifted).sum(axis=1),
    )


def judged_questions(logits: Logits, tokens: Tokens) -> Judged:
    """Return what logits (N, 2, T) answer to questions; an answer is right where it is an exact match."""
    said = answers_of(logits, tokens)
    return Judged(right=question_scores(said, tokens)[0], said=said, predicted=None, confidence=None)


def paired_changes(pairs: Sequence[tuple[Judged, Judged]]) -> list[PairedChange]:
    """Return the change of the share of right rows from the first to the second of each pair, looked at together."""
    return [PairedChange(**values) for values in _changes([(a.right, b.right) for a, b in pairs])]


def class_changes(a: Judged, b: Judged, labels: Ints, classes: Sequence[str]) -> list[ClassChange]:
    """Return the change of each class's recall, looked at together; `labels` (R,) are the rows' true classes."""
    members = [labels == label for label in range(len(classes))]
    changes = _changes([(a.right[own], b.right[own]) for own in members])
    return [ClassChange(name=name, **values) for name, values in zip(classes, changes, strict=True)]


def _changes(pairs: Sequence[tuple[Flags, Flags]]) -> list[dict[str, object]]:
    counts = [(len(a), int((a & ~b).sum()), int((b & ~a).sum()), int(a.sum()), int(b.sum())) for a, b in pairs]
    p_values = [mcnemar_p(lost, won) for _, lost, won, _, _ in counts]
    # What no sample could show is not a test, and does not make the others harder to pass.
    tested = [place for place, (rows, *_) in enumerate(counts) if rows]
    adjusted = dict(zip(tested, holm([p_values[place] for place in tested]), strict=True))
    found = []
    for place, (rows, lost, won, before, after) in enumerate(counts):
        low, high = difference_interval(lost, won, rows)
        estimate = 100 * (won - lost) / max(1, rows)
        found.append(
            {
                "rows": rows,
                "before_ratio": before / max(1, rows),
                "after_ratio": after / max(1, rows),
                "change_points": Interval(estimate=estimate, low=100 * low, high=100 * high),
                "lost": lost,
                "won": won,
                "p": p_values[place],
                "adjusted_p": adjusted.get(place, 1.0),
            }
        )
    return found


def bootstrapped_change(a: Judged, b: Judged, samples: Ints, count: int, *, seed: int = 0) -> Interval:
    """Return the change of the share of right rows in points, `count` whole samples resampled.

    samples: (R,) which sample each row is of.
    """
    gained = np.bincount(samples, b.right.astype(np.float64) - a.right, count)
    rows = np.bincount(samples, minlength=count)

    def change(picks: Ints) -> float:
        return float(100 * gained[picks].sum() / max(1, rows[picks].sum()))

    return _interval(bootstrap_interval(change, count, tail=_TAIL, resamples=RESAMPLES, seed=seed))


def bootstrapped_macro_f1(
    a: Judged, b: Judged, labels: Ints, samples: Ints, count: int, classes: int, *, seed: int = 0
) -> Interval | None:
    """Return the change of macro F1 in points, `count` whole samples resampled; None for questions.

    labels, samples: (R,) class of each row, and which sample it is of.
    """
    if a.predicted is None or b.predicted is None:
        return None
    predictions = a.predicted, b.predicted

    def change(picks: Ints) -> float:
        weights = np.bincount(picks, minlength=count)[samples].astype(np.float64)
        true: NDArray[np.float64] = np.bincount(labels, weights, classes).astype(np.float64)
        before, after = (_macro_f1(labels, predicted, weights, true) for predicted in predictions)
        return 100 * (after - before)

    return _interval(bootstrap_interval(change, count, tail=_TAIL, resamples=RESAMPLES, seed=seed))


def _macro_f1(labels: Ints, predicted: Ints, weights: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    hits = np.bincount(labels, weights * (labels == predicted), len(true))
    found = true + np.bincount(predicted, weights, len(true))
    return float(np.divide(2 * hits, found, out=np.zeros_like(hits), where=found > 0).mean())


def _interval(values: tuple[float, float, float]) -> Interval:
    return Interval(estimate=values[0], low=values[1], high=values[2])


def samples_of_rows(tokens: Tokens) -> Ints:
    """Return which text each row is of, (R,): its words that have a class, or itself."""
    if tokens.tags is None:
        return np.arange(len(tokens))
    return np.repeat(np.arange(len(tokens)), [int((tags != UNLABELED).sum()) for tags in tokens.tags])


def changed_samples(
    a: Judged,
    b: Judged,
    samples: Ints,
    *,
    keys: Sequence[str],
    texts: Sequence[str] | None,
    truths: Sequence[str],
    words: Sequence[str] | None = None,
) -> list[ChangedSample]:
    """Return the samples about which the two say something else: lost first, then won, then the others.

    keys, texts: of each sample. truths, words: of each of R rows its true answer and, for classified words, the word.
    """
    differs = np.array([one != other for one, other in zip(a.said, b.said, strict=True)], bool)
    gained = np.bincount(samples, b.right.astype(np.float64) - a.right, len(keys))
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(differs).tolist():
        rows_of.setdefault(int(samples[row]), []).append(row)

    def said(answers: Sequence[str], rows: list[int]) -> str:
        if words is None:
            return answers[rows[0]]
        return "; ".join(f"{words[row]}: {answers[row]}" for row in rows)

    def confidence(of: Judged, rows: list[int]) -> float | None:
        return None if words is not None or of.confidence is None else float(of.confidence[rows[0]])

    order: tuple[Kind, ...] = ("lost", "won", "other")
    found = [
        ChangedSample(
            position=sample,
            key=keys[sample],
            text="" if texts is None else texts[sample],
            truth=said(truths, rows),
            answer_a=said(a.said, rows),
            answer_b=said(b.said, rows),
            confidence_a=confidence(a, rows),
            confidence_b=confidence(b, rows),
            outcome="lost" if gained[sample] < 0 else "won" if gained[sample] > 0 else "other",
        )
        for sample, rows in rows_of.items()
    ]
    return sorted(found, key=lambda sample: (order.index(sample.outcome), sample.position))


def texts_shown(tokens: Tokens) -> list[str]:
    """Return each sample's text; of a pair, or a question with its context, both on lines of their own."""
    pairs = tokens.texts.pairs
    if pairs is None:
        return list(tokens.texts.texts)
    return [f"{text}\n{pair}" for text, pair in zip(tokens.texts.texts, pairs, strict=True)]


def words_shown(tokens: Tokens) -> list[str] | None:
    """Return the word of each row; None where rows are not words."""
    if tokens.tags is None or tokens.texts.words is None or tokens.texts.tags is None:
        return None
    found: list[str] = []
    samples = zip(tokens.tags, tokens.texts.words, tokens.texts.tags, tokens.cut.tolist(), strict=True)
    for placed, words, tags, cut in samples:
        count = int((placed != UNLABELED).sum())
        labelled = [word for word, tag in zip(words, tags, strict=True) if tag != UNLABELED]
        # A tokenizer may drop a word, such as a lone control character: which one is not known any more.
        known = len(labelled) == count or cut
        found += labelled[:count] if known else [f"word {place + 1}" for place in range(count)]
    return found
