"""Searching for what a budget asks for: by one process, or by workers that share a study.

`compress_within` does all in one folder. Workers that `join` keep their networks in DIR/workers/NAME, what they share
in DIR/cache; `conclude` measures the best of them in DIR/result.
"""

import os
import time
from pathlib import Path

import optuna

from tlc.compress.estimate import plan_lines
from tlc.compress.events import Emit, silent
from tlc.compress.plan import ENOUGH_TO_RETRAIN, Plan, make_plan
from tlc.compress.recipe import Recipe
from tlc.compress.run import RunFolder, StageResult, open_run
from tlc.compress.search_rules import portions
from tlc.compress.space import Space, space_of
from tlc.compress.study import finalists, open_study, record_of
from tlc.compress.trials import Deadline, Trials, most_epochs
from tlc.runtime.artifact import require_free_space, sha256_json
from tlc.runtime.capability import missing
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.report import Report
from tlc.runtime.search_report import SearchRecord
from tlc.runtime.target import load_target

STUDY = "tlc"
_SPACE_FACTOR = 64
"""Copies of the weights that a search writes."""
_CONCLUSION_RATIO = 0.15
"""Of the time limit, for measuring the finalists."""
_LINES_OF_INPUTS = 3
"""Of a plan's lines, those that say what comes in."""


def compress_within(
    recipe: Recipe,
    out: Path,
    *,
    limit_s: float,
    trials: int | None = None,
    resume: bool = False,
    emit: Emit = silent,
    command: str = "tlc.compress.search.compress_within",
) -> Report:
    """Search for `limit_s` seconds for the student that the recipe's budget asks for, and measure the best in `out`.

    At most `trials` shapes are tried.
    Like `tlc.compress.pipeline.compress`, but the student and its widths are found. Some 15 % of the time is kept for
    measuring. With `resume` the shapes that were tried count, and the time starts anew.

    Raises:
        UsageError: the recipe says what the student is.
        TlcError: there is nothing to choose, or too little to train on; else as `compress`.

    """
    began = time.monotonic()
    plan, space = _planned(recipe, out)
    with open_run(out, _identity(plan), resume=resume, emit=emit) as run:
        deadline = Deadline(began + (1 - _CONCLUSION_RATIO) * limit_s)
        opened = _opened(plan, run, space, f"{out / 'study.journal'}", STUDY, limit_s, deadline, emit)
        opened.try_shapes(trials)
        return _concluded(opened, command)


def join(
    recipe: Recipe,
    out: Path,
    *,
    storage: str,
    study: str,
    worker: str,
    limit_s: float,
    trials: int | None = None,
    emit: Emit = silent,
) -> SearchRecord:
    """Try shapes of a shared study for `limit_s` seconds, `trials` of them at most, and return all that was tried.

    Networks stay in `out`/workers/`worker`; a worker of the same name goes on with them. Raises as `compress_within`.
    """
    deadline = Deadline(time.monotonic() + limit_s)
    plan, space = _planned(recipe, out)
    folder = out / "workers" / worker
    with open_run(folder, _identity(plan), resume=True, emit=emit, cache=out / "cache") as run:
        opened = _opened(plan, run, space, storage, study, limit_s, deadline, emit)
        opened.try_shapes(trials)
        return record_of(opened.study)


def conclude(
    recipe: Recipe,
    out: Path,
    *,
    storage: str,
    study: str,
    emit: Emit = silent,
    command: str = "tlc.compress.search.conclude",
) -> Report:
    """Measure the best students of a shared study beside the original in `out`/result, and return the comparison.

    Raises:
        TlcError: a network is not in `out`; else as `compress_within`.

    """
    plan, space = _planned(recipe, out)
    with open_run(out / "result", _identity(plan), resume=True, emit=emit, cache=out / "cache") as run:
        trials = _opened(plan, run, space, storage, study, 0.0, Deadline(time.monotonic()), emit)
        return _concluded(trials, command)


