"""What is in a model file, where its weight is, and what tlc could do with it; runs nothing of the file."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.compress.checkpoint import is_saved, load_saved
from tlc.compress.cost import parameters
from tlc.compress.formats import Checkpoint, is_counter, read_checkpoint
from tlc.compress.hf import class_names
from tlc.compress.inputs import PreprocessOptions, default_preprocess, resolve_preprocess, without_normalisation
from tlc.compress.inspect_text import inspect_text
from tlc.compress.inspection import (
    Inspection,
    Layer,
    file_bytes,
    int8_share,
    layers_of,
    macs_by_module,
    operators_of,
    parts_of,
)
from tlc.compress.load import count_outputs, fill, open_model
from tlc.compress.matching import suggest
from tlc.compress.model import Model
from tlc.compress.prune import check_prunable
from tlc.compress.student import removable_blocks
from tlc.compress.text_model import is_text_model
from tlc.runtime.errors import TlcError


def inspect_model(path: Path, *, arch: str | None = None, options: PreprocessOptions | None = None) -> Inspection:
    """Describe the model in `path`; FILE.py is executed only if `arch` names it.

    Weights without a known architecture are described by their tensors. Raises TlcError for what is no model, is
    damaged or names foreign classes.
    """
    options = options or PreprocessOptions()
    if is_text_model(path, arch):
        return inspect_text(path, arch)
    if path.is_dir() and is_saved(path):
        model = load_saved(path, arch=arch)
        model = _with_preprocess(model, resolve_preprocess(model.preprocess, None, options))
        return _of_network(path, "tlc model", ("float32",), model.module, model, model.classes, model.history)
    if arch is None and path.is_file():
        checkpoint = read_checkpoint(path)
        if checkpoint.record is None:
            return _of_weights(checkpoint)
    opened = open_model(path, arch)
    module = fill(opened)
    checkpoint = opened.checkpoint
    notes: tuple[str, ...] = (*checkpoint.notes, *opened.matched.notes)
    classes = checkpoint.classes or class_names(opened.arch.config)
    try:
        fed = resolve_preprocess(None, default_preprocess(opened.arch), without_normalisation(options))
    except TlcError as error:
        found = _of_network(path, checkpoint.format, checkpoint.dtypes, module, None, classes, notes)
        return found.model_copy(
            update={"arch": opened.arch.text, "num_classes": opened.arch.num_classes, "next_step": error.hint}
        )
    count = count_outputs(module, fed, opened.arch)
    model = Model(module, opened.arch, fed, count)
    found = _of_network(path, checkpoint.format, checkpoint.dtypes, module, model, classes, notes)
    if options.mean is None and default_preprocess(opened.arch) is None:
        # Sizes do not depend on it, but nobody said how images are normalised.
        found = found.model_copy(update={"preprocess": None})
    return found


def _with_preprocess(model: Model, preprocess: Preprocess) -> Model:
    return Model(model.module, model.arch, preprocess, model.num_classes, model.classes, model.history)


def _of_weights(checkpoint: Checkpoint) -> Inspection:
    state = {name: value for name, value in checkpoint.state.items() if not is_counter(name)}
    total = sum(value.numel() for name, value in state.items() if not _is_statistic(name))
    layers = _stored_layers(state, total)
    close = suggest({name: tuple(value.shape) for name, value in state.items()})
    step = (
        f"Pass --arch {close[0]}." if close else "Pass --arch FILE.py:FUNCTION, the function that builds this network."
    )
    what = f"its keys fit {', '.join(close)}" if close else "its keys fit no image classifier of torchvision"
    return Inspection(
        path=str(checkpoint.path),
        format=checkpoint.format,
        file_bytes=file_bytes(checkpoint.path),
        dtypes=checkpoint.dtypes,
        arch=None,
        suggested_archs=close,
        num_classes=None,
        classes=checkpoint.classes,
        input_shape=None,
        preprocess=None,
        parameters=total,
        macs=None,
        parts=parts_of(layers, {}, total),
        layers=layers,
        operators={},
        notes=(*checkpoint.notes, f"weights only: the file does not say how the network computes; {what}"),
        possibilities=(),
        next_step=step,
    )


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def _stored_layers(state: Mapping[str, torch.Tensor], total: int) -> tuple[Layer, ...]:
    """Group tensors by layer: `conv1.weight` and `conv1.bias` are one."""
    grouped: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for name, value in state.items():
        if not _is_statistic(name):
            grouped.setdefault(name.rpartition(".")[0], []).append((name, value))
    return tuple(
        Layer(
            name=name,
            kind="",
            shape=tuple(max((value for _key, value in tensors), key=torch.Tensor.numel).shape),
            parameters=sum(value.numel() for _key, value in tensors),
            share_ratio=sum(value.numel() for _key, value in tensors) / max(total, 1),
            macs=None,
        )
        for name, tensors in grouped.items()
    )


def _of_network(
    path: Path,
    kind: str,
    dtypes: tuple[str, ...],
    module: nn.Module,
    model: Model | None,
    classes: tuple[str, ...],
    notes: tuple[str, ...],
) -> Inspection:
    total = parameters(module)
    costs = _macs(module, model.preprocess) if model is not None else {}
    layers = layers_of(module, costs)
    return Inspection(
        path=str(path),
        format=kind,
        file_bytes=file_bytes(path),
        dtypes=dtypes,
        arch=model.arch.text if model else None,
        suggested_archs=(),
        num_classes=model.num_classes if model else None,
        classes=classes if model and len(classes) == model.num_classes else (),
        input_shape=model.preprocess.input_shape if model else None,
        preprocess=model.preprocess if model else None,
        parameters=total,
        macs=costs.get("") if model else None,
        parts=parts_of(layers, costs, total),
        layers=layers,
        operators=operators_of(module),
        notes=notes,
        possibilities=_possibilities(module, model),
        next_step=f"Run: tlc compress {path} --data DIR" if model else "",
    )


def _macs(module: nn.Module, preprocess: Preprocess) -> dict[str, int]:
    try:
        return macs_by_module(module, (torch.zeros(1, *preprocess.input_shape),))
    except RuntimeError as error:
        shape = "x".join(map(str, preprocess.input_shape))
        message = f"the network does not run on an input of {shape}: {str(error).splitlines()[0]}"
        raise TlcError(message, hint="Pass the size it was trained on with --input CxHxW.") from error


def _possibilities(module: nn.Module, model: Model | None) -> tuple[str, ...]:
    found = [_depth(model), _width(model)] if model is not None else []
    return (*found, int8_share(module))


def _depth(model: Model) -> str:
    blocks = removable_blocks(model)
    if not blocks:
        return "depth: no block can be left out"
    groups = Counter(block.group for block in blocks)
    shown = ", ".join(f"{count} in {group or 'the top'}" for group, count in groups.items())
    return f"depth: {len(blocks)} blocks can be left out ({shown})"


def _width(model: Model) -> str:
    try:
        prunable = check_prunable(model)
    except TlcError as error:
        return f"channels: {error.message}"
    channels = sum(coupling.channels for coupling in prunable.couplings)
    return f"channels: {channels:,} in {len(prunable.couplings)} groups can be pruned"
