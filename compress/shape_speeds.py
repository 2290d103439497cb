"""How many times as fast as the original shapes are, and which shape is about as fast as is wanted."""

import math
import random
from collections.abc import Set
from functools import cached_property
from pathlib import Path

import torch

from tlc.compress.cost import macs, parameters
from tlc.compress.events import Emit
from tlc.compress.latency_table import LatencyTable, latency_table
from tlc.compress.model import Model
from tlc.compress.plan import Network
from tlc.compress.runner import Runner
from tlc.compress.search_rules import NEAR_RATIO, nearest
from tlc.compress.shape_times import ORIGINAL, measure_shapes
from tlc.compress.shapes import shapes_of
from tlc.compress.space import Space, Value
from tlc.compress.work import AnyWork
from tlc.runtime.errors import TlcError

_FEW_SHAPES = 16
_MOST_PREDICTED = 4000
_MOST_BUILT = 12
_AIMS = 3
"""How many shapes are measured, at most, to find one of the wanted speed."""


class ShapeSpeeds:
    """The speeds of the shapes of one network on one target: measured, and predicted by its latency table."""

    def __init__(
        self, work: AnyWork, network: Network, runner: Runner, space: Space, *, cache: Path, seed: int, emit: Emit
    ) -> None:
        self._work, self._network, self._runner, self._space = work, network, runner, space
        self._cache, self._seed, self._emit = cache, seed, emit

    def times_ms(self, spec: str) -> dict[str, float]:
        """Return the p50 of the original and of a shape; measured once for all workers that share a cache."""
        return measure_shapes(self._work, self._network, [spec], self._runner, cache=self._cache, emit=self._emit)

    def of(self, spec: str) -> float:
        """Return how many times as fast as the original a shape was measured to be."""
        times_ms = self.times_ms(spec)
        return times_ms[ORIGINAL] / times_ms[spec]

    @property
    def original_ms(self) -> float:
        """The p50 of the original."""
        return self._table.original_ms

    @cached_property
    def predicted(self) -> list[tuple[float, dict[str, Value]]]:
        """Shapes of one width with the speed-up that the latency table predicts; nothing where there are few to try."""
        if self._space.size <= _FEW_SHAPES:
            return []
        found = []
        for shape in self._space.even(_MOST_PREDICTED, self._seed):
            if shape == self._space.teacher:
                continue
            try:
                found.append((self.original_ms / self._table.predict(self._space.spec(shape)).p50_ms, shape))
            except TlcError:
                continue  # of no shape that the table was fitted to; the sampler may still propose it
        return found

    def shape_about(self, wanted: float, reach_ratio: float, tried: Set[str | None]) -> dict[str, Value] | None:
        """Return the shape of most arithmetic about `wanted` times as fast as the original, or None if there is none.

        It is none of `tried`, and `reach_ratio` off at most, in logarithms, as measured: where the table is wrong about
        a shape, another is looked for that it is as wrong about.
        Of shapes that take the same time the one that computes more is likely to learn more. Before that, images:
        shapes with blocks of the original as they are, which know most before any training. Texts: those that keep the
        most of every part, since two whole layers learn far less than three of half the inner width.
        """
        aim, found = wanted, []
        for _aimed in range(_AIMS):
            near = self._predicted_about(aim, reach_ratio, tried)
            if near is None:
                break
            predicted, shape = near
            spec = self._space.spec(shape)
            try:
                measured = self.of(spec)
            except TlcError:
                return shape  # whoever tries it will say so
            off_ratio = abs(math.log(measured / wanted))
            if off_ratio < reach_ratio:
                found.append((off_ratio, shape))
            if min(off_ratio, abs(math.log(measured / predicted))) < NEAR_RATIO:
                break
            aim, tried = wanted * predicted / measured, {*tried, spec}
        return min(found, key=lambda one: one[0])[1] if found else None

    def _predicted_about(
        self, wanted: float, reach_ratio: float, tried: Set[str | None]
    ) -> tuple[float, dict[str, Value]] | None:
        """Return the shape that `shape_about` describes, as the table has it, and before it its predicted speed-up."""
        untried = [(faster, shape) for faster, shape in self.predicted if self._space.spec(shape) not in tried]
        images = isinstance(self._network, Model)
        speeds = [(faster, images and self._space.keeps_blocks(shape)) for faster, shape in untried]
        near = [untried[index] for index in nearest(speeds, wanted, reach_ratio)]
        if not images:
            most = max((self._space.kept_ratio(shape) for _faster, shape in near), default=0.0)
            near = [(faster, shape) for faster, shape in near if self._space.kept_ratio(shape) == most]
        few = random.Random(self._seed).sample(near, min(_MOST_BUILT, len(near)))
        return max(few, key=lambda one: self._arithmetic(self._space.spec(one[1])), default=None)

    @cached_property
    def _table(self) -> LatencyTable:
        return latency_table(
            self._work, self._network, self._runner, cache=self._cache, widths=self._space.widths, emit=self._emit
        )

    def _arithmetic(self, spec: str) -> int:
        """Return the multiply-accumulates of a shape; of a text model the parameters, which they go with."""
        model = shapes_of(self._work, self._network).shape(spec).build()
        if isinstance(model, Model):
            return macs(model.module, torch.zeros(1, *model.preprocess.input_shape))
        return parameters(model.module)
