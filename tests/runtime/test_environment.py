import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tlc.runtime.environment import cpu_flags, environment, identity_differences, machine_identity

_X86 = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse2 avx2 avx512_vnni hypervisor

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def _machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_an_x86_machine_is_read_from_proc_and_sys(tmp_path: Path) -> None:
    cpufreq = "sys/devices/system/cpu/cpu0/cpufreq"
    root = _machine(
        tmp_path,
        {
            "proc/cpuinfo": _X86,
            "proc/meminfo": "MemTotal:        8046428 kB\nMemAvailable:    1000000 kB\n",
            f"{cpufreq}/scaling_governor": "powersave\n",
            f"{cpufreq}/cpuinfo_max_freq": "3400000\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        },
    )
    found = environment(root=root)
    assert found["cpu_model"] == "Some CPU @ 2.00GHz"
    assert found["cpu_flags"] == ["avx2", "avx512_vnni", "hypervisor"]
    assert (found["memory_total_bytes"], found["memory_available_bytes"]) == (8046428 * 1024, 1024000000)
    assert (found["cpu_governor"], found["cpu_max_khz"], found["cpu_quota"]) == ("powersave", 3400000, "200000 100000")


def test_an_arm_board_is_named_by_its_device_tree(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n", "proc/device-tree/model": "Some Board\0"},
    )
    found = environment(root=root)
    assert (found["cpu_model"], found["cpu_flags"]) == ("Some Board", ["asimd", "asimddp"])


def test_a_system_without_proc_gives_none_and_never_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.delattr("os.getloadavg", raising=False)
    found = environment(root=tmp_path)
    unknown = {name for name, value in found.items() if value is None}
    known = {"logical_cores", "os", "os_release", "machine", "python", "versions", "time_utc"}
    assert unknown == found.keys() - known
    assert cpu_flags(root=tmp_path) == frozenset()


def test_broken_numbers_and_bytes_in_proc_give_none(tmp_path: Path) -> None:
    root = _machine(tmp_path, {"proc/meminfo": "MemTotal: lots kB\nMemAvailable:\n"})
    (root / "proc/cpuinfo").write_bytes(b"model name : \xff\xfe\n")
    found = environment(root=root)
    assert found["memory_total_bytes"] is None
    assert found["memory_available_bytes"] is None
    assert found["cpu_model"] == "\ufffd\ufffd"


def test_only_installed_libraries_have_a_version() -> None:
    versions = environment(libraries=("numpy", "no-such-library-here"))["versions"]
    assert list(versions) == ["numpy"]
    assert versions["numpy"][0].isdigit()


def test_the_environment_is_json_with_the_time_in_utc() -> None:
    found = environment(now=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc))
    assert found["time_utc"] == "2026-01-02T03:04:05+00:00"
    assert json.loads(json.dumps(found)) == found


def test_a_virtual_machine_is_told_where_something_tells(tmp_path: Path) -> None:
    assert environment(root=tmp_path)["virtual_machine"] is None
    _machine(tmp_path, {"proc/cpuinfo": "flags : fpu avx2\n"})
    assert environment(root=tmp_path)["virtual_machine"] is False
    _machine(tmp_path, {"proc/cpuinfo": _X86})
    assert environment(root=tmp_path)["virtual_machine"] is True


def test_the_machine_id_is_what_systemd_derives_for_this_application(tmp_path: Path) -> None:
    # openssl dgst -sha256 -mac HMAC -macopt hexkey:ID of the constant's 16 bytes, cut and marked as a random UUID:
    # what systemd-id128 machine-id --app-specific=eb5d160561b247adb6189d05dcc8395d prints where this is the id.
    own = "0123456789abcdef0123456789abcdef"
    found = environment(root=_machine(tmp_path, {"etc/machine-id": f"{own}\n"}))["machine_id"]
    assert found == "ad5951f52d7d46aaa000a36ca8ce0ed0"
    assert own not in json.dumps(environment(root=tmp_path))


