"""`tlc select`."""

from pathlib import Path
from typing import Any

import click

from tlc.cli.compress import command_line, present
from tlc.cli.options import BUDGET_KEYS, budget_options
from tlc.runtime.errors import UsageError


@click.command("select", short_help="Let another file of a finished run ship, by another budget or by its name.")
@click.argument("run", type=click.Path(path_type=Path))
@budget_options
@click.option("--name", metavar="ROW", help="Row of the report to ship, whatever the budget says.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def select_command(run: Path, name: str | None, as_json: bool, **options: Any) -> None:
    """Choose again among the files that `tlc compress` measured in the folder RUN, without computing anything again.

    A limit that no option gives is that of the run's recipe, so that no option at all brings the run's own choice back.
    model.onnx, manifest.json and the reports are written anew. Exit status 1 where the budget is not met.

    \b
    Examples:
      tlc select tlc-out --max-latency 5ms --objective most-accurate
      tlc select tlc-out --name fp16
    """
    from tlc.compress.select import select

    given = {option: value for option in BUDGET_KEYS if (value := options[option]) is not None}
    if name is not None and given:
        idle = ", ".join(f"--{option.replace('_', '-')}" for option in given)
        raise UsageError(
            f"--name chooses by itself: {idle} would not count.",
            hint="Give the row's name, or a budget.",
        )
    changes = {BUDGET_KEYS[option].removeprefix("budget."): value for option, value in given.items()}
    report = select(run, changes, name=name, command=command_line())
    present(report, run, as_json=as_json, measured=False)
