"""Rendering the pipeline's events on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from tlc.compress.events import Emit, Event, Progress

_LOG_EVERY_S = 30.0
"""Off a terminal, a long step says how far it is this often."""


@contextmanager
def progress(*, quiet: bool = False) -> Iterator["Emit"]:
    """Yield a function that shows events: a live bar on a terminal, lines elsewhere, nothing if `quiet`."""
    from rich.console import Console

    from tlc.compress.events import silent

    if quiet:
        yield silent
        return
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    steps = _LiveSteps(console) if console.is_terminal else _LoggedSteps(console)
    with steps as shown:
        yield lambda event: _show(event, console, shown)


def _show(event: "Event", console: "Console", steps: "_LiveSteps | _LoggedSteps") -> None:
    from tlc.compress import events

    if isinstance(event, events.Progress):
        steps.update(event)
        return
    steps.clear()
    if isinstance(event, events.StageStarted):
        console.print(f"[bold]{event.name}[/]{' (from this run, unchanged)' if event.reused else ''}")
    else:
        took = f" ({event.seconds:.0f} s)" if event.seconds >= 1 else ""
        console.print(f"  {event.status}: {event.reason}{took}", markup=False)


def _values(event: "Progress") -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())


class _LiveSteps:
    """A bar with loss, score, rate and time left, which vanishes when its stage ends."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar: Bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}  {task.fields[values]}  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._what = ""
        self._task: TaskID | None = None

    def __enter__(self) -> "_LiveSteps":
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def clear(self) -> None:
        """Remove the bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task, self._what = None, ""

    def update(self, event: "Progress") -> None:
        """Show the step, on a new bar where it is another one."""
        if self._task is None or event.what != self._what:
            self.clear()
            self._what = event.what
            self._task = self._bar.add_task(event.what, total=event.total, values="", rate="")
        speed = self._bar.tasks[-1].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self._bar.update(self._task, completed=event.done, total=event.total, values=_values(event), rate=rate)


class _LoggedSteps:
    """A line now and then, for logs."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._what = ""
        self._first = 0
        self._start = self._noted = 0.0

    def __enter__(self) -> "_LoggedSteps":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def clear(self) -> None:
        """Forget the step."""
        self._what = ""

    def update(self, event: "Progress") -> None:
        """Print the step if the last line is old enough."""
        now = time.monotonic()
        if event.what != self._what:
            self._what, self._first, self._start, self._noted = event.what, event.done, now, now
        if now - self._noted < _LOG_EVERY_S:
            return
        self._noted = now
        rate = (event.done - self._first) / (now - self._start)
        left = f"{rate:.1f}/s, about {(event.total - event.done) / rate / 60:.0f} min left" if rate else ""
        line = f"  {event.what} {event.done}/{event.total}  {_values(event)}  {left}"
        self._console.print(line, markup=False)
