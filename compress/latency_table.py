"""How long a student will take, told from a few measured shapes: a constant, and so much for each block of each kind.

The time of a network is close to the sum over its blocks, since runtimes run one operator after the other. What a block
takes where it stands, with its conversions and its caches, is fitted by least squares of the relative error. The error
bound is the prediction interval of such a fit (Draper and Smith, "Applied Regression Analysis", third edition, 1998,
section 3.1), with as much variance as the shapes' own deviation from the sum or the noise of measuring them shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlc.compress.events import Emit, silent
from tlc.compress.measure import Precision, Timing
from tlc.compress.plan import Network
from tlc.compress.runner import Runner
from tlc.compress.shape import Open, Shape, Shapes
from tlc.compress.shape_times import TIMING, ShapeTimes, times_of
from tlc.compress.shapes import shapes_of
from tlc.compress.work import AnyWork
from tlc.runtime.errors import TlcError

WIDTHS = (1.0, 0.75, 0.5)
_CONFIDENCE = 0.95
_UNSEEN = 1e-6
"""Share of a shape's terms that may lie outside of what was measured: rounding."""


class Prediction(NamedTuple):
    """How long a student will take."""

    p50_ms: float
    bound_ms: float
    """With 95 % confidence its p50, measured in the same session, lies no further from that; where the student's name
    leaves open which blocks stay, this covers all choices."""


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Times of the parts of one network on one target, fitted to measured shapes."""

    shapes: Shapes
    original_ms: float
    """p50 of the network itself in float32."""
    measured_ms: Mapping[str, float]
    """p50 of the shapes that it was fitted to, by their names."""
    terms_ms: Mapping[str, float]
    """What each term takes: `layer1 at width 0.5`, a block of that kind."""
    covariance: NDArray[np.float64]
    """Of `terms_ms`, (terms, terms), for a relative error of 1 in each measured time; ms^2."""
    error_ratio: float
    """Standard deviation of a measured time from the sum of its terms, over it."""
    freedom: int
    """Measured shapes beyond those that the terms take."""
    seen: NDArray[np.float64]
    """Projects terms onto what was measured, (terms, terms)."""

    def predict(self, spec: str) -> Prediction:
        """Return how long the student `spec` will take.

        Raises UsageError and TlcError as `check_student` and `check_text_student` do, and TlcError for a width, a rank
        of embeddings or an architecture that the table has not.
        """
        return self._predicted(spec, *self.shapes.cost(spec))

    def predict_shape(self, shape: Shape) -> Prediction:
        """Return how long a shape will take, of which all blocks are chosen; as `predict`."""
        return self._predicted(shape.name, shape.terms, ())

    def _predicted(self, spec: str, terms: Mapping[str, float], choices: Sequence[Open]) -> Prediction:
        if alien := sorted(terms.keys() - self.terms_ms.keys()):
            raise TlcError(
                f"The latency table has no {alien[0]}, which {spec} needs; it has {', '.join(self.terms_ms)}.",
                hint="Build the table for it, or measure the shape itself.",
            )
        slow, fast = (self._sum(spec, self._chosen(terms, choices, slowest=stay)) for stay in (True, False))
        high, low = slow.p50_ms + slow.bound_ms, fast.p50_ms - fast.bound_ms
        return slow if slow == fast else Prediction((high + low) / 2, (high - low) / 2)

    def _chosen(self, terms: Mapping[str, float], choices: Sequence[Open], *, slowest: bool) -> dict[str, float]:
        """Return the terms once the open blocks are gone, so that the slowest ones stay, or the fastest."""
        found = dict(terms)
        for choice in choices:
            left = choice.total
            for name in sorted(choice.most, key=lambda name: self.terms_ms[name], reverse=not slowest):
                gone = min(left, choice.most[name])
                found[name] -= gone
                left -= gone
        return found

    def _sum(self, spec: str, terms: Mapping[str, float]) -> Prediction:
        amounts = np.array([terms.get(name, 0.0) for name in self.terms_ms])
        if np.abs(amounts @ self.seen - amounts).max() > _UNSEEN * np.abs(amounts).max():
            raise TlcError(
                f"The latency table cannot tell the time of {spec}: no measured shapes differ as it does from them.",
                hint="Measure the shape itself.",
            )
        p50_ms = float(amounts @ np.array(list(self.terms_ms.values())))
        variance = float(amounts @ self.covariance @ amounts) + p50_ms**2
        return Prediction(p50_ms, student_t(self.freedom, _CONFIDENCE) * self.error_ratio * math.sqrt(variance))


def latency_table(
    work: AnyWork,
    model: Network,
    runner: Runner,
    *,
    cache: Path,
    widths: Sequence[float] = WIDTHS,
    precision: Precision = "int8",
    timing: Timing = TIMING,
    emit: Emit = silent,
) -> LatencyTable:
    """Measure a few shapes of the model's students, or take them from `cache`, and fit the table to them.

    `widths` are, for images, the shares of channels that the table is for; texts have heads and channels of any number.
    The other arguments and the errors are those of `tlc.compress.shape_times.times_of`.
    """
    known = shapes_of(work, model, widths)
    design = known.design()
    times = times_of(work, model, design, runner, cache=cache, precision=precision, timing=timing, emit=emit)
    return fitted(known, design, times)


def fitted(shapes: Shapes, design: Sequence[Shape], times: ShapeTimes) -> LatencyTable:
    """Return the table that is fitted to the times of `design`, all of which were measured."""
    names = list(dict.fromkeys(name for shape in design for name in shape.terms))
    amounts = np.array([[shape.terms.get(name, 0.0) for name in names] for shape in design])
    measured_ms = np.array([times.p50_ms(shape.name) for shape in design])
    noise = np.array([times.shapes[shape.name].noise_ratio for shape in design])
    relative = amounts / measured_ms[:, None]
    inverse = np.linalg.pinv(relative)
    found = inverse.sum(axis=1)
    freedom = len(design) - int(np.linalg.matrix_rank(relative))
    missed = float(((relative @ found - 1) ** 2).sum())
    error_ratio = math.sqrt(max(missed / max(1, freedom), float((noise**2).mean())))
    return LatencyTable(
        shapes=shapes,
        original_ms=times.original_ms,
        measured_ms=dict(zip((shape.name for shape in design), measured_ms.tolist(), strict=True)),
        terms_ms=dict(zip(names, found.tolist(), strict=True)),
        covariance=inverse @ inverse.T,
        error_ratio=error_ratio,
        freedom=freedom,
        seen=inverse @ relative,
    )


def student_t(freedom: int, confidence: float) -> float:
    """Return the bound that Student's t exceeds, up or down, with probability 1 - confidence.

    The expansion of Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5: within 1 % from 2
    degrees of freedom on. Without any, the normal distribution's.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    if freedom < 1:
        return z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))
