"""How often `tlc gate` is wrong, and how often it finds a real slowdown, on a quiet and on a disturbed machine.

    OMP_NUM_THREADS=1 python benchmarks/gate_trials.py FOLDER --table benchmarks/results/gate_trials.md

A trial is one call of the function behind `tlc gate`, with its defaults and one thread, of a network of equal layers
against the same file again (A/A), or against one with more layers. How much longer that one takes is measured
beforehand with raw loops (`raw_loop.py`). Half of the trials are of a network of about 0.5 ms, half of one of 2 ms.
A disturbed machine runs processes beside the gate that multiply matrices and rest in turns (`neighbour.py`). Where the
baseline is a stored report, the trial before of the same kind wrote it.

Every trial is appended to FOLDER/trials.jsonl; run the command again to go on, with --minutes 0 to write the table
alone.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gate_networks import NETWORKS, make_networks, neighbours

from tlc.runtime.artifact import write_text
from tlc.runtime.environment import environment
from tlc.runtime.gate import Effort, gate
from tlc.runtime.limits import GateLimits
from tlc.runtime.process import Case
from tlc.runtime.stored_report import StoredBaseline, read_stored

Networks = dict[str, list[dict[str, float | str]]]
Row = dict[str, Any]

MACHINES = ("quiet", "disturbed")
ANY_LATENCY = GateLimits(p50_under_ms=1e6)
"""Lets a gate measure a model without deciding anything, for its report."""


@dataclass(frozen=True)
class Arm:
    """One kind of trial."""

    name: str
    slowdown: float
    margin: float
    trials: int
    """On each machine."""
    stored: bool = False


@dataclass(frozen=True)
class Trial:
    """One trial."""

    arm: Arm
    machine: str
    number: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Which one it is, among all."""
        return self.arm.name, self.machine, self.number

    @property
    def size(self) -> str:
        """Name of the network."""
        return list(NETWORKS)[self.number % len(NETWORKS)]

    @property
    def seed(self) -> int:
        """Another one for every trial."""
        return random.Random(repr(self.key)).getrandbits(32)


def case(path: Path) -> Case:
    """Return the case of a network, batch 1 on one thread."""
    return Case(path.stem, path)


def stored_baseline(trial: Trial, base: Case, folder: Path) -> StoredBaseline:
    """Return what the last trial of this kind found about the baseline, and let this one measure it for the next."""
    path = folder / f"stored-{trial.arm.slowdown}-{trial.machine}-{base.name}.json"
    fresh = gate(base, None, ANY_LATENCY, seed=trial.seed)
    if not path.exists():
        write_text(path, fresh.model_dump_json())
        fresh = gate(base, None, ANY_LATENCY, seed=trial.seed + 1)
    stored = read_stored(path, base.name)
    write_text(path, fresh.model_dump_json())
    return stored


def run(trial: Trial, folder: Path, networks: Networks, effort: Effort) -> Row:
    """Return what became of one trial, as JSON values."""
    base = case(folder / f"{trial.size.replace(' ', '')}.onnx")
    slower = {each["slowdown"]: folder / str(each["file"]) for each in networks[trial.size]}
    candidate = case(slower.get(trial.arm.slowdown, base.path.with_stem(f"{base.name}-same")))
    baseline = stored_baseline(trial, base, folder) if trial.arm.stored else base
    start = time.monotonic()
    limits = GateLimits(max_slowdown_ratio=trial.arm.margin)
    report = gate(candidate, baseline, limits, seed=trial.seed, effort=effort)
    seconds = time.monotonic() - start
    check = report.checks[-1]
    return {
        "arm": trial.arm.name,
        "machine": trial.machine,
        "number": trial.number,
        "size": trial.size,
        "verdict": report.verdict,
        "value": check.value,
        "low": check.low,
        "high": check.high,
        "reason": check.reason,
        "looks": report.looks,
        "seconds": round(seconds, 2),
        "load_average": round(os.getloadavg()[0], 2),
        "warnings": sorted({warning.code for warning in report.bench.warnings}),
    }


