"""What `tlc inspect` shows of any network: its layers, where its weight is, what it costs."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.calibration.texts import Task
from tlc.compress.cost import counting, parameters

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
    task: Task | None = None
    """What a text model's head answers; None for images."""
    max_length: int | None = None
    """Tokens that a text model's position embeddings reach."""
    parameters: int
    macs: int | None
    """Multiply-accumulates of one sample; of a text of 128 tokens, or of `max_length` where that is less."""
    parts: tuple[Layer, ...]
    layers: tuple[Layer, ...]
    operators: dict[str, int]
    """Layers by class."""
    notes: tuple[str, ...]
    possibilities: tuple[str, ...]
    """What tlc could do with it."""
    next_step: str


def file_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files of a folder."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)


def layers_of(module: nn.Module, costs: Mapping[str, int]) -> tuple[Layer, ...]:
    """Return every layer with parameters of its own; a tensor that two share counts in the first."""
    total = parameters(module)
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
    return tuple(rows)


def parts_of(layers: tuple[Layer, ...], costs: Mapping[str, int], total: int, depth: int = 1) -> tuple[Layer, ...]:
    """Sum layers by the first components of their names: `depth`, or more where those do not tell them apart."""
    names = [layer.name for layer in layers]
    while len(names) > 1 and len({".".join(name.split(".")[:depth]) for name in names}) == 1 and depth < 6:
        depth += 1
    counts: Counter[str] = Counter()
    for layer in layers:
        counts[".".join(layer.name.split(".")[:depth])] += layer.parameters
    return tuple(
        Layer(name=name, kind="", shape=(), parameters=count, share_ratio=count / max(total, 1), macs=costs.get(name))
        for name, count in counts.items()
    )


def macs_by_module(module: nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, int]:
    """Return multiply-accumulates of the inputs `example` by module name, "" for all of it."""
    with counting(module) as counter:
        module(*example)
    top = type(module).__name__
    costs = {"": counter.get_total_flops() // 2}
    for name, operations in counter.get_flop_counts().items():
        if name.startswith(f"{top}."):
            costs[name.removeprefix(f"{top}.")] = sum(operations.values()) // 2
    return costs


def operators_of(module: nn.Module) -> dict[str, int]:
    """Return how many layers of each class there are, the most frequent first."""
    return dict(Counter(type(layer).__name__ for layer in module.modules() if not layer._modules).most_common())


def int8_share(module: nn.Module) -> str:
    """Say which layers can be INT8, and how much of the parameters they hold."""
    quantizable = [layer for layer in module.modules() if isinstance(layer, _QUANTIZABLE)]
    held = sum(value.numel() for layer in quantizable for value in layer.parameters())
    kinds = Counter(type(layer).__name__ for layer in quantizable)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"INT8: {shown} hold {held / max(parameters(module), 1):.1%} of the parameters"
