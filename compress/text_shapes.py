"""The shapes of a text network's students: layers, and the heads and intermediate channels of each."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from tlc.compress.shape import Open, Shape, Shapes, indifferent
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
            student, _ = text_student_from_teacher(self.model, spec, score=indifferent, batches=batches)
            return student

        return Shape(spec or "unchanged", terms, build)


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
