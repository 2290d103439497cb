"""Which row ships within a budget, why the others do not, and what is said of a budget that none meets."""

from collections.abc import Sequence

import numpy as np
import pytest

from tlc.calibration.metrics import accuracy_change, score
from tlc.compress.budget import Choice, choose
from tlc.compress.verdict import verdict
from tlc.runtime.budget import Budget
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Agreement, Interval, LatencyRecord, Measurement


def row(
    name: str,
    p50_ms: float | None,
    lost: int,
    *,
    samples: int = 100,
    size_bytes: int = 100,
    memory_bytes: int = 1,
) -> Measurement:
    """Return a row that answers `lost` samples wrongly that the original answers rightly."""
    labels = np.arange(samples) % 2
    truth = np.eye(2, dtype=np.float32)[labels]
    logits = truth.copy()
    logits[:lost] = 1 - logits[:lost]
    latency = None
    if p50_ms is not None:
        speed = Interval(estimate=1 / p50_ms, low=1 / p50_ms, high=1 / p50_ms)
        latency = LatencyRecord(
            samples_ms=[p50_ms], p50_ms=p50_ms, p90_ms=p50_ms, p99_ms=p50_ms, mean_ms=p50_ms, min_ms=p50_ms,
            throughput_per_s=1000 / p50_ms, speedup=speed,
        )  # fmt: skip
    return Measurement(
        name=name,
        file=f"{name}.onnx",
        sha256="0" * 64,
        made_from=None if name == "original" else "original",
        precision="fp32",
        size_bytes=size_bytes,
        parameters=1,
        macs=1,
        peak_memory_bytes=None if p50_ms is None else memory_bytes,
        p50_ms_by_input={},
        layers=None,
        latency=latency,
        accuracy=score(logits, labels, ("a", "b")),
        change=None if name == "original" else accuracy_change(truth, logits, labels, ("a", "b")),
        agreement=Agreement(samples=1, max_abs_error=0, cosine=1, top1_agreement=1),
    )


def said(rows: Sequence[Measurement], budget: Budget) -> tuple[Choice, str]:
    choice = choose(rows, budget)
    return choice, verdict(rows, choice, budget)


def test_of_files_as_fast_the_smallest_ships() -> None:
    rows = [row("original", 1.0, 0), row("small", 0.52, 0), row("large", 0.5, 0, size_bytes=300)]

    choice, sentence = said(rows, Budget())

    assert choice.chosen.name == "small"
    assert choice.lost["large"] == (
        "As fast as small, with a p50 of 0.5 ms, but its file is 3.00 times as large as that of small."
    )
    assert sentence.endswith("; large was left out (" + choice.lost["large"].removesuffix(".").lower() + ").")


def test_what_is_slower_than_the_original_does_not_ship_as_the_fastest() -> None:
    rows = [row("original", 1.0, 0, size_bytes=500), row("slower", 1.05, 0)]

    choice, sentence = said(rows, Budget())

    assert choice.chosen.name == "original"
    assert choice.lost["slower"] == "Slower than the original: its p50 is 1.05 ms, not below 1 ms."
    assert sentence == (
        "Nothing beats the original within the budget: slower loses 0.00 points of 1 allowed at 0.95x its speed."
    )
    assert choose(rows, Budget(objective="smallest")).chosen.name == "slower"


def test_the_fastest_within_the_budget_ships_and_one_over_it_is_named() -> None:
    rows = [row("original", 1.0, 0), row("slow", 0.8, 0), row("int8", 0.5, 1)]

    choice, sentence = said(rows, Budget())
    strict, over = said(rows, Budget(max_drop_points=0.5))

    assert (choice.chosen.name, choice.met) == ("int8", True)
    assert sentence.startswith("int8 is 2.00x [2.00, 2.00] as fast as the original")
    assert choice.lost["slow"] == "Slower: its p50 is 0.8 ms, 1.60 times that of int8."
    assert (strict.chosen.name, strict.met) == ("slow", True)
    assert "; int8 was left out (over the budget: it loses 1.00 points, 0.50 more than the 0.5 allowed)" in over


def test_the_whole_interval_is_held_within_the_budget_where_that_is_asked_for() -> None:
    rows = [
        row("original", 1.0, 0, samples=2000),
        row("sure", 0.8, 4, samples=2000),
        row("faster", 0.5, 18, samples=2000),
    ]

    estimated, sure = choose(rows, Budget()), choose(rows, Budget(confident=True))

    assert (estimated.chosen.name, estimated.met, estimated.confident) == ("faster", True, False)
    assert (sure.chosen.name, sure.met, sure.confident) == ("sure", True, True)
    assert sure.lost["faster"].startswith("Over the budget: at 95 % confidence it may lose 1.4")


def test_limits_on_latency_size_and_memory_are_held_together() -> None:
    rows = [
        row("original", 4.0, 0, size_bytes=4000, memory_bytes=4000),
        row("a", 1.0, 1, size_bytes=3000, memory_bytes=1000),
        row("b", 2.0, 0, size_bytes=1000, memory_bytes=1000),
        row("c", 0.5, 0, size_bytes=1000, memory_bytes=3000),
    ]

    choice = choose(rows, Budget(max_latency_ms=2.0, max_size_bytes=2000, max_memory_bytes=2000))

    assert (choice.chosen.name, choice.met, choice.needed) == ("b", True, "")
    assert choice.lost == {
        "original": "Over the budget: its p50 of 4 ms is 2.00 times the 2 ms allowed; its file of 4 kB is 2.00 times "
        "the 2 kB allowed; its peak memory of 4 kB is 2.00 times the 2 kB allowed.",
        "a": "Over the budget: its file of 3 kB is 1.50 times the 2 kB allowed.",
        "c": "Over the budget: its peak memory of 3 kB is 1.50 times the 2 kB allowed.",
    }


