"""Which measured file of a run ships: putting it in its place, and choosing another one when the run is long over."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from pydantic import ValidationError

from tlc.compress.budget import choose
from tlc.compress.run import hold_run
from tlc.compress.verdict import verdict
from tlc.export.bundle_source import tokenizer_of
from tlc.export.contract import check_model
from tlc.export.metadata import read_metadata
from tlc.runtime.artifact import sha256_file, write_text
from tlc.runtime.budget import Budget
from tlc.runtime.bundle_manifest import TOKENIZER
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Measurement, Report
from tlc.runtime.target import Target

SHIPPED = "model.onnx"


def select(
    run: Path, changes: Mapping[str, object], *, name: str | None = None, command: str = "tlc.compress.select.select"
) -> Report:
    """Let another measured file of the finished run in folder `run` ship, and return the report that says so.

    It is the one that `choose` names for the budget of the run's recipe with `changes` on top, or the row `name`.
    Rewrites `model.onnx`, of texts `tokenizer.json`, `manifest.json` and `report.json`; nothing is computed or measured
    again, and without changes the run's own choice is restored. Writing the other reports is the caller's business.

    Raises:
        TlcError: `run` holds no finished run, or a file of it that has changed since; a limit is held on what was not
            measured, or no row has that name.

    """
    with hold_run(run):
        report, manifest = _read_report(run / "report.json"), _read_manifest(run / "manifest.json")
        budget = Budget.model_validate({**report.recipe["budget"], **changes})
        rows = report.measurements
        choice = choose(rows, budget, name=name)
        before = next(row for row in rows if row.name == report.chosen)
        target = Target.model_validate(manifest["target"])
        others = [text for text in report.warnings if text not in rule_warnings(run, before, target)]
        ship(run, choice.chosen)
        write_manifest(run, {**manifest, "chosen": choice.chosen.name, "selected_by": command})
        report = report.model_copy(
            update={
                "chosen": choice.chosen.name,
                "selected_by": command,
                "budget": budget,
                "budget_met": choice.met,
                "confident": choice.confident,
                "front": choice.front,
                "lost": choice.lost,
                "needed": choice.needed,
                "verdict": verdict(rows, choice, budget, "texts" if report.data.lengths else "images"),
                "warnings": [*others, *rule_warnings(run, choice.chosen, target)],
            }
        )
        write_text(run / "report.json", report.model_dump_json(indent=1) + "\n")
        return report


def ship(run: Path, row: Measurement) -> None:
    """Put the file of `row` in the place of what ships, of texts the tokenizer too.

    Raises TlcError where the file is not the one that was measured.
    """
    source = run / row.file
    if not source.is_file() or sha256_file(source) != row.sha256:
        raise TlcError(
            f"{source} is not the file that was measured as {row.name}.",
            hint="Run tlc compress again with --resume: it writes what is missing.",
        )
    fed, _classes = read_metadata(source)
    tokenizer = tokenizer_of(fed, run)
    beside = run / f".{SHIPPED}.tmp"
    shutil.copyfile(source, beside)
    beside.replace(run / SHIPPED)
    if tokenizer is not None:
        write_text(run / TOKENIZER, tokenizer)


def rule_warnings(run: Path, row: Measurement, target: Target) -> list[str]:
    """Return a sentence where the file of `row` breaks rules of the target."""
    found = check_model(onnx.load(run / row.file), target)
    if not found:
        return []
    return [
        f"{row.file} breaks rules of {target.name} in {len(found)} places; "
        f"tlc check {row.file} --target {target.name} lists them."
    ]


def write_manifest(run: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json`, with the hash of what ships now."""
    files = {**manifest["files"], SHIPPED: sha256_file(run / SHIPPED)}
    text = json.dumps({**manifest, "files": files}, indent=1, sort_keys=True)
    write_text(run / "manifest.json", text + "\n")


def _read_report(path: Path) -> Report:
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TlcError(
            f"{path.parent} holds no finished run: {path.name} is not there.",
            hint="Let tlc compress finish it: the same command with --resume.",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise TlcError(
            f"{path} is not what this version of tlc writes: {'.'.join(map(str, first['loc']))}: {first['msg']}.",
            hint="Write it again: tlc compress with --resume takes the finished stages as they are.",
        ) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        Target.model_validate(manifest["target"])
        dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TlcError(
            f"{path} is missing or not what this version of tlc writes.",
            hint="Write it again: tlc compress with --resume takes the finished stages as they are.",
        ) from error
    return manifest
