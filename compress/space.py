"""What a search may choose: the shapes of students that can be made of a network, as `--student` spells them."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlc.compress.model import Model
from tlc.compress.plan import Network
from tlc.compress.student import BlockGroup, block_groups, remove_blocks
from tlc.compress.text_layers import transformer_layers
from tlc.compress.text_model import TextModel
from tlc.compress.text_student import check_text_student
from tlc.compress.width import with_width
from tlc.runtime.errors import TlcError

Value = int | float

_DEPTH, _WIDTH = "depth", "width"
_WIDTHS = (0.5, 0.75, 1.0, 1.5, 2.0)
_SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing to choose."""

    name: str
    """"depth.layer1", "width"."""
    part: str
    """What stands before the colon in a student's spec; choices of one part are joined by commas."""
    values: tuple[Value, ...]
    """In rising order."""
    teacher: Value
    """The value that leaves the network as it is."""


@dataclass(frozen=True, slots=True)
class Space:
    """All shapes: one value of every choice."""

    choices: tuple[Choice, ...]

    @property
    def size(self) -> int:
        """Number of shapes, the teacher's included."""
        return math.prod(len(choice.values) for choice in self.choices)

    def positions(self) -> dict[str, list[int]]:
        """Return by name where the values of every choice stand, from 0."""
        return {choice.name: list(range(len(choice.values))) for choice in self.choices}

    def spec(self, chosen: Mapping[str, Value]) -> str:
        """Return the student's spec, "depth:4,4,4+width:1.5"; empty for the teacher's own shape."""
        parts = []
        for part, group in itertools.groupby(self.choices, key=lambda choice: choice.part):
            choices = list(group)
            values = [chosen[choice.name] for choice in choices]
            if part == _WIDTH and len(set(values)) == 1:
                values = values[:1]  # of all layers, not only of those in a group
            if any(chosen[choice.name] != choice.teacher for choice in choices):
                parts.append(f"{part}:{','.join(f'{value:.6g}' for value in values)}")
        return "+".join(parts)

    @property
    def teacher(self) -> dict[str, Value]:
        """Return the shape of the network itself."""
        return {choice.name: choice.teacher for choice in self.choices}

    @property
    def widths(self) -> tuple[Value, ...]:
        """Return the widths that all groups can have, at least that of the network itself."""
        sets = [set(choice.values) for choice in self.choices if choice.part == _WIDTH]
        return tuple(sorted(set.intersection(*sets))) if sets else (1.0,)

    def keeps_blocks(self, chosen: Mapping[str, Value]) -> bool:
        """Return whether the blocks that a shape keeps are as they were."""
        return all(chosen[one.name] == one.teacher for one in self.choices if one.part != _DEPTH)

    def kept_ratio(self, chosen: Mapping[str, Value]) -> float:
        """Return the least share that a shape keeps of what a choice is about: layers, heads, inner width."""
        return min(chosen[one.name] / one.teacher for one in self.choices)

    def chosen(self, indices: Mapping[str, int]) -> dict[str, Value]:
        """Return the values at `indices`."""
        return {choice.name: choice.values[indices[choice.name]] for choice in self.choices}

    def indices(self, chosen: Mapping[str, Value]) -> dict[str, int]:
        """Return where the values stand among their choice's."""
        return {choice.name: choice.values.index(chosen[choice.name]) for choice in self.choices}

    def even(self, most: int, seed: int) -> list[dict[str, Value]]:
        """Return the shapes whose groups are all of one width, or `most` of them, drawn at random."""
        choices = [choice for choice in self.choices if choice.part != _WIDTH]
        lengths = [len(self.widths), *(len(choice.values) for choice in choices)]
        total = math.prod(lengths)
        numbers: Sequence[int] = range(total)
        if total > most:
            numbers = random.Random(seed).sample(numbers, most)
        found = []
        for number in numbers:
            width, *indices = map(int, np.unravel_index(number, lengths))
            shape = {choice.name: choice.values[index] for choice, index in zip(choices, indices, strict=True)}
            found.append({one.name: shape.get(one.name, self.widths[width]) for one in self.choices})
        return found


def space_of(model: Network) -> Space:
    """Return the shapes of students that can be made of `model`.

    Of images: how many blocks each group keeps, and its width. Of texts: layers, heads, inner width.
    Raises TlcError for a network of which nothing can be left out.
    """
    choices = _image_choices(model) if isinstance(model, Model) else _text_choices(model)
    if not choices:
        raise TlcError(
            f"{model.arch.text} has no blocks and no channels that tlc can leave out: there is nothing to search.",
            hint="Compress it without --time-limit: INT8 needs no smaller network.",
        )
    return Space(tuple(choices))


def _image_choices(model: Model) -> list[Choice]:
    groups = block_groups(model)
    choices = []
    for group in groups:
        counts: tuple[Value, ...] = tuple(range(len(group.members) - len(group.removable), len(group.members) + 1))
        if len(groups) == 1:  # a single number is a share of what can be removed
            removable = len(group.removable)
            counts = tuple(kept / removable for kept in range(1, removable + 1))
        choices.append(Choice(f"{_DEPTH}.{group.name}" if group.name else _DEPTH, _DEPTH, counts, counts[-1]))
    return [*choices, *_widths(model, groups)]


def _widths(model: Model, groups: Sequence[BlockGroup]) -> list[Choice]:
    """Return a choice of width for each group, or one for all layers; what can be made is tried on few blocks."""
    few = [group.removable[: len(group.members) - 1] for group in groups]  # one of each has to be there to be tried
    small = remove_blocks(model, list(itertools.chain.from_iterable(few)))
    names = [group.name for group in groups]
    found = []
    for index in range(max(1, len(groups))):

        def possible(width: float, index: int = index) -> bool:
            factors = tuple(width if other == index else 1.0 for other in range(len(groups)))
            try:
                with_width(small, factors if len(groups) > 1 else width, names)
            except TlcError:
                return False
            return True

        narrower, wider = possible(_WIDTHS[0]), possible(_WIDTHS[-1])
        widths = tuple(width for width in _WIDTHS if width == 1 or (narrower if width < 1 else wider))
        found.append(Choice(f"{_WIDTH}.{names[index]}" if len(groups) > 1 else _WIDTH, _WIDTH, widths, 1.0))
    return found if any(len(choice.values) > 1 for choice in found) else []


def _text_choices(model: TextModel) -> list[Choice]:
    layers = len(transformer_layers(model.module))
    choices = []
    if layers > 1:
        kept = tuple(count / layers for count in range(1, layers + 1))
        choices.append(Choice(_DEPTH, _DEPTH, kept, 1.0))
    for part in ("heads", "intermediate"):
        shares = tuple(share for share in _SHARES if share == 1 or _possible(model, f"{part}:{share:g}"))
        if len(shares) > 1:
            choices.append(Choice(part, part, shares, 1.0))
    return choices


def _possible(model: TextModel, spec: str) -> bool:
    try:
        check_text_student(model, spec)
    except TlcError:
        return False
    return True
