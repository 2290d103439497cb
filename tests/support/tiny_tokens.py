"""A small WordPiece tokenizer and sets of texts to encode, without torch."""

import hashlib
import json

import numpy as np

from tlc.calibration.text_rows import content_digests
from tlc.calibration.text_set import Answer, Task, TextSet
from tlc.calibration.tokens import TextInput

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "b", "c", "d", "e", "f", "g", "h", "##x", "##y", "?", "paris", "rome")


def wordpiece() -> str:
    """Return the content of a tokenizer.json: ids count through SPECIAL, then WORDS."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    special = [
        {"id": i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, token in enumerate(SPECIAL)
    ]  # fmt: skip
    piece = {name: {"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    last = {"SpecialToken": {"id": "[SEP]", "type_id": 1}}
    template = {
        "type": "TemplateProcessing",
        "single": [piece["[CLS]"], first, piece["[SEP]"]],
        "pair": [piece["[CLS]"], first, piece["[SEP]"], second, last],
        "special_tokens": {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in piece},
    }
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocabulary,
             "max_input_chars_per_word": 100}  # fmt: skip
    # As fine-tuning leaves it: with a truncation and padding of its own, which must not count.
    limits = {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    return json.dumps(
        {"version": "1.0", "truncation": limits, "padding": padding, "added_tokens": special,
         "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                        "strip_accents": None, "lowercase": True},
         "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": template, "decoder": None, "model": model}
    )  # fmt: skip


def fed_by(
    tokenizer_json: str,
    task: Task = "sequence-classification",
    max_length: int = 16,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
) -> TextInput:
    """Return how a model takes the texts that `tokenizer_json` encodes."""
    found = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    return TextInput(task=task, max_length=max_length, inputs=inputs, pad_id=0, tokenizer_sha256=found)


def text_set(
    texts: list[str],
    *,
    task: Task = "sequence-classification",
    classes: tuple[str, ...] = ("no", "yes"),
    labels: list[int] | None = None,
    pairs: list[str] | None = None,
    tags: list[list[int]] | None = None,
    answers: list[list[Answer]] | None = None,
) -> TextSet:
    """Return texts as a set; where there are tags, the words are separated by spaces."""
    words = None if tags is None else tuple(tuple(text.split()) for text in texts)
    return TextSet(
        task=task,
        classes=classes,
        texts=tuple(texts),
        labels=np.array(labels or [0] * len(texts), np.int64),
        keys=tuple(f"t:{number}" for number in range(len(texts))),
        digests=content_digests(texts, pairs, words),
        pairs=None if pairs is None else tuple(pairs),
        words=words,
        tags=None if tags is None else tuple(map(tuple, tags)),
        answers=None if answers is None else tuple(map(tuple, answers)),
    )
