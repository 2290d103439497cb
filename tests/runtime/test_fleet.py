"""`tlc.runtime.fleet`: the file, and several hosts in network namespaces of their own."""

import threading
from functools import partial
from pathlib import Path

import pytest
from deployments import calls, compiled_double, write_bundle, write_double
from hosts import hosts
from waiting import WAIT_S, until

from tlc.runtime.deploy_order import Order
from tlc.runtime.deploy_report import DeviceReport
from tlc.runtime.errors import UsageError
from tlc.runtime.fleet import FleetDevice, Member, deploy_all, read_fleet
from tlc.runtime.remote import Remote


def fleet(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def test_a_fleet_file_gives_each_device_its_own_and_paths_count_from_it(tmp_path: Path) -> None:
    path = fleet(
        tmp_path,
        'bundle = "model.tlc"\n[[device]]\nhost = "orin"\n'
        '[[device]]\nhost = "pi@gw"\nbundle = "arm.tlc"\nthreads = 4\n',
    )

    assert read_fleet(path) == [
        FleetDevice(host="orin", bundle=tmp_path / "model.tlc"),
        FleetDevice(host="pi@gw", bundle=tmp_path / "arm.tlc", threads=4),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no device"),
        ("device = 3", "names no device"),
        ("[[device]]\nhost =", "is not TOML"),
        ('[[device]]\nhost = "a"\n[[device]]\nhost = "a"', "names a twice"),
        ('[[device]]\nhost = "a"\nprogram = "b"', "program = 'b': Extra inputs are not permitted"),
        ('[[device]]\nhost = "a"\nthreads = 0', "threads = 0: Input should be greater than or equal to 1"),
        ('runner = "b"\n[[device]]\nhost = "a"', "unknown runner"),
    ],
)
def test_a_fleet_file_that_is_wrong_is_refused_by_its_place(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UsageError, match="fleet file") as caught:
        read_fleet(fleet(tmp_path, text))
    assert problem in caught.value.message


def test_a_fleet_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read fleet file"):
        read_fleet(tmp_path / "fleet.toml")


class Fleet(threading.Thread):
    """A deployment to all hosts in a thread of its own."""

    def __init__(self, tmp_path: Path, config: Path, names: list[str]) -> None:
        super().__init__(daemon=True)
        program = compiled_double(tmp_path)
        order = Order(write_bundle(tmp_path / "tiny.tlc"), tmp_path / "out", runner=program, library=program)
        self._members = [Member(name, order) for name in names]
        self._connect = partial(Remote, config=config)
        self.said: list[tuple[str, str]] = []
        self.reports: list[DeviceReport] = []
        self.start()

    def run(self) -> None:
        self.reports = deploy_all(self._members, say=lambda *words: self.said.append(words), connect=self._connect)


def test_three_hosts_are_served_at_once_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    with hosts(tmp_path / "hosts", names) as (found, config):
        for host in found.values():
            write_double(host.home)
            (host.home / "hold-bench").touch()
        (found["three"].home / "fail-check").write_text('echo "error: no ONNX Runtime here" >&2; exit 1\n')
        under_way = Fleet(tmp_path, config, names)
        until(lambda: {("one", "bench: bench: working"), ("two", "bench: bench: working")} <= set(under_way.said))
        for host in found.values():
            (host.home / "hold-bench").unlink()
        under_way.join(WAIT_S)

    assert [report.host for report in under_way.reports] == names
    assert [report.status for report in under_way.reports] == ["ok", "ok", "failed"]
    assert under_way.reports[2].problem.startswith("check failed on three: no ONNX Runtime here")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)


@pytest.mark.slow
def test_a_host_whose_cable_is_pulled_comes_back_to_a_step_that_went_on(tmp_path: Path) -> None:
    with hosts(tmp_path / "hosts", ["one"]) as (found, config):
        host = found["one"]
        write_double(host.home)
        (host.home / "hold-bench").touch()
        under_way = Fleet(tmp_path, config, ["one"])
        until(lambda: ("one", "bench: bench: working") in under_way.said)
        host.unplug()
        (host.home / "hold-bench").unlink()  # it ends there while nobody is connected
        until(lambda: any("trying again" in line for _, line in under_way.said))  # ssh notices after 15 s
        host.plug_in()
        under_way.join(WAIT_S)

    assert [report.status for report in under_way.reports] == ["ok"]
    assert calls(host.home) == ["info", "check", "bench", "info"]