def search_lines(recipe: Recipe, out: Path, *, limit_s: float) -> list[str]:
    """Return what a search would do as lines of text, without doing it. Raises as `compress_within`."""
    plan, space = _planned(recipe, out)
    choices = ", ".join(f"{one.name} {one.values[0]:.3g} to {one.values[-1]:.3g}" for one in space.choices)
    last_s = _CONCLUSION_RATIO * limit_s
    training = portions(most_epochs(plan, limit_s), recipe.search.factor, recipe.search.portions)
    return [
        *plan_lines(plan)[:_LINES_OF_INPUTS],
        f"search     {space.size} shapes: {choices}",
        f"train      in portions of {', '.join(map(str, training))} epochs; most shapes get the first alone",
        f"time       {(limit_s - last_s) / 60:.0f} minutes to search, {last_s / 60:.0f} to measure the best",
    ]


def _planned(recipe: Recipe, out: Path) -> tuple[Plan, Space]:
    if recipe.distill.student != "auto" or recipe.prune.ratio:
        given = f"distill.student = {recipe.distill.student}" if recipe.distill.student != "auto" else "prune.ratio"
        raise UsageError(
            f"{given} says what the student is, and a search is to find it.",
            hint="Leave it out, or leave the time limit out.",
        )
    if recipe.distill.label_free:
        raise UsageError("A search needs labels to judge by.", hint="Set distill.label_free = false.")
    target = load_target(recipe.target)
    if reason := missing(target):
        raise TlcError(
            f"A search measures where {target.name} runs, and not here: {reason}.",
            hint="Search on the target, or for a CPU and let tlc deploy measure what was found.",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "A search runs in one process each.",
            hint="Start a worker for each GPU: CUDA_VISIBLE_DEVICES=0 tlc search ...",
        )
    plan = make_plan(recipe)
    if (count := len(plan.splits.fit)) < ENOUGH_TO_RETRAIN:
        raise TlcError(
            f"{count} training samples are too few to train a student on (limit {ENOUGH_TO_RETRAIN}).",
            hint="Run without the time limit: INT8 needs no training.",
        )
    weights_bytes = sum(p.numel() * p.element_size() for p in plan.model.module.parameters())
    require_free_space(out, _SPACE_FACTOR * weights_bytes)
    return plan, space_of(plan.model)


def _identity(plan: Plan) -> dict[str, str]:
    return {"model": plan.model_sha256, "data": plan.splits.digest}


def _opened(
    plan: Plan, run: RunFolder, space: Space, storage: str, name: str, limit_s: float, deadline: Deadline, emit: Emit
) -> Trials:
    recipe = plan.recipe
    about = sha256_json(
        {
            **_identity(plan),
            "target": plan.target.model_dump(mode="json"),
            "budget": recipe.budget.model_dump(mode="json"),
            "space": space.positions(),
            "train": recipe.train.model_dump(mode="json"),
        }
    )
    settings = recipe.search
    study = open_study(
        storage, name, space=space, sampler=settings.sampler, seed=recipe.seed + _number(run), about=about
    )
    if "epochs" not in study.user_attrs:
        study.set_user_attr("epochs", most_epochs(plan, limit_s))
    first = portions(study.user_attrs["epochs"], settings.factor, settings.portions)[0]
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=settings.factor)
    return Trials(plan, run, study, space, deadline, emit)


def _number(run: RunFolder) -> int:
    """Return a number of the worker, so that no two draw the same shapes."""
    return int(sha256_json(run.path.name)[:6], 16)


def _concluded(trials: Trials, command: str) -> Report:
    best = finalists(trials.study, trials.plan.recipe.search.finalists)
    versions = [
        trials.version(f"student-{one.number}", _network(one), qat=one.user_attrs["network"]["qat"]) for one in best
    ]
    record = record_of(trials.study)
    trials.pipeline.records.clear()  # the report has what was tried in a table of its own
    return trials.pipeline.compared([trials.original, *versions], versions or [trials.original], command, search=record)


def _network(trial: optuna.trial.FrozenTrial) -> StageResult:
    found = trial.user_attrs["network"]
    path = Path(found["path"])
    if not path.is_dir():
        raise TlcError(
            f"The network of {trial.user_attrs['spec']} is not at {path}.",
            hint="Workers on other machines need the same -o, in a file system that all reach by the same name.",
        )
    return StageResult(path, found["key"], {}, 0.0, reused=True)
