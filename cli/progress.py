"""Rendering the pipeline's events on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlc.compress.events import Emit, Event


@contextmanager
def progress(*, quiet: bool = False) -> Iterator["Emit"]:
    """Yield a function that shows events: a live bar on a terminal, a line per stage elsewhere, nothing if `quiet`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from tlc.compress import events

    if quiet:
        yield events.silent
        return
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} {task.fields[values]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, int] = {}

    def clear() -> None:
        for task in tasks.values():
            bar.remove_task(task)  # type: ignore[arg-type]
        tasks.clear()

    def show(event: "Event") -> None:
        if isinstance(event, events.StageStarted):
            clear()
            console.print(f"[bold]{event.name}[/]{' (from this run, unchanged)' if event.reused else ''}")
        elif isinstance(event, events.StageDone):
            clear()
            console.print(f"  {event.status}: ", end="", style="bold")
            console.print(event.reason, markup=False, end="")
            console.print(f" ({event.seconds:.0f} s)" if event.seconds >= 1 else "", style="dim")
        elif isinstance(event, events.Notice):
            console.print("note: ", end="", style="bold")
            console.print(event.text, markup=False)
        else:
            values = "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())
            if event.what not in tasks:
                clear()
                tasks[event.what] = bar.add_task(event.what, total=event.total, values="", rate="")
            task = bar.tasks[-1]
            rate = f"{task.speed:.1f}/s" if task.speed else ""
            bar.update(task.id, completed=event.done, values=values, rate=rate)

    with bar:
        yield show
