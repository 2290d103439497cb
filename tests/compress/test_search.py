"""`tlc.compress.search`: shapes are tried, given up, finished, shared among workers, and measured at the end."""

import json
import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState, create_trial
from postgres import running
from study_worker import SPACE, work
from tlc_process import PROCESSES

from tiny import PREPROCESS, seeded_net, write_bars
from tlc.calibration.cache import prepare
from tlc.calibration.data import read_data
from tlc.compress import next_shape, search, shape_speeds, trials
from tlc.compress.events import silent
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.next_shape import NextShape
from tlc.compress.plan import make_plan
from tlc.compress.quantize import QuantizeSettings
from tlc.compress.recipe import DataSection, MeasureSection, ModelSection, Recipe, SearchSection
from tlc.compress.search import STUDY
from tlc.compress.search_rules import may_be_best, merit, next_speedup, out_of_reach, portions, settled
from tlc.compress.shape_speeds import ShapeSpeeds
from tlc.compress.shape_times import ORIGINAL
from tlc.compress.space import Choice, Space, space_of
from tlc.compress.study import open_storage, open_study, record_of
from tlc.compress.train import TrainSettings
from tlc.compress.trials import most_epochs
from tlc.runtime.budget import Budget
from tlc.runtime.errors import TlcError, UsageError

TINY = Path(__file__).parents[1] / "support" / "tiny.py"
WIDTHS = ((0.5, 1.0), (0.5, 1.0, 2.0), (0.5, 1.0, 2.0))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("search")
    write_bars(folder / "bars.npz", count=1600)
    net = seeded_net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    pixels = prepare(read_data(folder / "bars.npz").fit, PREPROCESS)
    images, labels = torch.from_numpy(pixels.batch(range(len(pixels)))), torch.from_numpy(pixels.labels.copy())
    net.train()
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images[:400]), labels[:400]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.save(net.eval().state_dict(), folder / "model.pt")
    return Recipe(
        model=ModelSection(
            path=folder / "model.pt",
            arch=f"{TINY}:tiny_net",
            preprocess=PreprocessOptions(input=(1, 8, 8), mean=(0.5,), std=(0.25,), channels="gray"),
        ),
        data=DataSection(path=folder / "bars.npz"),
        train=TrainSettings(epochs=4, batch_size=64),
        search=SearchSection(portions=2, factor=2),
        measure=MeasureSection(rounds=10, launches=1),
        budget=Budget(max_drop_points=5),
    )


def test_after_each_portion_a_shape_has_had_factor_times_as_many_epochs() -> None:
    assert portions(27, 3, 4) == (1, 2, 6, 18)
    assert sum(portions(20, 3, 3)) == 20
    assert portions(1, 3, 3) == (1,)


@pytest.mark.parametrize(("limit_s", "epochs"), [(100, 4), (300, 10), (1000, 20), (36000, 60)])
def test_a_shape_is_trained_for_a_share_of_the_time_and_for_no_fewer_epochs_than_usual_if_twice_that_suffices(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, limit_s: float, epochs: int
) -> None:
    plan = make_plan(recipe.model_copy(update={"train": TrainSettings()}))
    step_s = 10 / len(plan.splits.fit) / 0.4  # a student's epoch takes 10 s
    monkeypatch.setattr(trials, "seconds_per_sample", lambda *_network: (step_s, 0.0))

    assert most_epochs(plan, limit_s) == epochs


def test_what_is_expected_of_a_network_is_its_speed_if_it_stays_within_the_budget_else_nothing() -> None:
    budget = Budget(max_drop_points=1.0)

    assert merit(budget, math.log(4), -5, 0.5) == pytest.approx(math.log(4))
    assert merit(budget, math.log(4), 1.0, 0.5) == pytest.approx(math.log(4) / 2)
    assert merit(budget, math.log(4), 9, 0.5) == pytest.approx(0)
    assert merit(Budget(objective="most-accurate"), math.log(4), 0.3, 0.5) == -0.3


