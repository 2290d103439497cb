"""The shapes that students of a network can have, taken apart into what the time of one is a sum of.

A shape is built with the weights as they are: what it answers means nothing, how long it takes is what counts. The
terms are those of `tlc.compress.latency_table`: a constant, and blocks or layers times how many there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tlc.compress.arch import parse_arch
from tlc.compress.events import silent
from tlc.compress.model import Model
from tlc.compress.plan import Network
from tlc.compress.student import (
    BlockGroup,
    block_groups,
    check_student,
    is_built_from_teacher,
    parse_student,
    removable_blocks,
    remove_blocks,
    student_from_teacher,
)
from tlc.compress.text_layers import transformer_layers
from tlc.compress.text_model import TextModel
from tlc.compress.text_student import Amount, check_text_student, parse_text_student, text_student_from_teacher
from tlc.compress.text_units import units_of
from tlc.compress.work import AnyWork
from tlc.runtime.errors import TlcError

_MULTIPLE = 8
"""Of intermediate channels, where shares of them are kept; the default of `text_student_from_teacher`."""
_FEWEST_SHARE = 4
"""The narrowest layers of a table keep one in so many heads, and of intermediate channels."""


@dataclass(frozen=True, slots=True)
class Open:
    """A choice that a student's name leaves open: `total` blocks go, of each kind at most so many."""

    total: int
    most: Mapping[str, int]
    """By term."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A network of which the time is wanted."""

    name: str
    """The same for shapes of one model that are built alike."""
    terms: Mapping[str, float]
    """How often each term counts in its time."""
    build: Callable[[], Network]


class Shapes(ABC):
    """The shapes of one network's students."""

    @abstractmethod
    def shape(self, spec: str) -> Shape:
        """Return the student that `spec` names; blocks that it leaves open go evenly over the network.

        An empty name is that of the network itself.

        Raises UsageError and TlcError as `check_student` and `check_text_student` do.
        """

    @abstractmethod
    def cost(self, spec: str) -> tuple[Mapping[str, float], Sequence[Open]]:
        """Return the terms of the student that `spec` names with every open block in place, and what is open.

        Raises as `shape`.
        """

    @abstractmethod
    def design(self) -> list[Shape]:
        """Return the shapes to measure from which all terms can be told apart, and a few more, to see the error."""


def shapes_of(work: AnyWork, model: Network, widths: Sequence[float] = (1.0,)) -> Shapes:
    """Return the shapes of a model's students; of images, `widths` are the shares of channels that a table is for."""
    return TextShapes(work, model) if isinstance(model, TextModel) else ImageShapes(work, model, widths)


