"""Whether a candidate may ship: measured in turns with its baseline until that is shown, three-way.

Gates that compare with a stored number had 13 to 55 % false alarms on an unchanged model. Here both models run in
turns, each in a process of its own that is started several times; a limit fails when even the lower bound of what was
measured is above it, passes when the upper bound is not, and is measured again otherwise. Each of `LOOKS` looks at the
data, and each limit on latency, has its share of the 1 % of error (Bonferroni), so that neither looking again nor
having several limits makes false alarms more frequent. What could not be measured is never a pass.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version

from tlc.runtime.bench import model_bench
from tlc.runtime.bench_report import BenchReport, BenchWarning, Launch, ModelBench
from tlc.runtime.environment import machine_identity
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.gate_checks import RESAMPLES, bytes_check, doubted, quantile_check, slowdown_check
from tlc.runtime.gate_report import Check, GateReport, Verdict, worst
from tlc.runtime.health import machine_warnings, model_warnings
from tlc.runtime.host import LOCAL, Host
from tlc.runtime.launch import launch
from tlc.runtime.limits import GateLimits
from tlc.runtime.process import Case, Failure, Limits
from tlc.runtime.statistics import ratio_interval, unpaired_ratio_interval
from tlc.runtime.stored_report import StoredBaseline

CONFIDENCE = 0.99
LOOKS = 3
_LEAST_ROUNDS = 10
_VOID = ("throttled", "noisy_neighbour", "unstable")

Found = Mapping[str, Launch | Failure]
LaunchAll = Callable[..., Found]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: `rounds` over `launches` at the first look, and twice as much at each further one."""

    rounds: int = 40
    launches: int = 3
    self_check: bool = False
    """Compare the baseline with itself first, by the same rule; unless that passes, no latency is decided on."""
    any_machine: bool = False
    """Compare with a stored report of another machine, too."""
    limits: Limits = field(default_factory=Limits)
    """When a model's process is given up."""


def gate(
    candidate: Case,
    baseline: Case | StoredBaseline | None,
    limits: GateLimits,
    *,
    seed: int,
    effort: Effort = Effort(),
    score: Callable[[], Sequence[Check]] | None = None,
    command: str = "",
    on_progress: OnProgress | None = None,
    launch: LaunchAll = launch,
    host: Host = LOCAL,
) -> GateReport:
    """Hold `candidate` to `limits`, against `baseline` where they compare, and return what was decided, and on what.

    `score` judges the accuracy; it is called after the measurements, unless a model failed in them. A candidate that
    crashes, hangs or outgrows memory fails; a baseline that does leaves it open. `on_progress(what, done, total)` is
    called between rounds. Everything is measured on `host`.

    Raises UsageError for limits that nothing can decide, TlcError for a file that is missing and for a stored report
    that is not comparable, and Dropped where the connection to the host breaks for good.
    """
    _require_decidable(candidate, baseline, limits, effort, score is not None)
    facts = host.environment()
    machine = machine_identity(facts)
    if isinstance(baseline, StoredBaseline):
        baseline.require_comparable(candidate, machine, any_machine=effort.any_machine)
    elif baseline is not None and baseline.name == candidate.name:
        baseline = replace(baseline, name=f"{baseline.name} (baseline)")
    before, cpu_before_s = host.snapshot(), host.cpu_s()
    at = partial(launch, host=host)
    judging = _Judging(candidate, baseline, limits, effort, seed, on_progress, at)
    control = judging.self_check() if effort.self_check else []
    undecided = any(check.verdict != "pass" for check in control)
    checks = judging.until_decided(1 if undecided else LOOKS)
    models = judging.models()
    if isinstance(baseline, StoredBaseline) and models[-1].status == "ok":
        baseline.require_same_inputs(models[-1])
    warnings = machine_warnings(before, host.snapshot(), own_cpu_s=host.cpu_s() - cpu_before_s, environment=facts)
    warnings += host.warnings()
    for model in models:
        found = model_warnings(model.name, model.launches)
        warnings += [warning for warning in found if warning.code != "too_few_samples"]  # a check says so by itself
    checks = [_with_doubts(check, baseline, warnings, undecided=undecided) for check in checks]
    if limits.max_size_bytes is not None:
        checks.append(bytes_check("max-size", "The file has", models[-1].size_bytes, limits.max_size_bytes))
    if score is not None and all(model.status == "ok" for model in models):
        checks += score()
    checks = control + checks
    return GateReport(
        tlc_version=version("tlc"),
        command=command,
        seed=seed,
        candidate=candidate.name,
        baseline=baseline.model.name if isinstance(baseline, StoredBaseline) else baseline and baseline.name,
        stored_baseline=str(baseline.path) if isinstance(baseline, StoredBaseline) else None,
        verdict=worst(check.verdict for check in checks),
        checks=checks,
        confidence=CONFIDENCE,
        tail=judging.tail,
        looks=judging.looks,
        bench=BenchReport(
            tlc_version=version("tlc"),
            command=command,
            seed=seed,
            environment=facts,
            machine=machine,
            models=models,
            warnings=warnings,
        ),
    )


