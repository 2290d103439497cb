"""Options of `tlc gate` from the table [gate] of a TOML file."""

import sys
from pathlib import Path
from typing import Any

import click

from tlc.runtime.errors import UsageError

DEFAULT = Path("tlc.toml")
_NOT_SETTINGS = ("config", "help", "json", "quiet")


def read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Make the table [gate] of `path`, or of tlc.toml where there is one, the defaults of the other options.

    Keys are the options' names with "_" for "-": `max_slowdown = "5%"`; relative paths count from the file's folder.
    Raises UsageError for a file that is missing or broken, or has no such table although it was named, and for a key
    that is no option.
    """
    if path is None and not DEFAULT.is_file():
        return None
    file = path or DEFAULT
    table = gate_table(file)
    if table is None:
        if path is not None:
            raise UsageError(f"{file} has no table [gate]", hint='Add it: [gate] and max_slowdown = "5%".')
        return None
    known = _settings(ctx.command)
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UsageError(
            f"{file} sets {', '.join(unknown)} in [gate], which is no setting of it",
            hint=f"Known are {', '.join(sorted(known))}.",
        )
    ctx.default_map = {str(known[key].name): _value(known[key], value, file) for key, value in table.items()}
    return file


def _settings(command: click.Command) -> dict[str, click.Option]:
    """Return the option by the key that sets it."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    keys = {option.opts[-1].lstrip("-").replace("-", "_"): option for option in options}
    return {key: option for key, option in keys.items() if key not in _NOT_SETTINGS}


def _value(option: click.Option, value: Any, file: Path) -> Any:
    """Return the value with a path as it counts from the file's folder."""
    return str(file.parent / value) if isinstance(option.type, click.Path) and isinstance(value, str) else value


def gate_table(file: Path) -> dict[str, Any] | None:
    """Return the table [gate] of a TOML file; None where it has none. Raises UsageError for a broken file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}", hint="Check the path.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}", hint="Correct that line.") from error
    table = values.get("gate")
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{file}: gate is {table!r}, not a table", hint="Write [gate] on a line of its own.")
    return table
