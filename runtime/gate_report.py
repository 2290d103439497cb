"""The schema of what `tlc gate` decides, version 1."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tlc.runtime.bench_report import BenchReport

Verdict = Literal["pass", "fail", "inconclusive"]

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 3, "inconclusive": 4}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Record):
    """One thing that was demanded, and what was found."""

    name: str
    """The option that set the limit (`max-slowdown`), with the class for one of several (`per-class-drop ants`);
    `candidate-runs` and `baseline-runs` where a model could not be measured, `self-check` for the baseline against
    itself."""
    limit: float | None
    value: float | None
    """Estimate, in `unit`; None where nothing could be measured."""
    low: float | None
    """Bound that the true value is not below; equal to `value` where it is exact."""
    high: float | None
    """Bound that the true value is not above."""
    unit: Literal["%", "ms", "bytes", "points", ""]
    verdict: Verdict
    reason: str
    """Sentences: what decided, with the values, and the next step."""


class GateReport(_Record):
    """What a gate decided, and every measurement that it decided on."""

    schema_version: Literal[1] = 1
    kind: Literal["gate"] = "gate"
    tlc_version: str
    command: str
    seed: int
    candidate: str
    """Name of the one in `bench.models`."""
    baseline: str | None
    """Name of the one in `bench.models`, or of the stored report's model; None for absolute limits alone."""
    stored_baseline: str | None
    """Path of the stored report that the candidate was compared with; None where the baseline ran in turns with it."""
    verdict: Verdict
    """The worst of `checks`: fail, then inconclusive."""
    checks: list[Check]
    confidence: float
    """That no latency check fails a model within its limits, over all looks and limits."""
    tail: float
    """Probability beyond each bound of a latency check: (1 - confidence) / looks allowed / limits on latency."""
    looks: int
    """How often the samples were judged; each look after the first doubles them."""
    bench: BenchReport


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return fail if there is one, else inconclusive if there is one, else pass; nothing at all is inconclusive."""
    found = set(verdicts)
    if "fail" in found:
        return "fail"
    return "pass" if found == {"pass"} else "inconclusive"
