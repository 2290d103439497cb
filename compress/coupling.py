"""Which channels must go together, found by torch-pruning's dependency graph and then proven.

A coupling is a set of layers that lose the same channels at once: a convolution, the batch norm behind it, what it is
added to, and the inputs of all that read it (Fang et al. 2023, "DepGraph", https://arxiv.org/abs/2301.12900). The
graph is traced from autograd and can be wrong without failing: a channel shuffle or a hand-written attention looks
elementwise to it. So a coupling counts only if removing channels was seen to equal what it must equal: the same
network in which nobody reads these channels.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, TypeVar

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PROOF_SEED = 20150309
T = TypeVar("T")
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channels that are removed together."""

    root: str
    """The layer that names it: a convolution or linear layer whose output channels these are."""
    producers: tuple[str, ...]
    """Every layer that loses output channels, `root` first."""
    channels: int
    repeats: int
    """Channel i goes with i + channels/repeats, i + 2 channels/repeats, ... (grouped convolutions, group norm)."""

    @property
    def units(self) -> int:
        """How many choices there are: channels that can go one by one, or `repeats` at a time."""
        return self.channels // self.repeats


@dataclass(frozen=True, slots=True)
class Cut:
    """Output channels of layer `root` to remove, with all that is coupled to them."""

    root: str
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A submodule that was traced by itself; nothing that it hands on is touched."""

    prefix: str
    module: nn.Module
    graph: Any


class Graph:
    """The traced dependencies of one module, to be thrown away once its shapes changed.

    Where the library cannot follow the whole network, its submodules are traced one by one and only what stays inside
    one of them is found: the branches of a ShuffleNet, the MLPs of a Swin.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self.module = module
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        with quiet(), torch.enable_grad():
            self.parts = tuple(_parts("", module, _inputs(module, example)))

    def groups(self) -> Iterator[tuple[Coupling, Any]]:
        """Yield every coupling that leaves the network's output alone, with torch-pruning's group of it."""
        for part in self.parts:
            names = {layer: name for name, layer in part.module.named_modules(prefix=part.prefix)}
            seen: set[nn.Module] = set()
            for layer in list(part.graph.module2node):
                if isinstance(layer, _ROOTS) and layer not in seen and layer in names:
                    group = _group(part, layer, range(_width(layer)))
                    producers = [d.target for d, _ in group if part.graph.is_out_channel_pruning_fn(d.handler)]
                    seen.update(node.module for node in producers if isinstance(node.module, nn.Module))
                    repeats = _repeats(group)
                    if not any(map(_at_boundary, producers)) and _width(layer) % repeats == 0:
                        found = dict.fromkeys(names[node.module] for node in producers if node.module in names)
                        yield Coupling(names[layer], tuple(found), _width(layer), repeats), group

    def remove(self, cuts: Sequence[Cut]) -> None:
        """Remove channels, in place."""
        with quiet():
            for cut in cuts:
                self._coupled(cut).prune(record_history=False)

    def silence(self, cuts: Sequence[Cut]) -> None:
        """Let nobody read the channels: zero the weights that multiply them, in place, shapes unchanged."""
        with torch.no_grad():
            for cut in cuts:
                for dependency, channels in self._coupled(cut):
                    layer = dependency.target.module
                    if isinstance(layer, _ROOTS) and dependency.handler.__name__ == "prune_in_channels":
                        _silence_inputs(layer, list(channels))

    def _coupled(self, cut: Cut) -> Any:
        part = next(part for part in self.parts if f"{cut.root}.".startswith(f"{part.prefix}." if part.prefix else ""))
        return _group(part, self.module.get_submodule(cut.root), cut.channels)


def _group(part: _Part, layer: nn.Module, channels: Sequence[int]) -> Any:
    pruner = part.graph.get_pruner_of_module(layer)
    return part.graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels))


