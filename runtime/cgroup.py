"""What a container or a service may use: control groups, version 2 and 1.

A limit of any group above holds as well, so the tightest counts.
https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html,
https://docs.kernel.org/scheduler/sched-bwc.html
"""

from pathlib import Path, PurePosixPath

from tlc.runtime.sysfs import integer, text

_UNLIMITED_BYTES = 2**62
"""Version 1 writes no limit as the largest multiple of a page below 2**63."""


def cpu_quota(root: Path) -> str | None:
    """Return the tightest quota as `cpu.max` of version 2 spells it: microseconds in a period, "max" for none."""
    found = []
    for folder in _folders(root, "cpu"):
        quota = text(folder / "cpu.max")
        if quota is None:
            limit, period = integer(folder / "cpu.cfs_quota_us"), integer(folder / "cpu.cfs_period_us")
            quota = None if limit is None or period is None else f"{'max' if limit < 0 else limit} {period}"
        if quota is not None:
            found.append(quota)
    return min(found, key=lambda quota: quota_cores(quota) or float("inf"), default=None)


def quota_cores(quota: str | None) -> float | None:
    """Return how many cores' time a quota is; None for none.

    >>> quota_cores("150000 100000"), quota_cores("max 100000")
    (1.5, None)
    """
    limit, _, period = (quota or "").partition(" ")
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() and int(period) else None


def cpuset(root: Path) -> str | None:
    """Return the cores that the group may run on, as the kernel lists them: "0-3,8"."""
    for folder in _folders(root, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            found = text(folder / name)
            if found is not None:
                return found
    return None


def memory_limit_bytes(root: Path) -> int | None:
    """Return the tightest limit on memory; None where there is none."""
    values = [
        integer(folder / name)
        for folder in _folders(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    limits = [value for value in values if value is not None and value < _UNLIMITED_BYTES]
    return min(limits, default=None)


def quota_stops(root: Path) -> int | None:
    """Return in how many periods the group was stopped because its quota was used up; None where nothing counts it."""
    counts = []
    for folder in _folders(root, "cpu"):
        table = dict(line.split(maxsplit=1) for line in (text(folder / "cpu.stat") or "").splitlines() if " " in line)
        if table.get("nr_throttled", "").isdecimal():
            counts.append(int(table["nr_throttled"]))
    return sum(counts) if counts else None


def _folders(root: Path, controller: str) -> list[Path]:
    """Return the folder of this process's group and those above it, from the inside out.

    Inside a container the path of the group may be the host's, of which only the top is there.
    """
    base = root / "sys/fs/cgroup"
    mount, key = (base / controller, controller) if (base / controller).is_dir() else (base, "")
    group = PurePosixPath("/")
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if key in controllers.split(","):
            group = PurePosixPath(path)
    if ".." in group.parts:  # outside of what this namespace shows
        group = PurePosixPath("/")
    inside = mount / str(group).lstrip("/")
    folders = [inside, *inside.parents]
    return [folder for folder in folders[: folders.index(mount) + 1] if folder.is_dir()]
