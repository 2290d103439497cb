"""From texts to tokens by a recorded tokenizer, and from a model's outputs back to samples."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.text_set import UNLABELED, Answer, TextSet
from tlc.calibration.token_set import Ints, Ragged, TextInput, Tokens
from tlc.runtime.errors import TlcError

__all__ = [
    "MASKED_LOGIT",
    "Ints",
    "Ragged",
    "TextInput",
    "Tokens",
    "answer_places",
    "choose_max_length",
    "encode",
    "gather",
    "load_tokenizer",
    "mask_token_id",
    "token_lengths",
]

MASKED_LOGIT = -10_000.0
"""Logit of a place where no answer can begin or end."""

_FIT_SHARE = 0.999
_MULTIPLE = 8


def load_tokenizer(tokenizer_json: str) -> Any:
    """Return the `tokenizers.Tokenizer` in the content of a tokenizer.json. Raises TlcError when it is none."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TlcError(
            "texts need the tokenizers library, which is not installed", hint="Run: pip install tokenizers."
        ) from error
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # The library raises nothing more specific.
        raise TlcError(
            f"the content of tokenizer.json is not a tokenizer: {error}",
            hint="Save it again with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER).",
        ) from error


def mask_token_id(tokenizer_json: str) -> int | None:
    """Return the id of the tokenizer's mask token, [MASK] or <mask>; None where it has none."""
    tokenizer = load_tokenizer(tokenizer_json)
    for token in ("[MASK]", "<mask>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return None


def token_lengths(texts: TextSet, tokenizer_json: str) -> Ints:
    """Return the tokens of each sample, special ones included and nothing cut, (N,)."""
    tokenizer = load_tokenizer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return np.array([len(encoded.ids) for encoded in _encodings(tokenizer, texts)], np.int64)


def choose_max_length(lengths: Ints, limit: int) -> int:
    """Return the smallest multiple of 8 that 99.9 % of the texts of these `lengths` fit in, or `limit` if that is less.

    >>> choose_max_length(np.array([5, 9, 17]), 512), choose_max_length(np.array([700, 900]), 512)
    (24, 512)
    """
    if not len(lengths):
        raise ValueError("no lengths to choose from")
    enough = int(np.sort(lengths)[math.ceil(_FIT_SHARE * len(lengths)) - 1])
    return min(limit, -(-enough // _MULTIPLE) * _MULTIPLE)


def encode(texts: TextSet, tokenizer_json: str, fed: TextInput) -> Tokens:
    """Return `texts` as tokens, cut to `fed.max_length`: the longer text of a pair first, of a question the context.

    Words have their tag at their first token. A word that is cut off, or that the tokenizer drops, has none.

    Raises TlcError when the tokenizer is not the one that `fed` records, and when a question leaves no room for its
    context.
    """
    found = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    if found != fed.tokenizer_sha256:
        raise TlcError(
            f"this tokenizer.json has SHA-256 {found[:16]}..., the model was made with {fed.tokenizer_sha256[:16]}...",
            hint="Use the tokenizer.json that lies beside the model.",
        )
    tokenizer = load_tokenizer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    questions = fed.task == "question-answering"
    if questions:
        _require_room(tokenizer, texts, fed.max_length)
    tokenizer.enable_truncation(fed.max_length, strategy="only_second" if questions else "longest_first")
    encoded = _encodings(tokenizer, texts)
    parts = tuple(np.array([-1 if p is None else p for p in e.sequence_ids], np.int64) for e in encoded)
    offsets = tuple(np.array(e.offsets, np.int64).reshape(-1, 2) for e in encoded) if questions else None
    tags, spans = None, None
    if texts.tags is not None:
        tags = tuple(_token_tags(e.word_ids, tags) for e, tags in zip(encoded, texts.tags, strict=True))
    if offsets is not None and texts.answers is not None:
        found_spans = [_span(*sample) for sample in zip(offsets, parts, texts.answers, strict=True)]
        spans = np.array(found_spans, np.int64).reshape(-1, 2)
    return Tokens(
        texts=texts,
        fed=fed,
        ids=tuple(np.array(e.ids, np.int64) for e in encoded),
        types=tuple(np.array(e.type_ids, np.int64) for e in encoded),
        parts=parts,
        labels=texts.labels,
        cut=np.array([bool(e.overflowing) for e in encoded], bool),
        tags=tags,
        spans=spans,
        offsets=offsets,
    )


def gather(
    run: Callable[[dict[str, Ints]], NDArray[np.generic]], tokens: Tokens, batch_size: int = 32
) -> NDArray[np.float32]:
    """Return the model's outputs for all samples, in their order, whatever order they were run in.

    run: feeds, each (n, T), to logits (n, K), (n, T, K) for token classification or (n, T, 2) for question answering.

    Returns (N, K), or (M, K) for the M tokens that have a tag, or (N, 2, T) for answers: start and end logits, which
    are `MASKED_LOGIT` wherever no answer can be (the question, special tokens but the first, padding).
    """
    rows: list[NDArray[np.float32] | None] = [None] * len(tokens)
    longest = int(tokens.lengths.max(initial=0))
    for indices in tokens.batches(batch_size):
        outputs = np.asarray(run(tokens.feeds(indices)), np.float32)
        for i, output in zip(indices.tolist(), outputs, strict=True):
            if tokens.tags is not None:
                tags = tokens.tags[i]
                rows[i] = output[: len(tags)][tags != UNLABELED]
            elif tokens.spans is not None:
                rows[i] = _masked(output, answer_places(tokens.parts[i]), longest)
            else:
                rows[i] = output[None]
    found = [row for row in rows if row is not None]
    if not found:
        return np.zeros((0, 0), np.float32)
    return np.stack(found) if tokens.spans is not None else np.concatenate(found)


def answer_places(parts: Ints) -> NDArray[np.bool_]:
    """Return where answers can begin and end, (T,): in the context, and at the first token, which means no answer."""
    places: NDArray[np.bool_] = parts == 1
    places[:1] = True
    return places


def _masked(output: NDArray[np.float32], places: NDArray[np.bool_], width: int) -> NDArray[np.float32]:
    masked = np.full((2, width), MASKED_LOGIT, np.float32)
    masked[:, : len(places)][:, places] = output[: len(places)][places].T
    return masked


def _encodings(tokenizer: Any, texts: TextSet) -> list[Any]:
    if texts.words is not None:
        return list(tokenizer.encode_batch([list(words) for words in texts.words], is_pretokenized=True))
    if texts.pairs is not None:
        return list(tokenizer.encode_batch(list(zip(texts.texts, texts.pairs, strict=True))))
    return list(tokenizer.encode_batch(list(texts.texts)))


def _require_room(tokenizer: Any, texts: TextSet, max_length: int) -> None:
    """Raise TlcError unless every question leaves room for a token of its context."""
    special = tokenizer.num_special_tokens_to_add(True)
    lengths = [len(e.ids) for e in tokenizer.encode_batch(list(texts.texts), add_special_tokens=False)]
    worst = int(np.argmax(lengths)) if lengths else 0
    if lengths and lengths[worst] + special >= max_length:
        raise TlcError(
            f"{texts.keys[worst]}: the question has {lengths[worst]} tokens; with {special} special ones that leaves "
            f"no room for the context in {max_length}",
            hint="Raise --max-length, or remove that question.",
        )


def _token_tags(word_ids: list[int | None], tags: tuple[int, ...]) -> Ints:
    words = np.array([-1 if word is None else word for word in word_ids], np.int64)
    first = (words >= 0) & (words != np.concatenate([[-1], words[:-1]]))
    return np.where(first, np.array([*tags, UNLABELED], np.int64)[words], UNLABELED)


def _span(offsets: Ints, parts: Ints, answers: tuple[Answer, ...]) -> tuple[int, int]:
    """Return the first and last token of the first answer."""
    if not answers:
        return 0, 0
    text, start = answers[0]
    stop = start + len(text)
    context = np.flatnonzero(parts == 1)
    inside = context[(offsets[context, 1] > start) & (offsets[context, 0] < stop)]
    if not len(inside) or offsets[context[-1], 1] < stop:
        return UNLABELED, UNLABELED
    return int(inside[0]), int(inside[-1])
