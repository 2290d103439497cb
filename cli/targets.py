"""`tlc targets`."""

import click


@click.command("targets", short_help="List the devices that tlc can compress for.")
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print every fact of every target as JSON.")
@click.option("--toml", "as_toml", is_flag=True, help="Print one built-in target as a file to change.")
def targets_command(names: tuple[str, ...], as_json: bool, as_toml: bool) -> None:
    """List the devices that tlc can compress for, and what this machine can do with each.

    TARGET is a name or a FILE.toml of your own; without one, all built-in targets are listed.

    \b
    Example: tlc targets
    """
    import json

    from tlc.runtime.capability import missing, missing_to_compress, this_machine
    from tlc.runtime.target import load_target, target_names, target_toml

    if as_toml:
        if len(names) != 1:
            raise click.UsageError(f"--toml takes one target, got {len(names)}.")
        click.echo(target_toml(names[0]), nl=False)
        return
    targets = [load_target(name) for name in names or target_names()]
    machine = this_machine()
    cannot_run = {target.name: missing(target, machine) for target in targets}
    cannot_compress = missing_to_compress(machine)
    if as_json:
        rows = [
            {
                **target.model_dump(mode="json"),
                "here": {"cannot_compress": cannot_compress, "cannot_run": cannot_run[target.name]},
            }
            for target in targets
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("target", "runtime", "precisions", "opset", "here"):
        table.add_column(heading, no_wrap=heading != "here", justify="right" if heading == "opset" else "left")
    for target in targets:
        runtime = f"TensorRT {target.tensorrt.version}" if target.tensorrt else target.runtime
        provider = "" if target.provider == "cpu" else f" ({target.provider})"
        table.add_row(
            target.name,
            f"{runtime}{provider}",
            " ".join(target.precisions),
            str(target.opset),
            Text(_here(cannot_compress, cannot_run[target.name])),
        )
    Console(highlight=False).print(table)


def _here(cannot_compress: str | None, cannot_run: str | None) -> str:
    if cannot_compress is None:
        return "compress, run" if cannot_run is None else f"compress only: {cannot_run}"
    if cannot_run is None:
        return f"run only: {cannot_compress}"
    return f"nothing: {cannot_run}; {cannot_compress}"
