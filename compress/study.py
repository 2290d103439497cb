"""The study that the workers of a search share: Optuna's, in a file or in a database."""

import math
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from tlc.compress.recipe import Sampler
from tlc.compress.space import Space
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.search_report import SearchRecord, TrialRecord

_HEARTBEAT_S = 20
_GRACE_S = 90
_RETRIES = 3
_ATTEMPTS = 6
"""To open a database whose tables other workers are making, with a pause of `_PAUSE_S` between two."""
_PAUSE_S = 0.5
_LARGEST_GRID = 10_000
"""Shapes; Optuna lists them all."""
_STATUS: dict[TrialState, Literal["finished", "stopped", "failed", "running"]] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


def open_storage(storage: str) -> BaseStorage:
    """Return the storage that `storage` names: a database's URL, or a file that all workers can write.

    In a database every worker says that it is alive; the trial of one that stopped saying so is taken up by another.
    Workers on several machines need a database, or a file system with locks that hold between machines.

    Raises:
        UsageError: the URL is not one, or its driver is not installed.
        TlcError: the database cannot be reached, or the file cannot be written.

    """
    if "://" not in storage:
        path = Path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return JournalStorage(JournalFileBackend(storage))
        except OSError as error:
            raise TlcError(f"Cannot write the study to {path}: {error.strerror}.", hint="Name another file.") from error
    try:
        shown = make_url(storage).render_as_string(hide_password=True)
    except ArgumentError as error:
        hint = "Write postgresql+psycopg://USER@HOST/DATABASE, mysql+pymysql://USER@HOST/DATABASE, or a file's name."
        raise UsageError("--storage is not the URL of a database.", hint=hint) from error
    try:
        return _database(storage)
    except ImportError as error:
        hint = "Run: pip install 'tlc[postgresql]' for postgresql+psycopg://, 'tlc[mysql]' for mysql+pymysql://"
        raise UsageError(f"The driver of {shown} is not installed: {error}.", hint=hint) from error
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise TlcError(
            f"Cannot use {shown}: {reason}", hint="Is it running, and may this user create tables?"
        ) from error


def _database(url: str, attempts: int = _ATTEMPTS) -> RDBStorage:
    """Open it; where another worker was making its tables at the same time, once they are there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=_HEARTBEAT_S,
                grace_period=_GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES),
            )
    except SQLAlchemyError as error:
        if attempts == 1 or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
            raise
    time.sleep(_PAUSE_S)
    return _database(url, attempts - 1)


def open_study(storage: str, name: str, *, space: Space, sampler: Sampler, seed: int, about: str) -> optuna.Study:
    """Return the study `name`, made where it is not there yet; higher values are better.

    `about` says what is searched: model, data, target and budget.

    Raises:
        UsageError: the study is about something else, or there are too many shapes for a grid.
        TlcError: as `open_storage`.

    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(storage),
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        sampler=_sampler(sampler, space, seed),
    )
    known: dict[str, Any] = study.user_attrs
    if "about" not in known:
        study.set_user_attr("about", about)
        study.set_user_attr("shapes", space.size)
    elif known["about"] != about:
        raise UsageError(
            f"The study {name!r} is about another model, other data, another target or another budget.",
            hint="Give the same arguments as its other workers, or another --study.",
        )
    return study


def _sampler(kind: Sampler, space: Space, seed: int) -> BaseSampler:
    if kind == "grid":
        if space.size > _LARGEST_GRID:
            raise UsageError(
                f"A grid of {space.size} shapes is never finished (limit {_LARGEST_GRID}).",
                hint="Set search.sampler to tpe, nsga2 or random.",
            )
        return GridSampler(space.positions(), seed=seed)
    if kind == "random":
        return RandomSampler(seed=seed)
    if kind == "nsga2":
        return NSGAIISampler(population_size=12, seed=seed)
    # Others' running trials count as bad ones, so that workers spread out.
    return TPESampler(seed=seed, n_startup_trials=6, multivariate=True, constant_liar=True)


def record_of(study: optuna.Study) -> SearchRecord:
    """Return what the trials of a study came to."""
    trials = [one for one in study.get_trials(deepcopy=False) if one.datetime_start is not None]
    first = min((one.datetime_start for one in trials if one.datetime_start), default=None)
    return SearchRecord(
        study=study.study_name,
        shapes=study.user_attrs["shapes"],
        epochs=study.user_attrs["epochs"],
        trials=[_record(one, first) for one in trials],
    )


def _record(trial: FrozenTrial, first: datetime | None) -> TrialRecord:
    known = trial.user_attrs
    began, ended = (
        (moment - first).total_seconds() if moment and first else None
        for moment in (trial.datetime_start, trial.datetime_complete)
    )
    finished = trial.state == TrialState.COMPLETE
    return TrialRecord(
        number=trial.number,
        student=known.get("spec", ""),
        worker=known.get("worker", ""),
        status=_STATUS[trial.state],
        why=known.get("why", ""),
        speedup=known.get("speedup"),
        drops_points=known.get("drops_points", []),
        drop_points=known.get("drop_points"),
        value=trial.value if finished else None,
        began_s=began or 0.0,
        ended_s=ended,
    )


def finalists(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Return the `count` finished students that are worth most, best first."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    students = [one for one in finished if "network" in one.user_attrs]
    return sorted(students, key=lambda one: -float(one.value or 0))[:count]


def worth_of_best(study: optuna.Study) -> float:
    """Return what the best finished network is worth, the original in INT8 among them; -inf where there is none."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max((one.value for one in finished if one.value is not None), default=-math.inf)