def _parts(prefix: str, module: nn.Module, inputs: dict[nn.Module, Tensor]) -> Iterator[_Part]:
    """Yield the largest submodules that can be traced: called once, with one tensor, every layer called as a module."""
    if sum(isinstance(layer, _ROOTS) for layer in module.modules()) < 2:
        return
    if module in inputs and not _has_bare_layers(module, inputs):
        try:
            # A bare tensor would be unpacked along its batch axis.
            graph = tp.DependencyGraph().build_dependency(
                module,
                example_inputs=(inputs[module],),
                unwrapped_parameters=_own_parameters(module),
                verbose=False,
            )
        # What the library raises on a network that it cannot follow is not a closed set.
        except Exception:  # noqa: S110
            pass
        else:
            yield _Part(prefix, module, graph)
            return
    for name, child in module.named_children():
        yield from _parts(f"{prefix}.{name}" if prefix else name, child, inputs)


def _inputs(module: nn.Module, example: Tensor) -> dict[nn.Module, Tensor]:
    """Return what each submodule gets that is called exactly once, with exactly one tensor."""
    inputs: dict[nn.Module, list[tuple[Any, ...]]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.setdefault(layer, []).append(args))
        for layer in module.modules()
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: calls[0][0] for layer, calls in inputs.items() if len(calls) == 1 and _is_one_tensor(calls[0])}


def _is_one_tensor(args: tuple[Any, ...]) -> bool:
    return len(args) == 1 and isinstance(args[0], Tensor)


def _has_bare_layers(module: nn.Module, inputs: dict[nn.Module, Tensor]) -> bool:
    """Return whether some called submodule uses the weights of a layer without calling it, unseen by the tracer."""
    return any(
        isinstance(layer, _ROOTS) and layer not in inputs
        for parent in module.modules()
        if parent in inputs and not isinstance(parent, nn.MultiheadAttention)
        for layer in parent.children()
    )


def couplings(module: nn.Module, example: Tensor) -> tuple[Coupling, ...]:
    """Return the couplings of `module` that are proven safe, in the order of the trace; `module` stays as it is.

    `example` is (N, C, H, W) float32 and gives the shape only. The proof takes a copy with random weights, so that it
    speaks of the architecture: weights that happen to be zero hide nothing.
    """
    example = torch.rand((2, *example.shape[1:]), generator=torch.Generator().manual_seed(_PROOF_SEED)) * 2 - 1
    dense = with_random_weights(module)
    found = [coupling for coupling, group in Graph(dense, example).groups() if not _has_attention(group)]
    candidates = [coupling for coupling in found if coupling.units > 1]
    with torch.no_grad(), _ElementwiseNorms():
        reference = dense(example)
    return tuple(proven(candidates, lambda chosen: _removal_equals_silence(dense, example, reference, chosen)))


