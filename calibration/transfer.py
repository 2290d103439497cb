"""How well the features of a network suit a task, told from features and labels alone: nothing is trained on them."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.errors import TlcError

_MOST_STEPS = 1000
_CONVERGED = 1e-6
_RANGE = 1e10
"""Prior against noise stays within this factor of the largest eigenvalue: beyond it the evidence no longer changes."""
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of scikit-learn's C that the probe chooses from."""
_TRAINED_SHARE = 0.75
_STEPS = 1000

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def logme(features: Floats, labels: Ints) -> float:
    """Return the log of the maximum evidence of `labels` (N,) given `features` (N, D), per sample, mean over classes.

    Each class, as a vector of zeros and ones, is y = F w + noise with w ~ N(0, 1/alpha) and noise ~ N(0, 1/beta); the
    evidence p(y | F, alpha, beta) has w integrated out, and alpha and beta are those that make it largest. K. You,
    Y. Liu, J. Wang, M. Long, "LogME: practical assessment of pre-trained models for transfer learning", ICML 2021;
    the fixed-point iteration for alpha / beta is that of "Ranking and tuning pre-trained models",
    arXiv 2110.10545, carried to convergence. It compares networks on the same samples; the number itself means
    nothing. Classes without a sample do not count.

    Raises TlcError for features that are not finite.
    """
    values = np.asarray(features, np.float64)
    _require_finite(values)
    samples = len(values)
    targets = (labels[:, None] == np.unique(labels)).astype(np.float64)
    left, singular, _right = np.linalg.svd(values, full_matrices=False)
    known = singular > singular.max(initial=0.0) * max(values.shape) * np.finfo(np.float64).eps
    eigen, along = singular[known, None] ** 2, (left[:, known].T @ targets) ** 2
    outside = np.maximum(0.0, targets.sum(0) - along.sum(0))
    ratio = np.ones(targets.shape[1])
    if known.any():
        ratio = _prior_over_noise(eigen, along, outside, samples)
    # Where beta is at its best, the noise and the prior together explain one unit of variance a sample.
    rest = outside + (along * ratio / (ratio + eigen)).sum(0)
    evidence = -samples / 2 * (np.log(2 * np.pi * rest / samples) + 1) - np.log1p(eigen / ratio).sum(0) / 2
    return float(evidence.mean() / samples)


def _prior_over_noise(eigen: Floats, along: Floats, outside: Floats, samples: int) -> Floats:
    """Return alpha / beta at the evidence's maximum for each class, (K,).

    eigen: (R, 1) eigenvalues of F F^T. along: (R, K) squares of the targets' parts along its eigenvectors. outside:
    (K,) squares of what is left of them.
    """
    low, high = eigen.max() / _RANGE, eigen.max() * _RANGE
    ratio = np.full(along.shape[1], eigen.mean())
    for _ in range(_MOST_STEPS):
        shrunk = ratio / (ratio + eigen)
        effective = (1 - shrunk).sum(0)
        weights = (along * eigen / (ratio + eigen) ** 2).sum(0)
        residual = outside + (along * shrunk**2).sum(0)
        noise_dof = samples - len(eigen) + shrunk.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            new = effective * residual / (weights * noise_dof)
        new = np.clip(np.nan_to_num(new, nan=high, posinf=high), low, high)
        settled = np.abs(np.log(new / ratio)).max() < _CONVERGED
        ratio = new
        if settled:
            break
    return ratio


def linear_probe(features: Floats, labels: Ints, held_out: Floats, *, seed: int = 0) -> Ints:
    """Return the classes (M,) that a linear classifier gives to `held_out` (M, D), fitted to `features` (N, D).

    Multinomial logistic regression on standardised features. Its regularisation is the one of four that is right most
    often on a quarter of `features`, drawn by `seed`, after fitting the others.

    Where all of `features` are of one class, it is that. Raises TlcError for features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for values in (features, held_out):
        _require_finite(values)
    if len(np.unique(labels)) == 1:
        return np.full(len(held_out), labels[0], np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    features, labels = features[order], labels[order]

    def fitted(strength: float, count: int) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_STEPS, random_state=seed))
        with warnings.catch_warnings():
            # Weak regularisation may need more steps than it is worth: it is then not the one that is chosen.
            warnings.filterwarnings("ignore", message="lbfgs failed to converge")
            return model.fit(features[:count], labels[:count])

    count = int(_TRAINED_SHARE * len(labels))
    strength = _STRENGTHS[len(_STRENGTHS) // 2]
    if len(np.unique(labels[:count])) > 1 and count < len(labels):
        scores = [fitted(one, count).score(features[count:], labels[count:]) for one in _STRENGTHS]
        strength = _STRENGTHS[int(np.argmax(scores))]
    return np.asarray(fitted(strength, len(labels)).predict(held_out), np.int64)


def cross_probe(features: Floats, labels: Ints, *, folds: int, seed: int = 0) -> Ints:
    """Return the classes (N,) that linear classifiers give to `features` (N, D), each fitted without those it is asked.

    The samples are dealt into `folds` by class and `seed`, or into fewer where no class has as many samples; see
    `linear_probe`. Raises TlcError where no class has two samples.
    """
    from sklearn.model_selection import StratifiedKFold

    most = int(np.unique(labels, return_counts=True)[1].max())
    if most < 2:
        raise TlcError(f"{len(labels)} samples of as many classes cannot be told apart", hint="Give more samples.")
    predicted = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        # A class of fewer samples than folds is missing in some of them, which counts against nobody.
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = list(StratifiedKFold(min(folds, most), shuffle=True, random_state=seed).split(features, labels))
    for fitted, asked in parts:
        predicted[asked] = linear_probe(features[fitted], labels[fitted], features[asked], seed=seed)
    return predicted


def _require_finite(features: Floats) -> None:
    broken = int((~np.isfinite(features).all(axis=1)).sum())
    if broken:
        raise TlcError(
            f"the features hold NaN or infinity for {broken:,} of {len(features):,} samples",
            hint="Check the network's weights with `tlc inspect`.",
        )
