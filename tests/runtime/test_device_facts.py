"""What is asked of a device before anything is sent: of this machine over a real server, of boards by their words."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remotes import ToldRemote, told_facts, told_files
from sshd import HOST, Sshd, running

from tlc.runtime.device_facts import Library, facts
from tlc.runtime.environment import environment
from tlc.runtime.errors import TlcError
from tlc.runtime.health import snapshot
from tlc.runtime.remote import Remote, RemoteError
from tlc.runtime.remote_tree import FIXED, MOVING, fetch_tree

XAVIER = {
    "proc/device-tree/model": "NVIDIA Jetson Xavier NX Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3449-0000+p3668-0001\0nvidia,tegra194\0",
    "etc/nv_tegra_release": "# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref, EABI: aarch64",
    "proc/meminfo": "MemTotal:        6835152 kB\nMemAvailable:    4211212 kB",
    "proc/sys/kernel/random/boot_id": "0d7a2d1c-0000-4000-8000-000000000000",
    "sys/class/devfreq/17000000.gv11b/min_freq": "114750000",
    "sys/class/devfreq/17000000.gv11b/max_freq": "1109250000",
}
SAID = {
    "machine": "aarch64",
    "system": "Linux",
    "kernel": "5.10.104-tegra",
    "glibc": "glibc 2.31",
    "python": "3.8.10",
    "mode": "NV Power Mode: MODE_15W_6CORE 2 ",
    "free_kib": "1048576",
    "library": [
        "/usr/lib/aarch64-linux-gnu/libnvinfer.so.8.5.2",
        "/usr/lib/aarch64-linux-gnu/libnvinfer.so.8.5.2",
        "/usr/lib/aarch64-linux-gnu/libnvinfer_plugin.so.8.5.2",
        "/home/nv/.local/lib/python3.8/site-packages/onnxruntime/capi/libonnxruntime.so.1.16.0",
    ],
}
PACKAGES = b"Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 5.1.1-b56\n\n"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def board(files: dict[str, str] = XAVIER, said: dict[str, Any] = SAID, packages: bytes = PACKAGES) -> ToldRemote:
    return ToldRemote({"tail -n +1 -v": told_files(files), "dpkg-query": packages, "uname -m": told_facts(said)})


def test_this_machine_asked_over_ssh_is_what_it_is(sshd: Sshd) -> None:
    libraries = sshd.home / ".local/lib/python3.9/site-packages/onnxruntime/capi"
    libraries.mkdir(parents=True)
    (libraries / "libonnxruntime.so.1.19.2").write_bytes(b"")
    here = environment()
    with Remote(HOST, config=sshd.config) as remote:
        found = facts(remote, str(sshd.home / "not/there/yet"))
    assert (found.host, found.system, found.machine) == (HOST, "Linux", platform.machine())
    assert found.kernel == platform.release()
    assert found.glibc == (".".join(platform.libc_ver()[1].split(".")[:2]) or None)
    assert found.memory_total_bytes == here["memory_total_bytes"]
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    free = os.statvfs(sshd.home)
    assert found.disk_free_bytes == pytest.approx(free.f_bavail * free.f_frsize, rel=0.05)
    assert Library(path=str(libraries / "libonnxruntime.so.1.19.2"), version="1.19.2") in found.libraries["onnxruntime"]


def test_a_fetched_tree_is_read_as_this_machine_is(sshd: Sshd, tmp_path: Path) -> None:
    with Remote(HOST, config=sshd.config) as remote:
        root = fetch_tree(remote, (*FIXED, *MOVING), tmp_path / "root")
    there, here = environment(root=root), environment()
    moving = {"temperatures_c", "memory_available_bytes", "load_average", "time_utc", "cpu_policies"}
    assert {name: there[name] for name in there.keys() - moving} == {name: here[name] for name in here.keys() - moving}
    before, now = snapshot(root), snapshot()
    assert before.busy_s is not None
    assert now.busy_s is not None
    assert before.busy_s <= now.busy_s
    assert (before.quota_stops is None) == (now.quota_stops is None)
    assert before.clocks_khz.keys() == now.clocks_khz.keys()


def test_a_jetson_is_read_from_its_files_and_programs() -> None:
    found = facts(board())
    assert (found.machine, found.glibc, found.board) == ("aarch64", "2.31", "NVIDIA Jetson Xavier NX Developer Kit")
    assert (found.l4t, found.jetpack, found.tensorrt) == ("35.3.1", "5.1.1", "8.5.2")
    assert (found.power_mode, found.clocks_locked) == ("MODE_15W_6CORE", False)
    assert (found.memory_total_bytes, found.memory_available_bytes) == (6835152 * 1024, 4211212 * 1024)
    assert (found.disk_free_bytes, found.python) == (2**30, "3.8.10")
    assert [(gpu.sm, gpu.memory_bytes) for gpu in found.gpus] == [("7.2", None)]
    assert [library.version for library in found.libraries["tensorrt"]] == ["8.5.2"]
    assert found.libraries["onnxruntime"][0].path.endswith("capi/libonnxruntime.so.1.16.0")
    assert found.libraries["openvino"] == ()


def test_a_package_says_the_version_where_no_library_is_found() -> None:
    said = {**SAID, "library": []}
    found = facts(board(said=said, packages=b"Package: libnvinfer8\nStatus: install ok installed\nVersion: 8.5.2-1\n"))
    assert found.tensorrt == "8.5.2"


def test_a_pcs_gpus_are_those_of_its_driver() -> None:
    gpus = ["NVIDIA RTX A2000, 8.6, 6138", "NVIDIA Odd, [N/A], [N/A]"]
    said = {**SAID, "gpu": gpus, "machine": "x86_64", "mode": "", "free_kib": ""}
    found = facts(board({"proc/meminfo": "MemTotal: 1 kB"}, said, b""))
    assert [(gpu.name, gpu.sm, gpu.memory_bytes) for gpu in found.gpus] == [
        ("NVIDIA RTX A2000", "8.6", 6138 * 2**20),
        ("NVIDIA Odd", None, None),
    ]
    assert (found.l4t, found.jetpack, found.power_mode, found.disk_free_bytes) == (None, None, None, None)


def test_what_is_not_linux_is_refused() -> None:
    with pytest.raises(TlcError, match="board runs Darwin, not Linux"):
        facts(board(said={**SAID, "system": "Darwin"}))
    with pytest.raises(RemoteError, match="board: it does not say what it is"):
        facts(board(said={}))


def test_a_device_cannot_write_outside_the_copy_of_its_files(tmp_path: Path) -> None:
    hostile = told_files({"../outside": "x", "proc/../../outside": "x", "proc/stat": "cpu", "proc/stat/below": "y"})
    root = fetch_tree(ToldRemote({"tail": hostile}), FIXED, tmp_path / "root")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["stat"]
    assert (root / "proc/stat").read_text() == "cpu\n"
