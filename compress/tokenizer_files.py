"""The tokenizer of a text model: found, read, and checked against the model before anything is spent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from tlc.calibration.tokens import load_tokenizer
from tlc.compress.hf import read_json, transformers
from tlc.runtime.errors import TlcError

TOKENIZER_NAME = "tokenizer.json"
_OLDER = ("vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Vocabularies that transformers turns into a tokenizer.json."""
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes that take tokenizer.json as it is."""
_NO_LIMIT = 1 << 24
"""transformers writes 1e30 where a tokenizer sets no length."""


def read_tokenizer(source: Path) -> tuple[str, int]:
    """Return the content of tokenizer.json and the most tokens that its tokenizer_config.json allows.

    source: the file, or the folder with it or with the vocabulary that transformers makes one from.
    Raises TlcError if there is none or it cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    file = source / TOKENIZER_NAME if source.is_dir() else source
    if source.is_dir() and not file.is_file() and any((source / name).is_file() for name in _OLDER):
        content = _converted(source)
    elif file.is_file() and (source.is_dir() or source.suffix == ".json"):
        content = _read(file)
    else:
        raise TlcError(
            f"{source} holds no {TOKENIZER_NAME}: without the tokenizer that the model was trained with, its token ids "
            "mean nothing",
            hint="Pass --tokenizer with the tokenizer.json, or the folder that save_pretrained of the tokenizer wrote.",
        )
    settings = read_json(folder / "tokenizer_config.json") or {}
    _check_case(content, settings, folder)
    length = settings.get("model_max_length")
    return content, int(length) if isinstance(length, int | float) and 0 < length < _NO_LIMIT else _NO_LIMIT


def _read(file: Path) -> str:
    try:
        content = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TlcError(f"{file} is not UTF-8: {error}", hint="Copy or download it again.") from error
    parse_tokenizer(content, file)
    return content


def _check_case(content: str, settings: Mapping[str, JsonValue], folder: Path) -> None:
    """Refuse files that disagree on case: transformers follows tokenizer_config.json for all but generic classes."""
    normalizer = json.loads(content).get("normalizer") or {}
    stored, wanted = normalizer.get("lowercase"), settings.get("do_lower_case")
    if settings.get("tokenizer_class") in _GENERIC or None in (stored, wanted) or stored == wanted:
        return
    raise TlcError(
        f"{folder}: {TOKENIZER_NAME} says lowercase {json.dumps(stored)}, tokenizer_config.json says do_lower_case "
        f"{json.dumps(wanted)}, which transformers followed in training",
        hint="Where the model was made, run AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
    )


def parse_tokenizer(content: str, source: Path) -> Any:
    """Return the `tokenizers.Tokenizer` in the content of a tokenizer.json; TlcError naming `source` if it is none."""
    try:
        return load_tokenizer(content)
    except TlcError as error:
        raise TlcError(f"{source}: {error.message}", hint=error.hint) from error


def _converted(folder: Path) -> str:
    """Return the tokenizer.json that transformers makes of an older folder's vocabulary; no code of it is run."""
    try:
        made = transformers().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
        content: str = made.backend_tokenizer.to_str()
    except Exception as error:  # whatever the vocabulary's reader raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TlcError(
            f"{folder} holds no {TOKENIZER_NAME}, and transformers cannot make one of its vocabulary: {first}",
            hint="Where the model was made, run AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
        ) from error
    return content


def check_vocabulary(content: str, embeddings: int, source: Path, model: Path) -> None:
    """Raise TlcError if a token's id is beyond the model's embedding table of `embeddings` rows."""
    vocabulary = parse_tokenizer(content, source).get_vocab(with_added_tokens=True)
    token, largest = max(vocabulary.items(), key=lambda item: (item[1], item[0]), default=("", -1))
    if largest < 0:
        raise TlcError(f"{source}: the tokenizer's vocabulary is empty", hint="Copy or download it again.")
    if largest >= embeddings:
        beyond = sum(index >= embeddings for index in vocabulary.values())
        raise TlcError(
            f"the tokenizer in {source} knows {len(vocabulary):,} tokens up to id {largest:,} ({token!r}), the "
            f"model in {model} embeds {embeddings:,}: {beyond:,} tokens have no embedding",
            hint="Give the tokenizer that the model was trained with (--tokenizer); after adding tokens to it, the "
            "model needs resize_token_embeddings and training.",
        )


def pad_id(content: str, configured: int | None, source: Path) -> int:
    """Return the token that fills inputs up: the model's own, else the one that the tokenizer names.

    Raises TlcError if neither names one.
    """
    tokenizer = parse_tokenizer(content, source)
    padding = json.loads(content).get("padding") or {}
    usual = next((index for name in ("[PAD]", "<pad>") if (index := tokenizer.token_to_id(name)) is not None), None)
    named = padding.get("pad_id", usual)
    found = named if configured is None else configured
    if not isinstance(found, int):
        raise TlcError(
            f"neither the model's config nor the tokenizer in {source} names a padding token",
            hint="Set pad_token_id in config.json to the id of the token it was padded with in training.",
        )
    return found
