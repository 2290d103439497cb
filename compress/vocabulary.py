"""Fewer tokens: those that some texts use, what every word can be spelt with, and the special ones.

The texts are cut exactly as before. In other texts, a word whose token is gone is cut into smaller pieces.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.tokens import load_tokenizer
from tlc.runtime.errors import TlcError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_HINT = "Leave vocabulary out of --student."

Text = str | Sequence[str]
"""A text, or its words where the task is about words."""


def check_trimmable(tokenizer_json: str) -> None:
    """Raise TlcError unless the tokenizer is WordPiece, Unigram, or BPE without marks on word parts."""
    model = json.loads(tokenizer_json)["model"]
    kind = model.get("type")
    if kind not in ("WordPiece", "Unigram", "BPE"):
        raise TlcError(
            f"the tokenizer is a {kind}: its vocabulary cannot be trimmed (WordPiece, Unigram and BPE can)", hint=_HINT
        )
    if kind == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise TlcError("the tokenizer is a BPE that marks parts of words: it cannot be trimmed exactly", hint=_HINT)


def trim_tokenizer(tokenizer_json: str, texts: Sequence[Text]) -> tuple[str, NDArray[np.int64]]:
    """Return tokenizer.json with fewer tokens, and the old id of each of its tokens, ascending.

    Kept are tokens that `texts` use, added and special ones, and single characters and bytes, in the old order.
    Raises TlcError as `check_trimmable`, for no texts, and if the encoding of any of `texts` were not the same.
    """
    check_trimmable(tokenizer_json)
    if not texts:
        raise TlcError("there are no texts to choose a vocabulary by", hint="Give the training texts.")
    content = json.loads(tokenizer_json)
    used = set(np.unique(np.concatenate(list(_encoded(tokenizer_json, texts)))).tolist())
    added = {token["id"] for token in content["added_tokens"]}
    model = content["model"]
    tokens = _tokens(model)
    kept = (used | added | _basic(model, tokens)) & (set(tokens) | added)
    if model["type"] == "BPE":
        kept |= _keep_merges(model, tokens, kept)
    old_ids = np.array(sorted(kept), np.int64)
    new_id = {old: new for new, old in enumerate(old_ids.tolist())}
    try:
        _renumber(content, new_id)
    except KeyError as error:
        raise TlcError(f"tokenizer.json uses the id {error}, which is no token of it", hint=_HINT) from error
    trimmed = json.dumps(content, ensure_ascii=False)
    _check_same(tokenizer_json, trimmed, texts, old_ids)
    return trimmed, old_ids


def _encoded(tokenizer_json: str, texts: Sequence[Text]) -> Iterator[NDArray[np.int64]]:
    """Yield the ids of every text, whole, with special tokens."""
    tokenizer = load_tokenizer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for start in range(0, len(texts), 1000):
        some = texts[start : start + 1000]
        for of_words in (False, True):
            inputs: list[Any] = [t if isinstance(t, str) else list(t) for t in some if isinstance(t, str) != of_words]
            for encoding in tokenizer.encode_batch(inputs, is_pretokenized=of_words):
                yield np.array(encoding.ids, np.int64)


def _tokens(model: dict[str, Any]) -> dict[int, str]:
    """Return the model's tokens by id, without added ones."""
    if model["type"] == "Unigram":
        return {index: piece for index, (piece, _score) in enumerate(model["vocab"])}
    return {index: token for token, index in model["vocab"].items()}


def _basic(model: dict[str, Any], tokens: dict[int, str]) -> set[int]:
    """Return the ids of what any word can be spelt with: single characters, bytes, and the unknown token."""
    prefix = {"WordPiece": model.get("continuing_subword_prefix"), "Unigram": "\u2581"}.get(model["type"]) or ""
    found = {index for index, token in tokens.items() if len(token.removeprefix(prefix)) <= 1 or _BYTE.fullmatch(token)}
    if model["type"] == "Unigram":
        # An unknown character costs a fixed amount below the lowest score of all pieces: that piece stays.
        lowest = min(range(len(model["vocab"])), key=lambda index: model["vocab"][index][1])
        return found | {lowest, *([] if model.get("unk_id") is None else [model["unk_id"]])}
    return found | {index for index, token in tokens.items() if token == model.get("unk_token")}


def _keep_merges(model: dict[str, Any], tokens: dict[int, str], kept: set[int]) -> set[int]:
    """Keep the merges that make the kept tokens, in their order, and return the ids of all tokens on the way.

    Within a text, a token is merged from its characters by the same steps as it is alone, so the merges it needs are
    found by merging it alone (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, algorithm 1).
    """
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    rank = {pair: index for index, pair in enumerate(pairs)}
    needed: set[int] = set()
    for index in kept & set(tokens):
        needed.update(_merged_by(tokens[index], rank))
    model["merges"] = [model["merges"][index] for index in sorted(needed)]
    on_the_way = {"".join(pairs[index]) for index in needed} | {part for index in needed for part in pairs[index]}
    return {model["vocab"][token] for token in on_the_way}


def _merged_by(token: str, rank: dict[tuple[str, ...], int]) -> list[int]:
    """Return the merges, by rank, that make `token` of its characters."""
    parts = list(token)
    used: list[int] = []
    while True:
        ranked = [(rank[pair], at) for at, pair in enumerate(itertools.pairwise(parts)) if pair in rank]
        if not ranked:
            return used
        best, at = min(ranked)
        used.append(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _renumber(content: dict[str, Any], new_id: dict[int, int]) -> None:
    """Drop the tokens that have no new id and renumber the others, wherever tokenizer.json holds an id."""
    model = content["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new_id]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        model["vocab"] = {token: new_id[index] for token, index in model["vocab"].items() if index in new_id}
    for token in content["added_tokens"]:
        token["id"] = new_id[token["id"]]
    if content.get("padding"):
        content["padding"]["pad_id"] = new_id[content["padding"]["pad_id"]]
    processors = [content.get("post_processor")]
    for processor in filter(None, processors):
        processors.extend(processor.get("processors", []))
        if processor["type"] == "TemplateProcessing":
            for special in processor["special_tokens"].values():
                special["ids"] = [new_id[index] for index in special["ids"]]
        for key in ("sep", "cls"):  # BertProcessing and RobertaProcessing
            if key in processor:
                processor[key] = [processor[key][0], new_id[processor[key][1]]]


def _check_same(before: str, after: str, texts: Sequence[Text], old_ids: NDArray[np.int64]) -> None:
    try:
        pairs = zip(_encoded(before, texts), _encoded(after, texts), strict=True)
        same = all(np.array_equal(old, old_ids[new]) for old, new in pairs)
    except (IndexError, ValueError, TypeError) as error:
        raise TlcError(f"the tokenizer cannot be trimmed: {error}", hint=_HINT) from error
    if not same:
        raise TlcError("trimming the tokenizer would change how the texts are cut", hint=_HINT)
