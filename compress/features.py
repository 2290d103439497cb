"""The last linear layer of a classifier: what it reads are the features, and another task needs another one."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlc.calibration.cache import Pixels
from tlc.calibration.tokens import Tokens, gather
from tlc.runtime.errors import TlcError

Part: TypeAlias = Pixels | Tokens
_BATCH = 64


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The linear layer, or convolution, that makes a classifier's answers."""

    name: str
    features: int
    """Width of what it reads."""


def last_layer(module: nn.Module, inputs: Sequence[Tensor]) -> LastLayer:
    """Return the layer through which all answers pass, one of its outputs for each.

    `inputs` are those of at least two samples. It is the linear layer or convolution that is called last, and with its
    output held still the answers must no longer depend on the sample.

    Raises TlcError where there is none: two layers whose answers are averaged, or a network that ends otherwise.
    """
    calls: list[str] = []
    layers: dict[str, nn.Module] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    with _hooks(layers, lambda name: lambda *_call: calls.append(name)), torch.inference_mode():
        answers: Tensor = module(*inputs)
    hint = "Rank networks that end in one linear layer or convolution."
    if not calls:
        raise TlcError("no linear layer and no convolution is called in it", hint=hint)
    name = calls[-1]
    layer: Any = layers[name]
    count, wanted = layer.weight.shape[0], answers.shape[-1]
    if calls.count(name) > 1 or count != wanted:
        times = f"is called {calls.count(name)} times" if calls.count(name) > 1 else f"has {count} outputs"
        raise TlcError(f"its last layer, {name}, {times}, and the network {wanted} answers", hint=hint)
    with _hooks({name: layer}, lambda _name: lambda _layer, _args, output: torch.ones_like(output)):
        still = _answers(module, inputs)
    if not torch.allclose(still, still[:1].expand_as(still), rtol=1e-4, atol=1e-5):
        raise TlcError(f"its answers do not all pass through its last layer, {name}", hint=hint)
    return LastLayer(name, layer.weight.shape[1] * int(getattr(layer, "groups", 1)))


def with_classes(module: nn.Module, layer: LastLayer, num_classes: int, inputs: Sequence[Tensor]) -> nn.Module:
    """Return a copy that gives `num_classes` answers: its last layer is a new one, random weights drawn from seed 0.

    Raises TlcError for a network that counts on the old number elsewhere.
    """
    changed = copy.deepcopy(module)
    old: Any = changed.get_submodule(layer.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new = _like(old, num_classes)
    path, _, key = layer.name.rpartition(".")
    if not path and not key:
        return new
    changed.get_submodule(path)._modules[key] = new
    shape: object
    try:
        shape = tuple(_answers(changed, inputs).shape)
    # A forward pass that reshapes to the old number may raise anything.
    except Exception as error:
        shape = str(error).splitlines()[0]
    if shape != (len(inputs[0]), num_classes):
        raise TlcError(
            f"with {num_classes} classes in its last layer, {layer.name}, it gives {shape}",
            hint="Build it with the task's number of classes.",
        )
    return changed.eval()


def _like(old: Any, count: int) -> nn.Module:
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, count, bias=old.bias is not None)
    if old.groups > 1:
        raise TlcError("its last layer is a convolution in groups", hint="Build it with the task's number of classes.")
    return nn.Conv2d(
        old.in_channels, count, old.kernel_size, old.stride, old.padding, old.dilation, bias=old.bias is not None
    )


def first_inputs(part: Part) -> list[Tensor]:
    """Return the network's inputs for the first two samples."""
    if isinstance(part, Pixels):
        return [torch.from_numpy(part.batch([0, 1]))]
    feeds = part.feeds([0, 1])
    return [torch.from_numpy(feeds[name]) for name in part.fed.inputs]


def features_of(module: nn.Module, layer: LastLayer, part: Part) -> NDArray[np.float32]:
    """Return the features (N, D) of all samples, in order; what an image has at many places is averaged over these.

    Raises TlcError for texts whose last layer reads every token.
    """
    if isinstance(part, Pixels):
        batches = (part.batch(range(start, min(start + _BATCH, len(part)))) for start in range(0, len(part), _BATCH))
        return np.concatenate([_read(module, layer, [torch.from_numpy(batch)]) for batch in batches])

    def read(feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        return _read(module, layer, [torch.from_numpy(feeds[name]) for name in part.fed.inputs], texts=True)

    return gather(read, part)


def _read(module: nn.Module, layer: LastLayer, inputs: Sequence[Tensor], *, texts: bool = False) -> NDArray[np.float32]:
    seen: list[Tensor] = []
    part = module.get_submodule(layer.name)
    with _hooks({"": part}, lambda _name: lambda _layer, args, _output: seen.append(args[0])):
        _answers(module, inputs)
    (values,) = seen
    if texts and values.ndim > 2:
        raise TlcError(
            f"its last layer, {layer.name}, reads every token, padding too",
            hint="Rank networks that pool tokens first.",
        )
    if isinstance(part, nn.Conv2d):
        values = values.mean((2, 3))
    elif values.ndim > 2:
        values = values.flatten(1, -2).mean(1)
    return values.float().numpy()


def _answers(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        answers: Tensor = module(*inputs)
    return answers


@contextmanager
def _hooks(layers: dict[str, nn.Module], make: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    handles = [layer.register_forward_hook(make(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
