"""The command group: registers the commands and turns errors into text and an exit status."""

import errno
import sys
from typing import Any

import click

from tlc.cli.bench import bench_command
from tlc.cli.build import build_command
from tlc.cli.check import check_command
from tlc.cli.compare import compare_command
from tlc.cli.compress import compress_command, demo_command, init_command
from tlc.cli.deploy import deploy_command
from tlc.cli.doctor import doctor_command
from tlc.cli.gate import gate_command
from tlc.cli.history import history_command
from tlc.cli.inspect import inspect_command
from tlc.cli.pack import pack_command, verify_command
from tlc.cli.rank import rank_command
from tlc.cli.search import search_command
from tlc.cli.select import select_command
from tlc.cli.sensitivity import sensitivity_command
from tlc.cli.steps import distill_command, eval_command, export_command, prune_command, quantize_command
from tlc.cli.targets import targets_command
from tlc.runtime.errors import TlcError


class TlcGroup(click.Group):
    """A group whose commands may raise `TlcError`: 1 failed, 2 usage; Ctrl-C and a full disk are failures too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; print what a user can fix as two lines instead of a traceback."""
        try:
            return super().invoke(ctx)
        except TlcError as error:
            _fail(ctx, error.message, error.hint, error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "Interrupted.", "Finished stages are kept: run the same command with --resume to go on.", 1)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _fail(ctx, f"No space left on the disk for {error.filename or 'the output'}.", "Free some and --resume.", 1)


def _fail(ctx: click.Context, message: str, hint: str, exit_code: int) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    ctx.exit(exit_code)


@click.group(cls=TlcGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tlc")
def main() -> None:
    """Compress a fine-tuned PyTorch model and measure what that cost and gained.

    \b
    tlc inspect model.pt                      what is in the file
    tlc compress model.pt --data photos/      student, pruning, INT8, report
    tlc gate model.onnx --baseline old.onnx   may it ship, by time, memory and answers
    tlc deploy jetson model.tlc               build, prove and measure on a device
    tlc demo                                  all of it on data that is already here
    """


for command in (
    compress_command,
    search_command,
    select_command,
    sensitivity_command,
    rank_command,
    inspect_command,
    distill_command,
    prune_command,
    export_command,
    quantize_command,
    build_command,
    eval_command,
    bench_command,
    compare_command,
    gate_command,
    history_command,
    check_command,
    pack_command,
    verify_command,
    deploy_command,
    init_command,
    targets_command,
    doctor_command,
    demo_command,
):
    main.add_command(command)

if __name__ == "__main__":
    sys.exit(main())
