"""The shapes of an image network's students: blocks of each kind at each width."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from tlc.compress.arch import parse_arch
from tlc.compress.events import silent
from tlc.compress.model import Model
from tlc.compress.shape import Open, Shape, Shapes, indifferent
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
from tlc.compress.work import AnyWork


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
        if len(self.kinds) == 1:  # one more: a single shape more than terms bounds an error loosely
            removed.append(_spread(every, len(every) // 4))
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
            score=indifferent,
            example=torch.zeros(1, *self.model.input_shape),
            round_to=self.work.target.channel_multiple,
        )
        return student


def _at(kind: str, width: float) -> str:
    return f"{kind} at width {width:g}"


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Return `count` of `names`, spread evenly.

    >>> _spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    return [names[index * len(names) // count] for index in range(count)]
