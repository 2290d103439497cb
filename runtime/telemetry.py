"""Power, temperatures and clocks of a device while something runs on it, over a stream of their own.

A shell on the device reads its sensors once a second, and does nothing else: one process a second is all it starts.
Paths and units are those of `tlc.runtime.sysfs` and `tlc.runtime.power`.
"""

import csv
import io
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from pydantic import BaseModel, ConfigDict

from tlc.runtime.power import tegrastats_milliwatts, total_rails
from tlc.runtime.remote import Remote

# `column KIND NAME` for each sensor, `begin`, then lines of seconds since the device's start and one value for each; an
# empty value is `-`. tegrastats stands behind a `|`, and is asked only where no sensor of power can be read.
_SAMPLE = r"""
root=${1%/} every=$2 files= rails=
column() { files="$files $1"; echo "column $2 $3"; }
for zone in "$root"/sys/class/thermal/thermal_zone*; do
  [ -r "$zone/temp" ] && column "$zone/temp" millicelsius "$(cat "$zone/type") ${zone##*thermal_zone}"
done
for policy in "$root"/sys/devices/system/cpu/cpufreq/policy*; do
  [ -r "$policy/scaling_cur_freq" ] && column "$policy/scaling_cur_freq" kilohertz "cpu ${policy##*policy}"
done
for gpu in "$root"/sys/class/devfreq/*gpu* "$root"/sys/class/devfreq/*gp10b* "$root"/sys/class/devfreq/*gv11b* \
  "$root"/sys/class/devfreq/*ga10b*; do
  [ -r "$gpu/cur_freq" ] && column "$gpu/cur_freq" hertz gpu && break
done
for label in "$root"/sys/bus/i2c/devices/*/hwmon/hwmon*/in*_label; do
  [ -r "$label" ] && rail=$(cat "$label") && [ -n "$rail" ] && [ "$rail" != NC ] || continue
  channel=${label##*/in} channel=${channel%_label} folder=${label%/*}
  [ -r "$folder/in${channel}_input" ] && [ -r "$folder/curr${channel}_input" ] || continue
  column "$folder/in${channel}_input" millivolt "$rail"
  column "$folder/curr${channel}_input" milliampere "$rail"
  rails=1
done
for label in "$root"/sys/bus/i2c/devices/*/iio:device*/rail_name_*; do
  [ -r "$label" ] && rail=$(cat "$label") && [ -n "$rail" ] && [ "$rail" != NC ] || continue
  power=${label%/*}/in_power${label##*rail_name_}_input
  [ -r "$power" ] && column "$power" milliwatt "$rail" && rails=1
done
for zone in "$root"/sys/class/powercap/intel-rapl:?; do
  [ -r "$zone/energy_uj" ] && column "$zone/energy_uj" microjoule "$(cat "$zone/name")"
done
echo begin
sample() {
  read -r line _ <"$root/proc/uptime" || line=-
  for file in $files; do
    value=
    read -r value <"$file"
    line="$line ${value:--}"
  done 2>/dev/null
}
if [ -z "$rails" ] && command -v tegrastats >/dev/null; then
  tegrastats --interval $((every * 1000)) | while read -r said; do sample; echo "$line | $said"; done
else
  while :; do sample; echo "$line"; sleep "$every"; done
fi
"""

_FACTOR = {"millicelsius": 1e-3, "kilohertz": 1e-3, "hertz": 1e-6, "milliwatt": 1e-3, "microjoule": 1e-6}
_PREFIX = {"millicelsius": "temperature_c", "kilohertz": "clock_mhz", "hertz": "clock_mhz"}


class Range(BaseModel):
    """What a sensor said over the whole time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    mean: float
    high: float


@dataclass(slots=True)
class Samples:
    """What the lines of the stream say, in the order they came."""

    columns: list[tuple[str, str]] = field(default_factory=list)
    """Kind and name of each sensor."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """`uptime_s`, and `temperature_c NAME`, `clock_mhz NAME`, `watts NAME`, as far as each was read."""
    _last: dict[str, tuple[float, float]] = field(default_factory=dict)
    _begun: bool = False

    def add(self, line: str) -> None:
        """Read one more line; one that a broken connection cut is left out."""
        if not self._begun:
            word, _, rest = line.partition(" ")
            if word == "column":
                kind, _, name = rest.partition(" ")
                self.columns.append((kind, name))
            self._begun = word == "begin"
            return
        values, _, tegrastats = line.partition(" | ")
        words = values.split()
        if len(words) != len(self.columns) + 1:
            return
        try:
            numbers = [None if word == "-" else float(word) for word in words]
        except ValueError:
            return
        if numbers[0] is not None:
            self.rows.append(self._row(numbers[0], numbers[1:], tegrastats_milliwatts(tegrastats)))

    def ranges(self) -> dict[str, Range]:
        """Return for each sensor its lowest, mean and highest value; `watts` alone is the module's input."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        found.pop("uptime_s", None)
        return {
            name: Range(low=min(values), mean=sum(values) / len(values), high=max(values))
            for name, values in sorted(found.items())
        }

    def as_csv(self) -> str:
        """Return all rows as a table with a header; what was not read is empty."""
        names = sorted({name for row in self.rows for name in row} - {"uptime_s"})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["uptime_s", *names], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def _row(self, uptime_s: float, numbers: Sequence[float | None], milliwatts: dict[str, int]) -> dict[str, float]:
        row = {"uptime_s": uptime_s}
        amperes: dict[str, float] = {}
        volts: dict[str, float] = {}
        for (kind, name), number in zip(self.columns, numbers, strict=True):
            if number is None:
                continue
            if kind in _PREFIX:
                row[f"{_PREFIX[kind]} {name}"] = number * _FACTOR[kind]
            elif kind == "millivolt":
                volts[name] = number / 1000
            elif kind == "milliampere":
                amperes[name] = number / 1000
            elif kind == "milliwatt":
                row[f"watts {name}"] = number * _FACTOR[kind]
            else:
                self._add_power(row, name, uptime_s, number * _FACTOR[kind])
        row.update({f"watts {name}": volts[name] * amperes[name] for name in volts if name in amperes})
        row.update({f"watts {name}": value / 1000 for name, value in milliwatts.items()})
        rails = {name.removeprefix("watts "): value for name, value in row.items() if name.startswith("watts ")}
        if total := total_rails(rails):
            row["watts"] = sum(rails[name] for name in total)
        return row

    def _add_power(self, row: dict[str, float], name: str, uptime_s: float, joules: float) -> None:
        """A counter of energy becomes a power with its second reading; one that wrapped around says nothing."""
        before = self._last.get(name)
        self._last[name] = (uptime_s, joules)
        if before is not None and uptime_s > before[0] and joules >= before[1]:
            row[f"watts {name}"] = (joules - before[1]) / (uptime_s - before[0])


class Telemetry:
    """Reads a device's sensors for as long as the `with` lasts; `samples` has them then.

    `root` is where the device has sys/ and proc/. Never raises for what a device does not have, nor for a connection
    that drops: it is not what is waited for.
    """

    def __init__(self, remote: Remote, *, root: str = "/", interval_s: int = 1) -> None:
        self.samples = Samples()
        self._child = subprocess.Popen(  # noqa: S603
            remote.popen(["sh", "-c", _SAMPLE, "tlc-telemetry", root, str(interval_s)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                self.samples.add(line.decode(errors="replace").rstrip("\n"))
