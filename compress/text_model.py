"""Text models as they flow through the PyTorch stages: from files to a `TextModel`, and to files and back."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tlc.calibration.texts import Task
from tlc.calibration.tokens import TextInput
from tlc.compress.arch import Architecture
from tlc.compress.checkpoint import JSON_NAME, SavedModel, is_saved, read_saved, rebuilt, write_saved
from tlc.compress.hf import class_names, read_json
from tlc.compress.hf_text import is_text_config, position_limit, takes_token_types, task_of
from tlc.compress.load import fill, open_model
from tlc.compress.pickles import pickled_globals
from tlc.compress.tokenizer_files import TOKENIZER_NAME, check_vocabulary, pad_id, read_tokenizer
from tlc.runtime.errors import TlcError, UsageError

_LEAST_LENGTH = 8

_TEXT_CLASS = re.compile(
    r"transformers\.models\.\w+\.modeling_\w+\.\w+For((Sequence|Token)Classification|QuestionAnswering)"
)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A text network with what is needed to build it again, to feed it, and to say how it came to be."""

    module: nn.Module
    """Float32, on the CPU, in eval mode. Takes int64 (N, T) in the order of `text.inputs`; returns float32 logits:
    (N, num_classes) per text, (N, T, num_classes) per token, or (N, T, 2), those of an answer's start and end."""
    arch: Architecture
    text: TextInput
    tokenizer: str
    """Content of tokenizer.json."""
    num_classes: int
    """Logits of a text or token; 2 for question answering."""
    classes: tuple[str, ...] = ()
    """Class or tag names in the order of the logits; empty when nobody said."""
    history: tuple[str, ...] = ()
    """One line per stage that made it, oldest first."""

    @property
    def input_shape(self) -> tuple[int]:
        """The most tokens of a text, (T,)."""
        return (self.text.max_length,)

    def after(self, step: str, module: nn.Module) -> "TextModel":
        """Return the successor that `step` made."""
        return replace(self, module=module, history=(*self.history, step))

    def with_max_length(self, max_length: int) -> "TextModel":
        """Return the same network fed with at most `max_length` tokens; UsageError beyond its position embeddings."""
        _check_max_length(max_length, config_of(self.module))
        return replace(self, text=self.text.model_copy(update={"max_length": max_length}))


def config_of(module: nn.Module) -> Any:
    """Return the transformers config that a text network runs by."""
    return vars(module.get_submodule("model"))["config"]


def embedding_rows(module: nn.Module) -> int:
    """Return how many tokens a text network embeds, factorised or not."""
    network: Any = module.get_submodule("model")
    table: Any = network.get_input_embeddings()
    first: Any = table[0] if isinstance(table, nn.Sequential) else table
    count: int = first.num_embeddings
    return count


def _check_max_length(max_length: int, config: Any) -> None:
    limit = position_limit(config)
    if max_length > limit:
        raise UsageError(
            f"a length of {max_length} tokens is beyond the model's position embeddings, which reach {limit}",
            hint=f"Pass at most --max-length {limit}; longer texts are cut.",
        )
    if max_length < _LEAST_LENGTH:
        raise UsageError(
            f"a length of {max_length} tokens leaves no room for a text beside the special tokens",
            hint=f"Pass --max-length {_LEAST_LENGTH} to {limit}.",
        )


def is_text_model(path: Path, arch: str | None = None) -> bool:
    """Whether `path` or the folder of an `hf:DIR` holds a text model, by its JSON or the names in its pickle alone.

    False for what is no model at all, and for weights without an `arch`. Raises TlcError for broken JSON.
    """
    if arch is not None and arch.startswith("hf:"):
        return _is_text_folder(Path(arch.removeprefix("hf:").partition("?")[0]))
    if path.is_dir() and is_saved(path):
        return (read_json(path / JSON_NAME) or {}).get("text") is not None
    if path.is_dir():
        return _is_text_folder(path)
    return path.is_file() and any(_TEXT_CLASS.fullmatch(name) for name in pickled_globals(path))


def _is_text_folder(folder: Path) -> bool:
    config = read_json(folder / "config.json")
    return config is not None and is_text_config(config)


