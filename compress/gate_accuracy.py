"""What a gate on accuracy compares: on which samples of the same data two models disagree."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.cache import Pixels
from tlc.calibration.comparison import judged, judged_questions
from tlc.calibration.token_set import Tokens
from tlc.compress.opening import opened
from tlc.compress.recipe import Recipe
from tlc.compress.runner import Runner
from tlc.compress.work import AnyWork
from tlc.runtime.errors import TlcError
from tlc.runtime.gate_checks import Disagreements

Flags = NDArray[np.bool_]


def disagreements(candidate: Recipe, baseline: Recipe) -> tuple[Disagreements, dict[str, Disagreements]]:
    """Return where the models of two recipes, with the same data, are not both right: over all samples, and by class.

    A sample is an image, a text, a question, or a word that is classified; questions have no classes. Raises TlcError
    for a model or data that is broken, and for models that are not for the same samples and classes.
    """
    with tempfile.TemporaryDirectory(prefix="tlc-") as folder:
        before, digests, work, labels = _right(baseline, Path(folder) / "baseline")
        after, other_digests, other, _ = _right(candidate, Path(folder) / "candidate")
    if set(work.classes) != set(other.classes):
        raise TlcError(
            f"The baseline has the classes {_some(work.classes)}, the candidate {_some(other.classes)}.",
            hint="Compare models that were trained for the same classes.",
        )
    if digests != other_digests or len(before) != len(after):
        raise TlcError(
            f"{baseline.data.path} gives the two models different evaluation samples.",
            hint="Compare models that take the same samples, of the same length if they are texts.",
        )
    if labels is None:
        return _counted(before, after), {}
    by_class = {
        name: _counted(before[labels == label], after[labels == label]) for label, name in enumerate(work.classes)
    }
    return _counted(before, after), by_class


def _right(recipe: Recipe, folder: Path) -> tuple[Flags, tuple[str, ...], AnyWork, NDArray[np.int64] | None]:
    """Return which samples the recipe's model has right, what they are, its stages, and the samples' classes."""
    folder.mkdir()
    file, _network, work = opened(recipe, folder)
    part: Pixels | Tokens = work.data.evaluation
    answers = work.judged(file, Runner.here(work.target, folder), part)
    if isinstance(part, Tokens) and part.spans is not None:
        return judged_questions(answers, part).right, part.texts.digests, work, None
    labels: NDArray[np.int64] = work.labels(part)
    digests = part.images.digests if isinstance(part, Pixels) else part.texts.digests
    return judged(answers, labels, work.classes).right, digests, work, labels


def _counted(before: Flags, after: Flags) -> Disagreements:
    return Disagreements(len(before), int((before & ~after).sum()), int((after & ~before).sum()))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
