"""`tlc rank`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.options import data_options, preprocess_options, recipe_from, recipe_options
from tlc.cli.progress import progress

if TYPE_CHECKING:
    from tlc.runtime.rank_report import Cost, RankedRow, RankReport

_HEADER = ("", "probe %, 95 %", "behind, points", "LogME", "p50 ms", "memory", "size", "params", "MACs")


@click.command("rank", short_help="Score networks for a task and a target before fine-tuning one.")
@click.argument("candidates", nargs=-1, required=True, metavar="CANDIDATE...")
@data_options(required=True)
@preprocess_options
@click.option("--max-length", type=click.IntRange(8), help="Most tokens of a text.")
@click.option(
    "--samples", type=click.IntRange(16), default=1000, show_default=True, help="Training samples to look at."
)
@click.option("--int8", is_flag=True, help="Measure the INT8 files too.")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def rank_command(
    candidates: tuple[str, ...], samples: int, int8: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Score each CANDIDATE for the task of --data by its features, and measure what it costs on the target.

    CANDIDATE: a model file or folder, FILE@ARCH, hf:DIR (a text classifier or encoder), or an architecture alone, whose
    weights are torchvision's where they were downloaded before, else random. Nothing is trained but a linear
    classifier on the features. Best first; * marks what no other candidate beats in everything.

    \b
    Examples:
      tlc rank a.pt@torchvision:resnet18 b.pt@torchvision:mobilenet_v3_small --data photos/
      tlc rank torchvision:resnet18 torchvision:resnet50 --data photos/ --target jetson-orin --int8
      tlc rank hf:all-MiniLM-L6-v2 hf:bert-base-uncased --data reviews.csv
    """
    from tlc.compress.rank import rank

    recipe = recipe_from(options, Path(candidates[0]))
    with progress(quiet=quiet) as emit:
        report = rank(
            candidates, recipe, samples=samples, int8=int8, command=shlex.join(["tlc", *sys.argv[1:]]), emit=emit
        )
    click.echo(report.model_dump_json() if as_json else "\n".join(lines(report)))


def lines(report: "RankReport") -> list[str]:
    """Return the report as lines of text."""
    from tlc.cli import wording
    from tlc.cli.table import columns

    int8 = any(row.int8 for row in report.rows)
    header = [*_HEADER[:5], "INT8 ms", *_HEADER[5:]] if int8 else list(_HEADER)
    found = columns(header, [_cells(row, int8=int8, first=row == report.rows[0]) for row in report.rows])
    found += ["", _probe_words(report), "* no other row is better in probe, latency, size and memory together."]
    if report.not_measured:
        found.append(f"No latency: {wording.printable(report.not_measured)}")
    for row in report.rows:
        notes = [*row.notes, *(["random weights"] if row.weights == "random" else [])]
        if row.weights == "cache":
            notes.append("torchvision's weights, from the folder of downloads")
        notes.append(f"{wording.grouped(row.features)} features before {row.layer}")
        found.append(f"{wording.printable(row.name)}: {wording.printable('; '.join(notes))}")
    return found


def _probe_words(report: "RankReport") -> str:
    from tlc.cli import wording

    fitted, asked = wording.grouped(report.fit_samples), wording.grouped(report.held_out_samples)
    if report.folds:
        return f"Probe: linear classifiers on the features of {fitted} training {report.noun}, in {report.folds} folds."
    return f"Probe: a linear classifier on the features of {fitted} training {report.noun}, asked about {asked} others."


def _cells(row: "RankedRow", *, int8: bool, first: bool) -> list[str]:
    from tlc.cli import wording

    probe = row.probe_ratio
    cells = [
        f"{'*' if row.on_front else ' '} {wording.printable(row.name)}",
        f"{wording.percent(probe.estimate)} [{wording.percent(probe.low)}, {wording.percent(probe.high)}]",
        "–" if first else wording.points_interval(row.behind_points),
        wording.significant(row.logme),
        _ms(row.fp32),
    ]
    cells += [_ms(row.int8) if row.int8 else "–"] if int8 else []
    memory = row.deployed.peak_memory_bytes
    return [
        *cells,
        "–" if memory is None else wording.size(memory),
        wording.size(row.deployed.size_bytes),
        wording.count(row.parameters),
        wording.count(row.macs),
    ]


def _ms(cost: "Cost") -> str:
    from tlc.cli import wording

    return "–" if cost.p50_ms is None else wording.significant(cost.p50_ms)
