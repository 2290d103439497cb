"""What each layer and block is worth: one thing at a time done to the network, its answers judged, its time measured.

Nothing is trained. Channels and blocks go from the network in torch, whose batch norms are re-estimated then; INT8 of
single layers is written as ONNX. Every version of the network answers the same samples, which no training has seen as
far as there are enough of those. Time depends on shapes alone, so versions of the same shapes share a file to time.
"""

import tempfile
import time
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path

from tlc.compress.events import Emit, silent
from tlc.compress.measure import Timing
from tlc.compress.model import Model
from tlc.compress.opening import is_network, without
from tlc.compress.plan import make_plan
from tlc.compress.recipe import Recipe
from tlc.compress.runner import Runner
from tlc.compress.sensitivity_report import SHARES, TREATMENTS, Effect, Row, Sensitivity, Treatment
from tlc.compress.sensitivity_trials import Study, Trial, Tried
from tlc.compress.surgery import Part, Surgery
from tlc.compress.text_model import TextModel
from tlc.compress.work import AnyWork
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Interval

SAMPLES = 500


def sensitivity(
    work: AnyWork,
    network: Model | TextModel,
    runner: Runner,
    folder: Path,
    *,
    samples: int = SAMPLES,
    treatments: Collection[Treatment] = TREATMENTS,
    timing: Timing | None = None,
    emit: Emit = silent,
    command: str = "tlc.compress.sensitivity.sensitivity",
) -> Sensitivity:
    """Return what each treatment of each layer and block does to the answers and to p50.

    Args:
        work: the stages, with the data that feeds `network`.
        network: stays as it is.
        runner: opens and times files; where the target's runtime is not here, there are no latencies.
        folder: for files that are judged and timed, some copies of the network large.
        samples: how many answers to judge by, of the part that choices are made on; all there are if fewer.
        treatments: which columns to fill.
        timing: how long to measure; None leaves time out.
        emit: gets `Progress`.
        command: for the record.

    Raises TlcError for a network that cannot be exported, and for a file that does not run.

    """
    started = time.monotonic()
    timing = None if runner.missing else timing
    study = Study(work, network, runner, folder, samples, timing, emit)
    found = study.try_all(_trials(study, treatments))
    ratios, p50 = study.timed()
    return Sensitivity(
        tlc_version=version("tlc"),
        command=command,
        model=str(work.recipe.model.path),
        arch=network.arch.text,
        target=work.target.name,
        runtime=runner.runtime,
        not_measured=runner.missing or ("Time was left out." if timing is None else ""),
        noun=work.noun,
        samples=len(study.judged),
        held_out=study.held_out,
        top1_ratio=work.accuracy(study.before, study.judged),
        temperature=study.temperature,
        cuts_top1_ratio=work.accuracy(study.before_cuts, study.judged),
        p50_ms=p50,
        threads=work.target.threads,
        notes=tuple(study.notes),
        seconds=time.monotonic() - started,
        rows=_rows(study, found, ratios),
    )


def _trials(study: Study, treatments: Collection[Treatment]) -> list[Trial]:
    """Return the versions to make, each once, in the order of the network."""
    surgery = study.surgery
    trials: dict[tuple[Treatment, tuple[str, ...]], Trial] = {}
    if "int8" in treatments:
        study.open_int8()

    def add(treatment: Treatment, subject: tuple[str, ...], part: Part) -> None:
        if treatment in treatments and subject:
            trials.setdefault((treatment, subject), Trial(treatment, subject)).rows.append(part)

    for part in surgery.parts:
        if study.int8 is not None:
            add("int8", study.int8.together(part.layers), part)
        groups = surgery.coupled(part)
        for treatment in SHARES:
            add(treatment, groups, part)
        if part.kind == "block" and surgery.removable(part):
            add("removed", (part.name,), part)
    return list(trials.values())


def _rows(study: Study, found: Sequence[tuple[Trial, Tried]], ratios: dict[object, Interval]) -> tuple[Row, ...]:
    surgery = study.surgery
    effects: dict[str, dict[Treatment, Effect]] = {part.name: {} for part in surgery.parts}
    for trial, tried in found:
        for part in trial.rows:
            effects[part.name][trial.treatment] = Effect(
                changed=_changed(surgery, trial, part),
                share_ratio=tried.share,
                change_points=tried.change_points,
                lost=tried.lost,
                won=tried.won,
                divergence=tried.divergence,
                latency_ratio=ratios.get(tried.cost),
                timed_as=study.files[tried.cost][1] if tried.cost in ratios else None,
            )
    return tuple(
        Row(
            name=part.name,
            kind=part.kind,
            type=part.type,
            block=part.block,
            parameters=part.parameters,
            macs=part.macs,
            effects=effects[part.name],
        )
        for part in surgery.parts
    )


def _changed(surgery: Surgery, trial: Trial, part: Part) -> tuple[str, ...]:
    """Return the layers that the treatment touched."""
    if trial.treatment == "removed":
        return part.layers
    return trial.subject if trial.treatment == "int8" else surgery.producers(trial.subject)


def study_model(
    recipe: Recipe,
    *,
    samples: int = SAMPLES,
    treatments: Collection[Treatment] = TREATMENTS,
    timed: bool = True,
    emit: Emit = silent,
    command: str = "tlc.compress.sensitivity.study_model",
) -> Sensitivity:
    """Return the `sensitivity` of the recipe's model, timed in as many rounds as the recipe says.

    Raises TlcError as that does, for a file that is no PyTorch model, and for data that is not the model's.
    """
    if not is_network(recipe.model.path):
        raise TlcError(
            f"{recipe.model.path} is a finished file; blocks and channels are those of a PyTorch model",
            hint="Give the model that it was exported from.",
        )
    plan = make_plan(without(recipe, student=True, prune=True))
    with tempfile.TemporaryDirectory(prefix="tlc-") as name:
        folder = Path(name)
        runner = Runner.here(plan.target, folder / "engines")
        timing = Timing(rounds=recipe.measure.rounds, launches=1, seed=recipe.seed) if timed else None
        return sensitivity(
            plan.start(folder),
            plan.model,
            runner,
            folder,
            samples=samples,
            treatments=treatments,
            timing=timing,
            emit=emit,
            command=command,
        )
