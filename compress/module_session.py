"""A network in memory, run as files are: for versions of a network that live for one question."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlc.compress.train import bf16_is_fast
from tlc.runtime.session import Session
from tlc.runtime.tensor import OUTPUT_NAME, TensorSpec


class ModuleSession(Session):
    """A module on the CPU in eval mode; bfloat16 where the machine is fast in it, so compare it with its own kind.

    `module` is copied. `inputs` are in the order of its arguments.
    """

    def __init__(self, module: nn.Module, inputs: tuple[TensorSpec, ...]) -> None:
        self._module = copy.deepcopy(module).to(memory_format=torch.channels_last).eval()
        self._inputs = inputs
        self._outputs = (TensorSpec(OUTPUT_NAME, (), "float32"),)

    @property
    def runtime(self) -> str:
        """Version of torch."""
        return f"torch {torch.__version__}"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the logits."""
        arguments = [_laid_out(torch.from_numpy(feeds[spec.name])) for spec in self._inputs]
        with torch.inference_mode(), fast_arithmetic():
            logits: Tensor = self._module(*arguments)
        return {OUTPUT_NAME: logits.float().numpy()}

    def close(self) -> None:
        """Do nothing: the memory is Python's."""


def _laid_out(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


@contextmanager
def fast_arithmetic() -> Iterator[None]:
    """Compute in bfloat16 within, where this machine has instructions for it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_fast()):
        yield


@dataclass(frozen=True, slots=True)
class CalledLayer:
    """A layer as one sample ran through it."""

    name: str
    type: str
    weights: tuple[tuple[int, ...], ...]
    """Shapes of its own parameters."""
    given: tuple[int, ...]
    """Shape of its first input, batch of 1."""
    output: tuple[int, ...]
    settings: str
    """What else decides its cost: stride, groups, ..."""

    @property
    def cost(self) -> tuple[object, ...]:
        """What its time depends on: everything but its name and its values."""
        return self.type, self.weights, self.given, self.output, self.settings


def called_layers(module: nn.Module, arguments: tuple[Tensor, ...]) -> list[CalledLayer]:
    """Return the leaves of `module` with parameters in the order in which `arguments`, one sample, run through them.

    A layer that runs twice is there twice.
    """
    calls: list[CalledLayer] = []

    def record(name: str, layer: nn.Module) -> Any:
        shapes = tuple(tuple(parameter.shape) for parameter in layer.parameters(recurse=False))

        def hook(_layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
            made = tuple(output.shape) if isinstance(output, Tensor) else ()
            calls.append(CalledLayer(name, type(layer).__name__, shapes, given, made, layer.extra_repr()))

        return layer.register_forward_hook(hook)

    leaves = [(n, m) for n, m in module.named_modules() if not list(m.children()) and list(m.parameters())]
    hooks = [record(name, leaf) for name, leaf in leaves]
    try:
        with torch.inference_mode():
            module(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
