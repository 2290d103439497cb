from pathlib import Path

import pytest
from trees import tree

from tlc.runtime import cgroup, sysfs

_CPU = "sys/devices/system/cpu"
_GROUP = "sys/fs/cgroup"


def _policy(number: int, cores: str, governor: str, current: int) -> dict[str, str | int]:
    folder = f"{_CPU}/cpufreq/policy{number}"
    return {
        f"{folder}/affected_cpus": cores,
        f"{folder}/scaling_governor": governor,
        f"{folder}/scaling_driver": "some-driver",
        f"{folder}/scaling_cur_freq": current,
        f"{folder}/scaling_min_freq": 400_000,
        f"{folder}/scaling_max_freq": 2_000_000,
    }


def test_cores_that_are_governed_alike_are_one_policy(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        _policy(10, "10", "powersave", 500_000)
        | _policy(0, "0 1", "powersave", 400_000)
        | _policy(2, "2", "ondemand", 1),
    )
    ways = sysfs.cpu_policies(root)
    assert ways[0] == {
        "governor": "powersave",
        "driver": "some-driver",
        "min_khz": 400_000,
        "max_khz": 2_000_000,
        "cores": [0, 1, 10],
        "current_khz": [400_000, 500_000],
    }
    assert [(way["governor"], way["cores"]) for way in ways[1:]] == [("ondemand", [2])]
    assert sysfs.clocks_khz(root) == {"policy0": 400_000, "policy10": 500_000, "policy2": 1}


def test_a_virtual_machine_tells_clocks_in_cpuinfo(tmp_path: Path) -> None:
    root = tree(
        tmp_path, {"proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2100.000\n\nprocessor : 1\ncpu MHz\t\t: 1999.5\n"}
    )
    assert sysfs.clocks_khz(root) == {"cpu0": 2_100_000, "cpu1": 1_999_500}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({f"{_CPU}/intel_pstate/no_turbo": 0}, True),
        ({f"{_CPU}/intel_pstate/no_turbo": 1}, False),
        ({f"{_CPU}/cpufreq/boost": 1}, True),
        ({f"{_CPU}/cpufreq/boost": 0}, False),
        ({}, None),
    ],
)
def test_turbo_is_what_the_driver_says(tmp_path: Path, files: dict[str, str | int], expected: bool | None) -> None:
    assert sysfs.turbo(tree(tmp_path, files)) is expected


def test_threads_that_share_a_core_are_told(tmp_path: Path) -> None:
    assert sysfs.simultaneous_threads(tmp_path) is None
    assert sysfs.simultaneous_threads(tree(tmp_path, {f"{_CPU}/smt/active": 1})) is True
    assert sysfs.simultaneous_threads(tree(tmp_path, {f"{_CPU}/smt/active": 0})) is False


def test_temperatures_are_those_of_zones_and_of_the_cpus_own_sensors(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 45500,
            "sys/class/thermal/thermal_zone1/type": "off",
            "sys/class/thermal/thermal_zone1/temp": "",
            "sys/class/hwmon/hwmon2/name": "k10temp",
            "sys/class/hwmon/hwmon2/temp1_input": -2000,
            "sys/class/hwmon/hwmon2/temp1_label": "Tctl",
            "sys/class/hwmon/hwmon3/name": "nvme",
            "sys/class/hwmon/hwmon3/temp1_input": 30000,
        },
    )
    assert sysfs.temperatures_c(root) == {"cpu-thermal 0": 45.5, "k10temp Tctl": -2.0}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"run/systemd/container": "systemd-nspawn"}, "systemd-nspawn"),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/self/cgroup": "0::/kubepods.slice/pod7/cri-containerd-1.scope"}, "kubepods"),
        ({"proc/self/cgroup": "0::/user.slice/user-1000.slice"}, None),
        ({}, None),
    ],
)
def test_a_container_is_told_by_its_marks(tmp_path: Path, files: dict[str, str | int], expected: str | None) -> None:
    assert sysfs.container(tree(tmp_path, files)) == expected


def test_gpus_are_those_of_the_driver(tmp_path: Path) -> None:
    assert (sysfs.nvidia_gpus(tmp_path), sysfs.nvidia_driver(tmp_path)) == (None, None)
    root = tree(
        tmp_path,
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ:   \t\t 5",
        },
    )
    assert (sysfs.nvidia_gpus(root), sysfs.nvidia_driver(root)) == (["NVIDIA L4"], "580.65.06")


def test_the_tightest_limit_of_version_2_counts_from_the_own_group_upwards(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job.scope",
            f"{_GROUP}/cpuset.cpus.effective": "0-7",
            f"{_GROUP}/cpu.stat": "nr_periods 0",
            f"{_GROUP}/user.slice/cpu.max": "150000 100000",
            f"{_GROUP}/user.slice/memory.max": "max",
            f"{_GROUP}/user.slice/cpu.stat": "nr_periods 7\nnr_throttled 3",
            f"{_GROUP}/user.slice/job.scope/cpu.max": "max 100000",
            f"{_GROUP}/user.slice/job.scope/memory.max": 2**30,
            f"{_GROUP}/user.slice/job.scope/cpu.stat": "nr_periods 7\nnr_throttled 2",
            f"{_GROUP}/other/cpu.max": "1000 100000",
        },
    )
    assert cgroup.cpu_quota(root) == "150000 100000"
    assert cgroup.memory_limit_bytes(root) == 2**30
    assert cgroup.cpuset(root) == "0-7"
    assert cgroup.quota_stops(root) == 5


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpuset:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/",
            f"{_GROUP}/cpu/docker/abc/cpu.cfs_quota_us": 50000,
            f"{_GROUP}/cpu/docker/abc/cpu.cfs_period_us": 100000,
            f"{_GROUP}/cpu/cpu.cfs_quota_us": -1,
            f"{_GROUP}/cpu/cpu.cfs_period_us": 100000,
            f"{_GROUP}/cpu/docker/abc/cpu.stat": "nr_periods 7\nnr_throttled 4\nthrottled_time 9",
            f"{_GROUP}/cpuset/docker/abc/cpuset.cpus": "0,2",
            f"{_GROUP}/memory/memory.limit_in_bytes": 9223372036854771712,
            f"{_GROUP}/memory/docker/abc/memory.limit_in_bytes": 512 * 2**20,
        },
    )
    assert cgroup.cpu_quota(root) == "50000 100000"
    assert cgroup.memory_limit_bytes(root) == 512 * 2**20
    assert cgroup.cpuset(root) == "0,2"
    assert cgroup.quota_stops(root) == 4


@pytest.mark.parametrize("path", ["/docker/of-the-host", "/../../other"])
def test_inside_a_container_the_top_of_what_is_mounted_counts(tmp_path: Path, path: str) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": f"0::{path}", f"{_GROUP}/cpu.max": "max 100000"})
    tree(tmp_path, {"other/cpu.max": "1 100000", "sys/other/cpu.max": "1 100000"})
    assert cgroup.cpu_quota(root) == "max 100000"
    assert cgroup.memory_limit_bytes(root) is None
    assert cgroup.quota_stops(root) is None
