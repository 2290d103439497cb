"""A run's report: as JSON for machines, Markdown for a pull request, one HTML page for people, a table for a terminal.

All four show the same numbers by the same rules (`tlc.cli.wording`).
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tlc.cli import plots, wording
from tlc.cli.templates import rendered
from tlc.cli.wording import Column
from tlc.runtime.artifact import write_text
from tlc.runtime.report import Measurement, Report

_SAMPLE_DIGITS = 6


def write_report(report: Report, directory: Path) -> None:
    """Write `report.json`, `report.md` and `report.html` into an existing directory.

    The JSON reads back as `Report`, equal but for latency samples, which keep six significant digits. The same report
    gives the same bytes. Raises TlcError when the disk is full.
    """
    report = _rounded(report)
    texts = {
        "report.json": wording.as_json(report.model_dump(mode="json")) + "\n",
        "report.md": _rendered("report.md.j2", report),
        "report.html": _rendered("report.html.j2", report),
    }
    for name, text in texts.items():
        write_text(directory / name, text)


def print_report(report: Report, console: Console) -> None:
    """Print the table of measurements, the verdict and the warnings; a narrow console gets fewer columns."""

    def put(text: str, style: str = "") -> None:
        console.print(Text(_encodable(wording.printable(text), console), style=style))

    columns = wording.columns(report)
    table = _table(report, columns, console)
    while len(columns) > 2 and _width(table, console) > console.width:
        columns.remove(max(columns, key=lambda column: column.rank))
        table = _table(report, columns, console)
    console.print(table)
    put(report.verdict, "bold")
    put(wording.budget_words(report), "green" if report.budget_met else "red")
    if report.not_measured:
        put(wording.not_measured_words(report), "yellow")
    for warning in report.warnings:
        put(f"warning: {warning}", "yellow")


def _width(table: Table, console: Console) -> int:
    """Return how wide the table would like to be, in characters."""
    return console.measure(table, options=console.options.update(width=1000)).maximum


def _table(report: Report, columns: list[Column], console: Console) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(_encodable(f"{column.title}\n{column.unit}", console), justify="right", no_wrap=True)
    for row in report.measurements:
        ships = row.name == report.chosen
        name = wording.printable(row.name)
        cells = [f"> {name}" if ships else f"  {name}", *(column.cell(row) for column in columns)]
        table.add_row(*(Text(_encodable(cell, console)) for cell in cells), style="bold" if ships else "")
    return table


def _encodable(text: str, console: Console) -> str:
    """Return `text` with what the console's encoding lacks replaced: `−`, `×` and `–` by their ASCII likeness."""
    if not console.encoding.lower().startswith("utf"):
        text = text.translate({ord("−"): "-", ord("–"): "-", ord("×"): "x", ord("…"): "~"})
    return text.encode(console.encoding, "replace").decode(console.encoding)


def _rounded(report: Report) -> Report:
    def latency(row: Measurement) -> Measurement:
        if row.latency is None:
            return row
        samples = [float(f"{sample:.{_SAMPLE_DIGITS}g}") for sample in row.latency.samples_ms]
        return row.model_copy(update={"latency": row.latency.model_copy(update={"samples_ms": samples})})

    return report.model_copy(update={"measurements": [latency(row) for row in report.measurements]})


def _rendered(template: str, report: Report) -> str:
    return rendered(template, _context(report))


def _context(report: Report) -> dict[str, Any]:
    original, chosen = report.measurements[0], wording.by_name(report, report.chosen)
    change = chosen.change
    return {
        "report": report,
        "words": wording,
        "plots": plots,
        "columns": wording.columns(report),
        "original": original,
        "chosen": chosen,
        "classes_changed": plots.changes_shown(change.per_class) if change else [],
        "scores": {row.name: {score.name: score for score in row.accuracy.per_class} for row in (original, chosen)},
        "samples": len(original.latency.samples_ms) if original.latency else 0,
    }
