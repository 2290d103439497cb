"""The rule of the gate, on drawn samples."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from launches import FakeLaunch

import tlc.runtime.bench as bench_module
import tlc.runtime.gate as gate_module
import tlc.runtime.gate_checks as gate_checks
from tlc.runtime.bench_report import BenchWarning
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.gate import LOOKS, Effort, gate
from tlc.runtime.gate_checks import Disagreements, accuracy_checks
from tlc.runtime.gate_report import Check, GateReport, Verdict
from tlc.runtime.limits import GateLimits
from tlc.runtime.process import Case, Failure
from tlc.runtime.statistics import ratio_interval
from tlc.runtime.stored_report import StoredBaseline, read_stored

FIVE_PERCENT = GateLimits(max_slowdown_ratio=0.05)
CRASHED = Failure("crashed", "The process ended during a block of runs with SIGSEGV.")

Cases = tuple[Case, Case]


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    """Candidate and baseline: files that exist; nothing opens them."""
    made = []
    for name in ("candidate", "baseline"):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(name.encode() * 100)
        made.append(Case(name, path))
    return made[0], made[1]


@pytest.fixture(autouse=True)
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[BenchWarning]:
    """What the machine warns of: nothing, unless a test adds it."""
    found: list[BenchWarning] = []
    monkeypatch.setattr(gate_module, "machine_warnings", lambda *_args, **_options: list(found))
    monkeypatch.setattr(gate_module, "model_warnings", lambda *_args: [])
    for module in (gate_module, gate_checks):
        monkeypatch.setattr(module, "RESAMPLES", 700)  # fewer, for speed
    monkeypatch.setattr(bench_module, "ratio_interval", partial(ratio_interval, resamples=200))
    return found


def warning(code: Any, model: str | None = None) -> BenchWarning:
    return BenchWarning(code=code, model=model, message=f"It was {code}.")


def judged(cases: Cases, launch: FakeLaunch, limits: GateLimits = FIVE_PERCENT, **options: Any) -> GateReport:
    effort = {name: options.pop(name) for name in ("rounds", "launches", "self_check") if name in options}
    return gate(*cases, limits, seed=options.pop("seed", 1), effort=Effort(**effort), launch=launch, **options)


def check_of(report: GateReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


@pytest.mark.parametrize(
    ("candidate_ms", "verdict"), [(1.0, "pass"), (0.5, "pass"), (1.03, "pass"), (1.10, "fail"), (2.0, "fail")]
)
def test_what_is_clear_is_decided_at_the_first_look(cases: Cases, candidate_ms: float, verdict: Verdict) -> None:
    launch = FakeLaunch({"baseline": 1.0, "candidate": candidate_ms})

    report = judged(cases, launch)

    (check,) = report.checks
    assert (report.verdict, check.verdict, report.looks, len(launch.calls)) == (verdict, verdict, 1, 3)
    assert check.low is not None
    assert check.value is not None
    assert check.high is not None
    assert check.value == pytest.approx(100 * (candidate_ms - 1), abs=1.5)
    assert check.low <= check.value <= check.high
    assert {call["rounds"] for call in launch.calls} == {14}  # 40 over 3 launches, rounded up
    assert len({call["seed"] for call in launch.calls}) == 3


def test_what_lies_at_the_limit_is_looked_at_three_times_and_stays_open(cases: Cases) -> None:
    launch = FakeLaunch({"baseline": 1.0, "candidate": 1.05})

    report = judged(cases, launch)

    assert (report.verdict, report.looks, len(launch.calls)) == ("inconclusive", LOOKS, 12)
    assert "The limit lies between the bounds. Measure on a quieter machine" in report.checks[0].reason
    assert [len(model.launches) for model in report.bench.models] == [12, 12]


def test_a_further_look_decides_what_the_first_could_not(cases: Cases) -> None:
    launch = FakeLaunch({"baseline": 1.0, "candidate": 1.0}, noise={"noise_sd": 0.2}, seed=2)

    report = judged(cases, launch)

    assert report.verdict == "pass"
    assert report.looks > 1


def test_five_percent_never_passes_a_margin_of_three_and_no_change_never_fails(cases: Cases) -> None:
    limits = GateLimits(max_slowdown_ratio=0.03)
    slower = [judged(cases, FakeLaunch({"baseline": 1.0, "candidate": 1.05}, seed=seed), limits) for seed in range(3)]
    same = [judged(cases, FakeLaunch({"baseline": 1.0, "candidate": 1.0}, seed=seed), limits) for seed in range(3)]

    assert "pass" not in {report.verdict for report in slower}
    assert "fail" not in {report.verdict for report in same}


def test_every_look_and_limit_has_its_share_of_the_error(cases: Cases) -> None:
    launch = FakeLaunch({"baseline": 1.0, "candidate": 1.0})
    limits = GateLimits(max_slowdown_ratio=0.05, p50_under_ms=2.0)

    assert judged(cases, launch).tail == pytest.approx(0.01 / 3)
    assert judged(cases, launch, limits).tail == pytest.approx(0.01 / 6)


def test_the_report_reads_back_and_the_same_seed_gives_the_same(cases: Cases) -> None:
    first, again = (judged(cases, FakeLaunch({"baseline": 1.0, "candidate": 1.01})) for _ in range(2))

    assert GateReport.model_validate_json(first.model_dump_json()) == first
    assert first.checks == again.checks


@pytest.mark.parametrize(("limit_ms", "verdict"), [(1.2, "pass"), (0.8, "fail"), (1.0, "inconclusive")])
def test_an_absolute_limit_is_three_way_and_needs_no_baseline(cases: Cases, limit_ms: float, verdict: Verdict) -> None:
    launch = FakeLaunch({"candidate": 1.0})

    report = judged((cases[0], None), launch, GateLimits(p50_under_ms=limit_ms))  # type: ignore[arg-type]

    assert (report.verdict, report.checks[0].name, report.baseline) == (verdict, "p50-under", None)
    assert launch.calls[0]["names"] == ["candidate"]


def test_p99_is_not_decided_with_too_few_runs(cases: Cases) -> None:
    launch = FakeLaunch({"candidate": 1.0})
    limits = GateLimits(p99_under_ms=100.0)

    few = judged((cases[0], None), launch, limits, rounds=10, launches=1)  # type: ignore[arg-type]
    enough = judged((cases[0], None), launch, limits)  # type: ignore[arg-type]

    assert few.verdict == "inconclusive"
    assert few.checks[0].reason == "320 runs are too few: a bound of p99 needs 568. Give more --rounds."
    assert (enough.verdict, enough.looks) == ("pass", 2)  # 336 runs, then 672


def test_launches_that_disagree_do_not_decide_an_absolute_limit(cases: Cases) -> None:
    launch = FakeLaunch({"candidate": lambda number: 1.3 if number % 3 == 0 else 1.0})

    report = judged((cases[0], None), launch, GateLimits(p50_under_ms=1.2), seed=3)  # type: ignore[arg-type]

    assert report.verdict != "fail"
    assert report.looks > 1


@pytest.mark.parametrize("code", ["throttled", "noisy_neighbour", "unstable"])
def test_an_absolute_limit_does_not_fail_on_a_disturbed_machine(
    cases: Cases, warnings: list[BenchWarning], code: str
) -> None:
    warnings.append(warning(code))
    launch = FakeLaunch({"candidate": 1.0, "baseline": 1.0})
    alone: Any = (cases[0], None)

    slow = judged(alone, launch, GateLimits(p50_under_ms=0.5))
    fast = judged(alone, launch, GateLimits(p50_under_ms=2.0))
    in_turns = judged(cases, FakeLaunch({"candidate": 1.5, "baseline": 1.0}))

    assert slow.verdict == "inconclusive"
    assert slow.checks[0].reason.endswith(f"It is not decided on: It was {code}.")
    assert (fast.verdict, in_turns.verdict) == ("pass", "fail")


def test_a_warning_that_voids_nothing_leaves_the_verdict(cases: Cases, warnings: list[BenchWarning]) -> None:
    warnings.append(warning("first_run_slow"))
    alone: Any = (cases[0], None)

    assert judged(alone, FakeLaunch({"candidate": 1.0}), GateLimits(p50_under_ms=0.5)).verdict == "fail"


def test_memory_is_the_largest_of_the_launches_and_compared_exactly(cases: Cases) -> None:
    launch = FakeLaunch({"candidate": 1.0}, peak_bytes=(100, 200, 150))
    alone: Any = (cases[0], None)

    assert judged(alone, launch, GateLimits(max_memory_bytes=200)).verdict == "pass"
    report = judged(alone, launch, GateLimits(max_memory_bytes=199))
    assert (report.verdict, report.checks[0].value, report.looks) == ("fail", 200, 1)


def test_size_is_compared_exactly(cases: Cases) -> None:
    alone: Any = (cases[0], None)
    launch = FakeLaunch({"candidate": 1.0})
    size = cases[0].path.stat().st_size

    assert judged(alone, launch, GateLimits(max_size_bytes=size)).verdict == "pass"
    report = judged(alone, launch, GateLimits(max_size_bytes=size - 1))
    assert (report.verdict, check_of(report, "max-size").value) == ("fail", size)


def test_a_candidate_that_crashes_fails_and_a_baseline_that_does_leaves_it_open(cases: Cases) -> None:
    candidate = judged(cases, FakeLaunch({"candidate": 1.0, "baseline": 1.0}, {"candidate": CRASHED}), score=list)
    baseline = judged(cases, FakeLaunch({"candidate": 1.0, "baseline": 1.0}, {"baseline": CRASHED}))

    assert (candidate.verdict, candidate.checks[0].name) == ("fail", "candidate-runs")
    assert candidate.checks[0].reason == ("candidate: crashed. The process ended during a block of runs with SIGSEGV.")
    assert (baseline.verdict, baseline.checks[0].name) == ("inconclusive", "baseline-runs")
    assert [model.status for model in candidate.bench.models] == ["ok", "crashed"]


def test_a_failed_model_is_launched_no_more_and_not_scored(cases: Cases) -> None:
    launch = FakeLaunch({"candidate": 1.0, "baseline": 1.0}, {"candidate": CRASHED})
    limits = GateLimits(max_slowdown_ratio=0.05, max_drop_points=1.0)

    report = judged(cases, launch, limits, score=lambda: pytest.fail("scored"))

    assert (len(launch.calls), report.verdict) == (1, "fail")


def test_the_self_check_must_pass_before_latency_is_decided_on(cases: Cases) -> None:
    quiet = judged(cases, FakeLaunch({"candidate": 1.5, "baseline": 1.0}), self_check=True)
    odd = judged(cases, _Odd({"candidate": 1.5, "baseline": 1.0}), self_check=True)

    assert [(check.name, check.verdict) for check in quiet.checks] == [("self-check", "pass"), ("max-slowdown", "fail")]
    assert [(check.name, check.verdict) for check in odd.checks] == [
        ("self-check", "inconclusive"),
        ("max-slowdown", "inconclusive"),
    ]
    assert "The baseline against itself has to pass" in odd.checks[0].reason
    assert "the baseline differs from itself" in odd.checks[1].reason
    assert odd.looks == 1


class _Odd(FakeLaunch):
    """The second copy of a model is slower, as if the machine favoured the one that is loaded first."""

    def __call__(self, cases: Any, **options: Any) -> Any:
        found = super().__call__(cases, **options)
        for name, launch in found.items():
            if name.endswith("(again)"):
                samples_ns = [2 * sample for sample in launch.samples_ns]  # type: ignore[union-attr]
                found[name] = launch.model_copy(update={"samples_ns": samples_ns})  # type: ignore[union-attr]
        return found


def test_the_same_file_can_be_both(cases: Cases) -> None:
    report = judged((cases[0], cases[0]), FakeLaunch({"candidate": 1.0}))

    assert (report.verdict, report.baseline) == ("pass", "candidate (baseline)")


@pytest.fixture
def stored(cases: Cases, tmp_path: Path) -> Callable[..., StoredBaseline]:
    """Write a report of the candidate at `ms`, changed by `change`, and read it."""

    def write(ms: float = 1.0, change: Callable[[dict[str, Any]], None] = lambda _: None) -> StoredBaseline:
        alone: Any = (cases[0], None)
        report = judged(alone, FakeLaunch({"candidate": ms}, seed=9), GateLimits(p50_under_ms=100.0))
        values = report.bench.model_dump(mode="json")
        change(values)
        path = tmp_path / "baseline.json"
        path.write_text(type(report.bench).model_validate(values).model_dump_json())
        return read_stored(path, "candidate")

    return write


@pytest.mark.parametrize(("candidate_ms", "verdict"), [(1.0, "pass"), (1.2, "fail")])
def test_a_stored_report_of_this_machine_is_compared_with(
    cases: Cases, stored: Callable[..., StoredBaseline], candidate_ms: float, verdict: Verdict
) -> None:
    launch = FakeLaunch({"candidate": candidate_ms})

    report = gate(cases[0], stored(), FIVE_PERCENT, seed=1, launch=launch)

    assert (report.verdict, report.baseline) == (verdict, "candidate")
    assert report.stored_baseline is not None
    assert launch.calls[0]["names"] == ["candidate"]


def test_a_stored_report_of_another_machine_is_refused_unless_told(
    cases: Cases, stored: Callable[..., StoredBaseline]
) -> None:
    def elsewhere(values: dict[str, Any]) -> None:
        values["machine"]["cpu_model"] = "Elsewhere 9000"

    baseline, launch = stored(change=elsewhere), FakeLaunch({"candidate": 1.0})

    with pytest.raises(TlcError, match=r"another machine, or in another state of it: .*Elsewhere 9000") as raised:
        gate(cases[0], baseline, FIVE_PERCENT, seed=1, launch=launch)
    assert "--any-machine" in raised.value.hint
    assert launch.calls == []
    told = gate(cases[0], baseline, FIVE_PERCENT, seed=1, effort=Effort(any_machine=True), launch=launch)
    assert told.verdict == "pass"


@pytest.mark.parametrize("candidate_ms", [1.0, 2.0])
def test_a_disturbed_stored_report_decides_nothing(
    cases: Cases, stored: Callable[..., StoredBaseline], candidate_ms: float
) -> None:
    def disturbed(values: dict[str, Any]) -> None:
        values["warnings"].append(warning("throttled").model_dump())

    report = gate(
        cases[0], stored(change=disturbed), FIVE_PERCENT, seed=1, launch=FakeLaunch({"candidate": candidate_ms})
    )

    assert report.verdict == "inconclusive"
    assert report.checks[0].reason.endswith("It is not decided on: It was throttled.")


def test_a_stored_report_in_another_setting_is_refused(cases: Cases, stored: Callable[..., StoredBaseline]) -> None:
    two = Case("candidate", cases[0].path, threads=2)

    with pytest.raises(TlcError, match="measured with threads 1, and the candidate is to be with 2"):
        gate(two, stored(), FIVE_PERCENT, seed=1, launch=FakeLaunch({"candidate": 1.0}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", "is not JSON"),
        ("[]", "is not a report of `tlc bench` or `tlc gate`"),
        ('{"kind": "gate"}', "is not a report of `tlc bench` or `tlc gate`"),
        ('{"schema_version": 7, "kind": "bench"}', "schema_version"),
    ],
)
def test_what_is_not_a_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)

    with pytest.raises(TlcError, match=message):
        read_stored(path, "candidate")


def test_a_report_of_several_models_needs_one_of_the_candidates_name(cases: Cases, tmp_path: Path) -> None:
    report = judged(cases, FakeLaunch({"candidate": 1.0, "baseline": 1.0}))
    path, of_gate = tmp_path / "bench.json", tmp_path / "gate.json"
    path.write_text(report.bench.model_dump_json())
    of_gate.write_text(report.model_dump_json())

    assert read_stored(path, "baseline").model.name == "baseline"
    assert read_stored(of_gate, "other").model.name == "candidate"
    with pytest.raises(TlcError, match=r"2 measured models \(baseline, candidate\), and it is open which one"):
        read_stored(path, "other")


@pytest.mark.parametrize(
    ("limits", "options", "message"),
    [
        (GateLimits(), {}, "There is no limit"),
        (GateLimits(max_drop_points=1), {}, "needs data"),
        (GateLimits(p50_under_ms=1), {}, "no limit that compares"),
        (FIVE_PERCENT, {"rounds": 5}, "5 rounds over 3 launches are too few"),
        (GateLimits(max_drop_points=1), {"self_check": True, "score": list}, "--self-check compares"),
    ],
)
def test_what_nothing_can_decide_is_refused_before_it_is_measured(
    cases: Cases, limits: GateLimits, options: dict[str, Any], message: str
) -> None:
    launch = FakeLaunch({"candidate": 1.0, "baseline": 1.0})

    with pytest.raises(UsageError, match=message):
        judged(cases, launch, limits, **options)
    assert launch.calls == []


def test_a_relative_limit_needs_a_baseline_and_accuracy_the_model_itself(
    cases: Cases, stored: Callable[..., StoredBaseline]
) -> None:
    with pytest.raises(UsageError, match="There is no baseline"):
        gate(cases[0], None, FIVE_PERCENT, seed=1)
    with pytest.raises(UsageError, match="does not hold the predictions"):
        gate(cases[0], stored(), GateLimits(max_drop_points=1), seed=1, score=list)
    with pytest.raises(TlcError, match="no model at"):
        gate(Case("gone", cases[0].path.with_name("gone.onnx")), None, GateLimits(p50_under_ms=1), seed=1)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Disagreements(1000, 0, 0), "pass"),
        (Disagreements(1000, 15, 10), "pass"),
        (Disagreements(535, 0, 0), "inconclusive"),  # 536 can show 1 point
        (Disagreements(0, 0, 0), "inconclusive"),
        (Disagreements(1000, 40, 5), "fail"),
        (Disagreements(100, 3, 0), "inconclusive"),  # 3 points, but p is 0.125
    ],
)
def test_a_drop_passes_if_the_samples_can_tell_and_fails_if_it_is_real(found: Disagreements, verdict: Verdict) -> None:
    (check,) = accuracy_checks(found, {}, max_drop_points=1.0, per_class_drop_points=None)

    assert check.verdict == verdict
    assert check.low is not None
    assert check.high is not None
    assert check.value is not None
    assert check.low <= check.value <= check.high


def test_too_few_samples_are_told_how_many_it_takes() -> None:
    (check,) = accuracy_checks(Disagreements(50, 0, 0), {}, max_drop_points=1.0, per_class_drop_points=None)

    assert check.reason.endswith("It takes 536 samples to show that a drop is not larger. Evaluate on more.")


def test_a_class_among_many_has_to_lose_more_to_be_sure_of_it() -> None:
    lost = Disagreements(200, 16, 4)  # p = 0.0059
    alone = accuracy_checks(lost, {"a": lost}, max_drop_points=None, per_class_drop_points=5)
    others = {f"other {number}": Disagreements(200, 0, 0) for number in range(20)}
    many = accuracy_checks(lost, {"a": lost, **others}, max_drop_points=None, per_class_drop_points=5)

    assert [check.verdict for check in alone] == ["fail"]
    assert {check.name: check.verdict for check in many} == {
        "per-class-drop a": "inconclusive",
        **{f"per-class-drop {name}": "pass" for name in others},
    }
