"""`tlc.runtime.device_fit` and `elf`: what is refused before anything is sent."""

import struct
from pathlib import Path

import pytest
from deployments import write_bundle

from tlc.runtime import device_fit
from tlc.runtime.bundle import read_manifest
from tlc.runtime.bundle_manifest import Manifest
from tlc.runtime.device_facts import DeviceFacts, Library
from tlc.runtime.elf import read_program
from tlc.runtime.errors import TlcError

MACHINES = {"x86_64": 62, "aarch64": 183}
ORIN = DeviceFacts(
    host="orin",
    machine="aarch64",
    system="Linux",
    kernel="5.15.148-tegra",
    glibc="2.35",
    board="NVIDIA Jetson Orin NX",
    l4t="36.4.3",
    jetpack="6.2",
    memory_total_bytes=8 << 30,
    memory_available_bytes=6 << 30,
    disk_free_bytes=10**9,
    power_mode="15W",
    clocks_locked=False,
    boot_id="0",
    gpus=(),
    gpu_driver=None,
    tensorrt="10.3.0.30",
    libraries={},
    python="3.10.12",
)


def program(path: Path, machine: str, *glibc: str) -> Path:
    """Write what looks like a program: a header, and the versions of the C library that it names."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 3, MACHINES[machine])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.ljust(64, b"\0") + b"".join(b"\0GLIBC_" + version.encode() for version in glibc) + b"\0")
    return path


def manifest(tmp_path: Path, target: str) -> Manifest:
    return read_manifest(write_bundle(tmp_path / "tiny.tlc", target=target))


def facts(**changed: object) -> DeviceFacts:
    return ORIN.model_copy(update=changed)


def test_a_program_says_its_machine_and_the_newest_c_library_that_it_asks_for(tmp_path: Path) -> None:
    found = read_program(program(tmp_path / "tlc-run", "aarch64", "2.17", "2.27", "2.4"))

    assert (found.machine, found.glibc) == ("aarch64", (2, 27))
    assert read_program(program(tmp_path / "static", "x86_64")).glibc is None


def test_the_python_that_runs_this_is_read_as_what_it_is() -> None:
    import platform
    import sys

    assert read_program(Path(sys.executable).resolve()).machine == platform.machine()


def test_a_script_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "tlc-run").write_text("#!/bin/sh\n" * 9)

    with pytest.raises(TlcError, match="is not a Linux program or library: it begins with b'#!/b'"):
        read_program(tmp_path / "tlc-run")


def test_a_runner_for_another_processor_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match=r"tlc-run is for x86_64, orin is aarch64\.") as caught:
        device_fit.find_runner(program(tmp_path / "tlc-run", "x86_64"), ORIN)
    assert "docs/cross.md" in caught.value.hint


def test_a_runner_for_a_newer_c_library_is_refused_with_both_versions(tmp_path: Path) -> None:
    built = program(tmp_path / "tlc-run", "aarch64", "2.38")

    with pytest.raises(TlcError, match=r"needs glibc 2\.38 or later, orin has 2\.35\."):
        device_fit.find_runner(built, ORIN)
    assert device_fit.find_runner(built, facts(glibc="2.38")).path == built
    assert device_fit.find_runner(built, facts(glibc=None)).path == built


def test_of_those_built_in_the_clone_the_one_that_runs_on_most_is_taken(tmp_path: Path) -> None:
    program(tmp_path / "build/native/tlc-run", "x86_64", "2.36")
    program(tmp_path / "build/new/tlc-run", "aarch64", "2.38")
    old = program(tmp_path / "build/old/tlc-run", "aarch64", "2.27")

    assert device_fit.find_runner(None, ORIN, clone=tmp_path).path == old


def test_a_clone_without_a_fitting_one_says_what_it_has(tmp_path: Path) -> None:
    program(tmp_path / "build/native/tlc-run", "x86_64")

    with pytest.raises(TlcError, match=r"orin is aarch64, and there is no tlc-run for it .*native/tlc-run for x86_64"):
        device_fit.find_runner(None, ORIN, clone=tmp_path)
    with pytest.raises(TlcError, match=r"there is no tlc-run for it in .*build\."):
        device_fit.find_runner(None, ORIN, clone=tmp_path / "elsewhere")


def test_tensorrt_is_missed_and_too_old_by_its_first_two_numbers(tmp_path: Path) -> None:
    orin = manifest(tmp_path, "jetson-orin")

    device_fit.require_tensorrt(orin, ORIN)
    device_fit.require_tensorrt(orin, facts(tensorrt="10.7.0"))
    device_fit.require_tensorrt(manifest(tmp_path, "cpu-arm"), facts(tensorrt=None))
    with pytest.raises(TlcError, match=r"orin has no TensorRT, the bundle is for jetson-orin with TensorRT 10\.3\."):
        device_fit.require_tensorrt(orin, facts(tensorrt=None))
    with pytest.raises(TlcError, match=r"TensorRT 8\.6\.2 \(JetPack 6\.0\), too old for a bundle made for 10\.3\."):
        device_fit.require_tensorrt(orin, facts(tensorrt="8.6.2", jetpack="6.0"))


def test_space_is_said_as_needed_and_free() -> None:
    with pytest.raises(TlcError, match="not enough space for /data/tlc: 1,000,000,001 bytes needed, 1,000,000,000"):
        device_fit.require_space(ORIN, 10**9 + 1, "/data/tlc")
    device_fit.require_space(ORIN, 10**9, "/data/tlc")


def test_a_workspace_is_the_targets_within_a_quarter_of_what_is_free(tmp_path: Path) -> None:
    orin = manifest(tmp_path, "jetson-orin")

    assert device_fit.workspace_bytes(orin, ORIN) == 1 << 30
    assert device_fit.workspace_bytes(orin, facts(memory_available_bytes=1 << 30)) == 1 << 28


def test_a_library_is_the_given_one_then_the_devices_own(tmp_path: Path) -> None:
    arm = manifest(tmp_path, "cpu-arm")
    given = program(tmp_path / "libonnxruntime.so.1", "aarch64", "2.27")
    own = facts(libraries={"onnxruntime": (Library(path="/usr/lib/libonnxruntime.so.1.20.0", version="1.20.0"),)})

    assert device_fit.find_library(arm, own, given) == device_fit.RuntimeLibrary("--ort-lib", given, None)
    found = device_fit.find_library(arm, own, None)
    assert found == device_fit.RuntimeLibrary("--ort-lib", None, "/usr/lib/libonnxruntime.so.1.20.0")
    assert device_fit.find_library(manifest(tmp_path, "jetson-orin"), own, None) is None


def test_a_library_for_another_processor_and_none_at_all_are_refused(tmp_path: Path) -> None:
    arm = manifest(tmp_path, "cpu-arm")

    with pytest.raises(TlcError, match=r"libonnxruntime\.so\.1 is for x86_64, orin is aarch64\."):
        device_fit.find_library(arm, ORIN, program(tmp_path / "libonnxruntime.so.1", "x86_64"))
    elsewhere = facts(machine="riscv64")  # no wheel of this machine is for it
    with pytest.raises(TlcError, match=r"orin has no ONNX Runtime, and this machine none for riscv64\.") as caught:
        device_fit.find_library(arm, elsewhere, None)
    assert "--ort-lib" in caught.value.hint
    with pytest.raises(TlcError, match="has no OpenVINO, which the target openvino runs in"):
        device_fit.find_library(manifest(tmp_path, "openvino"), ORIN, None)
