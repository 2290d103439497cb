"""Networks ranked before any is fine-tuned: how well their features suit a task, and what they cost on its target."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.calibration.cache import prepare
from tlc.calibration.calibration_set import balanced_indices
from tlc.calibration.data import Splits
from tlc.calibration.metrics import accuracy_change
from tlc.calibration.texts import TextSplits
from tlc.calibration.tokens import choose_max_length, encode, token_lengths
from tlc.calibration.transfer import cross_probe, linear_probe, logme
from tlc.compress.candidates import Candidate, open_images, open_texts, parse_candidate
from tlc.compress.events import Emit, Progress, silent
from tlc.compress.features import LastLayer, features_of, first_inputs, last_layer, with_classes
from tlc.compress.image_work import ImageWork
from tlc.compress.measure import Timing, latencies, p50_ms
from tlc.compress.plan import Network, check_sizes, observed_shape, read_splits, read_text_splits
from tlc.compress.quantize import FEWEST_SAMPLES, worth_quantizing
from tlc.compress.recipe import Recipe
from tlc.compress.runner import Runner
from tlc.compress.text_work import TextWork
from tlc.compress.work import AnyWork, Data, Feeds, some
from tlc.export.graph import GraphStats, graph_stats
from tlc.runtime.artifact import sha256_json
from tlc.runtime.bench_report import Launch
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.launch import peak_memory_bytes
from tlc.runtime.rank_report import Cost, RankedRow, RankReport
from tlc.runtime.report import Interval
from tlc.runtime.statistics import share_interval
from tlc.runtime.target import Target, load_target

DEFAULT_SAMPLES = 1000
_JUDGED_SAMPLES = 32
_ENOUGH_HELD_OUT = 200
"""Where fewer are held out, the probe is asked about all samples of train, in folds."""
_FOLDS = 5

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Task:
    """What all candidates are scored for."""

    recipe: Recipe
    target: Target
    runner: Runner
    splits: Splits | TextSplits
    """Only the samples that are looked at; the evaluation split is left alone."""
    folds: int | None
    """How many folds the samples are dealt into, where `splits.fit` and `splits.holdout` are the same; else None."""
    cache: Path
    int8: bool


@dataclass(frozen=True, slots=True)
class _Scored:
    """A candidate with its features judged and its files written."""

    candidate: Candidate
    notes: tuple[str, ...]
    layer: LastLayer
    predicted: Ints
    """(M,) what the probe answers of the held-out samples."""
    logme: float
    stats: GraphStats
    files: dict[str, Path]
    """`fp32`, and `int8` where there is one."""
    feeds: list[Feeds]
    largest_sizes: dict[str, int]


def rank(
    candidates: Sequence[str],
    recipe: Recipe,
    *,
    samples: int = DEFAULT_SAMPLES,
    int8: bool = False,
    command: str = "tlc.compress.rank.rank",
    emit: Emit = silent,
) -> RankReport:
    """Score `candidates` for the task of `recipe.data` and its target, and return them by linear probe, best first.

    Each is one of the forms of `tlc.compress.candidates.parse_candidate`; of `recipe.model` only how inputs are made
    counts, for all of them. The probe and LogME see at most `samples` training samples, balanced over classes; the
    probe is asked about as many held-out ones, the same for all candidates, or where fewer than 200 are held out about
    all of train in five folds. The evaluation split stays unread. Costs are measured with a last layer for the task's
    classes, in one session, batch 1; with `int8` those of INT8 files too.

    Raises TlcError for a candidate that cannot be opened or has no last linear layer, for candidates of several
    kinds, and for data that is broken.
    """
    if len(set(candidates)) < len(candidates):
        twice = next(name for name in candidates if candidates.count(name) > 1)
        raise UsageError(f"{twice} is given twice", hint="Give each candidate once.")
    target = load_target(recipe.target)
    parsed = [parse_candidate(text) for text in candidates]
    kinds = {one.is_text for one in parsed}
    if len(kinds) > 1:
        named = [next(one.name for one in parsed if one.is_text is kind) for kind in (True, False)]
        raise TlcError(f"{named[0]} takes texts, {named[1]} images.", hint="Rank candidates of one kind.")
    splits, folds = _read(recipe, samples, texts=True in kinds)
    with tempfile.TemporaryDirectory(prefix="tlc-") as name:
        folder = Path(name)
        runner = Runner.here(target, folder / "engines")
        task = _Task(_without_judging(recipe), target, runner, splits, folds, folder / "cache", int8)
        scored = []
        for place, one in enumerate(parsed):
            emit(Progress("candidates", place, len(parsed)))
            own = folder / str(place)
            own.mkdir()
            scored.append(_scored(one, task, own, emit))
        costs = _costs(scored, task, emit)
    return RankReport(
        tlc_version=version("tlc"),
        command=command,
        data=str(recipe.data.path),
        sha256=sha256_json([splits.fit.digest, splits.holdout.digest]),
        noun="texts" if True in kinds else "images",
        classes=list(splits.classes),
        fit_samples=len(splits.fit),
        held_out_samples=len(splits.holdout),
        folds=folds,
        target=target.name,
        runtime=runner.runtime,
        not_measured=runner.missing,
        threads=target.threads,
        rows=_rows(scored, costs, splits),
    )


def _read(recipe: Recipe, samples: int, *, texts: bool) -> tuple[Splits | TextSplits, int | None]:
    """Return the data with the samples that are looked at, and how many folds they make where both parts are equal."""
    splits: Any = read_text_splits(recipe, "sequence-classification") if texts else read_splits(recipe)
    fit, holdout = splits.fit, splits.holdout
    shared = len(holdout) < _ENOUGH_HELD_OUT
    if shared:
        fit = fit.joined(holdout)
    seen = fit.subset(balanced_indices(fit.labels, min(samples, len(fit)), seed=recipe.seed))
    asked = seen if shared else holdout.subset(some(len(holdout), samples))
    folds = min(_FOLDS, int(np.bincount(seen.labels).max())) if shared else None
    return replace(splits, fit=seen, holdout=asked), folds


def _without_judging(recipe: Recipe) -> Recipe:
    """Return the recipe for INT8 files that are made for their cost alone.

    Few samples give a graph like many, and any loss is allowed: the last layer may be a random one.
    """
    changes = {"samples": 2 * FEWEST_SAMPLES, "bias_correction": "off", "qat_epochs": 0}
    quantize = recipe.quantize.model_copy(update=changes)
    budget = recipe.budget.model_copy(update={"max_drop_points": 100.0})
    return recipe.model_copy(update={"quantize": quantize, "budget": budget})


def _scored(candidate: Candidate, task: _Task, folder: Path, emit: Emit) -> _Scored:
    """Open a candidate, judge its features, and write the files that are measured."""
    splits, seed = task.splits, task.recipe.seed
    try:
        model, work, notes = _opened(candidate, task)
        inputs = first_inputs(work.data.fit)
        layer = last_layer(model.module, inputs)
        own = model
        if model.num_classes != len(splits.classes):
            module = with_classes(model.module, layer, len(splits.classes), inputs)
            own = replace(model, module=module, num_classes=len(splits.classes), classes=splits.classes)
            notes.append(f"{layer.name} has {len(splits.classes)} outputs in place of {model.num_classes}")
    except TlcError as error:
        if candidate.name in error.message:
            raise
        raise type(error)(f"{candidate.name}: {error.message}", hint=error.hint) from error
    seen, labels = features_of(model.module, layer, work.data.fit), splits.fit.labels
    if task.folds:
        predicted = cross_probe(seen, labels, folds=task.folds, seed=seed)
    else:
        predicted = linear_probe(seen, labels, features_of(model.module, layer, work.data.holdout), seed=seed)
    plain = folder / "fp32.onnx"
    work.export(own, plain)
    deployed, note = work.fused(plain, folder)
    files = {"fp32": deployed}
    notes += [note] if note else []
    if task.int8 and worth_quantizing(plain, task.target):
        files["int8"] = folder / "int8.onnx"
        work.quantize_within_budget(None, plain, files["int8"], task.runner, emit)
    elif task.int8:
        notes.append(f"no layer gains from INT8 on {task.target.name}")
    return _Scored(
        candidate,
        tuple(notes),
        layer,
        predicted,
        logme(seen, labels),
        graph_stats(plain, work.typical_sizes),
        files,
        work.timing_feeds(),
        work.largest_sizes,
    )


def _opened(candidate: Candidate, task: _Task) -> tuple[Network, AnyWork, list[str]]:
    """Return the network, the stages with its data, and notes; held-out samples stand for the evaluation split."""
    recipe, splits, target = task.recipe, task.splits, task.target
    count, judged = len(splits.classes), some(len(splits.holdout), _JUDGED_SAMPLES)
    if isinstance(splits, Splits):
        options = recipe.model.preprocess
        model = open_images(candidate, options, count, observed_shape(splits, options), recipe.seed)
        check_sizes(options, model, splits)
        parts = (splits.fit, splits.holdout, splits.holdout.subset(judged))
        fit, held, judge = (prepare(part, model.preprocess, cache=task.cache) for part in parts)
        data = Data(fit, held, held, judge, task.cache)
        return model, ImageWork(recipe, target, model.preprocess, splits.classes, data), []
    text, notes = open_texts(candidate, recipe.model, count, pairs=splits.fit.pairs is not None, seed=recipe.seed)
    if recipe.model.max_length is None:
        text = text.with_max_length(choose_max_length(token_lengths(splits.fit, text.tokenizer), text.text.max_length))
    seen, asked = (encode(part, text.tokenizer, text.text) for part in (splits.fit, splits.holdout))
    tokens = Data(seen, asked, asked, asked.subset(judged), task.cache)
    return text, TextWork(recipe, target, text.text, splits.classes, tokens, text.tokenizer), notes


def _costs(scored: Sequence[_Scored], task: _Task, emit: Emit) -> list[dict[str, Cost]]:
    """Return what the files of each candidate cost, all measured in turns."""
    runner, settings = task.runner, task.recipe.measure
    times: dict[str, list[Launch]] = {}
    if not runner.missing:
        fed: dict[str, tuple[Path, Sequence[Feeds]]] = {
            f"{place} {kind}": (path, one.feeds) for place, one in enumerate(scored) for kind, path in one.files.items()
        }
        times = latencies(fed, runner, Timing(settings.rounds, settings.launches, task.recipe.seed), emit)

    def cost(name: str, path: Path, sizes: dict[str, int]) -> Cost:
        case = runner.case(name, path, sizes=sizes)
        return Cost(
            size_bytes=path.stat().st_size,
            p50_ms=p50_ms(times[name]) if times else None,
            peak_memory_bytes=None if runner.missing else peak_memory_bytes(case),
        )

    return [
        {kind: cost(f"{place} {kind}", path, one.largest_sizes) for kind, path in one.files.items()}
        for place, one in enumerate(scored)
    ]


def _rows(scored: Sequence[_Scored], costs: Sequence[dict[str, Cost]], splits: Splits | TextSplits) -> list[RankedRow]:
    """Return a row for each candidate, the best probe first, then the best LogME."""
    asked = splits.holdout.labels
    right = [int((one.predicted == asked).sum()) for one in scored]
    order = sorted(range(len(scored)), key=lambda i: (-right[i], -scored[i].logme, i))
    best = scored[order[0]].predicted
    points = [_point(right[i], costs[i].get("int8", costs[i]["fp32"])) for i in range(len(scored))]
    return [
        RankedRow(
            name=scored[i].candidate.name,
            weights=scored[i].candidate.weights,
            notes=list(scored[i].notes),
            layer=scored[i].layer.name,
            features=scored[i].layer.features,
            probe_ratio=_share(right[i], len(asked)),
            behind_points=accuracy_change(best, scored[i].predicted, asked, splits.classes).change_points,
            logme=scored[i].logme,
            parameters=scored[i].stats.parameters,
            macs=scored[i].stats.macs,
            fp32=costs[i]["fp32"],
            int8=costs[i].get("int8"),
            on_front=not any(_dominates(other, points[i]) for other in points),
        )
        for i in order
    ]


def _share(right: int, count: int) -> Interval:
    low, high = share_interval(right, count)
    return Interval(estimate=right / count, low=low, high=high)


def _point(right: int, cost: Cost) -> tuple[float, ...]:
    """Return what is better the smaller it is; what was not measured is the same for all."""
    return (-right, cost.p50_ms or 0.0, cost.size_bytes, cost.peak_memory_bytes or 0)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
