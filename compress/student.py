"""Another network made of the teacher: whole blocks left out, channels fewer or more, weights kept.

A block may go if the network still runs and if its input reaches its output on a path without weights, as in
x + f(x): then the layers behind it get what they nearly got before (Veit et al. 2016, https://arxiv.org/abs/1605.06431).
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tlc.compress.arch import parse_arch
from tlc.compress.cost import macs, parameters
from tlc.compress.model import Model
from tlc.compress.prune import check_prunable
from tlc.compress.width import with_width
from tlc.runtime.errors import TlcError, UsageError

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_WIDEST = 4
_FORMS = (
    "depth:0.5 (share of blocks kept), depth:4,4,4 (blocks kept per group), width:0.75 or width:2 (channels over the "
    "original's), width:2,1.5,1 (the same per group), or A+B"
)

Score = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class Block:
    """A part that can be left out."""

    name: str
    """"layer1.3"."""
    group: str
    """The container of its kind: "layer1"."""
    parameters: int
    shape: tuple[int, ...]
    """Of what goes in and comes out, without the batch."""


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Repeated blocks of one class in one container."""

    name: str
    members: tuple[str, ...]
    """All of them in order, those that must stay included (such as the first, which halves the resolution)."""
    removable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """What `--student` asks for."""

    depth: float | tuple[int, ...] | None = None
    """Share of removable blocks to keep, or how many blocks to keep of each group."""
    width: float | tuple[float, ...] | None = None
    """Channels over the original's, of all layers or of each group of blocks: below 1 narrower, above 1 wider."""