def load_text_model(
    path: Path,
    *,
    arch: str | None = None,
    tokenizer: Path | None = None,
    max_length: int | None = None,
    pairs: bool = False,
) -> TextModel:
    """Return the text model in `path`: a Hugging Face folder, any form of .pt, .safetensors, or a folder of tlc.

    arch: `hf:DIR`, needed where the file holds weights alone. tokenizer: a tokenizer.json or the folder that holds it;
    needed where neither `path` nor DIR does. max_length: tokens; default all that positions and tokenizer allow.
    pairs: whether texts come in pairs, told apart by token_type_ids where the model takes them (questions always do).
    Raises TlcError for everything wrong with the files, UsageError for a length that is not possible.
    """
    if path.is_dir() and is_saved(path):
        model = _resaved(load_saved_text(path), path, tokenizer, pairs)
        return model if max_length is None else model.with_max_length(max_length)
    opened = open_model(path, arch)
    task = task_of(opened.arch.config)
    if task is None:
        raise TlcError(
            f"{path} holds no text model but {opened.arch.text}", hint="Give images as the data, or a text model."
        )
    source = tokenizer or (Path(opened.arch.name) if arch is not None else path)
    content, recorded_length = read_tokenizer(source)
    module = fill(opened)
    config = config_of(module)
    check_vocabulary(content, embedding_rows(module), source, path)
    if max_length is None:
        max_length = min(position_limit(config), recorded_length)
    _check_max_length(max_length, config)
    fed = TextInput(
        task=task,
        max_length=max_length,
        inputs=token_inputs(config, task, pairs=pairs),
        pad_id=pad_id(content, config.pad_token_id, source),
        tokenizer_sha256=hashlib.sha256(content.encode()).hexdigest(),
    )
    count = _count_outputs(module, fed, opened.arch)
    named = opened.checkpoint.classes or class_names(opened.arch.config)
    notes = "; ".join((opened.checkpoint.format, *opened.checkpoint.notes, *opened.matched.notes))
    return TextModel(
        module=module,
        arch=opened.arch,
        text=fed,
        tokenizer=content,
        num_classes=count,
        classes=_checked_names(named, path) if len(named) == count and task != "question-answering" else (),
        history=(f"loaded {path.name} ({notes})",),
    )


def _resaved(model: TextModel, path: Path, tokenizer: Path | None, pairs: bool) -> TextModel:
    """Return a model of tlc as it is fed now: its tokenizer is fixed, whether texts come in pairs is not."""
    if tokenizer is not None and read_tokenizer(tokenizer)[0] != model.tokenizer:
        raise UsageError(
            f"{path} carries its own {TOKENIZER_NAME}, and {tokenizer} is another one",
            hint="Leave --tokenizer out.",
        )
    if not pairs:
        return model
    inputs = token_inputs(config_of(model.module), model.text.task, pairs=pairs)
    return replace(model, text=model.text.model_copy(update={"inputs": inputs}))


def token_inputs(config: Any, task: Task, *, pairs: bool) -> tuple[str, ...]:
    """Return the names of a text network's inputs in order; a transformers `config` says which it takes."""
    typed = takes_token_types(config) and (pairs or task == "question-answering")
    return ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))


def _checked_names(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TlcError(
            f"{path}: two of its {len(names)} classes are both named {twice!r}",
            hint="Give each class its own name under id2label in config.json.",
        )
    return names


def _count_outputs(module: nn.Module, fed: TextInput, arch: Architecture) -> int:
    """Return the number of logits, by running one short text; TlcError if it does not run."""
    ids = torch.full((1, _LEAST_LENGTH), fed.pad_id)
    ones = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    with torch.inference_mode():
        try:
            logits = module(*(ones[name] for name in fed.inputs))
        except Exception as error:  # whatever the network's own code raises
            raise TlcError(
                f"{arch.text} does not run on {_LEAST_LENGTH} tokens: {str(error).splitlines()[0]}",
                hint="Save the model again with the installed transformers.",
            ) from error
    return int(logits.shape[-1])


def save_text_model(model: TextModel, folder: Path) -> None:
    """Write model.json, model.safetensors and tokenizer.json; the same model gives the same bytes.

    Raises TlcError before writing if a part of the network cannot be written down without a pickle.
    """
    described = SavedModel(
        architecture=model.arch,
        text=model.text,
        num_classes=model.num_classes,
        classes=model.classes,
        history=model.history,
    )
    write_saved(described, model.module, folder, {TOKENIZER_NAME: model.tokenizer})


def load_saved_text(folder: Path) -> TextModel:
    """Build the model that `save_text_model` wrote, outputs bit-equal; TlcError for missing or damaged files."""
    saved = read_saved(folder)
    if saved.text is None:
        raise TlcError(
            f"{folder} holds an image classifier; texts cannot be fed to it", hint="Give images, or a text model."
        )
    content, _length = read_tokenizer(folder)
    if hashlib.sha256(content.encode()).hexdigest() != saved.text.tokenizer_sha256:
        raise TlcError(
            f"{folder / TOKENIZER_NAME} is not the tokenizer that the model was made with: its sha256 differs",
            hint="Copy the whole folder again.",
        )
    return TextModel(
        module=rebuilt(saved, saved.architecture, folder),
        arch=saved.architecture,
        text=saved.text,
        tokenizer=content,
        num_classes=saved.num_classes,
        classes=saved.classes,
        history=saved.history,
    )
