"""Scores of text models, against published values and independent computations."""

import re
import string

import numpy as np
import pytest
import tiny_tokens
from numpy.typing import NDArray

from tlc.calibration.metrics import agreement
from tlc.calibration.text_metrics import (
    answer_f1,
    answers_of,
    calibration_error,
    comparable,
    entities,
    entity_f1,
    exact_match,
    normalized_answer,
    question_scores,
    right,
    samples_exact,
)
from tlc.calibration.tokens import MASKED_LOGIT, Tokens, encode, gather

JSON = tiny_tokens.wordpiece()


def log(probabilities: list[list[float]]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.log(np.array(probabilities)).astype(np.float32)
    return values


def test_calibration_error_is_that_of_torchmetrics_documentation() -> None:
    # MulticlassCalibrationError(num_classes=3, n_bins=3, norm="l1"): 0.2000
    logits = log([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    assert calibration_error(logits, np.array([0, 1, 2, 0]), bins=3) == pytest.approx(0.2, abs=1e-6)


def test_calibration_error_is_that_of_an_independent_computation() -> None:
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(3000, 4))).astype(np.float32)
    labels = rng.integers(0, 4, 3000)
    labels[::2] = logits[::2].argmax(axis=1)
    exponents = np.exp(logits.astype(np.float64))
    confidence = (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1)
    hit = logits.argmax(axis=1) == labels
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.1


def test_calibration_error_of_the_extremes() -> None:
    sure = np.array([[1000.0, -1000.0]] * 4, np.float32)
    assert calibration_error(sure, np.array([0, 0, 0, 0])) == 0
    assert calibration_error(sure, np.array([1, 1, 1, 1])) == 1
    assert calibration_error(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])) == 0  # sure of a half, right in half
    # Certainty shares its interval with what is almost certain: |(0 - 1) + (1 - 0.96)| / 2.
    assert calibration_error(log([[1.0, 1e-30], [0.96, 0.04]]), np.array([1, 0])) == pytest.approx(0.48)


@pytest.mark.parametrize(
    ("pairs", "exact", "f1"),
    [  # Published with their scores: the metric card of SQuAD, PrimeQA's tests, and a course on transformers.
        (
            [("1976", "1976"), ("Beyonce", "Beyoncé and Bruno Mars"), ("climate change", "climate change")],
            66.66666666666667,
            66.66666666666667,
        ),
        (
            [
                ("Denver Broncos", "Denver Broncos"),
                ("Carolina Panthers", "Carolina Panthers"),
                ("Levi's Stadium in the San Francisco Bay Area", "Levi's Stadium"),
            ],
            66.66666666666667,
            81.48148148148148,
        ),
        (
            [
                ("Albert Einstein", "Albert Einstein"),
                ("physicist", "physicist"),
                ("general relativity", "special relativity"),
            ],
            66.66666666666667,
            83.33333333333333,
        ),
    ],
)
def test_answers_score_as_published(pairs: list[tuple[str, str]], exact: float, f1: float) -> None:
    assert 100 * np.mean([exact_match(*pair) for pair in pairs]) == pytest.approx(exact)
    assert 100 * np.mean([answer_f1(*pair) for pair in pairs]) == pytest.approx(f1)


def test_answers_are_normalised_as_by_the_evaluation_script() -> None:
    assert normalized_answer("  The  Cat's, AN apple; theatre a") == "cats apple theatre"
    words = ["The", "a", "an", "Theatre", "Anna's", "x-ray", "1,000", "$5", "“the”", "A.", "the\u00a0end", "…"]
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = " ".join(rng.choice(words, 5))
        bare = "".join(mark for mark in text.lower() if mark not in set(string.punctuation))
        assert normalized_answer(text) == " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def test_f1_counts_words_as_often_as_both_have_them() -> None:
    assert answer_f1("in in rome", "in rome rome") == pytest.approx(2 / 3)
    assert answer_f1("paris", "rome") == 0
    assert (answer_f1("", ""), answer_f1("paris", ""), answer_f1("the", "")) == (1, 0, 1)


