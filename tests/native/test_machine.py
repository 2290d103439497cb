"""What tlc-run reads of a machine is what Python reads of it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from native_build import built
from trees import tree

from tlc.runtime.environment import environment, machine_identity
from tlc.runtime.health import snapshot
from tlc.runtime.power import open_meters

CPU = "sys/devices/system/cpu"
I2C = "sys/bus/i2c/devices"
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\n\nprocessor\t: 1\nFeatures\t: fp",
    "proc/meminfo": "MemTotal:       31355000 kB\nMemAvailable:   29000000 kB",
    "proc/stat": "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 5 50 900 10 1 2 3 0 0\ncpu1 200 5 50 800 10 1 2 30 0 0\nintr 5",
    "proc/self/cgroup": "0::/system.slice/tlc.service",
    "etc/machine-id": "0123456789abcdef0123456789abcdef",
    "var/lib/nvpmodel/status": "pmode:0000",
    "sys/class/devfreq/17000000.gpu/min_freq": 306000000,
    "sys/class/devfreq/17000000.gpu/max_freq": 1300500000,
    f"{CPU}/cpu0/cpufreq/scaling_min_freq": 2201600,
    f"{CPU}/cpu0/cpufreq/scaling_max_freq": 2201600,
    f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil",
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": 2201600,
    **{
        f"{CPU}/cpufreq/policy{policy}/{name}": value
        for policy in (0, 4, 10)
        for name, value in {
            "scaling_governor": "schedutil" if policy else "performance",
            "scaling_driver": "tegra194",
            "scaling_min_freq": 115200,
            "scaling_max_freq": 2201600,
            "scaling_cur_freq": 1000000 + policy,
            "affected_cpus": f"{policy} {policy + 1}",
        }.items()
    },
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 51437,
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": 99000,
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": 85500,
    "sys/class/thermal/thermal_zone0/trip_point_2_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_2_temp": 0,
    "sys/class/thermal/thermal_zone10/temp": -256000,
    "sys/fs/cgroup/system.slice/tlc.service/cpu.max": "150000 100000",
    "sys/fs/cgroup/system.slice/tlc.service/cpu.stat": "usage_usec 5\nnr_throttled 7",
    "sys/fs/cgroup/system.slice/cpu.max": "max 100000",
    "sys/fs/cgroup/system.slice/cpu.stat": "nr_throttled 1",
    "sys/fs/cgroup/system.slice/memory.max": 8589934592,
    "sys/fs/cgroup/cpuset.cpus.effective": "0-11",
    f"{I2C}/1-0040/hwmon/hwmon3/in1_label": "VDD_GPU_SOC",
    f"{I2C}/1-0040/hwmon/hwmon3/in1_input": 12000,
    f"{I2C}/1-0040/hwmon/hwmon3/curr1_input": 500,
    f"{I2C}/1-0040/hwmon/hwmon3/in2_label": "VDD_CPU_CV",
    f"{I2C}/1-0040/hwmon/hwmon3/in2_input": 12000,
    f"{I2C}/1-0040/hwmon/hwmon3/curr2_input": 250,
    f"{I2C}/1-0040/hwmon/hwmon3/in3_label": "VIN_SYS_5V0",
    f"{I2C}/1-0040/hwmon/hwmon3/in3_input": 5000,
    f"{I2C}/1-0040/hwmon/hwmon3/curr3_input": 1000,
    f"{I2C}/1-0040/hwmon/hwmon3/in7_label": "sum of shunt voltages",
    f"{I2C}/1-0040/hwmon/hwmon3/in7_input": 3,
}
NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit",
    "proc/device-tree/hypervisor/compatible": "xen",
    "proc/self/cgroup": "7:cpu,cpuacct:/docker/1234\n6:memory:/docker/1234\n0::/",
    ".dockerenv": "",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
    "sys/fs/cgroup/cpu/docker/1234/cpu.cfs_quota_us": 50000,
    "sys/fs/cgroup/cpu/docker/1234/cpu.cfs_period_us": 100000,
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
    "sys/fs/cgroup/memory/docker/1234/memory.limit_in_bytes": 2147483648,
    "sys/fs/cgroup/cpuset/cpuset.cpus": "0-3",
    f"{I2C}/6-0040/iio:device0/rail_name_0": "POM_5V_IN",
    f"{I2C}/6-0040/iio:device0/in_power0_input": 2500,
    f"{I2C}/6-0040/iio:device0/rail_name_1": "POM_5V_GPU",
    f"{I2C}/6-0040/iio:device0/in_power1_input": 100,
}
PC = {
    "proc/cpuinfo": "model name\t: Some CPU @ 3 GHz\nflags\t\t: fpu sse4_1 avx2 avx512_vnni",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sat Aug 16\nGCC version:",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX 4090\nIRQ: 5",
    "sys/class/hwmon/hwmon2/name": "k10temp",
    "sys/class/hwmon/hwmon2/temp1_input": 45500,
    "sys/class/hwmon/hwmon2/temp1_label": "Tctl",
    "sys/class/hwmon/hwmon2/temp3_input": 41000,
    "sys/class/hwmon/hwmon3/name": "nvme",
    "sys/class/hwmon/hwmon3/temp1_input": 30000,
    f"{CPU}/intel_pstate/no_turbo": 1,
    f"{CPU}/smt/active": 1,
    f"{CPU}/cpu0/thermal_throttle/core_throttle_count": 4,
    f"{CPU}/cpu0/thermal_throttle/package_throttle_count": 9,
    f"{CPU}/cpu0/topology/physical_package_id": 0,
    f"{CPU}/cpu1/thermal_throttle/core_throttle_count": 0,
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 5000000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 262143328850,
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": 1,
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": 2,
    "run/systemd/container": "lxc",
}
ODD_RAILS: dict[str, Any] = {
    f"{I2C}/6-0040/iio:device0/rail_name_0": "ELSE",
    f"{I2C}/6-0040/iio:device0/in_power0_input": 2500,
}


@pytest.fixture(scope="module")
def program() -> Path:
    return built("tlc_machine_probe")


def probed(program: Path, root: Path) -> dict[str, Any]:
    done = subprocess.run([program, f"{root}/".replace("//", "/")], capture_output=True, text=True, check=True)
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def comparable(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two moments and between two programs."""
    moving = ("load_average", "time_utc", "python", "versions", "memory_available_bytes")
    return {name: value for name, value in facts.items() if name not in moving}


