"""Quantities with units, as limits are written."""

from collections.abc import Callable

import pytest

from tlc.runtime.errors import UsageError
from tlc.runtime.limits import GateLimits, parse_bytes, parse_ms, parse_ratio


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_ratio, "5%", 0.05),
        (parse_ratio, " 2.5 % ", 0.025),
        (parse_ms, "8ms", 8.0),
        (parse_ms, "250 µs", 0.25),
        (parse_ms, "1.5S", 1500.0),
        (parse_bytes, "200MB", 200_000_000),
        (parse_bytes, "5MiB", 5 * 2**20),
        (parse_bytes, "64 kb", 64_000),
        (parse_bytes, "12B", 12),
    ],
)
def test_a_number_with_its_unit(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message", "hint"),
    [
        (parse_ratio, "5", "'5' has no unit", "Add one of %: 5%."),
        (parse_ratio, "0%", "'0%' is not above zero", "No measurement can show that"),
        (parse_ratio, "-5%", "'-5%' is not a number with a unit", "Write it as 5%."),
        (parse_ms, "8", "'8' has no unit", "Add one of us, µs, ms, s: 8ms."),
        (parse_ms, "8 min", "'8 min' has the unknown unit 'min'", "Use one of us, µs, ms, s"),
        (parse_ms, "nan ms", "'nan ms' is not a number", "Write it as 8ms."),
        (parse_bytes, "5%", "'5%' has the unknown unit '%'", "Use one of B, kB, MB, GB, KiB, MiB, GiB"),
        (parse_bytes, "1.2.3MB", "'1.2.3MB' is not a number", "Write it as 200MB."),
        (parse_bytes, "0.1B", "'0.1B' is less than a byte", "such as 200MB"),
        (parse_bytes, "", "'' is not a number", "Write it as 200MB."),
    ],
)
def test_what_is_none_is_refused(parse: Callable[[str], float], text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)

    assert raised.value.message.startswith(message)
    assert hint in raised.value.hint


def test_limits_know_what_they_ask_for() -> None:
    limits = GateLimits(max_slowdown_ratio=0.05, p90_under_ms=3, p99_under_ms=9)

    assert (limits.any, limits.latency_limits, limits.quantiles_ms) == (True, 3, {90: 3, 99: 9})
    assert (GateLimits().any, GateLimits(max_size_bytes=1).any) == (False, True)
    assert [GateLimits(**{key: 1}).needs_accuracy for key in ("max_drop_points", "per_class_drop_points")] == [True] * 2
