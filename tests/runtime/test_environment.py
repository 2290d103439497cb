import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tlc.runtime.environment import cpu_flags, environment

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


def test_no_framework_is_imported() -> None:
    code = (
        "import sys; from tlc.runtime.environment import environment; environment();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'nncf'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