def table(rows: list[Row], arms: Iterable[Arm], by_size: bool) -> str:
    """Return the Markdown table of all trials, by network or not."""
    lines = [
        "| machine | trial | margin | network | gates | pass | fail | inconclusive | above margin | s a gate |",
        "|:--|:--|--:|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for machine in MACHINES:
        for arm in arms:
            for size in NETWORKS if by_size else (" and ".join(NETWORKS),):
                own = [row for row in rows if (row["arm"], row["machine"]) == (arm.name, machine)]
                own = [row for row in own if row["size"] in size.split(" and ")]
                if not own:
                    continue
                counts = [sum(row["verdict"] == verdict for row in own) for verdict in ("pass", "fail", "inconclusive")]
                shares = " | ".join(f"{count} ({100 * count / len(own):.1f} %)" for count in counts)
                seconds = median(row["seconds"] for row in own)
                kind = f"{machine} | {arm.name} | {100 * arm.margin:g} % | {size}"
                above = sum(row["value"] is not None and row["value"] > 100 * arm.margin for row in own)
                lines.append(f"| {kind} | {len(own)} | {shares} | {above} | {seconds:.1f} |")
    return "\n".join(lines)


def report(rows: list[Row], arms: list[Arm], networks: Networks, beside: int) -> str:
    """Return the whole page."""
    facts = environment()
    versions = {name: facts["versions"].get(name) for name in ("tlc", "onnxruntime", "numpy")}
    slower = [
        f"| {size} | {each['layers']} | {each['slowdown']:.2f} | {each['true_ratio']:.3f} "
        f"[{each['low']:.3f}, {each['high']:.3f}] |"
        for size, found in networks.items()
        for each in found
    ]
    loads = {name: [row["load_average"] for row in rows if row["machine"] == name] for name in MACHINES}
    said = ", ".join(f"{name} {median(found):.1f}" for name, found in loads.items() if found)
    return "\n\n".join(
        (
            "# The gate, tried",
            "Written by `benchmarks/gate_trials.py`, which says how. "
            f"Machine: {facts['usable_cores']} cores of {facts['cpu_model']}"
            f"{', a virtual machine' if facts['virtual_machine'] else ''}. "
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}. "
            f"Disturbed: {beside} neighbour{'s' * (beside != 1)}. Load average, median: {said}.",
            table(rows, arms, by_size=False),
            "Above margin: how many a bare threshold, without bounds and warnings, would have failed on the same "
            "measurements. Seconds are the median.",
            "How much longer the slower networks really take, median of paired blocks of a raw loop with 99 % bounds:",
            "\n".join(("| network | layers | wanted | found |", "|:--|--:|--:|--:|", *slower)),
            "The same trials by network:",
            table(rows, arms, by_size=True) + "\n",
        )
    )


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, help="Markdown file to write; printed in any case")
    parser.add_argument("--same", type=int, default=200, help="A/A gates on each machine")
    parser.add_argument("--slower", type=int, default=60, help="gates of each slowdown on each machine")
    parser.add_argument("--stored", type=int, default=20, help="gates of each kind against a stored report")
    parser.add_argument("--neighbours", type=int, default=1, help="processes beside a gate on the disturbed machine")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no trial after so many")
    parser.add_argument("--raw-seconds", type=float, default=8.0, help="of each raw loop that finds the true ratios")
    parser.add_argument("--rounds", type=int, default=Effort().rounds, help="as for tlc gate")
    parser.add_argument("--launches", type=int, default=Effort().launches, help="as for tlc gate")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    arms = [
        Arm("A/A", 1.0, 0.05, options.same),
        Arm("+10 %", 1.10, 0.05, options.slower),
        Arm("+5 %", 1.05, 0.03, options.slower),
        Arm("A/A, stored report", 1.0, 0.05, options.stored, stored=True),
        Arm("+10 %, stored report", 1.10, 0.05, options.stored, stored=True),
    ]
    networks = make_networks(options.folder, options.raw_seconds)
    journal = options.folder / "trials.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(row["arm"], row["machine"], row["number"]) for row in rows}
    trials = [Trial(arm, machine, number) for arm in arms for number in range(arm.trials) for machine in MACHINES]
    # All kinds get on at the same pace, so that a table of what is done so far says something about each.
    trials.sort(key=lambda trial: (trial.number + 0.5) / trial.arm.trials)
    effort = Effort(rounds=options.rounds, launches=options.launches)
    for trial in trials:
        if trial.key in done or time.monotonic() > end:
            continue
        with neighbours(options.neighbours) if trial.machine == "disturbed" else nullcontext():
            rows.append(run(trial, options.folder, networks, effort))
        with journal.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        row = rows[-1]
        print(
            f"{len(rows)}/{len(trials)} {row['machine']} {row['arm']} {row['size']}: {row['verdict']} "
            f"after {row['looks']} looks, {row['seconds']} s. {row['reason']}",
            file=sys.stderr,
            flush=True,
        )
    page = report(rows, arms, networks, options.neighbours)
    print(page)
    if options.table is not None:
        write_text(options.table, page)


if __name__ == "__main__":
    main()
