"""What a search may choose: the shapes of students that can be made of a network, as `--student` spells them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tlc.compress.model import Model
from tlc.compress.plan import Network
from tlc.compress.student import block_groups, check_student
from tlc.compress.text_layers import transformer_layers
from tlc.compress.text_student import check_text_student
from tlc.runtime.errors import TlcError

Value = int | float

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
        count = 1
        for choice in self.choices:
            count *= len(choice.values)
        return count

    def positions(self) -> dict[str, list[int]]:
        """Return by name where the values of every choice stand, from 0."""
        return {choice.name: list(range(len(choice.values))) for choice in self.choices}

    def spec(self, chosen: Mapping[str, Value]) -> str:
        """Return the student's spec, "depth:4,4,4+width:1.5"; empty for the teacher's own shape."""
        parts = []
        for part, group in itertools.groupby(self.choices, key=lambda choice: choice.part):
            choices = list(group)
            if any(chosen[choice.name] != choice.teacher for choice in choices):
                parts.append(f"{part}:{','.join(f'{chosen[choice.name]:.6g}' for choice in choices)}")
        return "+".join(parts)

    @property
    def teacher(self) -> dict[str, Value]:
        """Return the shape of the network itself."""
        return {choice.name: choice.teacher for choice in self.choices}

    @property
    def widths(self) -> tuple[Value, ...]:
        """Return the widths among the choices, at least that of the network itself."""
        return next((choice.values for choice in self.choices if choice.name == "width"), (1.0,))

    def chosen(self, indices: Mapping[str, int]) -> dict[str, Value]:
        """Return the values at `indices`."""
        return {choice.name: choice.values[indices[choice.name]] for choice in self.choices}

    def indices(self, chosen: Mapping[str, Value]) -> dict[str, int]:
        """Return where the values stand among their choice's."""
        return {choice.name: choice.values.index(chosen[choice.name]) for choice in self.choices}

    def __iter__(self) -> Iterator[dict[str, Value]]:
        """Yield all shapes."""
        names = [choice.name for choice in self.choices]
        for values in itertools.product(*(choice.values for choice in self.choices)):
            yield dict(zip(names, values, strict=True))


def space_of(model: Network) -> Space:
    """Return the shapes of students that can be made of `model`.

    Of images: how many blocks each group keeps, and the width of all layers. Of texts: layers, heads, inner width.
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
        members = len(group.members)
        counts: tuple[Value, ...] = tuple(range(max(1, members - len(group.removable)), members + 1))
        if len(groups) == 1:  # a single number is a share of what can be removed
            removable = len(group.removable)
            counts = tuple(kept / removable for kept in range(1, removable + 1))
        choices.append(Choice(f"depth.{group.name}" if group.name else "depth", "depth", counts, counts[-1]))
    widths = tuple(width for width in _WIDTHS if width == 1 or _possible(model, f"width:{width:g}"))
    if len(widths) > 1:
        choices.append(Choice("width", "width", widths, 1.0))
    return choices


def _text_choices(model: Network) -> list[Choice]:
    layers = len(transformer_layers(model.module))
    choices = []
    if layers > 1:
        kept = tuple(count / layers for count in range(1, layers + 1))
        choices.append(Choice("depth", "depth", kept, 1.0))
    for part in ("heads", "intermediate"):
        shares = tuple(share for share in _SHARES if share == 1 or _possible(model, f"{part}:{share:g}"))
        if len(shares) > 1:
            choices.append(Choice(part, part, shares, 1.0))
    return choices


def _possible(model: Network, spec: str) -> bool:
    try:
        if isinstance(model, Model):
            check_student(model, spec)
        else:
            check_text_student(model, spec)
    except TlcError:
        return False
    return True
