"""What is in a text model's files, and what tlc could do with it."""

from pathlib import Path

import torch
from torch import nn

from tlc.compress.arch import Architecture
from tlc.compress.checkpoint import is_saved
from tlc.compress.cost import parameters
from tlc.compress.hf import class_names
from tlc.compress.hf_text import position_limit, task_of
from tlc.compress.inspection import (
    Inspection,
    file_bytes,
    int8_share,
    layers_of,
    macs_by_module,
    operators_of,
    parts_of,
)
from tlc.compress.load import fill, open_model
from tlc.compress.text_layers import encoder_of, self_attentions, transformer_layers
from tlc.compress.text_model import config_of, embedding_rows, load_saved_text
from tlc.compress.tokenizer_files import check_vocabulary, read_tokenizer
from tlc.runtime.errors import TlcError

_TOKENS = 128
"""Length of the text whose multiply-accumulates are counted, where the model takes that many."""


def inspect_text(path: Path, arch: str | None) -> Inspection:
    """Describe the text model in `path`, with or without its tokenizer; TlcError for a damaged or unknown one."""
    if path.is_dir() and is_saved(path):
        saved = load_saved_text(path)
        found = _described(path, saved.module, saved.arch, saved.classes)
        update = {"format": "tlc model", "dtypes": ("float32",), "notes": saved.history}
        return found.model_copy(update=update)
    opened = open_model(path, arch)
    module = fill(opened)
    classes = opened.checkpoint.classes or class_names(opened.arch.config)
    found = _described(path, module, opened.arch, classes)
    notes = (*opened.checkpoint.notes, *opened.matched.notes)
    if (problem := _tokenizer_problem(path if arch is None else Path(opened.arch.name), path, module)) is not None:
        found = found.model_copy(update={"next_step": problem.hint})
        notes = (*notes, problem.message)
    checkpoint = opened.checkpoint
    return found.model_copy(update={"format": checkpoint.format, "dtypes": checkpoint.dtypes, "notes": notes})


def _tokenizer_problem(source: Path, path: Path, module: nn.Module) -> TlcError | None:
    try:
        content, _length = read_tokenizer(source)
        check_vocabulary(content, embedding_rows(module), source, path)
    except TlcError as error:
        return error
    return None


def _described(path: Path, module: nn.Module, arch: Architecture, classes: tuple[str, ...]) -> Inspection:
    limit = position_limit(config_of(module))
    ids = torch.ones(1, min(_TOKENS, limit), dtype=torch.int64)
    costs = macs_by_module(module, (ids, torch.ones_like(ids)))
    total = parameters(module)
    layers = layers_of(module, costs)
    with torch.inference_mode():
        count = int(module(ids, torch.ones_like(ids)).shape[-1])
    task = task_of(arch.config)
    return Inspection(
        path=str(path),
        format="",
        file_bytes=file_bytes(path),
        dtypes=(),
        arch=arch.text,
        suggested_archs=(),
        num_classes=count,
        classes=classes if len(classes) == count and task != "question-answering" else (),
        input_shape=None,
        preprocess=None,
        task=task,
        max_length=limit,
        parameters=total,
        macs=costs[""],
        parts=parts_of(layers, costs, total, len(encoder_of(module).name.split(".")) + 1),
        layers=layers,
        operators=operators_of(module),
        notes=(),
        possibilities=(*_possibilities(module, total), int8_share(module)),
        next_step=f"Run: tlc compress {path} --data TEXTS.csv",
    )


def _possibilities(module: nn.Module, total: int) -> tuple[str, ...]:
    attentions = self_attentions(module)
    encoder = encoder_of(module)
    outputs = [f"{layer}.{encoder.family.output}.weight" for layer in transformer_layers(module)]
    widths = [module.get_parameter(name).shape[1] for name in outputs]
    words = sum(value.numel() for value in module.get_submodule(encoder.path(encoder.family.words)).parameters())
    return (
        f"depth: {len(attentions)} layers, of which some can be left out (--student depth:0.5)",
        f"width: {_range([attention.heads for attention in attentions])} heads and {_range(widths)} intermediate "
        "channels in each layer (--student width:0.5)",
        f"vocabulary: the embeddings of {embedding_rows(module):,} tokens hold {words / total:.1%} of the parameters "
        "(--student embedding:128 or vocabulary:data)",
    )


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