@pytest.mark.parametrize(
    ("objective", "name"), [("fastest", "fast"), ("smallest", "small"), ("most-accurate", "exact")]
)
def test_the_objective_decides_within_the_limits(objective: str, name: str) -> None:
    rows = [
        row("original", 4.0, 0, size_bytes=4000),
        row("exact", 2.0, 0, size_bytes=3000),
        row("fast", 1.0, 2, size_bytes=2000),
        row("small", 1.5, 1, size_bytes=1000),
    ]
    budget = Budget.model_validate({"max_drop_points": 20, "max_latency_ms": 3, "objective": objective})

    choice = choose(rows, budget)

    assert (choice.chosen.name, choice.met) == (name, True)
    assert choice.front == ["fast", "small", "exact"]
    assert choice.lost.keys() == {other.name for other in rows} - {name}


def test_the_front_holds_what_nothing_beats_and_what_is_beaten_names_its_better() -> None:
    rows = [row("original", 4.0, 0), row("good", 1.0, 0), row("bad", 2.0, 1, memory_bytes=2)]

    choice = choose(rows, Budget())

    assert choice.front == ["good"]
    better = "Dominated by good: as good or better in p50, size, memory and accuracy."
    assert choice.lost == {"original": better, "bad": better}


def test_a_budget_that_none_meets_ships_the_closest_and_says_what_is_missing() -> None:
    rows = [
        row("original", 4.0, 0, size_bytes=4000),
        row("int8", 1.2, 0, size_bytes=1000),
        row("tiny", 0.9, 30, size_bytes=500),
    ]

    choice, sentence = said(rows, Budget(max_latency_ms=1.0))

    assert (choice.chosen.name, choice.met, choice.confident) == ("int8", False, False)
    assert choice.needed == (
        "No measured file meets the budget. int8 comes closest: its p50 of 1.2 ms is 1.20 times the 1 ms allowed. "
        "Each limit by itself is kept: a loss of at most 1 point by int8; a p50 of at most 1 ms by tiny."
    )
    assert sentence.startswith("The budget is not met: int8 is ")
    assert choice.lost["tiny"] == "Over the budget: it loses 30.00 points, 29.00 more than the 1 allowed."
    assert "of at most 0.1 ms by no file (least: 0.9 ms of tiny)" in choose(rows, Budget(max_latency_ms=0.1)).needed


def test_a_limit_out_of_reach_for_all_does_not_hide_how_the_others_are_kept() -> None:
    rows = [
        row("original", 4.0, 0, memory_bytes=2000),
        row("slow", 1.2, 0, memory_bytes=1000),
        row("fast", 0.9, 0, size_bytes=200, memory_bytes=1001),
    ]

    assert choose(rows, Budget(max_latency_ms=1.0, max_memory_bytes=100)).chosen.name == "fast"


def test_a_budget_of_no_loss_at_all_has_a_closest_file_too() -> None:
    rows = [row("original", 4.0, 0), row("int8", 1.0, 1)]

    choice = choose(rows, Budget(max_drop_points=0, max_latency_ms=0.05))

    assert (choice.chosen.name, choice.met) == ("int8", False)


def test_without_latencies_the_last_file_within_the_budget_ships() -> None:
    rows = [row("original", None, 0), row("fp16", None, 1, size_bytes=50), row("int8", None, 2, size_bytes=70)]

    choice, sentence = said(rows, Budget())
    loose = choose(rows, Budget(max_drop_points=2))

    assert (choice.chosen.name, choice.met, choice.front) == ("fp16", True, ["fp16", "original"])
    assert sentence.startswith("fp16 is 2.0x smaller than the original with 1.00x fewer")
    assert loose.chosen.name == "int8"
    assert loose.lost["original"] == "int8 has more steps, and latency was not measured."
    assert said(rows, Budget(max_drop_points=0.5))[1] == (
        "Nothing beats the original within the budget: int8 loses 2.00 points of 0.5 allowed."
    )


def test_a_limit_on_what_was_not_measured_is_refused() -> None:
    with pytest.raises(TlcError, match=r"p50 of original was not measured, so no limit can be held on it") as caught:
        choose([row("original", None, 0)], Budget(max_latency_ms=1.0))

    assert "tlc gate --device" in caught.value.hint


def test_a_row_may_be_named_and_is_judged_by_the_budget() -> None:
    rows = [
        row("original", 4.0, 0, size_bytes=4),
        row("small", 2.0, 0, size_bytes=3),
        row("int8", 1.0, 5, size_bytes=3),
    ]

    within, over = choose(rows, Budget(), name="small"), choose(rows, Budget(), name="int8")

    assert (within.chosen.name, within.met) == ("small", True)
    assert (over.chosen.name, over.met) == ("int8", False)
    assert over.needed == "int8 does not meet the budget: it loses 5.00 points, 4.00 more than the 1 allowed."
    assert over.lost["small"] == "int8 was named instead."
    with pytest.raises(TlcError, match=r"no file called int4 was measured"):
        choose(rows, Budget(), name="int4")


def test_a_budget_is_said_in_words() -> None:
    assert Budget().words == "1 point of accuracy; the fastest"
    every = Budget(
        max_drop_points=0.3, max_latency_ms=5, max_size_bytes=2_000_000, max_memory_bytes=5 * 10**7,
        objective="most-accurate",
    )  # fmt: skip
    assert every.words == "0.3 points of accuracy, p50 5 ms, file 2 MB, peak memory 50 MB; the most accurate"
