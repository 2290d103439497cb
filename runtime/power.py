"""Counters of energy: RAPL on x86, NVML on NVIDIA's GPUs, INA3221 sensors and tegrastats on Jetson modules.

Each counts everything in its domain, other work included. Where a counter is not offered, a sentence says why.
"""

import re
import shutil
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tlc.runtime import nvml
from tlc.runtime.errors import TlcError
from tlc.runtime.nvml import device_memory_bytes as device_memory_bytes
from tlc.runtime.sysfs import integer, text

# Rails that together are a module's input, by board; the first set that is all there counts. Other rails lie behind
# these and would be counted twice. "Power Consumption Monitoring" in NVIDIA's Jetson Linux Developer Guide.
_TOTALS = (
    ("VDD_IN",),  # TX2, Xavier NX, Orin NX, Orin Nano
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
# "VDD_IN 4980mW/4512mW" is now and average; JetPack 4 leaves the unit out, JetPack 7 adds a third number. "RAM
# 2257/30536MB" is none.
_RAIL = re.compile(r"(\S+) (\d+)(?:mW)?/\d+(?:mW)?(?:/\d+(?:mW)?)?(?=\s|$)")
_INTERVAL_S = 0.05
TEGRASTATS_OPTIONS = ("--interval", str(int(_INTERVAL_S * 1000)))
_FIRST_LINE_S = 5.0


class Meter(ABC):
    """A counter of energy; two readings, and the difference is what its domain took between them."""

    name: str
    """Such as "rapl package-0"."""

    @abstractmethod
    def joules(self) -> float:
        """Return the energy since some moment before; it never falls. Raises TlcError when it can no longer be read."""

    def close(self) -> None:  # noqa: B027 - most have nothing to stop
        """Stop reading; a second call does nothing."""


class RaplMeter(Meter):
    """One domain of the CPU's own counter. It wraps around, after about an hour at full load: read it before that.

    `read` returns the number that the counter's file holds.
    https://docs.kernel.org/power/powercap/powercap.html. Raises OSError or ValueError where it cannot be read.
    """

    def __init__(self, zone: Path, read: Callable[[Path], int | None] = integer) -> None:
        self.name = f"rapl {text(zone / 'name') or zone.name}"
        self._counter, self._read = zone / "energy_uj", read
        self._range_uj = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last_uj = int(self._counter.read_text(encoding="ascii"))
        self._total_uj = 0

    def joules(self) -> float:
        """Return the energy since this meter was made."""
        now_uj = self._read(self._counter)
        if now_uj is None:
            raise _silent(self.name)
        self._total_uj += now_uj - self._last_uj + (self._range_uj if now_uj < self._last_uj else 0)
        self._last_uj = now_uj
        return self._total_uj / 1e6


class NvmlMeter(Meter):
    """The total energy of one GPU since its driver was loaded: Volta and later."""

    def __init__(self, place: int, handle: Any) -> None:
        self.name = f"nvml {place}"
        self._handle = handle

    def joules(self) -> float:
        """Return the energy since the driver was loaded."""
        library, _ = nvml.open_nvml()
        millijoules = nvml.asked(library.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        if millijoules is None:
            raise _silent(self.name)
        return float(millijoules) / 1000


class SampledMeter(Meter):
    """A sensor of power, read every `interval_s` seconds by a thread and integrated by the trapezoidal rule.

    `watts` returns the power now, None when the sensor does not answer; `clock_s` is monotonic. With `interval_s` of
    None there is no thread, and only `joules` samples.
    """

    def __init__(
        self,
        name: str,
        watts: Callable[[], float | None],
        *,
        interval_s: float | None = _INTERVAL_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._watts, self._interval_s, self._clock_s = watts, interval_s, clock_s
        self._lock = threading.Lock()
        self._last: tuple[float, float] | None = None
        self._joules = 0.0
        self._sample()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        if interval_s is not None:
            self._thread.start()

    def joules(self) -> float:
        """Return the energy since this meter was made."""
        if not self._sample():
            raise _silent(self.name)
        with self._lock:
            return self._joules

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> bool:
        with self._lock:  # around the reading too: samples are added in the order of their times
            watts, now_s = self._watts(), self._clock_s()
            if watts is None:
                return False
            if self._last is not None:
                last_s, last_watts = self._last
                self._joules += (now_s - last_s) * (watts + last_watts) / 2
            self._last = (now_s, watts)
            return True


class StreamMeter(SampledMeter):
    """A program that prints power in lines; `read` returns what a line names and its watts, None for any other line.

    `kind` is what its name begins with. Raises TlcError when no such line comes within five seconds.
    """

    def __init__(self, kind: str, argv: Sequence[str], read: Callable[[str], tuple[str, float] | None]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._now: float | None = None
        self._named, self._parse = "", read
        self._begun = threading.Event()
        self._reader = threading.Thread(target=self._read_lines, daemon=True)
        self._reader.start()
        self._begun.wait(_FIRST_LINE_S)
        if self._now is None:
            self._end()
            raise TlcError(
                f"{kind} printed no power of a module within {_FIRST_LINE_S:g} s",
                hint="Run it by hand: on this board it may need root, or have rails of other names.",
            )
        super().__init__(f"{kind} {self._named}", lambda: self._now)

    def close(self) -> None:
        """Stop the thread and end the program."""
        super().close()
        self._end()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = self._parse(line)
            if found is not None:
                self._named, self._now = found
            self._begun.set()
        self._now = None
        self._begun.set()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


class TegrastatsMeter(StreamMeter):
    """What NVIDIA's `tegrastats` prints of the module's input. Raises TlcError when it prints no rail that is known.

    `argv` is how it is started, `TEGRASTATS_OPTIONS` included.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__("tegrastats", argv, _module_watts)


def open_meters(root: Path = Path("/")) -> tuple[list[Meter], list[str]]:
    """Return every counter of energy that this machine offers, and a sentence for each kind that it does not.

    `root` is where sys/ lies. Close the meters: those of Jetson modules read in a thread of their own. tegrastats is
    asked only where the sensors themselves cannot be read.
    """
    meters: list[Meter] = []
    problems: list[str] = []
    for found, problem in (_rapl(root), _gpus(), _module(root)):
        meters += found
        problems += [problem] if problem else []
    return meters, problems


def total_rails(rails: Collection[str]) -> tuple[str, ...]:
    """Return those of a Jetson's rails that together are what the module takes; none for rails of another board.

    >>> total_rails(["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"])
    ('VDD_IN',)
    """
    return next((total for total in _TOTALS if set(total) <= set(rails)), ())


def tegrastats_milliwatts(line: str) -> dict[str, int]:
    """Return the power now of each rail in a line of tegrastats, from JetPack 4 to 7; mW.

    >>> tegrastats_milliwatts("RAM 2257/30536MB (lfb 1x4MB) GR3D_FREQ 0% VDD_IN 4980mW/4512mW VDD_SOC 1426mW/1400mW")
    {'VDD_IN': 4980, 'VDD_SOC': 1426}
    """
    return {name: int(now) for name, now in _RAIL.findall(line)}


def _rapl(root: Path) -> tuple[list[Meter], str]:
    zones = sorted(
        zone for zone in (root / "sys/class/powercap").glob("intel-rapl:*") if re.fullmatch(r"[^:]+:\d+", zone.name)
    )
    if not zones:
        return [], "RAPL: there is no sys/class/powercap/intel-rapl:0; virtual machines and most ARM boards have none"
    found: list[Meter] = []
    problem = ""
    for zone in zones:
        try:
            found.append(RaplMeter(zone))
        except PermissionError:
            problem = f"RAPL: {zone / 'energy_uj'} is for root alone; run as root, or `sudo chmod o+r` that file"
        except (OSError, ValueError) as error:
            problem = f"RAPL: {zone / 'energy_uj'} cannot be read: {error}"
    return found, problem


def _gpus() -> tuple[list[Meter], str]:
    library, problem = nvml.open_nvml()
    if library is None:
        return [], problem
    found: list[Meter] = []
    for place, handle in nvml.devices():
        if nvml.asked(library.nvmlDeviceGetTotalEnergyConsumption, handle) is None:
            problem = f"NVML: GPU {place} does not count its energy; Volta and later do"
        else:
            found.append(NvmlMeter(place, handle))
    return found, problem


def _module(root: Path) -> tuple[list[Meter], str]:
    rails = sensor_files(root)
    total = total_rails(rails)
    if total:
        sensors = [rails[name] for name in total]
        return [SampledMeter(f"ina3221 {'+'.join(total)}", lambda: _watts(sensors))], ""
    command = shutil.which("tegrastats")
    if command is not None:
        try:
            return [TegrastatsMeter([command, *TEGRASTATS_OPTIONS])], ""
        except (TlcError, OSError) as error:
            return [], f"tegrastats: {error}"
    if rails:
        return [], f"INA3221: none of the rails {', '.join(sorted(rails))} is known as the input of a module"
    return [], "INA3221: there is no such sensor, and no tegrastats; both belong to Jetson modules"


def sensor_files(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return by rail the files that hold its power, from hwmon (JetPack 5 and later) or iio (JetPack 4).

    One file holds milliwatts, two hold millivolts and milliamperes: `watts_of` puts them together.
    """
    devices = root / "sys/bus/i2c/devices"
    found: dict[str, tuple[Path, ...]] = {}
    for label in sorted(devices.glob("*/hwmon/hwmon*/in[0-9]*_label")):
        channel, name = label.name.removeprefix("in").removesuffix("_label"), text(label)
        files = (label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input"))
        # Channel 7 is the sum of the shunt voltages, and has no current.
        if name and name != "NC" and all(integer(file) is not None for file in files):
            found[name] = files
    for label in sorted(devices.glob("*/iio:device*/rail_name_*")):
        name, power = text(label), label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input")
        if name and name != "NC" and integer(power) is not None:
            found[name] = (power,)
    return found


def watts_of(values: Sequence[int | None]) -> float | None:
    """Return the power that the files of one rail say; None where one of them says none.

    >>> watts_of([5000]), watts_of([5000, 200]), watts_of([5000, None])
    (5.0, 1.0, None)
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return known[0] / 1000 if len(known) == 1 else known[0] * known[1] / 1e6


def _watts(sensors: Collection[Sequence[Path]]) -> float | None:
    values = [watts_of([integer(file) for file in files]) for files in sensors]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _module_watts(line: str) -> tuple[str, float] | None:
    rails = tegrastats_milliwatts(line)
    total = total_rails(rails)
    return ("+".join(total), sum(rails[name] for name in total) / 1000) if total else None


def _silent(name: str) -> TlcError:
    return TlcError(
        f"the energy counter {name} no longer answers", hint="Measure again; without it no energy is known."
    )
