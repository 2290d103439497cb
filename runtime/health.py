"""Whether a measurement can be trusted: what the machine did meanwhile, and what the samples themselves say."""

import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlc.runtime import cgroup, nvml, sysfs
from tlc.runtime.bench_report import BenchWarning, Launch, WarningCode
from tlc.runtime.statistics import nearest_rank, samples_needed

OTHERS_LIMIT_RATIO = 0.05
"""Share of the usable cores' time that other work may take."""
STEAL_LIMIT_RATIO = 0.01
"""Share of the time that a virtual machine wanted and its host gave to others."""
CLOCK_FALL_RATIO = 0.1
FIRST_RUN_LIMIT = 5.0
"""Times p50; and the first run must cost `FIRST_RUN_WORTH_MS` more, or nobody waits for it."""
FIRST_RUN_WORTH_MS = 20.0
SLOW_RUNS_LIMIT = 1.5
GROWTH_LIMIT_BYTES = 2**20
"""Over all timed runs; models that keep nothing showed up to 40 kB, since the kernel counts pages in batches."""
_TICKS_S = 0.05  # jiffies are counted in steps of 10 ms or 4 ms, and each core is off by one at both ends
_STEADY_GOVERNORS = frozenset({"performance", "userspace"})
_PERCENTILES = (90, 95, 99)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine at one moment. Counters only grow; what a system does not tell is empty or None."""

    time_s: float
    """Monotonic."""
    clocks_khz: Mapping[str, int]
    """By policy of the kernel, or by core."""
    throttle_counts: Mapping[str, int]
    """By counter: events, or nanoseconds where its name says so."""
    quota_stops: int | None
    """Periods in which the container's CPU quota stopped it."""
    gpu_slowdowns: tuple[str, ...]
    """What slowed a GPU at that moment."""
    temperatures_c: Mapping[str, float]
    trips_c: Mapping[str, float]
    """Where the kernel begins to slow things down."""
    load: float | None
    """Average of one minute."""
    busy_s: float | None
    """Time that the usable cores worked for this system, all added up."""
    steal_s: float | None
    """Time that they wanted, and the host gave to others."""
    total_s: float | None
    """Time that passed on them, idle or not."""
    pressure_s: float | None
    """Time in which some task waited for a core (PSI)."""


def snapshot(root: Path = Path("/"), *, cores: Collection[int] | None = None) -> Snapshot:
    """Return the machine as it is now; `root` is where proc/ and sys/ lie, `cores` (default: usable ones) what counts.

    https://www.kernel.org/doc/html/latest/filesystems/proc.html, 1.7; https://docs.kernel.org/accounting/psi.html
    """
    affinity = getattr(os, "sched_getaffinity", None)
    usable = set(affinity(0)) if cores is None and affinity is not None else set(cores or ())
    busy_s, steal_s, total_s = _cpu_times_s(sysfs.text(root / "proc/stat") or "", usable)
    load = (sysfs.text(root / "proc/loadavg") or "").split()
    waited_us = re.search(r"^some .*total=([0-9]+)", sysfs.text(root / "proc/pressure/cpu") or "", re.MULTILINE)
    return Snapshot(
        time_s=time.monotonic(),
        clocks_khz=sysfs.clocks_khz(root),
        throttle_counts={**sysfs.throttle_counts(root), **nvml.slowdown_counts()},
        quota_stops=cgroup.quota_stops(root),
        gpu_slowdowns=nvml.slowdown_reasons(),
        temperatures_c=sysfs.temperatures_c(root),
        trips_c=sysfs.trips_c(root),
        load=float(load[0]) if load else None,
        busy_s=busy_s,
        steal_s=steal_s,
        total_s=total_s,
        pressure_s=None if waited_us is None else int(waited_us[1]) / 1e6,
    )


