"""What is in a model file, where its weight is, and what tlc could do with it; runs nothing of the file."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tlc.calibration.preprocess import Preprocess
from tlc.compress.checkpoint import is_saved, load_saved
from tlc.compress.cost import parameters
from tlc.compress.formats import Checkpoint, is_counter, read_checkpoint
from tlc.compress.hf import class_names
from tlc.compress.inputs import PreprocessOptions, default_preprocess, resolve_preprocess
from tlc.compress.load import check_images, count_outputs, fill, open_model
from tlc.compress.matching import suggest
from tlc.compress.model import Model
from tlc.compress.prune import check_prunable
from tlc.compress.student import removable_blocks
from tlc.runtime.errors import TlcError

_QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MultiheadAttention)


class Layer(BaseModel):
    """One layer that holds weights, or a top-level part that holds layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    """Class name; empty where the file holds weights alone."""
    shape: tuple[int, ...]
    """Of the weight; () for a part."""
    parameters: int
    share_ratio: float
    """Of the model's parameters."""
    macs: int | None
    """Of one sample; None where the layer never ran or no input is known."""


class Inspection(BaseModel):
    """What `tlc inspect` shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    format: str
    file_bytes: int
    dtypes: tuple[str, ...]
    """Of the floating tensors as stored."""
    arch: str | None
    """None where the file does not say and `--arch` was not given."""
    suggested_archs: tuple[str, ...]
    num_classes: int | None
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int] | None
    """(C, H, W) of one sample."""
    preprocess: Preprocess | None
    """None where nobody said how images are normalised."""
    parameters: int
    macs: int | None
    """Multiply-accumulates of one sample."""
    parts: tuple[Layer, ...]
    layers: tuple[Layer, ...]
    operators: dict[str, int]
    """Layers by class."""
    notes: tuple[str, ...]
    possibilities: tuple[str, ...]
    """What tlc could do with it."""
    next_step: str


def inspect_model(path: Path, *, arch: str | None = None, options: PreprocessOptions | None = None) -> Inspection:
    """Describe the model in `path`; FILE.py is executed only if `arch` names it.

    Weights without a known architecture are described by their tensors. Raises TlcError for what is no model, is
    damaged or names foreign classes.
    """
    options = options or PreprocessOptions()
    if path.is_dir() and is_saved(path):
        model = load_saved(path, arch=arch)
        model = _with_preprocess(model, resolve_preprocess(model.preprocess, None, options))
        return _of_network(path, "tlc model", ("float32",), model.module, model, model.classes, model.history)
    if arch is None and path.is_file():
        checkpoint = read_checkpoint(path)
        if checkpoint.record is None:
            return _of_weights(checkpoint)
    opened = open_model(path, arch)
    check_images(opened.arch, path)
    module = fill(opened)
    checkpoint = opened.checkpoint
    notes: tuple[str, ...] = (*checkpoint.notes, *opened.matched.notes)
    classes = checkpoint.classes or class_names(opened.arch.config)
    try:
        fed = resolve_preprocess(None, default_preprocess(opened.arch), _neutral(options))
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


def _neutral(options: PreprocessOptions) -> PreprocessOptions:
    """Return options with a mean and std where only --input was given: shapes and costs do not depend on them."""
    if options.input is None or options.mean is not None:
        return options
    count = options.input[0]
    return options.model_copy(update={"mean": (0.0,) * count, "std": (1.0,) * count})


def _file_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)


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
        file_bytes=_file_bytes(checkpoint.path),
        dtypes=checkpoint.dtypes,
        arch=None,
        suggested_archs=close,
        num_classes=None,
        classes=checkpoint.classes,
        input_shape=None,
        preprocess=None,
        parameters=total,
        macs=None,
        parts=_parts(layers, {}, total),
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
    costs = _macs_by_module(module, model.preprocess) if model is not None else {}
    layers = tuple(_layers(module, costs, total))
    return Inspection(
        path=str(path),
        format=kind,
        file_bytes=_file_bytes(path),
        dtypes=dtypes,
        arch=model.arch.text if model else None,
        suggested_archs=(),
        num_classes=model.num_classes if model else None,
        classes=classes if model and len(classes) == model.num_classes else (),
        input_shape=model.preprocess.input_shape if model else None,
        preprocess=model.preprocess if model else None,
        parameters=total,
        macs=costs.get("") if model else None,
        parts=_parts(layers, costs, total),
        layers=layers,
        operators=dict(Counter(type(layer).__name__ for layer in module.modules() if not layer._modules).most_common()),
        notes=notes,
        possibilities=_possibilities(module, model),
        next_step=f"Run: tlc compress {path} --data DIR" if model else "",
    )


def _layers(module: nn.Module, costs: Mapping[str, int], total: int) -> list[Layer]:
    rows = []
    seen: set[int] = set()
    for name, layer in module.named_modules():
        own = [value for value in layer._parameters.values() if value is not None and id(value) not in seen]
        seen.update(id(value) for value in own)
        if not own:
            continue
        count = sum(value.numel() for value in own)
        shape = tuple(max(own, key=torch.Tensor.numel).shape)
        share = count / max(total, 1)
        cost = costs.get(name) if name or not layer._modules else None
        rows.append(
            Layer(name=name, kind=type(layer).__name__, shape=shape, parameters=count, share_ratio=share, macs=cost)
        )
    return rows


def _parts(layers: tuple[Layer, ...], costs: Mapping[str, int], total: int) -> tuple[Layer, ...]:
    """Sum layers by the first component of their names that tells them apart."""
    names = [layer.name for layer in layers]
    depth = 1
    while len(names) > 1 and len({".".join(name.split(".")[:depth]) for name in names}) == 1 and depth < 6:
        depth += 1
    counts: Counter[str] = Counter()
    for layer in layers:
        counts[".".join(layer.name.split(".")[:depth])] += layer.parameters
    return tuple(
        Layer(name=name, kind="", shape=(), parameters=count, share_ratio=count / max(total, 1), macs=costs.get(name))
        for name, count in counts.items()
    )


def _macs_by_module(module: nn.Module, preprocess: Preprocess) -> dict[str, int]:
    """Return multiply-accumulates of one sample by module name, "" for all of it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation to the counter
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, *preprocess.input_shape))
    except RuntimeError as error:
        shape = "x".join(map(str, preprocess.input_shape))
        message = f"the network does not run on an input of {shape}: {str(error).splitlines()[0]}"
        raise TlcError(message, hint="Pass the size it was trained on with --input CxHxW.") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    top = type(module).__name__
    costs = {"": counter.get_total_flops() // 2}
    for name, operations in counter.get_flop_counts().items():
        if name.startswith(f"{top}."):
            costs[name.removeprefix(f"{top}.")] = sum(operations.values()) // 2
    return costs


def _possibilities(module: nn.Module, model: Model | None) -> tuple[str, ...]:
    quantizable = [layer for layer in module.modules() if isinstance(layer, _QUANTIZABLE)]
    held = sum(value.numel() for layer in quantizable for value in layer.parameters())
    kinds = Counter(type(layer).__name__ for layer in quantizable)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    found = []
    if model is not None:
        found += [_depth(model), _width(model)]
    found.append(f"INT8: {shown} hold {held / max(parameters(module), 1):.1%} of the parameters")
    return tuple(found)


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
