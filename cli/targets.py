"""`tlc targets`."""

import click


@click.command("targets", short_help="List the devices that tlc can compress for.")
def targets_command() -> None:
    """List the devices that tlc can compress for.

    \b
    Example: tlc targets
    """
    from tlc.runtime.target import load_target, target_names

    for name in target_names():
        click.echo(f"{name:<12} {load_target(name).description}")
