"""What Linux says of clocks, heat and the kind of machine, in /proc and /sys; nothing here raises for what is absent.

`root` is where proc/ and sys/ lie. Paths and units:
https://docs.kernel.org/admin-guide/pm/cpufreq.html, https://docs.kernel.org/driver-api/thermal/sysfs-api.html,
https://docs.kernel.org/hwmon/sysfs-interface.html
"""

import re
from pathlib import Path
from typing import Any

_CPU = "sys/devices/system/cpu"
_CPU_HWMON = frozenset({"coretemp", "k10temp", "zenpower", "cpu_thermal"})
_CONTAINER_GROUPS = re.compile(r"docker|kubepods|libpod|containerd|crio|podman|garden|lxc")
_COOLEST_TRIP_C = 40  # below it, a trip point is a placeholder of the firmware


def text(path: Path) -> str | None:
    """Return a small file's text without zero bytes and space around it; None where it cannot be read or is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def integer(path: Path) -> int | None:
    """Return the whole number that a file holds; None where it holds none."""
    found = text(path)
    return int(found) if found is not None and re.fullmatch(r"-?[0-9]+", found) else None


def colon_table(path: Path) -> dict[str, str]:
    """Return the `key : value` lines of a /proc file; of a repeated key, as one per core, the first."""
    table: dict[str, str] = {}
    for line in (text(path) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            table.setdefault(key.strip(), value.strip())
    return table


def cpu_policies(root: Path) -> list[dict[str, Any]]:
    """Return how the cores' clocks are governed, one entry for each way.

    Each has `governor`, `driver`, `min_khz` and `max_khz` (the range that the governor may use), `cores` (their
    numbers) and `current_khz` (one for each policy of the kernel, which covers one core or several).
    """
    ways: dict[tuple[Any, ...], dict[str, Any]] = {}
    folders = (root / _CPU / "cpufreq").glob("policy[0-9]*")
    for folder in sorted(folders, key=lambda policy: int(policy.name.removeprefix("policy"))):
        fixed = {
            "governor": text(folder / "scaling_governor"),
            "driver": text(folder / "scaling_driver"),
            "min_khz": integer(folder / "scaling_min_freq"),
            "max_khz": integer(folder / "scaling_max_freq"),
        }
        way = ways.setdefault(tuple(fixed.values()), {**fixed, "cores": [], "current_khz": []})
        way["cores"] += [int(core) for core in (text(folder / "affected_cpus") or "").split() if core.isdecimal()]
        current = integer(folder / "scaling_cur_freq")
        way["current_khz"] += [] if current is None else [current]
    return list(ways.values())


def clocks_khz(root: Path) -> dict[str, int]:
    """Return the present clock by policy of the kernel, or where it has none by core, as x86 virtual machines tell."""
    folders = sorted((root / _CPU / "cpufreq").glob("policy[0-9]*"))
    found = {folder.name: integer(folder / "scaling_cur_freq") for folder in folders}
    known = {name: clock for name, clock in found.items() if clock is not None}
    if known:
        return known
    megahertz = re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return {f"cpu{core}": round(float(clock) * 1000) for core, clock in enumerate(megahertz)}


def turbo(root: Path) -> bool | None:
    """Return whether cores may exceed their nominal clock; None where the driver does not tell."""
    off = integer(root / _CPU / "intel_pstate/no_turbo")
    if off is not None:
        return off == 0
    boost = integer(root / _CPU / "cpufreq/boost")
    return None if boost is None else boost == 1


def simultaneous_threads(root: Path) -> bool | None:
    """Return whether two logical cores share one (SMT, Hyper-Threading); None where the kernel does not tell."""
    active = integer(root / _CPU / "smt/active")
    return None if active is None else active == 1


def temperatures_c(root: Path) -> dict[str, float]:
    """Return every thermal zone, and the CPU's own sensors, by name; degrees Celsius."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone[0-9]*")):
        found[_zone_name(zone)] = integer(zone / "temp")
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon[0-9]*")):
        name = text(chip / "name")
        if name in _CPU_HWMON:
            for sensor in sorted(chip.glob("temp[0-9]*_input")):
                label = text(chip / sensor.name.replace("_input", "_label")) or sensor.name.removesuffix("_input")
                found[f"{name} {label}"] = integer(sensor)
    return {name: milli / 1000 for name, milli in found.items() if milli is not None}


def trips_c(root: Path) -> dict[str, float]:
    """Return by thermal zone the lowest temperature at which the kernel slows something down (a passive trip point)."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone[0-9]*")):
        passive = [kind for kind in zone.glob("trip_point_*_type") if text(kind) == "passive"]
        values = [integer(kind.with_name(kind.name.replace("_type", "_temp"))) for kind in passive]
        trips = [value / 1000 for value in values if value is not None and value >= _COOLEST_TRIP_C * 1000]
        if trips:
            found[_zone_name(zone)] = min(trips)
    return found


def throttle_counts(root: Path) -> dict[str, int]:
    """Return how often heat has slowed cores since the start, by counter: x86 counts it per core and per package.

    https://docs.kernel.org/admin-guide/abi-stable.html, /sys/devices/system/cpu/cpuX/thermal_throttle
    """
    found = {}
    for core in sorted((root / _CPU).glob("cpu[0-9]*")):
        for kind in ("core", "package"):
            count = integer(core / f"thermal_throttle/{kind}_throttle_count")
            if count is not None:
                package = integer(core / "topology/physical_package_id") or 0
                # Every core of a package shows the package's count.
                found[core.name if kind == "core" else f"package {package}"] = count
    return found


def container(root: Path) -> str | None:
    """Return the container that this process runs in, such as "docker"; None where nothing says that it does."""
    named = text(root / "run/systemd/container")
    if named is not None:
        return named
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    found = _CONTAINER_GROUPS.search(text(root / "proc/self/cgroup") or "")
    return None if found is None else found[0]


def nvidia_gpus(root: Path) -> list[str] | None:
    """Return the models of NVIDIA's GPUs as their driver lists them; None without the driver."""
    folder = root / "proc/driver/nvidia"
    if not folder.is_dir():
        return None
    return sorted(colon_table(card).get("Model", "unknown") for card in folder.glob("gpus/*/information"))


def nvidia_driver(root: Path) -> str | None:
    """Return the version of NVIDIA's kernel driver, such as "580.65.06"."""
    found = re.search(r"Kernel Module\s.*?([0-9]+\.[0-9.]+)", text(root / "proc/driver/nvidia/version") or "")
    return None if found is None else found[1]


def _zone_name(zone: Path) -> str:
    """Zones of one type are told apart by their number."""
    return f"{text(zone / 'type') or 'zone'} {zone.name.removeprefix('thermal_zone')}"
