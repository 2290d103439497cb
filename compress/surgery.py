"""What can be taken out of a network to see what it was worth: the interface, for images and texts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from tlc.compress.module_session import CalledLayer, ModuleSession, called_layers
from tlc.compress.work import Answers, AnyWork
from tlc.runtime.tensor import TensorSpec

_LAYERS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Linear")


@dataclass(frozen=True, slots=True)
class Part:
    """A block, or a layer with weights, of the network as it came."""

    name: str
    kind: Literal["block", "layer"]
    type: str
    block: str | None
    """The block that a layer is in."""
    layers: tuple[str, ...]
    """Layers with weights in it: of a layer itself."""
    parameters: int
    macs: int


class Surgery(ABC):
    """The network, what can be removed from it, and how; nothing that it returns was trained."""

    inputs: tuple[TensorSpec, ...]

    def __init__(self, work: AnyWork, network: Any, blocks: Sequence[str]) -> None:
        self.work, self.network = work, network
        self.called = called_layers(network.module, self.one_sample())
        self.parts = _parts(network.module, self.called, blocks)

    @abstractmethod
    def one_sample(self) -> tuple[Tensor, ...]:
        """Return the arguments of the network for one training sample."""

    @abstractmethod
    def judged(self, limit: int) -> Any:
        """Return at most `limit` samples of the part that choices are made on, spread evenly."""

    @abstractmethod
    def coupled(self, part: Part) -> tuple[str, ...]:
        """Return the names of the groups of channels or heads that the part makes; of a block those within it."""

    @abstractmethod
    def producers(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Return the layers that lose output channels with `groups`."""

    @abstractmethod
    def narrowed(self, groups: Sequence[str], share: float) -> tuple[Any, float]:
        """Return the network without `share` of each group, and the share that really went: whole units go."""

    @abstractmethod
    def removable(self, part: Part) -> bool:
        """Return whether the block can be left out."""

    @abstractmethod
    def without(self, part: Part) -> Any:
        """Return the network without the block."""

    def untreated(self) -> Any:
        """Return the network with nothing removed, as what is left is adapted after a removal."""
        return self.network

    def costs(self, network: Any) -> list[tuple[str, tuple[object, ...]]]:
        """Return name and cost of every call of a layer: versions with equal costs take equal time."""
        return [(call.name, call.cost) for call in called_layers(network.module, self.one_sample())]

    def answers(self, network: Any, samples: Any) -> Answers:
        """Return what a version of the network says about the samples."""
        with ModuleSession(network.module, self.inputs) as session:
            answers: Answers = self.work.answers(session, samples)
        return answers


def units_to_remove(units: int, share: float) -> int:
    """Return how many of `units` are nearest to `share`: at least one goes, at least one stays.

    >>> [units_to_remove(units, 0.25) for units in (16, 6, 2, 1)]
    [4, 2, 1, 0]
    """
    return min(units - 1, max(1, int(np.floor(units * share + 0.5))))


def _parts(module: nn.Module, called: Sequence[CalledLayer], blocks: Sequence[str]) -> tuple[Part, ...]:
    """Return the blocks that ran, each in front of its layers, and the layers, in the order of their first call."""
    macs: dict[str, int] = {}
    for call in called:
        if call.type.removeprefix("NonDynamicallyQuantizable") in _LAYERS:
            macs[call.name] = macs.get(call.name, 0) + _macs(call)
    found: dict[str, Part] = {}
    for name in macs:
        block = next((block for block in blocks if name.startswith(f"{block}.") or name == block), None)
        if block is not None and block not in found:
            inside = tuple(layer for layer in macs if layer.startswith(f"{block}.") or layer == block)
            total = sum(macs[layer] for layer in inside)
            found[block] = _part(module, block, "block", None, inside, total)
        if name != block:
            found[name] = _part(module, name, "layer", block, (name,), macs[name])
    return tuple(found.values())


def _part(
    module: nn.Module, name: str, kind: Literal["block", "layer"], block: str | None, layers: tuple[str, ...], macs: int
) -> Part:
    own = module.get_submodule(name)
    count = sum(parameter.numel() for parameter in own.parameters())
    return Part(name, kind, type(own).__name__, block, layers, count, macs)


def _macs(call: CalledLayer) -> int:
    """Return the multiply-accumulates of a call: each output place meets every weight that makes its channels."""
    weight = max(call.weights, key=len)
    transposed = call.type.startswith("ConvTranspose")
    # Channels are last of a linear layer and second of a convolution; a transposed one spreads each input place.
    places = call.given if transposed else call.output
    channels = places[-1] if call.type.endswith("Linear") else places[1]
    return int(np.prod(weight)) * (int(np.prod(places)) // (places[0] * channels))