def asked(answers: list[list[tuple[str, int]]]) -> Tokens:
    texts = tiny_tokens.text_set(
        ["a ?"] * len(answers),
        task="question-answering",
        classes=(),
        pairs=["b paris c rome d"] * len(answers),
        answers=answers,
    )
    return encode(texts, JSON, tiny_tokens.fed_by(JSON, "question-answering"))


def logits_of(tokens: Tokens, starts: dict[int, float], ends: dict[int, float]) -> NDArray[np.float32]:
    """Return outputs as `gather` does, for places [CLS] a ? [SEP] b paris c rome d [SEP] = 0 ... 9."""

    def run(feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        outputs = np.zeros((*feeds["input_ids"].shape, 2), np.float32)
        for side, values in enumerate((starts, ends)):
            for place, value in values.items():
                outputs[:, place, side] = value
        return outputs

    return gather(run, tokens)


def test_the_answer_is_the_best_part_of_the_context() -> None:
    tokens = asked([[("paris", 2)], [("paris c rome", 2), ("rome", 10)]])
    # The question's own tokens (1, 2) are higher, but no answer can be there.
    logits = logits_of(tokens, {1: 9, 5: 3, 7: 2}, {2: 9, 5: 1, 7: 3})
    assert answers_of(logits, tokens) == ("paris c rome", "paris c rome")
    exact, f1 = question_scores(answers_of(logits, tokens), tokens)
    assert exact.tolist() == [False, True]
    assert f1.tolist() == [0.5, 1.0]
    assert right(logits, tokens).tolist() == [False, True]
    assert answers_of(logits, tokens, longest=2) == ("rome", "rome")  # 2 + 3 beats 3 + 1
    # An end before its start is no answer, however high both are.
    assert answers_of(logits_of(tokens, {8: 9}, {4: 9}), tokens)[0] in ("b", "d", "b paris c rome d")
    assert answers_of(logits_of(tokens, {8: 9, 5: 4}, {4: 9, 7: 6}), tokens)[0] == "paris c rome"


def test_the_best_answer_is_that_of_trying_all() -> None:
    contexts = ["b c d e f g h", "a rome", "h g f e d c b a rome paris"]
    texts = tiny_tokens.text_set(
        ["a ?"] * 3,
        task="question-answering",
        classes=(),
        pairs=contexts,
        answers=[[(text[0], 0)] for text in contexts],
    )
    tokens = encode(texts, JSON, tiny_tokens.fed_by(JSON, "question-answering"))
    rng = np.random.default_rng(0)
    for _ in range(30):
        logits = gather(lambda feeds: rng.normal(size=(*feeds["input_ids"].shape, 2)), tokens)
        for sample, context, found in zip(logits, contexts, answers_of(logits, tokens, longest=4), strict=True):
            words = context.split()
            tried = {
                " ".join(words[i : j + 1]): sample[0, 4 + i] + sample[1, 4 + j]  # after [CLS] a ? [SEP]
                for i in range(len(words))
                for j in range(i, min(i + 4, len(words)))
            }
            assert tried[found] == max(tried.values())


def test_no_answer_is_given_only_where_there_can_be_none() -> None:
    sure = ({0: 9.0, 5: 3.0}, {0: 9.0, 5: 3.0})
    answered = asked([[("paris", 2)]])
    assert answers_of(logits_of(answered, *sure), answered) == ("paris",)
    open_ = asked([[], [("paris", 2)]])
    assert answers_of(logits_of(open_, *sure), open_) == ("", "")
    assert right(logits_of(open_, *sure), open_).tolist() == [True, False]
    assert answers_of(logits_of(open_, {0: 2, 5: 3}, {0: 3, 5: 3}), open_) == ("paris", "paris")


def test_what_are_no_questions_has_no_answers() -> None:
    tokens = encode(tiny_tokens.text_set(["a"]), JSON, tiny_tokens.fed_by(JSON))
    with pytest.raises(ValueError, match="not questions"):
        answers_of(np.zeros((1, 2, 3), np.float32), tokens)


NAMES = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER")


def tagged(tags: list[list[str]], names: tuple[str, ...] = NAMES) -> Tokens:
    texts = tiny_tokens.text_set(
        [" ".join("a" * len(sample)) for sample in tags],
        task="token-classification",
        classes=names,
        tags=[[names.index(tag) for tag in sample] for sample in tags],
    )
    return encode(texts, JSON, tiny_tokens.fed_by(JSON, "token-classification"))


def voted(tags: list[list[str]], names: tuple[str, ...] = NAMES) -> NDArray[np.float32]:
    return np.eye(len(names), dtype=np.float32)[[names.index(tag) for sample in tags for tag in sample]]


@pytest.mark.parametrize(
    ("true", "predicted", "f1", "accuracy"),
    [  # Published with their scores by seqeval's documentation.
        (
            [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
            [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
            0.5,
            0.8,
        ),
        (
            [["O", "O", "B-MISC", "I-MISC", "B-MISC", "O", "O"], ["B-PER", "I-PER", "O"]],
            [["O", "O", "B-MISC", "I-MISC", "B-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
            2 / 3,
            0.9,
        ),
    ],
)
def test_entities_score_as_published(
    true: list[list[str]], predicted: list[list[str]], f1: float, accuracy: float
) -> None:
    tokens = tagged(true)
    assert entity_f1(voted(predicted), tokens) == pytest.approx(f1)
    assert entity_f1(voted(true), tokens) == 1
    assert samples_exact(voted(predicted), tokens).tolist() == [False, True]
    assert right(voted(predicted), tokens).mean() == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], [(0, 1, "PER"), (3, 3, "LOC")]),  # seqeval's get_entities
        (["I-PER", "I-PER", "I-LOC"], [(0, 1, "PER"), (2, 2, "LOC")]),  # IOB1: begins without B, and by its type
        (["B-PER", "B-PER"], [(0, 0, "PER"), (1, 1, "PER")]),
        (["B-PER", "E-PER", "I-PER", "S-PER"], [(0, 1, "PER"), (2, 2, "PER"), (3, 3, "PER")]),
        (["PER", "PER", "O", "LOC"], [(0, 1, "PER"), (3, 3, "LOC")]),  # without prefixes
        (["O", "O"], []),
    ],
)
def test_entities_in_every_way_of_tagging(tags: list[str], expected: list[tuple[int, int, str]]) -> None:
    assert entities(tags) == expected


def test_tags_that_are_no_entities_have_no_entity_score() -> None:
    tokens = tagged([["NOUN", "VERB"]], ("NOUN", "VERB"))
    assert entity_f1(voted([["NOUN", "VERB"]], ("NOUN", "VERB")), tokens) is None
    tokens = tagged([["O", "O"]])
    assert entity_f1(voted([["O", "O"]]), tokens) == 0  # nothing to find
    with pytest.raises(ValueError, match="no tags"):
        samples_exact(np.zeros((1, 2), np.float32), asked([[("paris", 2)]]))


def test_right_counts_texts_and_tagged_tokens() -> None:
    tokens = encode(tiny_tokens.text_set(["a", "b"], labels=[0, 1]), JSON, tiny_tokens.fed_by(JSON))
    assert right(np.array([[2, 1], [2, 1]], np.float32), tokens).tolist() == [True, False]


def test_outputs_of_questions_are_compared_where_answers_can_be() -> None:
    tokens = asked([[("paris", 2)], []])
    one, other = logits_of(tokens, {5: 3, 7: 2}, {5: 3, 7: 2}), logits_of(tokens, {5: 2, 7: 3}, {5: 3, 7: 2})
    found = agreement(comparable(one, tokens), comparable(other, tokens))
    assert (found.samples, found.top1_agreement, found.max_abs_error) == (4, 0.5, 1.0)
    assert found.cosine == pytest.approx(12 / 13)
    assert (one == MASKED_LOGIT).any()  # the outputs themselves stay as they are
    plain = np.ones((2, 3), np.float32)
    assert comparable(plain, tagged([["O"]])) is plain
