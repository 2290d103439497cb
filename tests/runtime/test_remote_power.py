"""Counters of energy of a device, over a real SSH server: its files and tools lie in a folder of the test."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd import HOST, Sshd, running
from trees import tree
from waiting import within

from tlc.runtime.power import Meter
from tlc.runtime.remote import Remote
from tlc.runtime.remote_power import open_remote_meters

SENSOR = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
RAILS: dict[str, str | int] = {
    f"{SENSOR}/in1_label": "VDD_IN",
    f"{SENSOR}/in1_input": 5000,
    f"{SENSOR}/curr1_input": 400,
    f"{SENSOR}/in2_label": "VDD_SOC",
    f"{SENSOR}/in2_input": 5000,
    f"{SENSOR}/curr2_input": 10,
}


class Elsewhere(Remote):
    """A device whose /sys is a folder here, and whose tools are those of another."""

    root = Path("/")
    tools = Path("/nowhere")

    def _line(self, script: str) -> list[str]:
        script = script.replace("/sys/", f"{self.root}/sys/").replace("command -v", f"PATH={self.tools} command -v")
        return super()._line(script)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def remote(sshd: Sshd, tmp_path: Path) -> Iterator[Elsewhere]:
    with Elsewhere(HOST, config=sshd.config) as found:
        found.root = found.tools = tmp_path
        yield found


def _tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _joules_in(meter: Meter, seconds: float) -> tuple[float, float]:
    start_s, before = time.monotonic(), meter.joules()
    time.sleep(seconds)
    return meter.joules() - before, time.monotonic() - start_s


def test_the_rails_of_a_module_are_read_by_one_process_there(remote: Elsewhere, sshd: Sshd, tmp_path: Path) -> None:
    tree(tmp_path, RAILS)
    meters, reasons = open_remote_meters(remote, tmp_path)
    (meter,) = meters
    try:
        assert meter.name == "ina3221 VDD_IN"
        joules, seconds = _joules_in(meter, 0.3)
        assert joules == pytest.approx(2.0 * seconds, rel=0.3)
        tree(tmp_path, {f"{SENSOR}/curr1_input": 800})
        time.sleep(0.3)
        joules, seconds = _joules_in(meter, 0.3)
        assert joules == pytest.approx(4.0 * seconds, rel=0.3)
    finally:
        meter.close()
    assert [reason.partition(":")[0] for reason in reasons] == ["RAPL", "NVML"]
    assert within(5, lambda: not _running(str(tmp_path)))


def test_tools_are_asked_where_sensors_are_not_readable(remote: Elsewhere, tmp_path: Path) -> None:
    _tool(tmp_path / "tegrastats", 'echo "RAM 1/2MB $1=$2 VDD_IN 5000mW/4000mW"; exec sleep 20')
    _tool(tmp_path / "nvidia-smi", "echo 30.5; exec sleep 20")
    meters, reasons = open_remote_meters(remote, tmp_path)
    try:
        assert [meter.name for meter in meters] == ["nvml 0", "tegrastats VDD_IN"]
        joules, seconds = _joules_in(meters[0], 0.2)
        assert joules == pytest.approx(30.5 * seconds, rel=0.3)
    finally:
        for meter in meters:
            meter.close()
    assert [reason.partition(":")[0] for reason in reasons] == ["RAPL"]


def test_tools_that_know_no_power_are_a_reason(remote: Elsewhere, tmp_path: Path) -> None:
    _tool(tmp_path / "tegrastats", 'echo "RAM 1/2MB"')
    _tool(tmp_path / "nvidia-smi", "echo '[N/A]'")
    meters, reasons = open_remote_meters(remote, tmp_path)
    assert meters == []
    assert reasons[1].startswith("NVML: nvml printed no power")
    assert reasons[2].startswith("tegrastats: tegrastats printed no power")


def test_the_package_counts_there_and_its_wrapping_is_followed(remote: Elsewhere, tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    fixed: dict[str, str | int] = {
        f"{zone}/name": "package-0",
        f"{zone}:0/name": "core",
        f"{zone}/max_energy_range_uj": 10_000_000,
    }
    tree(tmp_path, {**fixed, f"{zone}/energy_uj": 9_000_000})
    (meter,), _ = open_remote_meters(remote, tmp_path)
    before = meter.joules()
    tree(tmp_path, {f"{zone}/energy_uj": 500_000})
    assert meter.joules() - before == pytest.approx(1.5)
    assert meter.name == "rapl package-0"


def test_a_counter_for_root_alone_is_a_reason(remote: Elsewhere, tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    tree(tmp_path, {f"{zone}/name": "package-0", f"{zone}/max_energy_range_uj": 10_000_000})
    meters, reasons = open_remote_meters(remote, tmp_path)
    assert meters == []
    assert reasons[0].startswith(f"RAPL: /{zone}/energy_uj is for root alone")


def _running(words: str) -> list[int]:
    """Return the processes, but this one, with some words on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words in line and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found
