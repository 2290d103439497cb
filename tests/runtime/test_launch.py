import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlc.runtime.bench_report import Launch
from tlc.runtime.launch import growth_bytes, launch
from tlc.runtime.process import Case, Failure, Limits
from tlc.runtime.statistics import ratio_interval
from tlc.runtime.worker import block_runs, read_feeds, write_feeds

SUPPORT = Path(__file__).resolve().parent.parent / "support"

Odd = Callable[..., Case]


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Odd:
    """Return a case that behaves as the options say."""
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))

    def make(name: str, *, feeds: Path | None = None, streams: int = 1, **options: Any) -> Case:
        options["name"] = name
        return Case(name, tmp_path / name, worker="odd_worker", options=options, feeds=feeds, streams=streams)

    return make


def _whole(found: Launch | Failure) -> Launch:
    assert isinstance(found, Launch), found
    return found


def test_two_models_take_turns_block_by_block_in_an_order_drawn_from_the_seed(odd: Odd, tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = launch([odd("a", log=str(log)), odd("b", log=str(log), ms=1)], rounds=6, seed=1)
    a, b = _whole(found["a"]), _whole(found["b"])
    assert list(found) == ["a", "b"]
    assert (a.rounds, b.rounds) == (6, 6)
    assert (a.block, b.block) == (8, 8)
    assert a.runtime == "odd 1.0"
    assert a.setting.shapes == {"x": [1, 3]}
    names = [json.loads(line)[0] for line in log.read_text().splitlines()]
    turns = [(name, len(list(runs))) for name, runs in groupby(names)]
    # One untimed run leads into each block; what came before is loading and warm-up.
    timed = names[2 + a.warmup_runs + b.warmup_runs :]
    assert len(timed) == 2 * 6 * 9
    rounds = [timed[start : start + 18] for start in range(0, len(timed), 18)]
    assert all(len(set(one[:9])) == len(set(one[9:])) == 1 and one[0] != one[9] for one in rounds)
    assert len({one[0] for one in rounds}) == 2
    assert turns[:2] == [("a", 1), ("b", 1)]


def test_a_model_that_runs_twice_as_long_has_that_ratio(odd: Odd) -> None:
    found = launch([odd("fast", ms=1), odd("slow", ms=2)], rounds=5, seed=0)
    ratio = ratio_interval([_whole(found["fast"])], [_whole(found["slow"])])
    assert 1.6 < ratio.estimate < 2.4


def test_what_follows_from_a_launch(odd: Odd) -> None:
    found = _whole(launch([odd("a", ms=0.5)], duration_s=0.1, seed=0)["a"])
    assert found.wall_ns >= 100_000_000
    assert sum(found.samples_ns) <= found.wall_ns
    assert min(found.samples_ns) >= 500_000
    assert found.first_ms >= 0.5
    assert found.warmup_runs >= 40
    assert 0.5 < found.cpu_ratio <= 1.1
    assert 0 < found.overhead_ns < 50_000


def test_several_streams_run_at_once(odd: Odd) -> None:
    found = _whole(launch([odd("a", ms=1, streams=2)], rounds=3, seed=0)["a"])
    assert (found.block, len(found.samples_ns), found.setting.streams) == (16, 48, 2)


def test_every_input_has_its_place_in_a_block(odd: Odd, tmp_path: Path) -> None:
    feeds = [{"x": np.full((1, 3), value, np.float32)} for value in range(3)]
    write_feeds(tmp_path / "feeds.npz", feeds)
    log = tmp_path / "log"
    case = odd("a", log=str(log), feeds=tmp_path / "feeds.npz")
    found = _whole(launch([case], rounds=2, seed=0)["a"])
    assert found.block == 9
    values = [json.loads(line)[1] for line in log.read_text().splitlines()]
    assert values[-10:] == [2, 0, 1, 2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("then", "status", "problem"),
    [
        ("crash", "crashed", "ended during a block of runs with SIGSEGV"),
        ("exit", "crashed", "ended during a block of runs with status 7. Its last words: the last words"),
        ("hang", "hung", "A block of runs did not end within 3 s. Allow more time"),
        ("grow", "out_of_memory", "of memory, the limit is 700 MB. Allow more, free some"),
        ("raise", "failed", "A block of runs failed: ArithmeticError: no such luck"),
    ],
)
def test_a_model_that_goes_wrong_is_reported_and_the_other_is_measured(
    odd: Odd, then: str, status: str, problem: str
) -> None:
    limits = Limits(timeout_s=3, memory_bytes=700_000_000)
    bad = odd("bad", then=then, good=500, ms=2 if then == "grow" else 0.5)
    found = launch([bad, odd("good", ms=1)], rounds=80, seed=0, limits=limits)
    assert isinstance(found["bad"], Failure), found["bad"]
    assert found["bad"].status == status
    assert problem in found["bad"].problem
    assert _whole(found["good"]).rounds == 80


def test_a_model_that_cannot_be_loaded_says_why(odd: Odd) -> None:
    found = launch([odd("a", then="refuse")], rounds=2, seed=0)["a"]
    problem = "Loading and the first inference failed: the model wants more. Give it more."
    assert found == Failure("failed", problem)


def test_what_a_library_prints_is_no_answer(odd: Odd) -> None:
    assert _whole(launch([odd("a", then="print")], rounds=2, seed=0)["a"]).rounds == 2


def test_a_leak_shows_as_growth_and_a_quiet_model_does_not(odd: Odd) -> None:
    found = launch([odd("leak", then="leak"), odd("quiet")], rounds=40, seed=0)
    assert 40_000 < _whole(found["leak"]).memory.growth_bytes_per_run < 90_000
    assert abs(_whole(found["quiet"]).memory.growth_bytes_per_run) < 500


def test_growth_ignores_a_single_step() -> None:
    assert growth_bytes([100] * 30 + [900] * 30) == 0
    assert growth_bytes([100 + 7 * place for place in range(60)]) == 7
    assert growth_bytes([100, 200]) == 0


@pytest.mark.parametrize(
    ("p50_ms", "feeds", "runs"), [(1, 1, 8), (0.05, 1, 80), (30, 1, 6), (500, 1, 1), (1, 3, 9), (500, 8, 8)]
)
def test_a_block_is_eight_runs_and_neither_too_short_nor_too_long(p50_ms: float, feeds: int, runs: int) -> None:
    assert block_runs(p50_ms, feeds) == runs


def test_inputs_without_numbers_are_one_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x=np.ones((1, 3)))
    (feeds,) = read_feeds(tmp_path / "plain.npz")
    assert feeds["x"].shape == (1, 3)


def test_rounds_or_a_duration_are_needed(odd: Odd) -> None:
    with pytest.raises(ValueError, match="give rounds or duration_s"):
        launch([odd("a")], seed=0)
