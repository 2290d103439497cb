"""Two models side by side: time and memory in turns, and answers, outputs and classes on the same samples."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.cache import Pixels
from tlc.calibration.comparison import (
    Judged,
    bootstrapped_change,
    bootstrapped_macro_f1,
    changed_samples,
    class_changes,
    judged,
    judged_questions,
    paired_changes,
    samples_of_rows,
    texts_shown,
    words_shown,
)
from tlc.calibration.drift import Side, feeds_of, output_drift
from tlc.calibration.thumbnails import thumbnail
from tlc.calibration.token_set import Ints, Tokens
from tlc.compress.events import Emit, Progress, silent
from tlc.compress.opening import is_network, opened, unbundled
from tlc.compress.recipe import ModelSection, Recipe
from tlc.compress.runner import Runner
from tlc.compress.torch_worker import torch_case
from tlc.compress.work import Answers, AnyWork
from tlc.runtime.artifact import sha256_json
from tlc.runtime.bench import Timing, bench_report
from tlc.runtime.bench_report import BenchReport
from tlc.runtime.compare_report import ChangedSample, CompareReport, DataComparison, PairedChange
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.model_files import model_files, model_sha256
from tlc.runtime.process import Case, Limits
from tlc.runtime.target import load_target
from tlc.runtime.worker import write_feeds

Part = Pixels | Tokens


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found, and pictures of samples for a page."""

    report: CompareReport
    pictures: list[list[bytes]]
    """JPEGs of the first of the changed samples, for each data set; none for texts."""


@dataclass(frozen=True, slots=True)
class _Model:
    """One of the two: as it was given, and as the file that is judged."""

    name: str
    given: ModelSection
    file: Path
    works: list[AnyWork]
    """One for each data set."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What both say about one data set."""

    work: AnyWork
    answers: tuple[Answers, Answers]
    judged: tuple[Judged, Judged]
    labels: Ints
    samples: Ints
    """(R,) which sample each row is of."""


def compare(
    a: Recipe,
    b: Recipe,
    data: Sequence[Path],
    timing: Timing,
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    threads: int | None = None,
    pictures: int = 0,
    command: str = "",
    emit: Emit = silent,
) -> Comparison:
    """Compare the models of `a` and `b`, which differ in nothing else, on the evaluation samples of each of `data`.

    Accuracy and outputs are those of the ONNX files or engines, of a PyTorch model those of the file that `tlc export`
    makes of it; latency and memory of that are its own in PyTorch, on `threads`, or those of the target. With
    `pictures`, JPEGs of as many changed images a data set.

    Raises TlcError for a model or data that is broken, data that is not the models', and models that are not for the
    same samples and classes; a model that fails while it is timed is in the report as that.
    """
    for path in (a.model.path, b.model.path, *data):
        if not path.exists():
            raise TlcError(f"There is nothing at {path}.", hint="Check the path.")
    if len({path.resolve() for path in data}) < len(data):
        raise UsageError("A data set is given twice", hint="Give each --data once.")
    target = load_target(a.target)
    if threads is not None:
        target = target.model_copy(update={"threads": threads})
    with tempfile.TemporaryDirectory(prefix="tlc-") as name:
        folder = Path(name)
        names = str(a.model.path), str(b.model.path)
        if names[0] == names[1]:
            names = names[0], f"{names[1]} #2"
        models = (_opened(names[0], a, data, folder, "a"), _opened(names[1], b, data, folder, "b"))
        pairs = list(zip(models[0].works, models[1].works, strict=True))
        for path, (work_a, work_b) in zip(data, pairs, strict=True):
            _require_alike(path, work_a, work_b)
        runner = Runner.here(target, folder)
        found = [_judged(models, runner, place, emit) for place in range(len(data))]
        changes = paired_changes([one.judged for one in found])
        compared = [
            _data_comparison(path, models, runner, place, found[place], changes[place], a.seed)
            for place, path in enumerate(data)
        ]
        benched = None if runner.missing else _benched(models, runner, timing, limits, folder, command, emit)
        shown = [
            _pictures(one.work.data.evaluation, compared[place].changed[:pictures]) for place, one in enumerate(found)
        ]
    sizes = [sum(file.stat().st_size for file in model_files(model.given.path)) for model in models]
    runtimes = [model.runtime for model in benched.models] if benched else [runner.runtime, runner.runtime]
    report = CompareReport(
        tlc_version=version("tlc"),
        command=command,
        a=names[0],
        b=names[1],
        target=target.name,
        size_bytes_a=sizes[0],
        size_bytes_b=sizes[1],
        sha256_a=model_sha256(a.model.path),
        sha256_b=model_sha256(b.model.path),
        runtime_a=runtimes[0] or runner.runtime,
        runtime_b=runtimes[1] or runner.runtime,
        bench=benched,
        not_measured=runner.missing,
        data=compared,
    )
    return Comparison(report, shown)


