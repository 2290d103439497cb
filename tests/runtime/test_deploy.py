"""`tlc.runtime.deploy` against a real OpenSSH server on the loopback interface and a double of tlc-run."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from deployments import compiled_double, write_bundle, write_double
from sshd import HOST, Sshd, running

from tlc.runtime.deploy import deploy
from tlc.runtime.deploy_order import Order
from tlc.runtime.deploy_report import DeviceReport
from tlc.runtime.remote import Remote


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_double(tmp_path_factory.mktemp("double"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with running(tmp_path / "sshd") as one:
        write_double(one.home)
        yield one


@pytest.fixture
def order(tmp_path: Path, program: Path) -> Order:
    library = program  # any file of this machine: the double does not load it
    return Order(write_bundle(tmp_path / "tiny.tlc"), tmp_path / "out", runner=program, library=library)


def run(server: Sshd, order: Order, said: list[str] | None = None) -> DeviceReport:
    say = print if said is None else said.append
    connect = partial(Remote, config=server.config)
    return deploy(HOST, order, say=say, cancelled=threading.Event(), connect=connect, pauses_s=(0.1, 0.3, 1))


def test_a_bundle_is_sent_proved_and_measured_and_its_numbers_come_home(server: Sshd, order: Order) -> None:
    report = run(server, order)

    assert report.status == "ok", report.problem