@pytest.mark.parametrize("text", ["uninitialized\n", "", "0123\n"])
def test_an_id_that_is_none_is_none(tmp_path: Path, text: str) -> None:
    assert environment(root=_machine(tmp_path, {"etc/machine-id": text}))["machine_id"] is None


_FACTS: dict[str, Any] = {
    "machine_id": "a" * 32,
    "cpu_model": "Some CPU",
    "cpu_flags": ["avx2", "fma"],
    "memory_total_bytes": 8_239_542_272,
    "os_release": "6.8.0-45-generic",
    "cpu_policies": [{"governor": "powersave"}, {"governor": "performance"}, {"governor": "powersave"}],
    "versions": {"onnxruntime": "1.30.0", "timm": "1.0"},
    "load_average": [0.1, 0.1, 0.1],
    "temperatures_c": {"cpu 0": 40.0},
    "time_utc": "2026-01-02T03:04:05+00:00",
}


def test_the_identity_is_what_does_not_change_from_run_to_run() -> None:
    found = machine_identity(_FACTS)
    assert (found["memory_total_gib"], found["kernel"], found["cpu_governors"]) == (
        8,
        "6.8",
        ["performance", "powersave"],
    )
    assert found["versions"] == {"onnxruntime": "1.30.0"}
    later = _FACTS | {
        "load_average": [9.0, 9.0, 9.0],
        "temperatures_c": {"cpu 0": 80.0},
        "time_utc": "2027-01-02T03:04:05+00:00",
        "os_release": "6.8.0-51-generic",
        "memory_total_bytes": 8_239_000_000,
        "versions": {"onnxruntime": "1.30.0", "timm": "2.0"},
    }
    assert machine_identity(later) == found
    assert identity_differences(found, machine_identity(later)) == []
    assert json.loads(json.dumps(found)) == found


def test_a_limit_above_the_memory_is_none() -> None:
    assert machine_identity(_FACTS | {"memory_limit_bytes": 2**40})["memory_limit_bytes"] is None
    assert machine_identity(_FACTS | {"memory_limit_bytes": 2**30})["memory_limit_bytes"] == 2**30


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        ({"cpu_model": "Another"}, ["cpu_model: Some CPU there, Another here"]),
        ({"cpu_flags": ["avx2", "avx_vnni"]}, ["cpu_flags: fma there, avx_vnni here"]),
        ({"cpu_flags": ["avx2"]}, ["cpu_flags: fma there, nothing more here"]),
        ({"cpu_flags": None}, ["cpu_flags: avx2 fma there, unknown here"]),
        ({"cpu_quota": "50000 100000"}, ["cpu_quota: unknown there, 50000 100000 here"]),
        ({"os_release": "6.11.0"}, ["kernel: 6.8 there, 6.11 here"]),
        ({"memory_total_bytes": 2**34}, ["memory_total_gib: 8 there, 16 here"]),
        ({"cpu_policies": None}, ["cpu_governors: performance powersave there, unknown here"]),
        (
            {"versions": {"onnxruntime": "1.31.1", "openvino": "2026.4"}},
            ["onnxruntime: 1.30.0 there, 1.31.1 here", "openvino: unknown there, 2026.4 here"],
        ),
    ],
)
def test_each_difference_is_a_sentence(change: dict[str, Any], sentences: list[str]) -> None:
    assert identity_differences(machine_identity(_FACTS), machine_identity(_FACTS | change)) == sentences


def test_a_fact_that_an_older_report_lacks_differs() -> None:
    here = machine_identity(_FACTS)
    there = {name: value for name, value in here.items() if name != "machine_id"}
    assert identity_differences(there, here) == [f"machine_id: unknown there, {'a' * 32} here"]


def test_no_framework_is_imported() -> None:
    code = (
        "import sys; from tlc.runtime.environment import environment; environment();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'nncf'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