class ImageShapes(Shapes):
    """Blocks by their kinds, each kind at each width a term of its own, and a constant for each width."""

    def __init__(self, work: AnyWork, model: Model, widths: Sequence[float] = (1.0,)) -> None:
        self.work, self.model, self.widths = work, model, tuple(dict.fromkeys(widths))

    @cached_property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The removable blocks that cost the same, by a name for them: of one group, class, size and shape."""
        found: dict[tuple[object, ...], list[str]] = {}
        for block in removable_blocks(self.model):
            of = type(self.model.module.get_submodule(block.name))
            found.setdefault((block.group, of, block.parameters, block.shape), []).append(block.name)
        groups = [group for group, *_ in found]
        return {
            str(key[0]) or "blocks" if groups.count(key[0]) == 1 else names[0]: tuple(names)
            for key, names in found.items()
        }

    @cached_property
    def groups(self) -> tuple[BlockGroup, ...]:
        """As a student's depth counts them."""
        return block_groups(self.model)

    @cached_property
    def blocks(self) -> dict[str, str]:
        """The kind of every removable block, in the order of the network."""
        order = [name for name, _ in self.model.module.named_modules()]
        kind_of = {name: kind for kind, names in self.kinds.items() for name in names}
        return {name: kind_of[name] for name in sorted(kind_of, key=order.index)}

    def shape(self, spec: str) -> Shape:
        """As in `Shapes`."""
        removals, width = self._wanted(spec)
        if width is None:
            return Shape(spec, {spec: 1.0}, lambda: self._built(spec))
        return self._shape([name for names, count in removals for name in _spread(names, count)], width)

    def cost(self, spec: str) -> tuple[Mapping[str, float], Sequence[Open]]:
        """As in `Shapes`."""
        removals, width = self._wanted(spec)
        if width is None:
            return {spec: 1.0}, ()
        open_ = []
        for names, count in removals:
            kinds = [self.blocks[name] for name in names]
            open_.append(Open(count, {_at(kind, width): kinds.count(kind) for kind in kinds}))
        return self._terms((), width), open_

    def design(self) -> list[Shape]:
        """As in `Shapes`.

        Small networks above all: they are what is chosen among, the constant shows in them, and they are soon made.
        """
        every = list(self.blocks)
        removed = [
            every,
            *([name for name in every if self.blocks[name] != kind] for kind in self.kinds),
            [name for names in self.kinds.values() for name in _spread(names, len(names) // 2)],
        ]
        found = [self._shape(names, width) for width in self.widths for names in removed]
        found.append(self._shape([], 1.0 if 1.0 in self.widths else self.widths[0]))
        return list({shape.name: shape for shape in found}.values())

    def _wanted(self, spec: str) -> tuple[list[tuple[Sequence[str], int]], float | None]:
        """Return from which blocks how many go, and the width; None for what is no sum of this network's blocks.

        That is another architecture, or a width for each group: the constant then is that of no one width.
        """
        if spec and not is_built_from_teacher(spec):
            parse_arch(spec)
            return [], None
        wanted = parse_student(spec or "width:1")
        width = 1.0 if wanted.width is None else wanted.width
        if isinstance(width, tuple):
            return [], None
        return self._removals(wanted.depth), width

    def _removals(self, depth: float | tuple[int, ...] | None) -> list[tuple[Sequence[str], int]]:
        if depth is None:
            return []
        if isinstance(depth, float):
            names = list(self.blocks)
            return [(names, len(names) - int(depth * len(names) + 0.5))]
        gone = [len(group.members) - count for group, count in zip(self.groups, depth, strict=False)]
        possible = all(0 <= n <= len(group.removable) for n, group in zip(gone, self.groups, strict=False))
        if len(depth) != len(self.groups) or not possible:
            check_student(self.model, f"depth:{','.join(map(str, depth))}")  # says what is wrong
        return [(group.removable, count) for group, count in zip(self.groups, gone, strict=True)]

    def _terms(self, removed: Sequence[str], width: float) -> dict[str, float]:
        gone = [self.blocks[name] for name in removed]
        counts = {kind: len(names) - gone.count(kind) for kind, names in self.kinds.items()}
        return {_at("constant", width): 1.0, **{_at(kind, width): float(count) for kind, count in counts.items()}}

    def _shape(self, removed: Sequence[str], width: float) -> Shape:
        gone = [name for name in self.blocks if name in set(removed)]

        def build() -> Model:
            student = remove_blocks(self.model, gone)
            return student if width == 1 else self._built(f"width:{width:g}", student)

        return Shape(f"width {width:g} without {' '.join(gone) or 'nothing'}", self._terms(gone, width), build)

    def _built(self, spec: str, model: Model | None = None) -> Model:
        if not is_built_from_teacher(spec):
            other: Model = self.work.start_student(self.model, spec, silent)[0]
            return other
        student, _ = student_from_teacher(
            model or self.model,
            spec,
            score=_indifferent,
            example=torch.zeros(1, *self.model.input_shape),
            round_to=self.work.target.channel_multiple,
        )
        return student


class TextShapes(Shapes):
    """Layers, and their heads and intermediate channels: a constant and a time per layer, head and channel.

    What goes of the vocabulary takes no time, and is left out.
    """

    def __init__(self, work: AnyWork, model: TextModel) -> None:
        self.work, self.model = work, model
        self.layers = len(transformer_layers(model.module))
        self.channels = min(units.count for units in units_of(model.module, "intermediate"))

    @cached_property
    def heads(self) -> int:
        """Of one layer; 0 where they cannot be removed."""
        try:
            return min(units.count for units in units_of(self.model.module, "heads"))
        except TlcError:
            return 0

    def shape(self, spec: str) -> Shape:
        """As in `Shapes`."""
        if not spec:
            return self._shape(self.layers, self.heads, self.channels, None)
        check_text_student(self.model, spec)
        wanted = parse_text_student(spec)
        channels = _kept(wanted.intermediate, self.channels, _MULTIPLE)
        return self._shape(
            _kept(wanted.depth, self.layers), _kept(wanted.heads, self.heads), channels, wanted.embedding
        )

    def cost(self, spec: str) -> tuple[Mapping[str, float], Sequence[Open]]:
        """As in `Shapes`; nothing is open, since all layers take the same time."""
        return self.shape(spec).terms, ()

    def design(self) -> list[Shape]:
        """As in `Shapes`."""
        layers, heads, channels = self.layers, self.heads, self.channels
        half = max(1, layers // 2)
        few, narrow = max(1, heads // _FEWEST_SHARE), _rounded(channels / _FEWEST_SHARE, channels, _MULTIPLE)
        corners = [
            (1, few, narrow),
            (1, heads, channels),
            (half, few, channels),
            (half, heads, narrow),
            (half, (heads + few) // 2, _rounded((channels + narrow) / 2, channels, _MULTIPLE)),
            (layers, few, narrow),
            (layers, heads, channels),
        ]
        found = [self._shape(depth, min(kept, heads), inner, None) for depth, kept, inner in corners]
        return list({shape.name: shape for shape in found}.values())

    def _shape(self, layers: int, heads: int, channels: int, rank: int | None) -> Shape:
        parts = [
            _part("depth", layers, self.layers),
            _part("heads", heads, self.heads),
            _part("intermediate", channels, self.channels),
            "" if rank is None else f"embedding:{rank}",
        ]
        spec = "+".join(part for part in parts if part)
        terms = {"constant": 1.0, "layer": layers, "head": layers * heads, "channel": layers * channels}
        if rank is not None:
            terms[f"embedding {rank}"] = 1.0

        def build() -> TextModel:
            if not spec:
                return self.model
            few = self.work.data.fit.feeds([0, 1])
            batches = [{name: torch.from_numpy(values) for name, values in few.items()}]
            student, _ = text_student_from_teacher(self.model, spec, score=_indifferent, batches=batches)
            return student

        return Shape(spec or "unchanged", terms, build)


def _indifferent(_module: object) -> float:
    return 0.0


def _at(kind: str, width: float) -> str:
    return f"{kind} at width {width:g}"


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Return `count` of `names`, spread evenly.

    >>> _spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    return [names[index * len(names) // count] for index in range(count)]


def _kept(amount: Amount | None, of: int, multiple: int = 1) -> int:
    """Return how many of `of` a student keeps."""
    if amount is None:
        return of
    return amount if isinstance(amount, int) else _rounded(amount * of, of, multiple)


def _rounded(wanted: float, of: int, multiple: int) -> int:
    """Return the multiple of `multiple` nearest to `wanted`, at least one and at most `of`."""
    return min(of, max(1, int(wanted / multiple + 0.5)) * multiple)


def _part(key: str, kept: int, of: int) -> str:
    """Return the part of a student's name that keeps so many; empty for all. 1 alone would be read as a share."""
    if kept == of:
        return ""
    return f"{key}:{kept}" if kept > 1 else f"{key}:{1 / of:.6g}"
