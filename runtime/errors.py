"""Errors that a user can fix, and the exit status of each.

    TlcError            1  failed: the message says what, the hint says what to do next
    └── UsageError      2  an option, recipe key or argument is wrong

Everything else is a bug of ours and keeps its traceback.
"""

from typing import ClassVar


class TlcError(Exception):
    """What is wrong, with the value and the limit; `hint` is the next step, in the imperative."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(TlcError):
    """A wrong option, recipe key or argument: nothing was started."""

    exit_code: ClassVar[int] = 2