class _Judging:
    """The measurements so far, and what they say."""

    def __init__(
        self,
        candidate: Case,
        baseline: Case | StoredBaseline | None,
        limits: GateLimits,
        effort: Effort,
        seed: int,
        on_progress: OnProgress | None,
        launch: LaunchAll,
    ) -> None:
        self._candidate, self._baseline, self._limits, self._effort = candidate, baseline, limits, effort
        self._seed, self._on_progress, self._launch = seed, on_progress, launch
        self._seeds = random.Random(seed)
        self._cases = [baseline, candidate] if isinstance(baseline, Case) else [candidate]
        self._found: list[Found] = []
        self.looks = 0
        self.tail = (1 - CONFIDENCE) / LOOKS / max(1, limits.latency_limits)

    def self_check(self) -> list[Check]:
        """Return the check of the baseline against itself: pass or inconclusive."""
        assert isinstance(self._baseline, Case)
        assert self._limits.max_slowdown_ratio is not None
        again = replace(self._baseline, name=f"{self._baseline.name} (again)")
        found: list[Found] = []
        for look in range(1, LOOKS + 1):
            self._measure(found, [self._baseline, again], f"self-check, look {look}", look)
            failed = [check for case in (self._baseline, again) for check in _failed(found, case, "baseline-runs")]
            if failed:
                return failed[:1]
            a, b = (_launches(found, case.name) for case in (self._baseline, again))
            ratio = ratio_interval(a, b, tail=self.tail, resamples=RESAMPLES, seed=self._seed)
            check = slowdown_check(ratio, self._limits.max_slowdown_ratio, "self-check")
            if check.verdict == "pass":
                return [check]
            if check.verdict == "fail":
                break
        return [doubted(check, "The baseline against itself has to pass, or this machine cannot decide.")]

    def until_decided(self, looks: int) -> list[Check]:
        """Measure, and again while that can decide more, at most `looks` times; return the checks."""
        checks: list[Check] = []
        while self.looks < (looks if self._limits.latency_limits else 1):
            self.looks += 1
            self._measure(self._found, self._cases, f"look {self.looks}", self.looks)
            failed = _failed(self._found, self._candidate, "candidate-runs")
            if isinstance(self._baseline, Case):
                failed += _failed(self._found, self._baseline, "baseline-runs")
            if failed:
                return failed
            checks = self._latency_checks()
            if self._limits.max_memory_bytes is not None:
                peak = max(one.memory.peak_bytes for one in _launches(self._found, self._candidate.name))
                checks.append(bytes_check("max-memory", "At its peak it takes", peak, self._limits.max_memory_bytes))
            if worst(check.verdict for check in checks) != "inconclusive":
                break
        return checks

    def models(self) -> list[ModelBench]:
        """Return everything that was measured, the candidate last."""
        first = self._cases[0].name
        return [model_bench(case, self._found, first=first, seed=self._seed) for case in self._cases]

    def _measure(self, found: list[Found], cases: Sequence[Case], what: str, look: int) -> None:
        """Launch until there is twice as much as at the look before, or one of the models failed."""
        launches = self._effort.launches * 2 ** (look - 1)
        on_progress, effort = self._on_progress, self._effort
        while len(found) < launches and not any(_failures(found)):
            said = f"{what}, launch {len(found) + 1} of {launches}"
            found.append(
                self._launch(
                    cases,
                    rounds=-(-effort.rounds // effort.launches),
                    seed=self._seeds.getrandbits(32),
                    limits=effort.limits,
                    on_progress=None if on_progress is None else partial(on_progress, said),
                )
            )

    def _latency_checks(self) -> list[Check]:
        launches, tail, seed = _launches(self._found, self._candidate.name), self.tail, self._seed
        checks = []
        if self._limits.max_slowdown_ratio is not None:
            if isinstance(self._baseline, StoredBaseline):
                interval, compared = unpaired_ratio_interval, self._baseline.model.launches
            else:
                assert self._baseline is not None
                interval, compared = ratio_interval, _launches(self._found, self._baseline.name)
            ratio = interval(compared, launches, tail=tail, resamples=RESAMPLES, seed=seed)
            checks.append(slowdown_check(ratio, self._limits.max_slowdown_ratio))
        return checks + [
            quantile_check(launches, percentile, limit_ms, tail=tail, seed=seed)
            for percentile, limit_ms in self._limits.quantiles_ms.items()
        ]


def _launches(found: Sequence[Found], name: str) -> list[Launch]:
    return [one for one in (each[name] for each in found) if isinstance(one, Launch)]


def _failures(found: Sequence[Found]) -> list[Failure]:
    return [one for each in found for one in each.values() if isinstance(one, Failure)]


def _failed(found: Sequence[Found], case: Case, check: str) -> list[Check]:
    """Return a check that says that `case` could not be measured, if so: of the candidate, a fail."""
    failure = next((one for one in (each[case.name] for each in found) if isinstance(one, Failure)), None)
    if failure is None:
        return []
    verdict: Verdict = "fail" if check == "candidate-runs" else "inconclusive"
    reason = f"{case.name}: {failure.status.replace('_', ' ')}. {failure.problem}"
    return [Check(name=check, limit=None, value=None, low=None, high=None, unit="", verdict=verdict, reason=reason)]


def _with_doubts(
    check: Check, baseline: Case | StoredBaseline | None, warnings: Sequence[BenchWarning], *, undecided: bool
) -> Check:
    """Return a check of latency as inconclusive where the machine was not fit to decide it.

    A comparison in turns is not touched by what disturbs both models. An absolute limit does not fail on a disturbed
    machine. A stored report needs both times undisturbed.
    """
    if check.unit not in ("%", "ms") or check.verdict == "inconclusive":
        return check
    if undecided:
        return doubted(check, "It is not decided on, as the baseline differs from itself on this machine.")
    stored = check.unit == "%" and isinstance(baseline, StoredBaseline)
    if not stored and (check.unit == "%" or check.verdict == "pass"):
        return check
    if stored:
        assert isinstance(baseline, StoredBaseline)
        warnings = [*warnings, *baseline.warnings]
    found = [warning.message for warning in warnings if warning.code in _VOID]
    return doubted(check, f"It is not decided on: {found[0]}") if found else check


def _require_decidable(
    candidate: Case, baseline: Case | StoredBaseline | None, limits: GateLimits, effort: Effort, scored: bool
) -> None:
    if not limits.any:
        raise UsageError("There is no limit to hold the model to", hint="Give one, such as --max-slowdown 5%.")
    compares = limits.max_slowdown_ratio is not None or limits.needs_accuracy
    if compares and baseline is None:
        raise UsageError("There is no baseline to compare with", hint="Give --baseline MODEL.")
    if baseline is not None and not compares:
        raise UsageError(
            "There is a baseline, and no limit that compares with it",
            hint="Give one, such as --max-slowdown 5%, or leave the baseline out.",
        )
    if limits.needs_accuracy and not scored:
        raise UsageError("A limit on accuracy needs data to evaluate on", hint="Give it with --data.")
    if limits.needs_accuracy and not isinstance(baseline, Case):
        raise UsageError(
            "A stored report does not hold the predictions that a limit on accuracy compares",
            hint="Give the baseline model itself: --baseline MODEL.",
        )
    if effort.self_check and (limits.max_slowdown_ratio is None or not isinstance(baseline, Case)):
        raise UsageError(
            "--self-check compares the baseline model with itself by the rule of --max-slowdown",
            hint="Give --max-slowdown and --baseline MODEL, or leave it out.",
        )
    if effort.launches < 1 or effort.rounds < max(_LEAST_ROUNDS, effort.launches):
        raise UsageError(
            f"{effort.rounds} rounds over {effort.launches} launches are too few to decide on",
            hint=f"Give at least {_LEAST_ROUNDS} rounds, and one for each launch.",
        )
    for case in (candidate, baseline):
        if isinstance(case, Case) and not case.path.exists():
            raise TlcError(f"no model at {case.path}", hint="Check the path.")