def test_training_ends_where_little_of_the_budget_is_used() -> None:
    assert settled(Budget(max_drop_points=1.0), 0.2, 0.9)
    assert settled(Budget(max_drop_points=0.0), -0.1, 0.1)
    assert not settled(Budget(max_drop_points=1.0), 0.3, 0.1)
    assert not settled(Budget(max_drop_points=1.0, objective="most-accurate"), -0.5, 0.1)


def test_training_goes_on_where_it_is_not_sure_that_the_budget_is_kept() -> None:
    assert not settled(Budget(max_drop_points=0.3), -0.3, 0.9)
    assert settled(Budget(max_drop_points=0.3), -0.5, 0.9)


def test_training_ends_where_the_budget_is_out_of_reach() -> None:
    assert out_of_reach(Budget(max_drop_points=1.0), 5.0, 4.0)
    assert not out_of_reach(Budget(max_drop_points=1.0), 5.0, 5.0)  # it may learn much yet
    assert not out_of_reach(Budget(max_drop_points=1.0, objective="most-accurate"), 50.0, 1.0)


def test_the_next_shape_lies_between_what_keeps_the_budget_and_what_misses_it() -> None:
    assert next_speedup(1.0, [], 2.5) == 2.5
    assert next_speedup(5.0, [3.0], 1.4) == pytest.approx(7)
    assert next_speedup(5.0, [7.2, 9.0], 1.4) == pytest.approx(6)
    assert next_speedup(6.7, [7.2], 1.4) is None


def test_a_shape_may_be_the_best_that_would_be_if_it_learnt_a_deviation_more_than_expected() -> None:
    budget = Budget(max_drop_points=1.0)

    assert may_be_best(budget, math.log(8), 2.0, 1.5, math.log(3))
    assert not may_be_best(budget, math.log(8), 4.0, 1.5, math.log(3))
    assert not may_be_best(budget, math.log(4), 0.0, 0.1, math.log(5))  # too slow, however much it learns


def test_a_shape_is_spelled_as_a_student() -> None:
    assert SPACE.size == 6
    assert SPACE.spec({"depth.layer1": 2, "width": 0.5}) == "depth:2+width:0.5"
    assert SPACE.spec(SPACE.teacher) == ""
    shapes = SPACE.even(100, seed=0)
    assert len({SPACE.spec(shape) for shape in shapes}) == 6
    assert [SPACE.chosen(SPACE.indices(shape)) for shape in shapes] == shapes


def test_groups_have_widths_of_their_own_and_few_shapes_of_one_width_are_drawn_of_many() -> None:
    depths = tuple(Choice(f"depth.{group}", "depth", tuple(range(1, 10)), 9) for group in "abc")
    widths = tuple(Choice(f"width.{group}", "width", values, 1.0) for group, values in zip("abc", WIDTHS, strict=True))
    space = Space((*depths, *widths))

    assert space.size == 9**3 * 2 * 3 * 3
    assert space.widths == (0.5, 1.0)
    assert space.spec({**space.teacher, "width.b": 2.0}) == "width:1,2,1"
    assert space.spec({**space.teacher, **dict.fromkeys(("width.a", "width.b", "width.c"), 0.5)}) == "width:0.5"
    drawn = [space.spec(shape) for shape in space.even(50, seed=0)]
    assert len(set(drawn)) == 50
    assert drawn == [space.spec(shape) for shape in space.even(50, seed=0)]
    assert all(spec.rpartition("width:")[2] == "0.5" for spec in drawn if "width" in spec)


def test_a_search_space_holds_what_a_network_can_become(recipe: Recipe) -> None:
    space = space_of(make_plan(recipe).model)

    assert [choice.part for choice in space.choices] == ["depth", "width"]
    assert space.size == len(space.choices[0].values) * len(space.choices[1].values)


