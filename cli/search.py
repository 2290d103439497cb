"""`tlc search`."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.compress import command_line, present
from tlc.cli.options import budget_options, data_options, model_options, quantity, recipe_from, recipe_options
from tlc.cli.progress import progress
from tlc.cli.table import columns
from tlc.cli.wording import best_trials, trial_change, trial_speed

if TYPE_CHECKING:
    from tlc.runtime.search_report import SearchRecord

_PATH = click.Path(path_type=Path)


@click.command("search", short_help="Search for the student that a budget asks for, on many machines.")
@click.argument("model", type=_PATH, required=False)
@data_options(required=False)
@model_options
@budget_options
@click.option("--storage", metavar="URL|FILE", required=True, help="Database (postgresql+psycopg://...) or file.")
@click.option("--study", default="tlc", show_default=True, help="Its name in the storage.")
@click.option("-o", "--out", type=_PATH, required=True, help="Folder that all workers reach.")
@click.option("--worker", default=socket.gethostname, help="Name of this worker.  [default: the host's]")
@quantity("--time-limit", "parse_s", "90min", "How long this worker tries shapes.")
@click.option("--trials", type=click.IntRange(1), help="How many shapes this worker tries at most.")
@click.option("--conclude", is_flag=True, help="Try no more: measure the best beside the original, and report.")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print the report, or the shapes that were tried, as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def search_command(
    model: Path | None,
    storage: str,
    study: str,
    out: Path,
    worker: str,
    time_limit: float | None,
    trials: int | None,
    conclude: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Work on a study: try shapes of students of MODEL until the time is over, together with all other workers.

    Start it on any number of machines with the same --storage, --study and -o; workers may be killed, and join later.
    Afterwards run it once with --conclude. For a single process `tlc compress --time-limit` does both.

    \b
    Examples:
      tlc search model.pt --data photos/ --storage study.journal -o found --time-limit 60min
      tlc search model.pt --data photos/ --storage study.journal -o found --conclude
    """
    from tlc.compress import search

    recipe = recipe_from(options, model)
    if conclude:
        with progress(quiet=quiet) as emit:
            report = search.conclude(recipe, out, storage=storage, study=study, emit=emit, command=command_line())
        present(report, out / "result", as_json=as_json)
        return
    if time_limit is None:
        raise click.UsageError("--time-limit is missing: say how long this worker may try, as in --time-limit 60min.")
    with progress(quiet=quiet) as emit:
        found = search.join(
            recipe,
            out,
            storage=storage,
            study=study,
            worker=worker,
            limit_s=time_limit,
            trials=trials,
            emit=emit,
        )
    _print(found, as_json=as_json)


def _print(record: "SearchRecord", *, as_json: bool) -> None:
    """Print the shapes that were tried, best first."""
    if as_json:
        click.echo(record.model_dump_json())
        return
    rows = [
        (one.student or "original, INT8", one.status, trial_speed(one), trial_change(one), one.why)
        for one in best_trials(record)
    ]
    for line in columns(("student", "outcome", "speed-up", "points", "why"), rows):
        click.echo(line)
