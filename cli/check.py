"""`tlc check`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.options import data_options, preprocess_options, recipe_from
from tlc.runtime.errors import UsageError

if TYPE_CHECKING:
    from tlc.compress.check import Fix
    from tlc.export.violation import Violation

_PATH = click.Path(path_type=Path)
_SHOWN = 6


@click.command("check", short_help="Check an ONNX file against what a target's runtime takes.")
@click.argument("file", type=_PATH)
@click.option("--target", required=True, help="Device: a name of `tlc targets`, or FILE.toml.")
@click.option("--fix", "fixing", is_flag=True, help="Repair the file; needs -o.")
@click.option("-o", "--output", type=_PATH, help="ONNX file to write with --fix.")
@click.option("--reference", type=_PATH, help="The float file that FILE was quantised from, for --fix.")
@data_options(required=False)
@preprocess_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check_command(
    file: Path,
    target: str,
    fixing: bool,
    output: Path | None,
    reference: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which rules of the target FILE breaks: node, reason, next step. Exit status 1 if there are any.

    With --fix, write a repaired copy and say what its outputs lost, on evaluation images if --data is given; exit
    status 1 only if something is left.

    \b
    Example: tlc check int8.onnx --target jetson-orin --fix -o orin.onnx --data photos/
    """
    from tlc.runtime.target import load_target

    data = options["data"]
    _require_consistent(file, output, fixing, reference, data)
    device = load_target(target)
    from tlc.export.contract import check_file

    found = check_file(file, device)
    fix = None
    if output is not None:
        from tlc.compress.check import fix_file

        recipe = None if data is None else recipe_from({**options, "target": target}, file)
        fix = fix_file(file, output, device, reference=reference, recipe=recipe)
    if as_json:
        entry = {
            "file": str(file),
            "target": device.name,
            "violations": [violation.model_dump(mode="json") for violation in found],
            "fix": None if fix is None else fix.model_dump(mode="json"),
        }
        click.echo(json.dumps(entry))
    else:
        _print(file, device.name, found, fix)
    if fix.left if fix is not None else found:
        sys.exit(1)


def _require_consistent(
    file: Path, output: Path | None, fixing: bool, reference: Path | None, data: Path | None
) -> None:
    if fixing and output is None:
        raise UsageError("--fix needs a file to write", hint="Name it: --fix -o OUT.onnx")
    if not fixing and (output is not None or reference is not None or data is not None):
        raise UsageError("-o, --reference and --data belong to --fix", hint="Add --fix, or leave them out.")
    if output is not None and output.resolve() in (file.resolve(), reference and reference.resolve()):
        raise UsageError(f"-o {output} would overwrite the file that is read", hint="Give another name.")


def _print(file: Path, target: str, found: "Sequence[Violation]", fix: "Fix | None") -> None:
    click.echo(_summary(file, target, found))
    _print_rules(found)
    if fix is None:
        return
    click.echo("")
    click.echo(f"{fix.path}: {len(fix.changes)} changes")
    for rule, changes in _by_rule(fix.changes).items():
        click.echo(f"  {rule}: {len(changes)}, such as {changes[0].node}: {changes[0].what}")
    click.echo(_summary(fix.path, target, fix.left))
    _print_rules(fix.left)
    against = "the float file" if any(noise.source_db is not None for noise in fix.noise) else "the source"
    click.echo(f"Signal to noise against {against}, on {fix.compared_on}:")
    for noise in fix.noise:
        source = "" if noise.source_db is None else f"source {noise.source_db:.1f} dB, "
        click.echo(f"  {noise.output}: {source}repaired {noise.repaired_db:.1f} dB")
    for row in fix.scores:
        line = f"{row.file}: top-1 {100 * row.accuracy.top1:.2f} % ({row.accuracy.correct} of {row.accuracy.samples})"
        if row.change is not None:
            line += f", {row.change.change_points.estimate:+.2f} points against {file}"
        click.echo(line)


def _summary(file: Path, target: str, found: "Sequence[Violation]") -> str:
    if not found:
        return f"{file}: clean for {target}"
    kinds = {kind: sum(violation.severity == kind for violation in found) for kind in ("refused", "wrong", "slow")}
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    return f"{file}: {len(found)} violation{'s' if len(found) > 1 else ''} for {target} ({counts})"


def _print_rules(found: "Sequence[Violation]") -> None:
    for rule, violations in _by_rule(found).items():
        first = violations[0]
        repairable = "" if all(violation.repairable for violation in violations) else ", not by --fix"
        click.echo(f"\n{rule} ({first.severity}), {len(violations)}")
        for violation in violations[:_SHOWN]:
            click.echo(f"  {violation.node} ({violation.op_type or 'tensor'}): {violation.why}")
        if len(violations) > _SHOWN:
            click.echo(f"  ... and {len(violations) - _SHOWN} more; --json lists all")
        click.echo(f"  fix{repairable}: {first.fix}")


def _by_rule(entries: "Sequence[Any]") -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for entry in entries:
        grouped.setdefault(entry.rule, []).append(entry)
    return grouped
