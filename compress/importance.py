"""What matters: a score for every channel and attention head that may go."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from tlc.compress.coupling import Coupling, Graph, quiet
from tlc.compress.heads import Attention, head_scores
from tlc.runtime.errors import TlcError

Importance: TypeAlias = Literal["magnitude", "bn_scale", "taylor", "hessian"]
Batches: TypeAlias = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Something whose units are removed in the order of their scores."""

    source: Coupling | Attention
    scores: Tensor
    """(units,) float32, mean 1, low is unimportant."""

    @property
    def name(self) -> str:
        """The layer or attention module that it is of."""
        return self.source.root if isinstance(self.source, Coupling) else self.source.name

    @property
    def size(self) -> int:
        """How many channels or heads there are now."""
        return self.source.channels if isinstance(self.source, Coupling) else self.source.heads

    @property
    def unit(self) -> int:
        """How many of them go at once."""
        return self.source.repeats if isinstance(self.source, Coupling) else 1


def ranking(
    module: nn.Module,
    example: Tensor,
    sources: Sequence[Coupling | Attention],
    importance: Importance,
    batches: Batches = (),
) -> list[Ranked]:
    """Return the score of every unit that may go, in the order of the network; `module` stays as it is.

    `example` is (2 or more, C, H, W) float32 and gives the shape; `batches` are (images (n, C, H, W) float32, labels
    (n,) int64), for taylor and hessian. Raises TlcError if they are needed and missing.
    """
    traced = copy.deepcopy(module)
    if importance in ("taylor", "hessian"):
        _accumulate(traced, batches, squared=importance == "hessian")
    score: Any = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "bn_scale": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance,
    }[importance]()
    wanted = {source.root for source in sources if isinstance(source, Coupling)}
    ranked = []
    for coupling, group in Graph(traced, example).groups():
        if coupling.root in wanted:
            with quiet():
                scores = score(group)
            # bn_scale has no opinion on layers without a batch norm; they stay as they are.
            if scores is not None:
                # Scores are divided by their mean: all zero (fresh norms may be) gives 0/0, and no preference.
                scores = scores.float().nan_to_num(0.0).reshape(coupling.repeats, -1)
                ranked.append(Ranked(coupling, scores.mean(0)))
    weights = {name: _element_scores(p, importance) for name, p in traced.named_parameters()}
    for source in sources:
        if isinstance(source, Attention):
            scores = head_scores(traced, source, weights)
            ranked.append(Ranked(source, scores / scores.mean().clamp_min(1e-30)))
    return ranked


def _accumulate(module: nn.Module, batches: Batches, *, squared: bool) -> None:
    """Leave in every parameter's `grad` the gradient of the loss, or the mean over samples of its square."""
    if not batches:
        raise TlcError(
            "Taylor and Hessian importance need labelled samples and got none.", hint="Use importance = magnitude."
        )
    pieces = [(x[None], y[None]) for images, labels in batches for x, y in zip(images, labels, strict=True)]
    totals = {p: torch.zeros_like(p) for p in module.parameters()}
    for images, labels in pieces if squared else batches:
        module.zero_grad()
        F.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
        for parameter, total in totals.items():
            if parameter.grad is not None:
                total += parameter.grad.square() if squared else parameter.grad
    for parameter, total in totals.items():
        parameter.grad = total / (len(pieces) if squared else len(batches))


def _element_scores(parameter: nn.Parameter, importance: Importance) -> Tensor:
    weight = parameter.detach()
    if importance == "taylor":
        assert parameter.grad is not None
        return (weight * parameter.grad).abs()
    if importance == "hessian":
        assert parameter.grad is not None
        return weight.square() * parameter.grad
    return weight.square()
