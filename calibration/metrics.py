"""What a classifier gets right, and how that differs from another one on the same samples."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.cache import Pixels
from tlc.calibration.text_metrics import calibration_error
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Accuracy, AccuracyChange, Agreement, ClassChange, ClassScore, Interval
from tlc.runtime.statistics import difference_interval, mcnemar_p

_TOP5_CLASSES = 6

Logits = NDArray[np.float32]
"""(N, K)"""


def predict(run: Callable[[NDArray[np.float32]], NDArray[np.float32]], pixels: Pixels, batch_size: int = 64) -> Logits:
    """Return the logits (N, K) float32 that `run`, (n, C, H, W) -> (n, K), gives for all of `pixels`, in order."""
    return np.concatenate([np.asarray(run(inputs), np.float32) for inputs, _ in pixels.iterate(batch_size)])


def score(logits: Logits, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Accuracy:
    """Return the scores of `logits` (N, K) against `labels` (N,).

    Ties go to the lower class, as arg-max does. Precision, recall and F1 of a class that is absent or never predicted
    count as 0 in the macro averages. Raises TlcError when the logits are not finite.
    """
    from sklearn.metrics import confusion_matrix, matthews_corrcoef, precision_recall_fscore_support

    _require_finite(logits)
    known = range(len(classes))
    rank = _rank(logits, labels)
    predicted = logits.argmax(axis=1)
    scores = precision_recall_fscore_support(labels, predicted, labels=known, zero_division=0)
    precision, recall, f1, support = (np.asarray(values) for values in scores)
    return Accuracy(
        samples=len(labels),
        correct=int((rank == 0).sum()),
        top1=float((rank == 0).mean()),
        top5=float((rank < 5).mean()) if len(classes) >= _TOP5_CLASSES else None,
        macro_precision=float(precision.mean()),
        macro_recall=float(recall.mean()),
        macro_f1=float(f1.mean()),
        roc_auc=_roc_auc(logits, labels),
        matthews=float(matthews_corrcoef(labels, predicted)),
        calibration_error=calibration_error(logits, labels),
        answer_f1=None,
        entity_f1=None,
        exact_ratio=None,
        per_class=[
            ClassScore(
                name=name,
                support=int(support[i]),
                precision=float(precision[i]),
                recall=float(recall[i]),
                f1=float(f1[i]),
            )
            for i, name in enumerate(classes)
        ],
        confusion=confusion_matrix(labels, predicted, labels=known).tolist(),
    )


def accuracy_change(
    before: NDArray[np.generic], after: NDArray[np.generic], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> AccuracyChange:
    """Return the paired change of top-1 from `before` to `after`: logits (N, K) or classes (N,) for the same samples.

    Intervals are Tango's (see `difference_interval`), the p-value McNemar's exact one; neither is corrected for looking
    at many classes.
    """
    right_before, right_after = (_predicted(values) == labels for values in (before, after))
    lost, won = right_before & ~right_after, right_after & ~right_before

    def of_class(label: int) -> ClassChange:
        members = labels == label
        support = int(members.sum())
        return ClassChange(
            name=classes[label],
            support=support,
            before=float(right_before[members].mean()) if support else 0.0,
            after=float(right_after[members].mean()) if support else 0.0,
            change_points=_change_points(int(lost[members].sum()), int(won[members].sum()), support),
        )

    regressed, improved = int(lost.sum()), int(won.sum())
    return AccuracyChange(
        change_points=_change_points(regressed, improved, len(labels)),
        regressed=regressed,
        improved=improved,
        mcnemar_p=mcnemar_p(regressed, improved),
        per_class=[of_class(label) for label in range(len(classes))],
    )


def agreement(reference: Logits, candidate: Logits) -> Agreement:
    """Return how far `candidate` (N, K) is from `reference` (N, K) on the same samples."""
    if reference.shape != candidate.shape:
        raise ValueError(f"outputs of shape {candidate.shape} against {reference.shape}")
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Two zero vectors point the same way; a zero and another one do not.
    equal = (a == b).all(axis=1).astype(np.float64)
    cosine = np.divide((a * b).sum(axis=1), norms, out=equal, where=norms > 0)
    return Agreement(
        samples=len(a),
        max_abs_error=float(np.abs(a - b).max()),
        cosine=float(cosine.min()),
        top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
    )


def sqnr_db(reference: NDArray[np.generic], candidate: NDArray[np.generic]) -> float:
    """Return the signal-to-quantisation-noise ratio, 10 log10(sum r^2 / sum (r - c)^2), in dB; infinite without noise.

    >>> round(sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])), 6)
    20.0
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"outputs of shape {candidate.shape} against {reference.shape}")
    signal, other = reference.astype(np.float64), candidate.astype(np.float64)
    noise = float(((signal - other) ** 2).sum())
    power = float((signal**2).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power > 0 else float("-inf")


def _rank(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes each sample puts before its true one, (N,); ties go to the lower class."""
    own = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank: NDArray[np.int64] = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return rank


def _roc_auc(logits: Logits, labels: NDArray[np.int64]) -> float | None:
    from sklearn.metrics import roc_auc_score

    count = logits.shape[1]
    if len(np.unique(labels)) < count:
        return None
    exponent = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probability = exponent / exponent.sum(axis=1, keepdims=True)
    if count == 2:
        return float(roc_auc_score(labels, probability[:, 1]))
    return float(roc_auc_score(labels, probability, multi_class="ovr", average="macro", labels=range(count)))


def _predicted(values: NDArray[np.generic]) -> NDArray[np.int64]:
    if values.ndim == 1:
        return values.astype(np.int64)
    _require_finite(values)
    return np.asarray(values.argmax(axis=1), np.int64)


def _change_points(lost: int, won: int, samples: int) -> Interval:
    low, high = difference_interval(lost, won, samples)
    return Interval(estimate=100 * (won - lost) / max(1, samples), low=100 * low, high=100 * high)


def _require_finite(logits: NDArray[np.generic]) -> None:
    broken = int((~np.isfinite(logits).all(axis=1)).sum())
    if broken:
        raise TlcError(
            f"the model's outputs hold NaN or infinity for {broken:,} of {len(logits):,} samples",
            hint="Check its weights with `tlc inspect`.",
        )
