"""Counters of energy of another machine: the same as `tlc.runtime.power` knows, read over SSH.

Sensors and tools are read there by one process that prints line by line, since a command for each reading would cost
the device more than it measures.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tlc.runtime.errors import TlcError
from tlc.runtime.power import (
    TEGRASTATS_OPTIONS,
    Meter,
    RaplMeter,
    StreamMeter,
    TegrastatsMeter,
    sensor_files,
    total_rails,
    watts_of,
)
from tlc.runtime.remote import Remote
from tlc.runtime.sysfs import text

_SENSORS = """
while :; do
  line=; for f in FILES; do read -r value <"$f" || value=-; line="$line $value"; done
  echo $line; sleep 0.1
done
"""
_TOOLS = "for tool in tegrastats nvidia-smi; do command -v $tool; done; true"
_INTERVAL_MS = 100


def open_remote_meters(remote: Remote, root: Path) -> tuple[list[Meter], list[str]]:
    """Return every counter that the machine offers, and a sentence for each kind that it does not.

    `root` holds a copy of its files, `tlc.runtime.remote_tree.METERS` among them. Close the meters. Raises RemoteError.
    """
    tools = {line.rpartition("/")[2]: line for line in remote.check(_TOOLS).split()}
    meters: list[Meter] = []
    problems: list[str] = []
    for found, problem in (_rapl(remote, root), _gpu(remote, tools), _module(remote, root, tools)):
        meters += found
        problems += [problem] if problem else []
    return meters, problems


def _rapl(remote: Remote, root: Path) -> tuple[list[Meter], str]:
    def read(counter: Path) -> int | None:
        said = remote.run(f"cat {shlex.quote(f'/{counter.relative_to(root)}')}").stdout.decode().strip()
        return int(said) if said.isdecimal() else None

    zones = [zone for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")) if zone.name.count(":") == 1]
    if not zones:
        return [], "RAPL: there is no sys/class/powercap/intel-rapl:0; virtual machines and most ARM boards have none"
    hidden = [zone for zone in zones if text(zone / "energy_uj") is None]
    if hidden:
        file = f"/{hidden[0].relative_to(root)}/energy_uj"
        return [], f"RAPL: {file} is for root alone; log in as root, or `sudo chmod o+r` that file there"
    return [RaplMeter(zone, read) for zone in zones], ""


def _gpu(remote: Remote, tools: Mapping[str, str]) -> tuple[list[Meter], str]:
    if "nvidia-smi" not in tools:
        return [], "NVML: there is no nvidia-smi"
    query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i", "0", "-lms", str(_INTERVAL_MS)]
    try:
        return [StreamMeter("nvml", remote.popen([tools["nvidia-smi"], *query]), _gpu_watts)], ""
    except TlcError as error:
        return [], f"NVML: {error.message}"


def _module(remote: Remote, root: Path, tools: Mapping[str, str]) -> tuple[list[Meter], str]:
    rails = sensor_files(root)
    total = total_rails(rails)
    problem = ""
    if total:
        files = [rails[name] for name in total]
        names = " ".join(shlex.quote(f"/{file.relative_to(root)}") for part in files for file in part)
        argv = remote.popen(["sh", "-c", _SENSORS.replace("FILES", names)])
        lengths = [len(part) for part in files]
        try:
            return [StreamMeter("ina3221", argv, lambda line: _rail_watts(line, lengths, "+".join(total)))], ""
        except TlcError as error:
            problem = f"INA3221: {error.message}"
    if "tegrastats" in tools:
        try:
            return [TegrastatsMeter(remote.popen([tools["tegrastats"], *TEGRASTATS_OPTIONS]))], ""
        except TlcError as error:
            return [], f"tegrastats: {error.message}"
    return [], problem or "INA3221: there is no such sensor, and no tegrastats; both belong to Jetson modules"


def _gpu_watts(line: str) -> tuple[str, float] | None:
    try:
        return "0", float(line)
    except ValueError:
        return None


def _rail_watts(line: str, lengths: Sequence[int], name: str) -> tuple[str, float] | None:
    """Read a line of `_SENSORS`: the numbers of each rail's files, one rail after the other."""
    numbers = [int(value) if value.isdecimal() else None for value in line.split()]
    if len(numbers) != sum(lengths):
        return None
    watts, start = 0.0, 0
    for length in lengths:
        rail = watts_of(numbers[start : start + length])
        if rail is None:
            return None
        watts, start = watts + rail, start + length
    return name, watts