def _opened(name: str, recipe: Recipe, data: Sequence[Path], folder: Path, letter: str) -> _Model:
    """Open a model beside every data set; a network becomes an ONNX file first, once."""

    def on(model: ModelSection, path: Path) -> Recipe:
        section = recipe.data.model_copy(update={"path": path})
        return recipe.model_copy(update={"model": model, "data": section})

    recipe = unbundled(recipe)
    file, _network, work = opened(on(recipe.model, data[0]), folder)
    model = recipe.model
    if is_network(recipe.model.path):
        own = folder / f"{letter}.onnx"
        work.write_metadata(file, own)
        file, model = own, ModelSection(path=own)
    others = [opened(on(model, path), folder)[2] for path in data[1:]]
    return _Model(name, recipe.model, file, [work, *others])


def _require_alike(path: Path, a: AnyWork, b: AnyWork) -> None:
    """Raise TlcError unless both models are for the same samples and the same classes."""
    if a.noun != b.noun or (a.noun == "texts" and a.fed.task != b.fed.task):
        kinds = [work.noun if work.noun == "images" else f"texts ({work.fed.task})" for work in (a, b)]
        raise TlcError(f"A takes {kinds[0]}, B takes {kinds[1]}.", hint="Compare models of one kind.")
    if set(a.classes) != set(b.classes):
        raise TlcError(
            f"A has the classes {', '.join(a.classes[:5])} ..., B {', '.join(b.classes[:5])} ...",
            hint="Compare models that were trained for the same classes.",
        )
    if _digests(a.data.evaluation) != _digests(b.data.evaluation):
        raise TlcError(f"{path} gives the two models different evaluation samples.", hint="Repair its broken samples.")


def _digests(part: Part) -> tuple[str, ...]:
    return part.images.digests if isinstance(part, Pixels) else part.texts.digests


def _columns(a: AnyWork, b: AnyWork) -> NDArray[np.int64] | None:
    """Return B's columns in the order of A's classes; None where that is their order."""
    if a.classes == b.classes:
        return None
    return np.array([b.classes.index(name) for name in a.classes], np.int64)


def _judged(models: tuple[_Model, _Model], runner: Runner, place: int, emit: Emit) -> _Found:
    """Ask both models about the evaluation samples of one data set."""
    work_a, work_b = (model.works[place] for model in models)
    answers: list[Answers] = []
    for model, work in zip(models, (work_a, work_b), strict=True):
        emit(Progress("answers", 2 * place + len(answers) + 1, 2 * len(models[0].works)))
        answers.append(work.judged(model.file, runner, work.data.evaluation))
    columns = _columns(work_a, work_b)
    if columns is not None:
        answers[1] = answers[1][:, columns]
    part: Part = work_a.data.evaluation
    labels: Ints = work_a.labels(part)
    if isinstance(part, Tokens) and part.spans is not None:
        both = judged_questions(answers[0], part), judged_questions(answers[1], work_b.data.evaluation)
    else:
        if len(answers[0]) != len(answers[1]):
            raise TlcError(
                f"A has room for {len(answers[0]):,} of the words that have a tag, B for {len(answers[1]):,}.",
                hint="Compare models of the same --max-length.",
            )
        both = judged(answers[0], labels, work_a.classes), judged(answers[1], labels, work_a.classes)
    samples = samples_of_rows(part) if isinstance(part, Tokens) else np.arange(len(part))
    return _Found(work_a, (answers[0], answers[1]), both, labels, samples)


