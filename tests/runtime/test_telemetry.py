"""`tlc.runtime.telemetry`: the sensors of a board that is a folder, over a real OpenSSH server."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from sshd import HOST, running

from tlc.runtime.remote import Remote
from tlc.runtime.telemetry import Samples, Telemetry

BOARD = {
    "proc/uptime": "100.5 1.0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "45500",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400",
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in1_label": "VDD_IN",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in1_input": "5000",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input": "1200",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in2_label": "NC",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in2_input": "5000",
}


def sampled(*lines: str) -> Samples:
    samples = Samples()
    for line in lines:
        samples.add(line)
    return samples


class Board(Remote):
    """A device that has more programs than this machine."""

    programs: Path

    def popen(self, argv: Sequence[str]) -> list[str]:
        return super().popen(["env", f"PATH={self.programs}:{os.environ['PATH']}", *argv])


def first_row(telemetry: Telemetry) -> dict[str, float]:
    """Return the first sample when it is there."""
    end_s = time.monotonic() + 10
    while not telemetry.samples.rows:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return telemetry.samples.rows[0]


def test_a_boards_sensors_come_in_as_degrees_megahertz_and_watts(tmp_path: Path) -> None:
    for name, content in BOARD.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")

    root = str(tmp_path / "root")
    with (
        running(tmp_path / "sshd") as server,
        Remote(HOST, config=server.config) as remote,
        Telemetry(remote, root=root) as telemetry,
    ):
        assert first_row(telemetry) == {
            "uptime_s": 100.5,
            "temperature_c cpu-thermal 0": 45.5,
            "clock_mhz cpu 0": 1510.4,
            "clock_mhz gpu": 612.0,
            "watts VDD_IN": 6.0,
            "watts": 6.0,
        }


def test_a_boards_tegrastats_is_asked_where_no_sensor_of_power_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "root/proc").mkdir(parents=True)
    (tmp_path / "root/proc/uptime").write_text("7 1\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tegrastats").write_text(
        '#!/bin/sh\n[ "$*" = "--interval 1000" ] || exit 1\n'
        'echo "RAM 1/2MB VDD_IN 4980mW/4512mW VDD_SOC 1426mW/1400mW"; exec sleep 9\n'
    )
    (tmp_path / "bin/tegrastats").chmod(0o755)

    with running(tmp_path / "sshd") as server, Board(HOST, config=server.config) as remote:
        remote.programs = tmp_path / "bin"
        with Telemetry(remote, root=str(tmp_path / "root")) as telemetry:
            row = first_row(telemetry)

    assert row == {"uptime_s": 7.0, "watts VDD_IN": 4.98, "watts VDD_SOC": 1.426, "watts": 4.98}


def test_a_counter_of_energy_becomes_a_power_with_its_second_reading() -> None:
    samples = sampled("column microjoule package-0", "begin", "10.0 5000000", "12.0 25000000", "13.0 1000000")

    assert samples.rows == [{"uptime_s": 10.0}, {"uptime_s": 12.0, "watts package-0": 10.0}, {"uptime_s": 13.0}]


def test_what_a_sensor_does_not_say_and_lines_that_were_cut_are_left_out() -> None:
    samples = sampled("column hertz gpu", "begin", "1.0 -", "2.0", "3.0 6120", "x 1", "4.0 612000000 9")

    assert samples.rows == [{"uptime_s": 1.0}, {"uptime_s": 3.0, "clock_mhz gpu": 0.00612}]


def test_ranges_and_table_have_every_sensor() -> None:
    samples = sampled("column millicelsius soc 1", "column milliwatt CPU", "begin", "1 40000 -", "2 50000 2000")

    assert samples.ranges()["temperature_c soc 1"].model_dump() == {"low": 40, "mean": 45, "high": 50}
    assert samples.as_csv() == "uptime_s,temperature_c soc 1,watts CPU\n1.0,40.0,\n2.0,50.0,2.0\n"
