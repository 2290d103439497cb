"""What a text model gets right beyond its arg-max: calibration, entities, and answers to questions."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.text_set import UNLABELED
from tlc.calibration.token_set import Ints, Tokens
from tlc.calibration.tokens import answer_places

_PREFIXES = ("B", "I", "E", "S", "L", "U")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

Logits = NDArray[np.float32]
Entity = tuple[int, int, str]
"""First and last position, and type."""


def calibration_error(logits: Logits, labels: Ints, bins: int = 15) -> float:
    """Return the expected calibration error of `logits` (N, K) against `labels` (N,), in [0, 1].

    The mean distance between confidence (the largest softmax) and accuracy, over `bins` intervals of confidence of
    equal width, each weighted by its share of the samples (Guo et al. 2017, equation 3).
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    confidence = 1 / np.exp(shifted).sum(axis=1)
    right = (logits.argmax(axis=1) == labels).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # Intervals are open at the left.
    gaps = np.bincount(place, right - confidence, bins)
    return float(np.abs(gaps).sum() / max(1, len(labels)))


def entity_f1(logits: Logits, tokens: Tokens) -> float | None:
    """Return the F1 of whole entities, by type and both ends, over all samples; None where no class is called O.

    logits: (M, K) as `gather` returns them. Tags are IOB or IOBES, with or without prefix, read as CoNLL's evaluation
    does: an entity begins at B or S, after E or S, and where the type changes.
    """
    if "O" not in tokens.texts.classes:
        return None
    found = right = true = 0
    for predicted, known in _by_sample(logits.argmax(axis=1), tokens):
        guesses, facts = set(entities(predicted)), set(entities(known))
        found, right, true = found + len(guesses), right + len(guesses & facts), true + len(facts)
    return 2 * right / (found + true) if found + true else 0.0


def samples_exact(logits: Logits, tokens: Tokens) -> NDArray[np.bool_]:
    """Return which samples have all their tags right, (N,); logits: (M, K) as `gather` returns them."""
    predicted = logits.argmax(axis=1)
    return np.array([guess == fact for guess, fact in _by_sample(predicted, tokens)], bool)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities in a sample's tags.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"])
    [(0, 1, 'PER'), (3, 3, 'LOC'), (4, 4, 'LOC')]
    """
    found: list[Entity] = []
    before, before_kind = "O", ""
    for place, tag in enumerate(tags):
        head, _, rest = tag.partition("-")
        prefix, kind = (head, rest) if rest and head in _PREFIXES else ("O" if tag == "O" else "I", tag)
        if prefix != "O":
            goes_on = prefix in "IEL" and before in ("B", "I") and kind == before_kind
            first = found.pop()[0] if goes_on else place
            found.append((first, place, kind))
        before, before_kind = prefix, kind
    return found


def answers_of(logits: Logits, tokens: Tokens, longest: int = 30) -> tuple[str, ...]:
    """Return each question's answer: the part of the context, of at most `longest` tokens, of the highest logits.

    logits: (N, 2, T) as `gather` returns them. An empty answer, which the first token stands for, is given only where
    `tokens` has questions without one.
    """
    if tokens.offsets is None or tokens.texts.pairs is None or tokens.texts.answers is None:
        raise ValueError("these texts are not questions")
    may_be_none = not all(tokens.texts.answers)
    found = []
    for sample, offsets, parts, context in zip(logits, tokens.offsets, tokens.parts, tokens.texts.pairs, strict=True):
        context_places = np.flatnonzero(parts == 1)
        start, end = sample[:, context_places].astype(np.float64)
        # Row d holds the answers of d + 1 tokens, each at its first one.
        scores = np.full((min(longest, len(start)), len(start)), -np.inf)
        for extra in range(len(scores)):
            scores[extra, : len(start) - extra] = start[: len(start) - extra] + end[extra:]
        more, first = divmod(int(scores.argmax()), len(start))
        if may_be_none and float(sample[:, 0].astype(np.float64).sum()) >= scores[more, first]:
            found.append("")
            continue
        span = offsets[context_places[[first, first + more]]]
        found.append(context[span[0, 0] : span[1, 1]].strip())
    return tuple(found)


def question_scores(predicted: Sequence[str], tokens: Tokens) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return exact match (N,) and F1 (N,) of each answer, the best over the right ones, as SQuAD's evaluation does."""
    known = [[text for text, _ in answers] for answers in tokens.texts.answers or ()]
    pairs = list(zip(predicted, known, strict=True))
    exact = np.array([max(exact_match(guess, fact) for fact in facts or [""]) for guess, facts in pairs], bool)
    f1 = np.array([max(answer_f1(guess, fact) for fact in facts or [""]) for guess, facts in pairs], np.float64)
    return exact, f1


def normalized_answer(text: str) -> str:
    """Return the answer in lower case, without punctuation, articles and repeated spaces (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, known: str) -> bool:
    """Whether two answers are the same when normalised."""
    return normalized_answer(predicted) == normalized_answer(known)


def answer_f1(predicted: str, known: str) -> float:
    """Return the F1 of the words of two normalised answers; of an empty one, whether the other is empty too."""
    guess, fact = normalized_answer(predicted).split(), normalized_answer(known).split()
    if not guess or not fact:
        return float(guess == fact)
    common = sum((Counter(guess) & Counter(fact)).values())
    return 2 * common / (len(guess) + len(fact))


def right(logits: Logits, tokens: Tokens) -> NDArray[np.bool_]:
    """Return what is answered right: (N,) texts, (M,) tagged tokens, or (N,) questions by exact match.

    logits: as `gather` returns them.
    """
    if tokens.spans is not None:
        return question_scores(answers_of(logits, tokens), tokens)[0]
    hits: NDArray[np.bool_] = logits.argmax(axis=1) == tokens.flat_labels
    return hits


def comparable(logits: Logits, tokens: Tokens) -> Logits:
    """Return outputs of `gather` as rows (R, K) that can be compared with those of another model on the same tokens.

    Start and end of an answer are a row each; in places where no answer can be stands the lowest logit of the others,
    so that these places neither win nor outweigh all else.
    """
    if tokens.spans is None:
        return logits
    rows = logits.copy()
    for sample, parts in zip(rows, tokens.parts, strict=True):
        places = np.zeros(sample.shape[1], bool)
        places[: len(parts)] = answer_places(parts)
        sample[:, ~places] = sample[:, places].min(axis=1, keepdims=True)
    return rows.reshape(-1, rows.shape[2])


def _by_sample(predicted: Ints, tokens: Tokens) -> list[tuple[list[str], list[str]]]:
    """Return the names of each sample's predicted and known tags."""
    if tokens.tags is None:
        raise ValueError("these texts have no tags")
    names = tokens.texts.classes
    known = [tags[tags != UNLABELED] for tags in tokens.tags]
    guesses = np.split(predicted, np.cumsum([len(tags) for tags in known])[:-1]) if known else []
    return [([names[g] for g in guess], [names[k] for k in fact]) for guess, fact in zip(guesses, known, strict=True)]
