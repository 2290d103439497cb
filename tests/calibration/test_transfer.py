"""LogME against two other ways to the same maximum, and a probe that is asked only about what it has not seen."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.stats import multivariate_normal  # type: ignore[import-untyped]
from sklearn.linear_model import BayesianRidge

from tlc.calibration.transfer import cross_probe, linear_probe, logme
from tlc.runtime.errors import TlcError

Case = tuple[NDArray[np.float64], NDArray[np.int64]]


def task(samples: int, width: int, *, classes: int = 2, strength: float = 1.0, seed: int = 0) -> Case:
    """Features of which the first tell the class, the stronger the better."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(samples) % classes)
    features = rng.normal(size=(samples, width))
    features[np.arange(samples), labels] += 2 * strength
    return features, labels


def by_search(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The evidence as the density of a normal distribution, its maximum found without any formula for it."""
    samples = len(labels)
    found = []
    for label in np.unique(labels):
        target = (labels == label).astype(float)

        def loss(logs: NDArray[np.float64], target: NDArray[np.float64] = target) -> float:
            alpha, beta = np.exp(logs)
            covariance = np.eye(samples) / beta + features @ features.T / alpha
            return -float(multivariate_normal(np.zeros(samples), covariance).logpdf(target))

        starts = [(0.0, 0.0), (3.0, 2.0), (6.0, 1.0)]
        options = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000}
        found.append(-min(minimize(loss, start, method="Nelder-Mead", options=options).fun for start in starts))
    return float(np.mean(found)) / samples


@pytest.mark.parametrize(("samples", "width"), [(40, 6), (25, 60)], ids=["more samples", "more features"])
def test_logme_is_the_largest_density_of_the_labels(samples: int, width: int) -> None:
    features, labels = task(samples, width, classes=3)

    assert logme(features, labels) == pytest.approx(by_search(features, labels), abs=1e-5)


def test_logme_is_what_scikit_learn_maximises_too() -> None:
    features, labels = task(200, 12, strength=0.5)
    ridge = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0, "fit_intercept": False}
    found = []
    for label in (0, 1):
        model = BayesianRidge(compute_score=True, max_iter=5000, tol=1e-10, **ridge)
        found.append(model.fit(features, (labels == label).astype(float)).scores_[-1] / 200)

    assert logme(features, labels) == pytest.approx(np.mean(found), abs=1e-6)


def test_features_that_tell_the_classes_apart_score_higher() -> None:
    scores = [logme(*task(300, 20, classes=4, strength=strength)) for strength in (0.0, 0.3, 1.0, 3.0)]

    assert scores == sorted(scores)
    assert scores[-1] - scores[0] > 0.1


@pytest.mark.parametrize("width", [3, 400])
def test_repeated_and_dead_features_change_nothing(width: int) -> None:
    features, labels = task(120, width)
    dead = np.concatenate([features, np.zeros((120, 5))], axis=1)
    twice = np.concatenate([features, features], axis=1) / np.sqrt(2)

    assert logme(dead, labels) == pytest.approx(logme(features, labels), abs=1e-6)
    assert logme(twice, labels) == pytest.approx(logme(features, labels), abs=1e-6)


def test_a_dead_network_still_has_a_score_and_it_is_the_lowest() -> None:
    features, labels = task(60, 4)

    dead = logme(np.zeros((60, 4)), labels)

    assert np.isfinite(dead)
    assert dead < logme(features, labels)


def test_the_probe_finds_what_is_there_and_nothing_else() -> None:
    features, labels = task(400, 10, classes=4, strength=2.0)
    predicted = linear_probe(features[:300], labels[:300], features[300:])

    assert (predicted == labels[300:]).mean() > 0.9
    noise = np.random.default_rng(1).normal(size=(400, 10))
    assert 0.1 < (linear_probe(noise[:300], labels[:300], noise[300:]) == labels[300:]).mean() < 0.4


def test_the_probe_knows_classes_by_their_numbers() -> None:
    features, labels = task(60, 4, strength=4.0)

    assert set(linear_probe(features, labels + 5, features)) == {5, 6}


def test_a_fold_is_asked_only_about_what_it_has_not_seen() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(60) % 2)
    features = np.random.default_rng(1).normal(size=(60, 300))  # enough to learn any labels by heart

    assert (linear_probe(features, labels, features) == labels).mean() > 0.95
    assert (cross_probe(features, labels, folds=5) == labels).mean() < 0.75


def test_the_same_seed_gives_the_same_answers() -> None:
    features, labels = task(90, 8, strength=0.4)

    assert (cross_probe(features, labels, folds=5, seed=3) == cross_probe(features, labels, folds=5, seed=3)).all()


def test_a_class_of_one_sample_does_not_stop_the_folds() -> None:
    features, labels = task(41, 4, strength=4.0)
    labels[0] = 2

    assert (cross_probe(features, labels, folds=5)[1:] == labels[1:]).mean() > 0.9


def test_few_samples_of_many_classes_make_fewer_folds() -> None:
    features, labels = task(16, 8, classes=8, strength=4.0)

    assert len(cross_probe(features, labels, folds=5)) == 16
    with pytest.raises(TlcError, match="8 samples of as many classes"):
        cross_probe(features[:8], np.arange(8), folds=5)


def test_where_all_are_of_one_class_it_is_that() -> None:
    features, _labels = task(12, 4)

    assert linear_probe(features, np.full(12, 3), features[:2]).tolist() == [3, 3]


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = task(30, 4)
    features[3, 1] = np.nan

    for judge in (lambda: logme(features, labels), lambda: linear_probe(features, labels, features)):
        with pytest.raises(TlcError, match="NaN or infinity for 1 of 30 samples"):
            judge()