def proven(candidates: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return the candidates that hold, in order, where a set of them holds if and only if each of them does.

    Halves until what fails is alone: few fail, so this costs far less than one by one.
    """
    candidates = list(candidates)
    if not candidates or holds(candidates):
        return candidates
    if len(candidates) == 1:
        return []
    half = len(candidates) // 2
    good = [*proven(candidates[:half], holds), *proven(candidates[half:], holds)]
    assert len(good) < len(candidates) or holds(good)
    return good


def _removal_equals_silence(dense: nn.Module, example: Tensor, reference: Tensor, chosen: Sequence[Coupling]) -> bool:
    cuts = [Cut(coupling.root, _every_third(coupling)) for coupling in chosen]
    silent, removed = copy.deepcopy(dense), copy.deepcopy(dense)
    try:
        Graph(silent, example).silence(cuts)
        Graph(removed, example).remove(cuts)
        with torch.no_grad(), _ElementwiseNorms():
            expected, got = silent(example), removed(example)
    # What the library and the forward pass raise on a network they cannot handle is not a closed set.
    except Exception:
        return False
    return agrees(got, expected, reference)


def agrees(got: Tensor, expected: Tensor, reference: Tensor) -> bool:
    """Return whether `got` is `expected`, seen against how far `expected` is from the untouched `reference`."""
    if got.shape != reference.shape:
        return False
    effect = (expected - reference).abs().max()
    return bool((got - expected).abs().max() <= 1e-3 * effect + 1e-5 * reference.abs().max())


def _every_third(coupling: Coupling) -> tuple[int, ...]:
    """Return about 30 % of the channels, spread unevenly so that a wrong order of channels cannot pass."""
    picked = [unit for unit in range(coupling.units) if unit % 3 == 0 and unit % 7 != 6] or [0]
    picked = picked[: coupling.units - 1]
    return tuple(unit + repeat * coupling.units for repeat in range(coupling.repeats) for unit in picked)


def with_random_weights(module: nn.Module) -> nn.Module:
    """Return a copy in which every layer matters and activations stay in range however deep it is."""
    result = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(_PROOF_SEED)
    with torch.no_grad():
        for parameter in result.parameters():
            if parameter.numel() == max(parameter.shape, default=1):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, math.sqrt(2 / parameter[0].numel()), generator=generator)
    for layer in result.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            # Statistics of the batch are per channel, so they normalise without mixing channels.
            layer.train()
    return result


class _ElementwiseNorms(TorchFunctionMode):
    """Norms over channels become elementwise: they alone feel a silent channel but not its absence."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.layer_norm, F.group_norm):
            bound = dict(zip(("input", "_", "weight", "bias"), args, strict=False)) | kwargs
            x, weight, bias = bound["input"], bound.get("weight"), bound.get("bias")
            shape = (1, -1, *[1] * (x.ndim - 2)) if func is F.group_norm else (-1,)
            y = torch.tanh(x) if weight is None else torch.tanh(x) * weight.reshape(shape)
            return y if bias is None else y + bias.reshape(shape)
        return func(*args, **kwargs)


def _at_boundary(node: Any) -> bool:
    """Return whether the channels of `node` are an output of what was traced, or by a depthwise layer its input."""
    depthwise = isinstance(node.module, nn.modules.conv._ConvNd) and node.module.groups == node.module.in_channels > 1
    return not node.outputs or (depthwise and not node.inputs)


def _silence_inputs(layer: nn.Module, channels: list[int]) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    groups = getattr(layer, "groups", 1)
    if getattr(layer, "transposed", False):
        weight[channels] = 0
    elif groups == 1:
        weight[:, channels] = 0
    else:
        rows, inputs = weight.shape[0] // groups, weight.shape[1]
        for channel in channels:
            group, local = divmod(channel, inputs)
            weight[group * rows : (group + 1) * rows, local] = 0


def _repeats(group: Any) -> int:
    """Return the least common multiple of the group counts that the channels run through."""
    counts = [1]
    for dependency, _ in group:
        layer = dependency.target.module
        if isinstance(layer, nn.GroupNorm):
            counts.append(layer.num_groups)
        elif isinstance(layer, nn.modules.conv._ConvNd) and layer.groups != layer.out_channels:
            counts.append(layer.groups)
    return math.lcm(*counts)


def _has_attention(group: Any) -> bool:
    """Return whether the channels are the width of an nn.MultiheadAttention, whose heads would be cut across."""
    return any(isinstance(dependency.target.module, nn.MultiheadAttention) for dependency, _ in group)


def _own_parameters(module: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Return parameters that belong to no layer the library knows, each with the axis that may be channels."""
    known = tuple(tp.ops.type2class(kind) for kind in tp.pruner.function.PrunerBox)
    inside = {id(p) for layer in module.modules() if isinstance(layer, known) for p in layer.parameters()}
    result = []
    for parameter in module.parameters():
        axes = [axis for axis, size in enumerate(parameter.shape) if size > 1]
        if id(parameter) not in inside and axes:
            result.append((parameter, axes[-1]))
    return result


def _width(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's remarks off the user's terminal."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
