"""The files of /proc and /sys of another machine, copied into a folder that stands for its root.

What reads this machine (`environment`, `snapshot`, `open_meters`, `read_jetson`) reads the copy by `root=`.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from tlc.runtime.remote import Remote

_CPU = "/sys/devices/system/cpu"
MOVING = (
    "/proc/cpuinfo",
    "/proc/loadavg",
    "/proc/pressure/cpu",
    "/proc/self/cgroup",
    "/proc/self/status",
    "/proc/stat",
    f"{_CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count",
    f"{_CPU}/cpu[0-9]*/topology/physical_package_id",
    f"{_CPU}/cpufreq/policy*/scaling_cur_freq",
    "/sys/class/hwmon/hwmon*/name",
    "/sys/class/hwmon/hwmon*/temp*_input",
    "/sys/class/hwmon/hwmon*/temp*_label",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/thermal_zone*/trip_point_*_temp",
    "/sys/class/thermal/thermal_zone*/trip_point_*_type",
    "/sys/class/thermal/thermal_zone*/type",
)
"""What changes while a model runs: enough for a snapshot."""
FIXED = (
    "/.dockerenv",
    "/etc/machine-id",
    "/etc/nv_tegra_release",
    "/proc/device-tree/bus@0/host1x*/nvdla*/compatible",
    "/proc/device-tree/bus@0/host1x*/nvdla*/status",
    "/proc/device-tree/compatible",
    "/proc/device-tree/host1x*/nvdla*/compatible",
    "/proc/device-tree/host1x*/nvdla*/status",
    "/proc/device-tree/hypervisor/compatible",
    "/proc/device-tree/model",
    "/proc/driver/nvidia/gpus/*/information",
    "/proc/driver/nvidia/version",
    "/proc/meminfo",
    "/proc/sys/kernel/random/boot_id",
    "/run/.containerenv",
    "/run/systemd/container",
    f"{_CPU}/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    f"{_CPU}/cpu[0-9]*/cpufreq/scaling_governor",
    f"{_CPU}/cpu[0-9]*/cpufreq/scaling_max_freq",
    f"{_CPU}/cpu[0-9]*/cpufreq/scaling_min_freq",
    f"{_CPU}/cpufreq/boost",
    f"{_CPU}/cpufreq/policy*/affected_cpus",
    f"{_CPU}/cpufreq/policy*/scaling_driver",
    f"{_CPU}/cpufreq/policy*/scaling_governor",
    f"{_CPU}/cpufreq/policy*/scaling_max_freq",
    f"{_CPU}/cpufreq/policy*/scaling_min_freq",
    f"{_CPU}/intel_pstate/no_turbo",
    f"{_CPU}/smt/active",
    "/sys/class/devfreq/*/max_freq",
    "/sys/class/devfreq/*/min_freq",
    "/sys/firmware/acpi/platform_profile",
    "/var/lib/nvpmodel/status",
)
"""What describes the machine."""
METERS = (
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/curr*_input",
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/in*_input",
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/in*_label",
    "/sys/bus/i2c/devices/*/iio:device*/in_power*_input",
    "/sys/bus/i2c/devices/*/iio:device*/rail_name_*",
    "/sys/class/powercap/intel-rapl:*/energy_uj",
    "/sys/class/powercap/intel-rapl:*/max_energy_range_uj",
    "/sys/class/powercap/intel-rapl:*/name",
)
"""Counters of energy."""
MEMORY = ("/proc/meminfo", "/proc/self/cgroup")
"""With the control groups, what is left for a process."""

# Of the session's own control group and those above it, in version 2 and in version 1's hierarchies.
_GROUPS = r"""
for base in /sys/fs/cgroup /sys/fs/cgroup/cpu /sys/fs/cgroup/cpuset /sys/fs/cgroup/memory; do
  [ -d "$base" ] || continue
  while IFS=: read -r _ _ group; do
    case $group in */..*) group=/ ;; esac
    while :; do
      for name in cpu.max cpu.stat cpu.cfs_quota_us cpu.cfs_period_us cpuset.cpus.effective cpuset.effective_cpus \
                  cpuset.cpus memory.max memory.current memory.limit_in_bytes; do
        [ -f "$base${group%/}/$name" ] && set -- "$@" "$base${group%/}/$name"
      done
      [ "$group" = / ] || [ -z "$group" ] && break
      group=${group%/*}
    done
  done </proc/self/cgroup
done 2>/dev/null
"""
# One process reads them all, each under a line with its name; what cannot be read is left out.
_READ = 'tail -n +1 -v "$@" 2>/dev/null; true'
_HEADER = re.compile(rb"(?:\A|\n)==> (/[^\n]*) <==\n")


def fetch_tree(remote: Remote, patterns: Sequence[str], folder: Path) -> Path:
    """Copy the files that match `patterns` of the shell, and those of the control groups, into `folder`; return it.

    A file that cannot be read there is missing here. Raises RemoteError.
    """
    script = f"set -- {' '.join(patterns)}\n{_GROUPS}{_READ}"
    parts = _HEADER.split(remote.run(script).stdout)
    for name, content in zip(parts[1::2], parts[2::2], strict=True):
        path = PurePosixPath(name.decode(errors="replace"))
        if ".." in path.parts:  # no glob gives one: whatever sent it, it stays outside
            continue
        place = folder / path.relative_to("/")
        with suppress(OSError):  # a name that is a folder as well
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    return folder