def test_a_grid_too_large_to_finish_is_refused(tmp_path: Path) -> None:
    choices = tuple(Choice(f"depth.{group}", "depth", tuple(range(30)), 29) for group in "abc")
    with pytest.raises(UsageError, match=r"A grid of 27000 shapes is never finished \(limit 10000\)"):
        open_study(str(tmp_path / "study"), "x", space=Space(choices), sampler="grid", seed=0, about="x")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A worker that knows how fast shapes are, and of nothing else."""
    found: Any = trials.Trials.__new__(trials.Trials)
    found.space = Space(
        (Choice("depth", "depth", (0.25, 0.5, 1.0), 1.0), Choice("heads", "heads", (0.25, 0.5, 1.0), 1.0))
    )
    found.study, found.network, found.budget = optuna.create_study(), "a text model", Budget(max_drop_points=1.0)
    found.settings, found.run = SearchSection(), SimpleNamespace(path=Path("worker"))
    found.plan = SimpleNamespace(recipe=SimpleNamespace())
    nothing: Any = None  # it measures nothing
    found.speeds = ShapeSpeeds(nothing, found.network, nothing, found.space, cache=tmp_path, seed=0, emit=silent)
    found.next = NextShape(
        found.study, found.space, found.speeds, found.budget, usual="usual", deviation_points=0.5, shared=tmp_path
    )
    monkeypatch.setattr(ShapeSpeeds, "_arithmetic", lambda _self, _spec: 1)
    monkeypatch.setattr(trials.Trials, "_deviation_points", 0.5)
    return found


def _speeds(worker: Any, speeds: dict[tuple[float, float], float]) -> dict[float, dict[str, float]]:
    """Let `worker` know how fast shapes are, by (depth, heads), and return them by speed."""
    shapes = {speedup: {"depth": depth, "heads": heads} for (depth, heads), speedup in speeds.items()}
    worker.speeds.predicted = list(shapes.items())
    known = {worker.space.spec(shape): speedup for speedup, shape in shapes.items()}
    worker.speeds.of = {"usual": 6.0, **known}.__getitem__
    return shapes


def _tried(
    worker: Any, shape: dict[str, float], *, worth: float = 1.0, promised: float | None = None, **known: Any
) -> None:
    """Let `worker` know of a shape that was tried: trained if its drop is known, stopped, or being trained."""
    state = TrialState.PRUNED if "behind" in known else TrialState.COMPLETE
    state = state if "drop_points" in known or "behind" in known else TrialState.RUNNING
    distributions: dict[str, BaseDistribution] = {name: IntDistribution(0, 2) for name in shape}
    worker.study.add_trial(
        create_trial(
            state=state,
            params=worker.space.indices(shape),
            distributions=distributions,
            value=worth if state == TrialState.COMPLETE else None,
            user_attrs=known,
            intermediate_values={} if promised is None else {2: promised},
        )
    )


def test_of_texts_shapes_of_one_speed_the_one_that_keeps_the_most_of_every_part_is_next(worker: Any) -> None:
    shapes = _speeds(worker, {(0.25, 1.0): 8.0, (0.5, 0.5): 8.2, (1.0, 0.25): 7.9, (0.5, 1.0): 4.0})

    assert worker.speeds.shape_about(8.0, 0.5, tried=set()) == shapes[8.2]
    assert worker.speeds.shape_about(8.0, 0.5, tried={worker.space.spec(shapes[8.2])}) in (shapes[8.0], shapes[7.9])
    assert worker.speeds.shape_about(5.0, 0.1, tried=set()) is None


def test_where_the_table_is_wrong_about_a_shape_one_is_looked_for_that_it_is_as_wrong_about(worker: Any) -> None:
    measured = {(1.0, 0.5): 4.0, (0.5, 1.0): 6.0, (0.5, 0.5): 8.2, (0.25, 0.25): 12.0}
    shapes = _speeds(worker, measured)
    worker.speeds.predicted = [(1.4 * speedup, shape) for speedup, shape in shapes.items()]

    assert worker.speeds.shape_about(8.3, 0.5, tried=set()) == shapes[8.2]  # 8.4 was predicted for one of 6.0
    assert worker.speeds.shape_about(8.3, 0.1, tried={worker.space.spec(shapes[8.2])}) is None


def test_a_shape_that_cannot_be_measured_is_left_to_whoever_tries_it(worker: Any) -> None:
    shapes = _speeds(worker, {(0.5, 1.0): 6.0})

    def refused(_spec: str) -> float:
        raise TlcError("It does not run.")

    worker.speeds.of = refused

    assert worker.speeds.shape_about(6.0, 0.5, tried=set()) == shapes[6.0]


def test_workers_that_begin_together_spread_from_the_usual_student_on(worker: Any) -> None:
    shapes = _speeds(worker, {(1.0, 0.5): 4.0, (0.5, 1.0): 6.0, (0.5, 0.5): 8.4, (0.25, 0.25): 12.0})
    for _joined in range(2):
        worker.next.queue()

    queued = [one.system_attrs["fixed_params"] for one in worker.study.trials]
    assert queued == [worker.space.indices(shapes[6.0]), worker.space.indices(shapes[12.0])]


@pytest.mark.parametrize("missed", [True, False])
def test_what_another_worker_is_at_counts_as_missed_where_a_slower_shape_has_missed_or_there_is_no_faster_one(
    worker: Any, missed: bool
) -> None:
    shapes = _speeds(worker, {(1.0, 0.5): 4.0, (0.5, 1.0): 6.0, (0.5, 0.5): 7.2, (0.25, 0.25): 12.0})
    _tried(worker, shapes[4.0], speedup=4.0, drop_points=0.5)
    if missed:
        _tried(worker, shapes[7.2], speedup=7.2, drop_points=1.5)
    _tried(worker, shapes[12.0], speedup=12.0)

    worker.next.queue()

    wanted = shapes[6.0 if missed else 7.2]
    assert worker.study.trials[-1].system_attrs["fixed_params"] == worker.space.indices(wanted)


@pytest.mark.parametrize(("drop_points", "wanted"), [(0.1, 12.0), (0.9, 8.4), (1.1, 4.0)])
def test_after_a_student_the_next_is_faster_or_slower_as_it_kept_the_budget(
    worker: Any, drop_points: float, wanted: float
) -> None:
    shapes = _speeds(worker, {(1.0, 0.5): 4.0, (0.5, 1.0): 6.0, (0.5, 0.5): 8.4, (0.25, 0.25): 12.0})
    _tried(worker, worker.space.teacher, speedup=2.3, drop_points=0.0)
    _tried(worker, shapes[6.0], speedup=6.0, drop_points=drop_points)

    worker.next.queue()

    assert worker.study.trials[-1].system_attrs["fixed_params"] == worker.space.indices(shapes[wanted])


@pytest.mark.parametrize(("drops_points", "expected"), [([2.0], 0.5), ([3.0, 2.0], 1.0), ([-0.4], -0.4)])
def test_each_portion_left_is_expected_to_halve_the_drop_until_another_shape_had_all(
    worker: Any, drops_points: list[float], expected: float
) -> None:
    drop_points, deviation_points = worker._at_end(drops_points, 3)

    assert drop_points == expected
    assert deviation_points == pytest.approx(math.hypot(0.5, 0.5 * (drops_points[-1] - expected)))


@pytest.mark.parametrize(("speedup", "trained"), [(4.0, 2), (16.0, 18)])
def test_a_shape_that_successive_halving_would_stop_goes_on_only_if_it_may_be_the_best(
    worker: Any, monkeypatch: pytest.MonkeyPatch, speedup: float, trained: int
) -> None:
    monkeypatch.setattr(trials, "worth_of_best", lambda _study: math.log(8))
    worker.study.set_user_attr("epochs", 18)
    worker.reference, worker.deadline, worker.emit = 0.9, trials.Deadline(math.inf), silent
    epochs: list[int] = []

    def portion(_stage: object, count: int, _done: int) -> SimpleNamespace:
        epochs.append(count)
        return SimpleNamespace(seconds=1.0, found={"accuracy": 0.895})

    worker._started, worker._portion = lambda _spec: SimpleNamespace(found={"parameters": 1}), portion
    known: dict[str, Any] = {}
    trial = SimpleNamespace(
        should_prune=lambda: True, report=lambda _value, _step: None, set_user_attr=known.__setitem__, user_attrs=known
    )

    if trained < 18:
        with pytest.raises(optuna.TrialPruned):
            worker._trained(trial, "depth:0.5", speedup)
        assert known["why"] == "-0.50 points after 2 epochs, others promise more"
        assert known["behind"]
    else:
        worker._trained(trial, "depth:0.5", speedup)

    assert sum(epochs) == trained
    known["again"] = True
    worker._trained(trial, "depth:0.5", speedup)
    assert sum(epochs) == trained + 18  # nothing else is left to do


@pytest.mark.parametrize(("expected", "others"), [(6.0, [5.7]), (5.3, [5.7]), (5.0, [5.7, 5.2])])
def test_where_nothing_is_left_between_kept_and_missed_stopped_shapes_are_trained_on_and_then_others_as_fast_tried(
    worker: Any, expected: float, others: list[float]
) -> None:
    speeds = {(0.5, 1.0): 6.0, (0.5, 0.5): 6.3, (0.25, 0.5): 8.0, (0.25, 0.25): 12.0, (0.25, 1.0): 5.7, (1.0, 0.5): 5.2}
    shapes = _speeds(worker, speeds)
    _tried(worker, shapes[6.0], speedup=6.0, drop_points=0.5, worth=math.log(expected))
    _tried(worker, shapes[6.3], speedup=6.3, drop_points=1.5)
    _tried(worker, shapes[8.0], speedup=8.0, drops_points=[4.0], behind=True, promised=0.9)
    _tried(worker, shapes[12.0], speedup=12.0, drops_points=[4.0], behind=True, promised=0.7)
    for _ended in range(5):
        worker.next.queue()

    queued = [(one.system_attrs["fixed_params"], one.user_attrs) for one in worker.study.trials[4:]]
    again = {"again": True}
    wanted = [(8.0, again), (12.0, again), *((speedup, {}) for speedup in others)]
    assert queued == [(worker.space.indices(shapes[speedup]), known) for speedup, known in wanted]


@pytest.mark.parametrize(("left_s", "qat"), [(59, False), (61, True)])
def test_a_student_is_trained_for_int8_where_there_is_time_for_three_epochs_of_twice_the_usual(
    worker: Any, left_s: float, qat: bool
) -> None:
    worker.speeds.times_ms = lambda spec: {ORIGINAL: 8.0, spec: 1.0}
    worker._trained = lambda *_shape: (SimpleNamespace(path=Path("student"), key="x"), 10.0)
    worker._finished = lambda *_found: 1.0
    worker.deadline = SimpleNamespace(left_s=left_s)
    worker.plan.recipe.quantize, worker.reference = QuantizeSettings(), 0.9
    asked: list[bool] = []
    worker.version = lambda _name, _stage, *, qat: asked.append(qat)
    worker.study.enqueue_trial({"depth": 0, "heads": 0})

    worker._tried(worker.study.ask())

    assert asked == [qat]
    known = worker.study.trials[0].user_attrs
    assert known["network"]["qat"] is qat
    assert known.get("why") == (None if qat else "no time was left to train it for INT8")


def test_a_search_is_over_where_no_time_is_left_for_a_first_portion(worker: Any) -> None:
    shapes = _speeds(worker, {(1.0, 0.5): 4.0})
    _tried(worker, shapes[4.0], speedup=4.0, drop_points=0.5, epoch_s=10.0)
    worker.speeds.times_ms = lambda spec: {ORIGINAL: 8.0, spec: 1.0}
    worker._started = lambda _spec: SimpleNamespace(found={"parameters": 1})
    worker.deadline, worker.emit = SimpleNamespace(left_s=19), silent
    worker.study.set_user_attr("epochs", 18)  # two of them first
    worker.study.enqueue_trial({"depth": 0, "heads": 0})

    worker.study.optimize(worker._tried, n_trials=5)

    (_trained, stopped) = worker.study.trials
    assert stopped.state == TrialState.PRUNED
    assert stopped.user_attrs["why"] == "its first portion takes some 20 s, 19 are left"


def test_a_search_ends_with_a_report_and_goes_on_with_resume(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_of(make_plan(recipe).model)
    predicted = [(4.0, shape) for shape in space.even(100, seed=0) if shape != space.teacher]
    monkeypatch.setattr(ShapeSpeeds, "predicted", predicted)  # as among many shapes
    monkeypatch.setattr(ShapeSpeeds, "of", lambda _self, _spec: 4.0)
    monkeypatch.setattr(
        shape_speeds, "nearest", lambda shapes, *_wanted: [n for n, (_speedup, whole) in enumerate(shapes) if whole]
    )
    for module in (trials, next_shape):
        monkeypatch.setattr(module, "settled", lambda *_points: True)
        monkeypatch.setattr(module, "worth_of_best", lambda _study: -math.inf)  # so that any shape is fast enough
    report = search.compress_within(recipe, tmp_path / "run", limit_s=3600, trials=3)

    tried = record_of(_study(tmp_path / "run" / "study.journal")).trials
    assert tried[0].student == ""
    assert tried[0].status == "finished"
    depth, width = space.choices
    first = _study(tmp_path / "run" / "study.journal").trials[1].params
    assert first == space.indices({depth.name: depth.values[-2], width.name: width.teacher})  # computes most
    assert {one.worker for one in tried} == {"run"}
    assert all(one.why for one in tried if one.status == "stopped")
    assert (tmp_path / "run" / "model.onnx").exists()
    assert report.measurements[0].name == "original"
    study = _study(tmp_path / "run" / "study.journal")
    assert len(study.trials[1].user_attrs["drops_points"]) == 1  # settled after the first portion
    known = [trial.params for trial in study.trials]
    untried = [shape for shape in (space.indices(shape) for _speedup, shape in predicted) if shape not in known]
    for shape in untried[:2]:
        study.enqueue_trial(shape)
    monkeypatch.setattr(trials, "settled", lambda *_points: False)
    monkeypatch.setattr(trials, "fitting_epochs", lambda portion, done, *_times: 0 if done else portion)
    hopeless = iter([False, False, True])
    monkeypatch.setattr(trials, "out_of_reach", lambda *_points: next(hopeless))
    monkeypatch.setattr(trials, "_QAT_EPOCH_RATIO", math.inf)
    resumed = search.compress_within(recipe, tmp_path / "run", limit_s=3600, trials=2, resume=True)
    *before, cut_short, given_up = _study(tmp_path / "run" / "study.journal").trials
    assert len(before) == len(tried)
    assert cut_short.state == TrialState.COMPLETE
    assert len(cut_short.user_attrs["drops_points"]) == 1
    assert cut_short.user_attrs["out_of_time"]
    (quantized,) = (tmp_path / "run" / "stages").glob(f"quantize-student-{cut_short.number}-*")
    assert json.loads((quantized / "stage.json").read_text())["inputs"]["trained"] is None  # no time for that, either
    assert given_up.state == TrialState.PRUNED
    assert re.fullmatch(r"[+-]\d+\.\d\d points after \d+ epochs?, too far from the budget", given_up.user_attrs["why"])
    assert resumed.measurements[0].accuracy == report.measurements[0].accuracy


@pytest.mark.slow
def test_workers_share_a_study_and_the_best_networks_are_compared(recipe: Recipe, tmp_path: Path) -> None:
    with running(tmp_path / "postgres") as url:
        for worker, trials in (("first", 2), ("second", 1)):
            found = search.join(
                recipe, tmp_path / "out", storage=url, study="bars", worker=worker, limit_s=3600, trials=trials
            )
        report = search.conclude(recipe, tmp_path / "out", storage=url, study="bars")
        other = recipe.model_copy(update={"budget": Budget(max_drop_points=1)})
        with pytest.raises(UsageError, match="The study 'bars' is about another model, other data, another target or"):
            search.join(other, tmp_path / "out", storage=url, study="bars", worker="third", limit_s=1)

    assert {one.worker for one in found.trials} == {"first", "second"}
    assert [one.number for one in found.trials] == [0, 1, 2]
    assert (tmp_path / "out" / "result" / "model.onnx").exists()
    students = {f"student-{one.number}" for one in found.trials if one.status == "finished" and one.student}
    assert {row.name for row in report.measurements if row.name.startswith("student")} <= students | {
        f"{name}-{form}" for name in students for form in ("int8", "int8-mixed", "fp16")
    }


def test_workers_that_begin_together_in_an_empty_database_all_find_its_tables(tmp_path: Path) -> None:
    together = threading.Barrier(6)

    def opened(_worker: int) -> object:
        together.wait()
        return open_storage(f"sqlite:///{tmp_path / 'study.db'}")

    with ThreadPoolExecutor(6) as workers:
        assert all(workers.map(opened, range(6)))


def test_a_killed_worker_loses_its_own_trial_alone_and_another_takes_that_up(tmp_path: Path) -> None:
    begun, sender = PROCESSES.Pipe(duplex=False)

    def worker(url: str, seed: int, trial_s: float, trials: int) -> ForkServerProcess:
        process = PROCESSES.Process(target=work, args=(url, seed, trial_s, trials, sender), daemon=True)
        process.start()
        return process

    with running(tmp_path / "postgres") as url:
        killed = worker(url, 0, 600, 1)
        assert begun.poll(120)
        number = begun.recv()
        pair = [worker(url, seed, 0.2, 4) for seed in (1, 2)]
        for one in pair:
            one.join()
        killed.kill()
        killed.join()
        time.sleep(4)
        last = worker(url, 3, 0.2, 3)
        last.join()
        assert [one.exitcode for one in (*pair, last)] == [0, 0, 0]
        trials = optuna.load_study(study_name="killed", storage=url).trials

    states = [one.state for one in trials]
    assert states[number] == TrialState.FAIL
    assert states.count(TrialState.COMPLETE) == 11
    assert len(states) == 12
    retried = [one for one in trials if RetryHeartbeatStaleTrialCallback.retried_trial_number(one) == number]
    assert [one.params for one in retried] == [trials[number].params]


def test_what_cannot_be_searched_is_refused_before_any_work(recipe: Recipe, tmp_path: Path) -> None:
    given = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"student": "depth:0.5"})})
    with pytest.raises(UsageError, match=r"student = depth:0\.5 says what the student is"):
        search.compress_within(given, tmp_path / "out", limit_s=60)
    with pytest.raises(TlcError, match=r"A search measures where jetson-orin runs, and not here: "):
        search.compress_within(recipe.model_copy(update={"target": "jetson-orin"}), tmp_path / "out", limit_s=60)
    small = write_bars(tmp_path / "few.npz", count=200)
    few = recipe.model_copy(update={"data": DataSection(path=small)})
    with pytest.raises(TlcError, match=r"training samples are too few to train a student on \(limit 1000\)"):
        search.compress_within(few, tmp_path / "out", limit_s=60)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        (
            "postgresql+psycopg://tlc:secret@127.0.0.1:1/none",
            r"Cannot use postgresql\+psycopg://tlc:\*\*\*@127.0.0.1:1",
        ),
        ("nosuch://here/x", "Cannot use nosuch://here/x"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(storage: str, said: str) -> None:
    with pytest.raises(TlcError, match=said):
        open_study(storage, "x", space=SPACE, sampler="tpe", seed=0, about="x")


def _study(journal: Path) -> optuna.Study:
    return optuna.load_study(
        study_name=STUDY,
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal))),
    )
