"""Waiting for what another process or thread is about to do."""

import time
from collections.abc import Callable

WAIT_S = 120
"""Until a test gives up: long, for machines that get little of their processors."""


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; AssertionError after `WAIT_S`."""
    assert within(WAIT_S, condition)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return True once the condition holds, False where it does not in that time."""
    end_s = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True