class RemovedBlock(BaseModel):
    """One decision, in the order in which they were made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    score: float
    """Of the network without this block and those before it."""


class StudentRecord(BaseModel):
    """How a student came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    teacher_score: float | None
    """What the score says of the unchanged teacher; None if nothing had to be chosen."""
    removed: tuple[RemovedBlock, ...]
    kept_per_group: dict[str, int]
    widened: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Layer -> its channels and those of the student, of layers that are wider and name what was coupled to them."""
    evaluations: int
    parameters: tuple[int, int]
    """Of the teacher and of the student."""
    macs: tuple[int, int]


def is_built_from_teacher(spec: str) -> bool:
    """Return whether `spec` speaks of the teacher's blocks or channels, not of another architecture.

    >>> is_built_from_teacher("depth:0.5+width:0.75"), is_built_from_teacher("torchvision:resnet18")
    (True, False)
    """
    return bool(re.match(r"(depth|width):", spec))


def parse_student(spec: str) -> StudentSpec:
    """Return what `spec` asks for.

    >>> parse_student("depth:4,4,4+width:0.75")
    StudentSpec(depth=(4, 4, 4), width=0.75)

    Raises UsageError for anything but depth and width, each once, within their limits.
    """
    found: dict[str, Any] = {}
    for part in spec.split("+"):
        key, _, value = part.partition(":")
        if key not in ("depth", "width") or key in found:
            raise UsageError(f"{spec!r} is no student: {part!r} is not understood here.", hint=f"Use {_FORMS}.")
        found[key] = _counts(spec, value) if key == "depth" and re.fullmatch(r"\d+(,\d+)*", value) else None
        if found[key] is None:
            parts = value.split(",") if key == "width" else [value]
            ratios = tuple(_ratio(spec, key, part) for part in parts)
            found[key] = ratios if len(ratios) > 1 else ratios[0]
    return StudentSpec(**found)


def _counts(spec: str, value: str) -> tuple[int, ...] | None:
    """Return counts; a single 1 is a share: all of them."""
    counts = tuple(int(part) for part in value.split(","))
    if counts == (1,):
        return None
    if counts == (0,):
        raise UsageError(f"{spec!r} keeps no block.", hint="Keep a share above 0: depth:0.5.")
    return counts


def _ratio(spec: str, key: str, value: str) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = math.nan
    limit = 1 if key == "depth" else _WIDEST
    if not 0 < ratio <= limit:
        raise UsageError(
            f"{key}:{value} in {spec!r} is out of range: the share to keep is above 0 and at most {limit}.",
            hint=f"Use {_FORMS}.",
        )
    return ratio


def check_student(model: Model, spec: str, *, round_to: int = 8) -> None:
    """Refuse before any work what `student_from_teacher` or the builder of another architecture could not do.

    Raises UsageError for a wrong spec, TlcError for a network that has no such blocks or channels.
    """
    if not is_built_from_teacher(spec):
        parse_arch(spec)
        return
    wanted = parse_student(spec)
    groups = block_groups(model) if wanted.depth is not None or isinstance(wanted.width, tuple) else ()
    if wanted.depth is not None:
        _removals(model, wanted.depth, groups)
    if isinstance(wanted.width, float) and wanted.width <= 1:
        check_prunable(model)
    elif wanted.width is not None:
        with_width(model, wanted.width, [group.name for group in groups], round_to=round_to)


def removable_blocks(model: Model) -> tuple[Block, ...]:
    """Return every block that can be left out, in the order of the network; `model` stays as it is."""
    module = copy.deepcopy(model.module).eval()
    example = _example(model)
    calls = _calls(module, example)
    blocks: list[Block] = []
    for name, layer in module.named_modules():
        inside = any(name.startswith(f"{block.name}.") for block in blocks)
        if inside or not _is_repeated(module, name) or not _keeps_shape(calls.get(name, [])):
            continue
        if _passes_input_through(layer, calls[name][0][0]) and _runs_without(module, [name], example):
            group = name.rpartition(".")[0]
            blocks.append(Block(name, group, parameters(layer), tuple(calls[name][0][1].shape[1:])))
    return tuple(blocks)


def block_groups(model: Model) -> tuple[BlockGroup, ...]:
    """Return the groups that have removable blocks, in the order of the network."""
    blocks = removable_blocks(model)
    groups = []
    for group in dict.fromkeys(block.group for block in blocks):
        removable = tuple(block.name for block in blocks if block.group == group)
        classes = {type(model.module.get_submodule(name)) for name in removable}
        container = model.module.get_submodule(group)
        members = [f"{group}.{key}" if group else key for key, c in container.named_children() if type(c) in classes]
        groups.append(BlockGroup(group, tuple(members), removable))
    return tuple(groups)


def remove_blocks(model: Model, names: Sequence[str]) -> Model:
    """Return `model` without the blocks `names`; the others keep their names and weights, `model` stays as it is."""
    if not names:
        return model
    module = copy.deepcopy(model.module)
    for name in names:
        try:
            module.get_submodule(name)
        except AttributeError:
            raise TlcError(
                f"{model.arch.text} has no block {name!r}.", hint="`tlc inspect` lists the layers."
            ) from None
    drop_blocks(module, names, as_identity=not _runs(module, names, _example(model)))
    return model.after(f"{len(names)} blocks left out: {', '.join(names)}", module)


def choose_blocks(
    model: Model,
    depth: float | tuple[int, ...],
    score: Score,
    *,
    max_evaluations: int = 120,
    known: dict[frozenset[str], float] | None = None,
) -> tuple[tuple[RemovedBlock, ...], float, int]:
    """Return the blocks to leave out in the order of choice, the teacher's score, and how often `score` was asked.

    Backward elimination: after each removal the next one is the block whose absence leaves the highest `score` (higher
    is better). `max_evaluations` bounds the work: all blocks are scored once; from then on only as many of the most
    promising ones are scored again per removal as the bound allows, at worst none (one ranking for all). What is
    `known`, by the blocks that are gone, is not asked for again, and what is found is put there.
    """
    groups = block_groups(model)
    allowed, total = _removals(model, depth, groups)
    known = {} if known is None else known
    work = copy.deepcopy(model.module).eval()
    group_of = {name: group.name for group in groups for name in group.removable}

    def score_without(names: Sequence[str]) -> float:
        if (gone := frozenset(names)) not in known:
            with without_blocks(work, names):
                known[gone] = score(work)
        return known[gone]

    teacher_score = score_without([])
    removed, evaluations = eliminate(group_of, allowed, total, score_without, max_evaluations=max_evaluations)
    return removed, teacher_score, 1 + evaluations


def eliminate(
    group_of: Mapping[str, str],
    allowed: Mapping[str, int],
    total: int,
    score_without: Callable[[Sequence[str]], float],
    *,
    max_evaluations: int,
) -> tuple[tuple[RemovedBlock, ...], int]:
    """Return `total` of the blocks in `group_of` in the order of their removal, and how often a score was asked for.

    group_of: block -> its group, in the order of the network. allowed: how many may go of each group.
    score_without: the score of the network without the blocks named. As `choose_blocks` says.
    """
    order = list(group_of)
    removed: list[RemovedBlock] = []
    scores: dict[str, float] = {}
    evaluations = 0
    again = max(0, (max_evaluations - len(order)) // max(1, total - 1))
    while len(removed) < total:
        gone = [block.name for block in removed]
        taken = {group: sum(group_of[name] == group for name in gone) for group in allowed}
        open_ = [n for n in order if n not in gone and taken[group_of[n]] < allowed[group_of[n]]]
        promising = sorted(open_, key=lambda name: -scores.get(name, math.inf))
        for name in promising if not removed else promising[:again]:
            scores[name] = score_without([*gone, name])
            evaluations += 1
        # What was scored now is compared; older scores are of a deeper network and only say whom to ask.
        best = max(promising[: again if removed and again else None], key=lambda name: scores[name])
        removed.append(RemovedBlock(name=best, score=scores[best]))
    return tuple(removed), evaluations


def student_from_teacher(
    model: Model,
    spec: str,
    *,
    score: Score,
    example: Tensor,
    max_evaluations: int = 120,
    known: dict[frozenset[str], float] | None = None,
    round_to: int = 8,
) -> tuple[Model, StudentRecord]:
    """Return the student that `spec` makes of `model`, with the teacher's weights, untrained, and how it was chosen.

    `score` rates a network without some blocks, higher is better; `example` is (N, C, H, W) float32, for counting MACs.
    Channel counts are multiples of `round_to`. A wider student computes what the narrow one would: blocks are chosen
    before, and the choice holds. `known` is as in `choose_blocks`. Raises as `check_student`.
    """
    wanted = parse_student(spec)
    student, teacher_score, evaluations = model, None, 0
    removed: tuple[RemovedBlock, ...] = ()
    kept: dict[str, int] = {}
    widened: dict[str, tuple[int, int]] = {}
    groups = block_groups(model) if wanted.depth is not None or isinstance(wanted.width, tuple) else ()
    if wanted.depth is not None:
        removed, teacher_score, evaluations = choose_blocks(
            model, wanted.depth, score, max_evaluations=max_evaluations, known=known
        )
        names = {block.name for block in removed}
        kept = {group.name: len(set(group.members) - names) for group in groups}
        student = remove_blocks(model, sorted(names, key=[n for n, _ in model.module.named_modules()].index))
    if wanted.width is not None:
        student, widened = with_width(student, wanted.width, [group.name for group in groups], round_to=round_to)
    record = StudentRecord(
        spec=spec,
        teacher_score=teacher_score,
        removed=removed,
        kept_per_group=kept,
        widened=widened,
        evaluations=evaluations,
        parameters=(parameters(model.module), parameters(student.module)),
        macs=(macs(model.module, example), macs(student.module, example)),
    )
    return student, record


def _removals(
    model: Model, depth: float | tuple[int, ...], groups: tuple[BlockGroup, ...]
) -> tuple[dict[str, int], int]:
    """Return how many blocks may go of each group, and how many must go in all."""
    if not groups:
        raise TlcError(
            f"{model.arch.text} has no blocks that can be left out: no repeated part whose input also skips it.",
            hint="Use --student width:0.75, or name a smaller architecture.",
        )
    if isinstance(depth, float):
        removable = sum(len(group.removable) for group in groups)
        return {group.name: len(group.removable) for group in groups}, removable - math.floor(depth * removable + 0.5)
    shown = "; ".join(f"{g.name or 'the network'} {len(g.members)} ({len(g.removable)} removable)" for g in groups)
    text = ",".join(map(str, depth))
    if len(depth) != len(groups):
        raise UsageError(
            f"depth:{text} gives {len(depth)} counts, {model.arch.text} has {len(groups)} groups of blocks: {shown}.",
            hint=f"Give one count for each group, as in depth:{','.join(str(len(g.members)) for g in groups)}.",
        )
    for group, count in zip(groups, depth, strict=True):
        least, most = len(group.members) - len(group.removable), len(group.members)
        if not least <= count <= most:
            raise UsageError(
                f"depth:{text} keeps {count} blocks of {group.name or 'the network'} (limits: {least} to {most}); "
                f"groups of blocks: {shown}.",
                hint="Keep at least the blocks that cannot be left out.",
            )
    allowed = {group.name: len(group.members) - count for group, count in zip(groups, depth, strict=True)}
    return allowed, sum(allowed.values())


def _example(model: Model) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, *model.preprocess.input_shape), generator=generator)


def _calls(module: nn.Module, example: Tensor) -> dict[str, list[tuple[Any, Any]]]:
    """Return the first argument and the output of every call of every submodule."""
    calls: dict[str, list[tuple[Any, Any]]] = {}
    hooks = []
    for name, layer in module.named_modules():

        def record(_layer: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            calls.setdefault(name, []).append((args[0] if args else None, output))

        hooks.append(layer.register_forward_hook(record))
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return calls


def _is_repeated(module: nn.Module, name: str) -> bool:
    """Return whether a container holds the layer and another of its class; a stage of blocks is not itself a block."""
    container, layer = module.get_submodule(name.rpartition(".")[0]), module.get_submodule(name)
    if not name or type(layer) in _CONTAINERS:
        return False
    twins = sum(type(child) is type(layer) for child in container.children())
    return isinstance(container, _CONTAINERS) and twins > 1


def _keeps_shape(calls: list[tuple[Any, Any]]) -> bool:
    if len(calls) != 1:
        return False
    given, got = calls[0]
    return isinstance(given, Tensor) and isinstance(got, Tensor) and given.shape == got.shape


def _passes_input_through(layer: nn.Module, given: Tensor) -> bool:
    """Return whether the output still depends on the input when all weights of convolutions and the like are zero."""
    weights = [p for p in layer.parameters() if p.ndim > 1]
    if not weights:
        return False
    probe = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in probe.parameters():
            # A norm whose own factor happens to be zero must not hide the path.
            parameter.fill_(0.0 if parameter.ndim > 1 else 1.0)
    given = given.detach().clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad((probe(given) * torch.randn_like(given)).sum(), given, allow_unused=True)
    # A layer that needs more than one argument is no block.
    except (TypeError, RuntimeError):
        return False
    return slope is not None and bool(slope.abs().max() > 0)


def _runs_without(module: nn.Module, names: Sequence[str], example: Tensor) -> bool:
    return _runs(module, names, example) or _runs(module, names, example, as_identity=True)


def _runs(module: nn.Module, names: Sequence[str], example: Tensor, *, as_identity: bool = False) -> bool:
    """Return whether the network gives as many finite outputs as before."""
    with torch.no_grad():
        wanted = module(example).shape
        try:
            with without_blocks(module, names, as_identity=as_identity):
                output = module(example)
        # A network that indexes its layers may raise anything once one is missing.
        except Exception:
            return False
    return bool(output.shape == wanted)


@contextmanager
def without_blocks(module: nn.Module, names: Sequence[str], *, as_identity: bool = False) -> Iterator[None]:
    """Leave out the blocks `names`, in place, until the end of the context."""
    containers = {module.get_submodule(name.rpartition(".")[0]) for name in names}
    before = {container: dict(container._modules) for container in containers}
    try:
        drop_blocks(module, names, as_identity=as_identity)
        yield
    finally:
        for container, children in before.items():
            container._modules.clear()
            container._modules.update(children)


def drop_blocks(module: nn.Module, names: Sequence[str], *, as_identity: bool = False) -> None:
    """Take the blocks `names` out of their containers, in place, or put what passes its input on in their place."""
    for name in names:
        path, _, key = name.rpartition(".")
        container = module.get_submodule(path)
        if as_identity:
            container._modules[key] = nn.Identity()
        else:
            # Not `del container[i]`: that renames what follows, and names are how weights are found again.
            del container._modules[key]