@pytest.mark.parametrize("files", [ORIN, NANO, PC, {}], ids=["orin", "nano", "pc", "nothing"])
def test_it_reads_what_python_reads(
    program: Path, tmp_path: Path, files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path, files)
    monkeypatch.setenv("PATH", "")  # no tegrastats
    there = probed(program, root)
    here = environment(root=root, libraries=())
    assert there["environment"].keys() == here.keys()
    assert comparable(there["environment"]) == comparable(here)
    assert there["identity"] == machine_identity({**here, "versions": {"onnxruntime": "1.31.1"}})
    now = snapshot(root)
    for name, value in there["snapshot"].items():
        assert value == pytest.approx(getattr(now, name)), name
    meters, _ = open_meters(root)
    names = [meter.name for meter in meters if not meter.name.startswith("nvml")]
    for meter in meters:
        meter.close()
    assert list(there["watts"]) == names


def test_it_reads_this_machine(program: Path) -> None:
    there, here = probed(program, Path("/")), environment(libraries=())
    assert there["environment"].keys() == here.keys()
    for facts in (there["environment"], here):
        for policy in facts["cpu_policies"] or ():
            del policy["current_khz"]
        facts["temperatures_c"] = sorted(facts["temperatures_c"] or ())
    assert comparable(there["environment"]) == comparable(here)


@pytest.mark.parametrize(
    ("files", "counter", "watts"),
    [
        (ORIN, "ina3221 VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", 12 * 0.5 + 12 * 0.25 + 5 * 1.0),
        (NANO, "ina3221 POM_5V_IN", 2.5),
        (PC, "rapl package-0", 0),
    ],
    ids=["orin", "nano", "pc"],
)
def test_power_is_that_of_the_module(
    program: Path, tmp_path: Path, files: dict[str, Any], counter: str, watts: float
) -> None:
    # On a busy machine the clock is read some time after the sensors.
    assert probed(program, tree(tmp_path, files))["watts"] == {counter: pytest.approx(watts, rel=0.15)}


def test_a_counter_that_is_not_there_is_named(program: Path, tmp_path: Path) -> None:
    found = probed(program, tree(tmp_path, ODD_RAILS))
    assert found["watts"] == {}
    assert found["problems"] == [
        "RAPL: there is no sys/class/powercap/intel-rapl:0; virtual machines and most ARM boards have none",
        "INA3221: none of the rails ELSE is known as the input of a module",
    ]
    (tmp_path / "sys/class/powercap/intel-rapl:0").mkdir(parents=True)
    assert "cannot be read" in probed(program, tmp_path)["problems"][0]
