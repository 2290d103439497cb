"""What a gate demands, and the quantities it is written in: `5%`, `8ms`, `200MB`."""

import math
import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from tlc.runtime.errors import UsageError

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([^\s0-9.]*)\s*")
_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_S = {"s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class GateLimits(BaseModel):
    """Limits of a gate; None where there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_slowdown_ratio: float | None = Field(None, gt=0)
    """How much longer the candidate may take than the baseline, as a share of it: 0.05 is 5 %."""
    p50_under_ms: float | None = Field(None, gt=0)
    p90_under_ms: float | None = Field(None, gt=0)
    p99_under_ms: float | None = Field(None, gt=0)
    max_memory_bytes: int | None = Field(None, gt=0)
    """Peak resident memory of the candidate's process, over that of the empty one."""
    max_size_bytes: int | None = Field(None, gt=0)
    """Of the candidate's files."""
    max_drop_points: float | None = Field(None, gt=0, le=100)
    """Largest loss of top-1 against the baseline."""
    per_class_drop_points: float | None = Field(None, gt=0, le=100)
    """Largest loss of any class's recall against the baseline."""

    @property
    def quantiles_ms(self) -> dict[int, float]:
        """Limits of absolute latency by percentile."""
        known = {50: self.p50_under_ms, 90: self.p90_under_ms, 99: self.p99_under_ms}
        return {percentile: limit for percentile, limit in known.items() if limit is not None}

    @property
    def latency_limits(self) -> int:
        """Number of limits on latency, relative and absolute."""
        return len(self.quantiles_ms) + (self.max_slowdown_ratio is not None)

    @property
    def needs_accuracy(self) -> bool:
        """Whether the models have to be scored."""
        return self.max_drop_points is not None or self.per_class_drop_points is not None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return any(value is not None for value in self.model_dump().values())


def parse_ratio(text: str) -> float:
    """Return the ratio that a percentage says.

    Raises UsageError without a percent sign, and for what is not above zero.

    >>> parse_ratio("2.5%")
    0.025
    """
    return _quantity(text, {"%": 0.01}, "5%")


def parse_ms(text: str) -> float:
    """Return the milliseconds that a duration in us, ms or s says.

    Raises UsageError without a unit, and for what is not above zero.

    >>> parse_ms("8ms"), parse_ms("0.5 s"), parse_ms("250us")
    (8.0, 500.0, 0.25)
    """
    return _quantity(text, _MS, "8ms")


def parse_s(text: str) -> float:
    """Return the seconds that a duration in s, min or h says.

    Raises UsageError without a unit, and for what is not above zero.

    >>> parse_s("90min"), parse_s("1.5h"), parse_s("30 s")
    (5400.0, 5400.0, 30.0)
    """
    return _quantity(text, _S, "90min")


def parse_bytes(text: str) -> int:
    """Return the bytes that a size says: kB, MB, GB are powers of 1000 and KiB, MiB, GiB of 1024.

    Raises UsageError without a unit, and for what is less than a byte.

    >>> parse_bytes("200MB"), parse_bytes("5MiB"), parse_bytes("1.5 kB")
    (200000000, 5242880, 1500)
    """
    size = math.floor(_quantity(text, _BYTES, "200MB"))
    if size < 1:
        raise UsageError(f"{text!r} is less than a byte", hint="Give a larger size, such as 200MB.")
    return size


def _quantity(text: str, units: Mapping[str, float], example: str) -> float:
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is not a number with a unit", hint=f"Write it as {example}.")
    number, unit = found[1], found[2]
    known = ", ".join(units)
    if not unit:
        raise UsageError(f"{text!r} has no unit", hint=f"Add one of {known}: {example}.")
    factor = {name.lower(): factor for name, factor in units.items()}.get(unit.lower())
    if factor is None:
        raise UsageError(f"{text!r} has the unknown unit {unit!r}", hint=f"Use one of {known}, such as {example}.")
    # The last digits of 2.5 * 0.01 are an artefact of binary fractions.
    value = float(f"{float(number) * factor:.12g}")
    if value <= 0:
        raise UsageError(f"{text!r} is not above zero", hint=f"No measurement can show that; write such as {example}.")
    return value