def cpu_s() -> float:
    """Return the CPU time of this process and of those that it has waited for, seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def machine_warnings(
    before: Snapshot, after: Snapshot, *, own_cpu_s: float, environment: Mapping[str, Any]
) -> list[BenchWarning]:
    """Return what disturbed a measurement between two snapshots: `throttled`, `noisy_neighbour`, `clocks_not_locked`.

    `own_cpu_s` is the CPU time that this process and its workers took meanwhile, `environment` that of
    `tlc.runtime.environment`. What the system does not tell is no warning.
    """
    return [
        *_throttled(before, after, own_cpu_s, environment),
        *_noisy(before, after, own_cpu_s),
        *_not_locked(environment),
    ]


def model_warnings(name: str, launches: Sequence[Launch]) -> list[BenchWarning]:
    """Return what makes one model's numbers worth less, from all its launches; none for no launch.

    `size_assumed`, `first_run_slow`, `too_few_samples`, `unstable` and `memory_grows`. The second and the last are said
    only where every launch shows them: a single one may have been disturbed.
    """
    if not launches:
        return []
    return [
        *_assumed(name, launches),
        *_first_run(name, launches),
        *_few(name, launches),
        *_unstable(name, launches),
        *_grows(name, launches),
    ]


def _throttled(
    before: Snapshot, after: Snapshot, own_cpu_s: float, environment: Mapping[str, Any]
) -> list[BenchWarning]:
    causes = []
    rises = {name: count - before.throttle_counts.get(name, 0) for name, count in after.throttle_counts.items()}
    causes += [f"its counter of {name} rose by {rise}" for name, rise in rises.items() if rise > 0]
    causes += [
        f"{zone} is at {after.temperatures_c[zone]:.0f} °C (limit {trip:.0f})"
        for zone, trip in after.trips_c.items()
        if after.temperatures_c.get(zone, 0) >= trip
    ]
    causes += [f"its driver names {slowdown}" for slowdown in sorted({*before.gpu_slowdowns, *after.gpu_slowdowns})]
    wall_s = after.time_s - before.time_s
    policies = environment.get("cpu_policies") or []
    steady = environment.get("clocks_locked") or (
        bool(policies) and all(policy["governor"] in _STEADY_GOVERNORS for policy in policies)
    )
    # Other governors lower the clock as soon as a core rests, which a snapshot cannot tell from heat.
    if steady and own_cpu_s >= wall_s / 2 and before.clocks_khz and after.clocks_khz:
        fastest, now = max(before.clocks_khz.values()), max(after.clocks_khz.values())
        if now < (1 - CLOCK_FALL_RATIO) * fastest:
            limit = f"limit {100 * CLOCK_FALL_RATIO:.0f} %"
            causes.append(f"its clock fell from {fastest / 1000:.0f} to {now / 1000:.0f} MHz ({limit})")
    found = []
    if causes:
        found.append(
            _warning(
                "throttled",
                None,
                f"The machine slowed itself down: {'; '.join(causes)}. "
                "Cool it, or give it the power that it needs, and measure again.",
            )
        )
    stops = None if before.quota_stops is None or after.quota_stops is None else after.quota_stops - before.quota_stops
    if stops:
        quota = environment.get("cpu_quota")
        found.append(
            _warning(
                "throttled",
                None,
                f"The container's CPU quota ({quota}: microseconds in a period) stopped it in {stops} periods (limit "
                "0). Raise the quota or lower --threads, and measure again.",
            )
        )
    return found


def _noisy(before: Snapshot, after: Snapshot, own_cpu_s: float) -> list[BenchWarning]:
    times = [(before.busy_s, after.busy_s), (before.steal_s, after.steal_s), (before.total_s, after.total_s)]
    known = [late - early for early, late in times if early is not None and late is not None]
    if len(known) < len(times) or known[-1] <= 0:
        return []
    busy_s, steal_s, total_s = known
    found = []
    others_s = busy_s - own_cpu_s
    if others_s > OTHERS_LIMIT_RATIO * total_s + _TICKS_S:
        waited = ""
        if before.pressure_s is not None and after.pressure_s is not None and after.time_s > before.time_s:
            share = (after.pressure_s - before.pressure_s) / (after.time_s - before.time_s)
            waited = f", and tasks waited for a core in {100 * share:.0f} % of it"
        found.append(
            _warning(
                "noisy_neighbour",
                None,
                f"Other work took {100 * others_s / total_s:.0f} % of the usable cores' time (limit "
                f"{100 * OTHERS_LIMIT_RATIO:.0f} %){waited}. Stop it and measure again.",
            )
        )
    if steal_s > STEAL_LIMIT_RATIO * (busy_s + steal_s) + _TICKS_S:
        found.append(
            _warning(
                "noisy_neighbour",
                None,
                f"The host gave {100 * steal_s / (busy_s + steal_s):.1f} % of the CPU time that this virtual machine "
                f"wanted to others (limit {100 * STEAL_LIMIT_RATIO:.0f} %). Measure on a machine, or an instance, with "
                "cores of its own.",
            )
        )
    return found


def _not_locked(environment: Mapping[str, Any]) -> list[BenchWarning]:
    if environment.get("clocks_locked"):
        return []
    if environment.get("clocks_locked") is False and "Jetson" in (environment.get("board") or ""):
        message = "The clocks of this Jetson are free to change. Run `sudo jetson_clocks` and measure again."
        return [_warning("clocks_not_locked", None, message)]
    free = [
        policy for policy in environment.get("cpu_policies") or () if policy["governor"] not in {None, "performance"}
    ]
    if not free:
        return []
    clocks = [(policy["min_khz"], policy["max_khz"]) for policy in free if policy["min_khz"] and policy["max_khz"]]
    low, high = min((low for low, _ in clocks), default=0), max((high for _, high in clocks), default=0)
    if low == high and clocks:
        return []
    span = f" between {low / 1000:.0f} and {high / 1000:.0f} MHz" if clocks else ""
    governors = ", ".join(sorted({policy["governor"] for policy in free}))
    return [
        _warning(
            "clocks_not_locked",
            None,
            f"The governor ({governors}) moves the cores' clocks{span}. For repeatable numbers run `sudo cpupower "
            "frequency-set -g performance`; to see what users will, leave it.",
        )
    ]


def _first_run(name: str, launches: Sequence[Launch]) -> list[BenchWarning]:
    first_ms = min(launch.first_ms for launch in launches)
    p50_ms = nearest_rank([sample for launch in launches for sample in launch.samples_ns], 50) / 1e6
    if first_ms <= FIRST_RUN_LIMIT * p50_ms or first_ms - p50_ms <= FIRST_RUN_WORTH_MS:
        return []
    message = (
        f"The first run of {name} took {first_ms:.1f} ms, {first_ms / p50_ms:.0f} times its p50 of {p50_ms:.3f} ms "
        f"(limit {FIRST_RUN_LIMIT:g}). Run the model once when the program starts, before anybody waits for it."
    )
    return [_warning("first_run_slow", name, message)]


def _assumed(name: str, launches: Sequence[Launch]) -> list[BenchWarning]:
    dims = launches[0].setting.assumed
    if not dims:
        return []
    sizes = " ".join(f"--size {dim}=128" for dim in dims)
    message = f"{name} ran with {' and '.join(dims)} of length 1. Say how long real inputs are, such as {sizes}."
    return [_warning("size_assumed", name, message)]


def _few(name: str, launches: Sequence[Launch]) -> list[BenchWarning]:
    samples = sum(len(launch.samples_ns) for launch in launches)
    short = {rank: samples_needed(rank) for rank in _PERCENTILES if samples < samples_needed(rank)}
    if not short:
        return []
    needs = ", ".join(f"p{rank} needs {needed}" for rank, needed in short.items())
    message = (
        f"{name} has {samples} samples; to be bounded with 99 % confidence, {needs}. "
        "Take these percentiles as information, or measure for longer."
    )
    return [_warning("too_few_samples", name, message)]


def _unstable(name: str, launches: Sequence[Launch]) -> list[BenchWarning]:
    """Runs mostly far above their fastest: other work interrupts them, and taking turns does not cancel that."""
    ratio = max(_slowdown(launch) for launch in launches)
    p50_ms = nearest_rank([sample for launch in launches for sample in launch.samples_ns], 50) / 1e6
    if ratio > SLOW_RUNS_LIMIT:
        message = (
            f"The machine was busy: runs of {name} (p50 {p50_ms:.3f} ms) mostly took {ratio:.1f} times as long as the "
            f"fastest of the same input (limit {SLOW_RUNS_LIMIT:g}). Stop other work on this machine and measure again."
        )
        return [_warning("unstable", name, message)]
    if not any(launch.warmup_stable for launch in launches):
        runs = max(launch.warmup_runs for launch in launches)
        message = (
            f"The time of a run of {name} had not settled after {runs} runs of warm-up: its last two windows differ by "
            "more than 2 % (limit). Measure for longer, on a machine that does nothing else."
        )
        return [_warning("unstable", name, message)]
    return []


def _slowdown(launch: Launch) -> float:
    """Return by what factor runs are slower than the fastest at their place in a block: median over the places.

    Places are compared each by itself, since the inputs of a block may be of different lengths.
    """
    rounds = np.asarray(launch.samples_ns, np.float64).reshape(-1, launch.block)
    return float(np.median(np.median(rounds, axis=0) / rounds.min(axis=0)))


def _grows(name: str, launches: Sequence[Launch]) -> list[BenchWarning]:
    growth = [(launch.memory.growth_bytes_per_run, len(launch.samples_ns)) for launch in launches]
    if any(per_run * runs <= GROWTH_LIMIT_BYTES for per_run, runs in growth):
        return []
    per_run, runs = min(growth, key=lambda grown: grown[0] * grown[1])
    message = (
        f"The memory of {name} grew by {per_run / 1000:.1f} kB with each of {runs} runs, {per_run * runs / 1e6:.1f} MB "
        f"in all (limit {GROWTH_LIMIT_BYTES / 1e6:.1f} MB). Look for what the model keeps of each run."
    )
    return [_warning("memory_grows", name, message)]


def _cpu_times_s(stat: str, cores: Collection[int]) -> tuple[float | None, float | None, float | None]:
    """Return busy, stolen and total seconds of `cores` from /proc/stat, whose columns proc(5) names."""
    lines = re.findall(r"^cpu([0-9]+) ([0-9 ]+)$", stat, re.MULTILINE)
    columns = [[int(value) for value in values.split()][:8] for core, values in lines if int(core) in cores]
    columns = [values for values in columns if len(values) == 8]
    if not columns:
        return None, None, None
    user, nice, system, idle, waiting, irq, soft_irq, steal = (sum(values) for values in zip(*columns, strict=True))
    busy = user + nice + system + irq + soft_irq  # guests are counted in user and nice already
    tick = os.sysconf("SC_CLK_TCK")
    return busy / tick, steal / tick, (busy + steal + idle + waiting) / tick


def _warning(code: WarningCode, model: str | None, message: str) -> BenchWarning:
    return BenchWarning(code=code, model=model, message=message)
