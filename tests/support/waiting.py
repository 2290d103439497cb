"""Waiting for what another process or thread is about to do."""

import time
from collections.abc import Callable

WAIT_S = 120
"""Until a test gives up: long, for machines that get little of their processors."""


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; AssertionError after `WAIT_S`."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)