def _data_comparison(
    path: Path,
    models: tuple[_Model, _Model],
    runner: Runner,
    place: int,
    found: _Found,
    change: PairedChange,
    seed: int,
) -> DataComparison:
    """Return everything about one data set."""
    work_a, work_b = (model.works[place] for model in models)
    part: Part = work_a.data.evaluation
    a, b = found.judged
    with (
        runner.open(models[0].file, threads=os.cpu_count() or 1) as session_a,
        runner.open(models[1].file, threads=os.cpu_count() or 1) as session_b,
    ):
        sizes = [runner.largest_batch(model.file) or 32 for model in models]
        drift, alone = output_drift(
            Side(session_a, part, sizes[0]),
            Side(session_b, work_b.data.evaluation, sizes[1], _columns(work_a, work_b)),
        )
    classes = work_a.classes if a.predicted is not None else ()
    changed = changed_samples(
        a,
        b,
        found.samples,
        keys=part.images.keys if isinstance(part, Pixels) else part.texts.keys,
        texts=None if isinstance(part, Pixels) else texts_shown(part),
        truths=_truths(part, found.labels, classes),
        words=None if isinstance(part, Pixels) else words_shown(part),
    )
    # B's answers, their columns in A's order, are judged by A's labels.
    part_b = part if a.predicted is not None else work_b.data.evaluation
    judge_b = work_a if a.predicted is not None else work_b
    return DataComparison(
        path=str(path),
        sha256=sha256_json([_digests(part), found.labels.tolist()]),
        noun=work_a.noun,
        samples=len(part),
        accuracy_a=work_a.score(found.answers[0], part),
        accuracy_b=judge_b.score(found.answers[1], part_b),
        change=change,
        bootstrap_points=bootstrapped_change(a, b, found.samples, len(part), seed=seed),
        macro_f1_points=bootstrapped_macro_f1(a, b, found.labels, found.samples, len(part), len(classes), seed=seed),
        per_class=class_changes(a, b, found.labels, classes),
        changed=changed,
        drift=drift,
        not_compared=alone,
    )


def _truths(part: Part, labels: Ints, classes: Sequence[str]) -> list[str]:
    """Return what is right of each row: its class, or the first answer to the question."""
    if isinstance(part, Tokens) and part.texts.answers is not None:
        return [answers[0][0] if answers else "" for answers in part.texts.answers]
    return [classes[label] for label in labels.tolist()]


def _pictures(part: Part, changed: Sequence[ChangedSample]) -> list[bytes]:
    return [thumbnail(part.images.image(sample.position)) for sample in changed] if isinstance(part, Pixels) else []


def _benched(
    models: tuple[_Model, _Model],
    runner: Runner,
    timing: Timing,
    limits: Limits,
    folder: Path,
    command: str,
    emit: Emit,
) -> BenchReport:
    """Measure both in turns, fed with samples of the first data set."""
    cases = [_case(model, runner, folder / f"{letter}.npz") for model, letter in zip(models, "ab", strict=True)]
    return bench_report(
        [cases],
        timing,
        command=command,
        limits=limits,
        on_progress=lambda _what, done, total: emit(Progress("latency", done, total)),
    )


def _case(model: _Model, runner: Runner, feeds: Path) -> Case:
    work = model.works[0]
    part: Part = work.data.evaluation
    with runner.open(model.file, threads=1) as session:
        if isinstance(part, Pixels):
            fixed = session.inputs[0].shape[0]
            write_feeds(feeds, [feeds_of(session, part, np.resize(0, fixed if isinstance(fixed, int) else 1))])
        else:
            write_feeds(feeds, work.timing_feeds())
    if not is_network(model.given.path):
        return runner.case(model.name, model.file, feeds=feeds)
    pairs = isinstance(part, Tokens) and part.texts.pairs is not None and part.spans is None
    return torch_case(model.name, model.given, pairs=pairs, threads=runner.target.threads, feeds=feeds)
