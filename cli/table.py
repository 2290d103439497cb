"""Rows of text in columns."""

from collections.abc import Sequence


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row under `header`: the first column to the left, the others to the right."""
    table = [header, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    return [
        "  ".join(
            _set(cell, width, place) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _set(cell: str, width: int, place: int) -> str:
    return cell.rjust(width) if place else cell.ljust(width)
