"""How far the output tensors of one model are from another's on the same samples, tensor by tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.cache import Pixels
from tlc.calibration.token_set import Tokens
from tlc.runtime.compare_report import OutputDrift
from tlc.runtime.session import Session

Part = Pixels | Tokens
Values = NDArray[np.float64]
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models: an open session, the samples as it wants them, and how many it takes at once."""

    session: Session
    part: Part
    batch_size: int
    columns: NDArray[np.int64] | None = None
    """Order of the first output's classes in which they are the other side's; None: they are in that order."""


def output_drift(a: Side, b: Side) -> tuple[list[OutputDrift], list[str]]:
    """Return how far each output of `b` is from `a`'s over all samples, and a sentence for each that has no like.

    The first outputs belong together, others where they have one name. Padding does not count: of an output with values
    for every token, only those of a text's own tokens are compared.
    """
    pairs = _matched(a.session, b.session)
    sums = {name: _Sums() for name, _ in pairs}
    broken: dict[str, str] = {}
    # Texts of similar length come together, as A sees them.
    order = np.arange(len(a.part)) if isinstance(a.part, Pixels) else np.concatenate(list(a.part.batches(_CHUNK)))
    for start in range(0, len(order), _CHUNK):
        chosen = order[start : start + _CHUNK]
        rows_a, rows_b = _rows_by_sample(a, chosen), _rows_by_sample(b, chosen)
        for name, other in pairs:
            problem = _add(sums[name], rows_a[name], rows_b[other])
            if problem:
                broken.setdefault(name, problem)
    found = [sums[name].drift(name, len(order)) for name, _ in pairs if name not in broken]
    return found, [*(f"{name}: {problem}." for name, problem in broken.items()), *_unmatched(a.session, b.session)]


def _matched(a: Session, b: Session) -> list[tuple[str, str]]:
    names = [spec.name for spec in a.outputs], [spec.name for spec in b.outputs]
    return [(names[0][0], names[1][0]), *((name, name) for name in names[0][1:] if name in names[1][1:])]


def _unmatched(a: Session, b: Session) -> list[str]:
    matched = _matched(a, b)
    alone = [(spec.name, "A") for spec in a.outputs if spec.name not in {name for name, _ in matched}]
    alone += [(spec.name, "B") for spec in b.outputs if spec.name not in {name for _, name in matched}]
    return [f"{name}: only {side} has an output of that name." for name, side in alone]


def _add(sums: "_Sums", a: Sequence[Values] | None, b: Sequence[Values] | None) -> str:
    """Add the rows of some samples; return why they cannot be compared, "" where they can."""
    if a is None or b is None:
        return "it has no entry for each sample"
    for one, other in zip(a, b, strict=True):
        if one.shape != other.shape:
            return f"{_size(one)} values of a sample against {_size(other)}"
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return "it holds NaN or infinity"
        sums.add(one, other)
    return ""


def _size(rows: Values) -> str:
    return " x ".join(map(str, rows.shape))


def _rows_by_sample(side: Side, chosen: NDArray[np.int64]) -> dict[str, list[Values] | None]:
    """Return each output as one array (rows, values) a sample; None where it has none for each sample."""
    found: dict[str, list[Values] | None] = {spec.name: [] for spec in side.session.outputs}
    fixed = side.session.inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else side.batch_size
    for start in range(0, len(chosen), size):
        batch = chosen[start : start + size]
        # A file exported for a fixed batch gets the last one filled up.
        fed = np.resize(batch, size) if isinstance(fixed, int) else batch
        outputs = side.session.run(feeds_of(side.session, side.part, fed))
        for place, spec in enumerate(side.session.outputs):
            rows, values = found[spec.name], outputs[spec.name]
            if rows is None or values.ndim < 1 or len(values) != len(fed):
                found[spec.name] = None
                continue
            per_token = len(spec.shape) > 1 and isinstance(spec.shape[1], str)
            columns = side.columns if place == 0 else None
            for index, sample in zip(batch.tolist(), values, strict=False):
                rows.append(_rows(sample, side.part, index, per_token=per_token, columns=columns))
    return found


def _rows(
    sample: NDArray[Any], part: Part, index: int, *, per_token: bool, columns: NDArray[np.int64] | None
) -> Values:
    """Return the values of one sample, (rows, values): one row, or one a token, or starts and ends of a question."""
    if isinstance(part, Tokens) and per_token and sample.ndim:
        own = sample[: len(part.ids[index])].reshape(len(part.ids[index]), -1)
        rows = own.T if part.fed.task == "question-answering" else own
    else:
        rows = sample.reshape(1, -1)
    rows = np.asarray(rows, np.float64)
    return rows if columns is None else rows[:, columns]


def feeds_of(session: Session, part: Part, chosen: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
    """Return the inputs of `session` for the samples at `chosen`."""
    if isinstance(part, Pixels):
        return {session.inputs[0].name: part.batch(chosen)}
    feeds = part.feeds(chosen)
    return {spec.name: feeds[spec.name] for spec in session.inputs}


class _Sums:
    """What is known of one output so far."""

    def __init__(self) -> None:
        self.values = self.rows = self.equal = 0
        self.signal = self.noise = self.distance = self.largest = self.cosines = 0.0
        self.worst = 1.0

    def add(self, a: Values, b: Values) -> None:
        """Count the rows of one sample, (rows, values) each."""
        apart = np.abs(b - a)
        self.values += a.size
        self.rows += len(a)
        self.largest = max(self.largest, float(apart.max(initial=0)))
        self.distance += float(apart.sum())
        self.signal += float((a**2).sum())
        self.noise += float((apart**2).sum())
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        # Two zero vectors point the same way; a zero and another one do not.
        same = (a == b).all(axis=1)
        cosines = np.divide((a * b).sum(axis=1), norms, out=same.astype(np.float64), where=(norms > 0) & ~same)
        self.cosines += float(cosines.sum())
        self.worst = min(self.worst, float(cosines.min(initial=1)))
        self.equal += int((a.argmax(axis=1) == b.argmax(axis=1)).sum()) if a.size else len(a)

    def drift(self, output: str, samples: int) -> OutputDrift:
        """Return what the sums say."""
        return OutputDrift(
            output=output,
            samples=samples,
            rows=self.rows,
            max_abs=self.largest,
            mean_abs=self.distance / max(1, self.values),
            snr_db=float(10 * np.log10(self.signal / self.noise)) if self.signal > 0 and self.noise > 0 else None,
            cosine_mean=self.cosines / max(1, self.rows),
            cosine_worst=self.worst,
            argmax_equal_ratio=self.equal / max(1, self.rows),
        )
