"""`tlc inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tlc.compress.inspection import Inspection, Layer

_BAR = 20
"""Characters of a full bar."""


@click.command("inspect", short_help="Show what is in a model file, and what tlc could do with it.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", metavar="ARCH", help="torchvision:NAME, timm:NAME, FILE.py:FUNCTION (is executed) or hf:DIR.")
@click.option("--input", "input_text", metavar="CxHxW", help="Input of one sample, where the file does not tell.")
@click.option("--layers", is_flag=True, help="Show every layer, not only the largest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect_command(model: Path, arch: str | None, input_text: str | None, layers: bool, as_json: bool) -> None:
    """Show layers, parameters, MACs, input and classes of MODEL, where the weight is, and what tlc could do with it.

    Nothing of the file is run: a pickle that names foreign classes is refused by name.

    \b
    Example: tlc inspect model.pt --arch torchvision:resnet18
    """
    from tlc.compress.inputs import PreprocessOptions, parse_input
    from tlc.compress.inspect import inspect_model

    options = PreprocessOptions(input=parse_input(input_text) if input_text else None)
    found = inspect_model(model, arch=arch, options=options)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in _rendered(found, every_layer=layers):
        console.print(part)


def _rendered(found: "Inspection", *, every_layer: bool) -> "list[RenderableType]":
    from rich.text import Text

    shown = found.layers if every_layer else tuple(sorted(found.layers, key=lambda row: -row.parameters)[:12])
    rest = len(found.layers) - len(shown)
    title = f"Largest {len(shown)} of {len(found.layers)} layers (--layers shows all)" if rest else "Layers"
    lines: list[RenderableType] = [_summary(found), _table("Parts", found.parts), _table(title, shown)]
    if found.operators:
        lines.append(Text("Operators: " + ", ".join(f"{count} {kind}" for kind, count in found.operators.items())))
    if found.possibilities:
        lines += [Text("What tlc could do", style="bold"), *(Text(f"  {line}") for line in found.possibilities)]
    lines += [Text(f"note: {note}") for note in found.notes]
    return [*lines, Text(found.next_step, style="bold")] if found.next_step else lines


def _summary(found: "Inspection") -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    fed = found.preprocess
    classes = "" if found.num_classes is None else str(found.num_classes)
    if found.classes:
        classes += f": {', '.join(found.classes[:6])}" + (", ..." if len(found.classes) > 6 else "")
    arch = found.arch or ("not in the file; fits " + ", ".join(found.suggested_archs) if found.suggested_archs else "")
    rows = {
        "file": f"{found.path} ({found.file_bytes:,} bytes)",
        "format": found.format,
        "architecture": arch or "not in the file",
        "stored as": ", ".join(found.dtypes),
        "parameters": f"{found.parameters:,}",
        "MACs": "not known without an input" if found.macs is None else f"{found.macs:,}",
        "input": _input_text(found),
        "images": "" if fed is None else f"{fed.channels}, resize {fed.resize}, mean {fed.mean}, std {fed.std}",
        "classes": classes or "not known",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(value))
    return table


def _input_text(found: "Inspection") -> str:
    if found.task is not None:
        return f"texts of at most {found.max_length:,} tokens, for {found.task.replace('-', ' ')}"
    return "x".join(map(str, found.input_shape or ("not known",)))


def _table(title: str, rows: "tuple[Layer, ...]") -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading in ("name", "kind", "weight", "parameters", "share", "", "MACs"):
        numeric = heading in ("parameters", "share", "MACs")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(
            Text(row.name or "(top)"),
            row.kind,
            "x".join(map(str, row.shape)),
            f"{row.parameters:,}",
            f"{row.share_ratio:.1%}",
            "█" * round(_BAR * row.share_ratio),
            "" if row.macs is None else f"{row.macs:,}",
        )
    return table
