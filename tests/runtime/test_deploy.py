"""`tlc.runtime.deploy` against a real OpenSSH server on the loopback interface and a double of tlc-run."""

import os
import platform
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from deployments import calls, compiled_double, write_bundle, write_double
from sshd import HOST, Sshd, running
from waiting import WAIT_S, until

from tlc.runtime import deploy_visit
from tlc.runtime.deploy import deploy
from tlc.runtime.deploy_order import Order
from tlc.runtime.deploy_report import DeviceReport
from tlc.runtime.device_data import packed
from tlc.runtime.device_facts import facts
from tlc.runtime.device_job import Cancelled
from tlc.runtime.device_lock import DeviceLock
from tlc.runtime.remote import Dropped, Remote

CACHE = ".cache/tlc"


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
    # The double loads no library, so any file of this machine will do for one.
    return Order(write_bundle(tmp_path / "tiny.tlc"), tmp_path / "out", runner=program, library=program)


class Run(threading.Thread):
    """A deployment in a thread of its own."""

    def __init__(self, server: Sshd, order: Order) -> None:
        super().__init__(daemon=True)
        self.said: list[str] = []
        self.cancelled = threading.Event()
        self.report: DeviceReport | None = None
        self.was_cancelled = False
        self._server, self._order = server, order
        self.start()

    def run(self) -> None:
        try:
            self.report = deploy(
                HOST,
                self._order,
                say=self.said.append,
                cancelled=self.cancelled,
                connect=partial(Remote, config=self._server.config, connect_timeout_s=20),
                pauses_s=(0.1, 0.2, 0.5, 1, 1),
            )
        except Cancelled:
            self.was_cancelled = True

    def done(self) -> DeviceReport:
        """Return the report when it is there."""
        self.join(WAIT_S)
        assert self.report is not None, self.said
        return self.report


def deployed(server: Sshd, order: Order) -> DeviceReport:
    return Run(server, order).done()


def step_pid(server: Sshd, name: str) -> int:
    """Return the process that leads a step's group."""
    (path,) = server.home.glob(f"{CACHE}/bundles/*/steps/{name}/pid")
    return int(path.read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def test_a_bundle_is_sent_proved_and_measured_and_its_numbers_come_home(server: Sshd, order: Order) -> None:
    report = deployed(server, order)

    assert (report.status, report.problem, report.notes) == ("ok", "", [])
    assert calls(server.home) == ["info", "check", "bench"]
    assert [(step.name, step.reused) for step in report.steps] == [("check", False), ("bench", False)]
    assert report.bench is not None
    assert report.bench.models[0].launches[0].samples_ns
    assert report.device is not None
    assert report.device.machine == platform.machine()
    written = {path.name for path in Path(report.folder).iterdir()}
    assert {"report.json", "device.json", "check.json", "check.log", "bench.json", "telemetry.csv"} <= written
    assert DeviceReport.model_validate_json((Path(report.folder) / "report.json").read_text()) == report
    assert "check: working" in (Path(report.folder) / "check.log").read_text()


def test_a_second_deployment_sends_nothing_and_measures_anew(server: Sshd, order: Order) -> None:
    deployed(server, order)
    again = Run(server, order)

    assert again.done().status == "ok"
    assert not [line for line in again.said if line.startswith("sent")]
    assert calls(server.home) == ["info", "check", "bench"] * 2


def test_a_step_outlives_a_dropped_connection_and_its_result_is_taken(server: Sshd, order: Order) -> None:
    hold = server.home / "hold-bench"
    hold.touch()
    under_way = Run(server, order)
    until(lambda: "bench: bench: working" in under_way.said)

    dropped = server.drop()
    until(lambda: any("still running" in line for line in under_way.said))
    hold.unlink()
    report = under_way.done()

    assert dropped > 0
    assert report.status == "ok", report.problem
    assert calls(server.home) == ["info", "check", "bench", "info"]  # no step ran twice
    assert [(step.name, step.reused) for step in report.steps] == [("check", False), ("bench", False)]
    assert any("trying again in" in note for note in report.notes)


def test_a_run_goes_on_where_one_before_it_was_broken_off_for_good(server: Sshd, order: Order) -> None:
    hold = server.home / "hold-bench"
    hold.touch()
    first = Run(server, order)
    until(lambda: "bench: bench: working" in first.said)
    first.cancelled.set()  # as Ctrl-C does
    first.join(WAIT_S)
    hold.unlink()

    report = deployed(server, order)

    assert first.was_cancelled
    assert report.status == "ok", report.problem
    assert [(step.name, step.reused) for step in report.steps] == [("check", True), ("bench", False)]
    assert calls(server.home) == ["info", "check", "bench", "info", "bench"]


def test_ctrl_c_ends_what_runs_on_the_device_and_gives_the_lock_back(server: Sshd, order: Order) -> None:
    (server.home / "hold-bench").touch()
    under_way = Run(server, order)
    until(lambda: "bench: bench: working" in under_way.said)
    pid = step_pid(server, "bench")

    under_way.cancelled.set()
    under_way.join(WAIT_S)

    assert under_way.was_cancelled
    until(lambda: not alive(pid))
    assert not (server.home / CACHE / "holder").exists()


def test_a_step_that_the_device_rebooted_under_runs_again_and_that_is_said(server: Sshd, order: Order) -> None:
    hold = server.home / "hold-bench"
    hold.touch()
    under_way = Run(server, order)
    until(lambda: "bench: bench: working" in under_way.said)
    (boot,) = server.home.glob(f"{CACHE}/bundles/*/steps/bench/boot")

    boot.write_text("the start before this one\n")  # what a reboot leaves: another id, no process, no result
    os.killpg(step_pid(server, "bench"), signal.SIGKILL)
    server.drop()
    hold.unlink()
    report = under_way.done()

    assert report.status == "ok", report.problem
    assert "device rebooted during bench; bench runs again" in report.notes
    assert calls(server.home).count("bench") == 2


def test_a_step_that_vanishes_again_and_again_is_given_up(server: Sshd, order: Order) -> None:
    # The double ends its whole group, the shell that would write its status included.
    (server.home / "fail-bench").write_text('kill -s KILL -- "-$(ps -o pgid= $$ | tr -d " ")"\n')

    report = deployed(server, order)

    assert report.status == "failed"
    assert "the process on device vanished during bench, 3 times in all" in report.problem
    assert "journalctl" in report.problem


def test_a_second_deployment_at_the_same_time_is_refused_by_name(server: Sshd, order: Order, tmp_path: Path) -> None:
    hold = server.home / "hold-bench"
    hold.touch()
    first = Run(server, order)
    until(lambda: "bench: bench: working" in first.said)

    second = deployed(server, replace(order, out=tmp_path / "second"))
    hold.unlink()

    assert second.status == "failed"
    assert second.problem.startswith("another deployment is under way on device: by ")
    assert "tiny " in second.problem
    assert first.done().status == "ok"


def test_a_failed_step_says_what_tlc_run_said_and_is_tried_again_by_the_next_run(server: Sshd, order: Order) -> None:
    fail = server.home / "fail-check"
    fail.write_text('echo "error: no ONNX Runtime here" >&2; echo "hint: Install it." >&2; exit 1\n')
    first = deployed(server, order)
    fail.unlink()

    assert first.status == "failed"
    assert first.problem == "check failed on device: no ONNX Runtime here. Install it."
    assert deployed(server, order).status == "ok"


def test_golden_outputs_that_are_not_reproduced_fail_with_the_worst_of_them(server: Sshd, order: Order) -> None:
    golden = [
        {"picture_error": None, "picture_passed": True, "outputs": [{"name": "y", "snr_db": snr, "passed": snr > 50}]}
        for snr in (61.0, 12.5, 30.0)
    ]
    write_double(server.home, check={"golden": golden, "min_snr_db": 50.0, "passed": False})
    (server.home / "fail-check").write_text("cat answer-check.json; exit 3\n")

    report = deployed(server, order)

    assert report.status == "failed"
    assert "output y of golden sample 1 is at 12.5 dB, the limit is 50" in report.problem
    assert calls(server.home) == ["info", "check"]  # nothing is measured that is not right


def test_a_program_that_does_not_start_there_stops_before_the_bundle_is_sent(server: Sshd, order: Order) -> None:
    (server.home / "fail-info").write_text('echo "libm.so.6: version GLIBC_2.99 not found" >&2; exit 1\n')

    report = deployed(server, order)

    assert "tlc-run does not start on device: libm.so.6: version GLIBC_2.99 not found" in report.problem
    assert not list(server.home.glob(f"{CACHE}/bundles/*/*.tlc"))


@pytest.mark.parametrize(
    ("backends", "problem"),
    [
        ({"onnxruntime": {"version": None, "problem": "no libc"}}, "onnxruntime does not work on device: no libc"),
        ({"tensorrt": {"version": "10.3", "problem": ""}}, "this tlc-run was built without onnxruntime"),
        (["onnxruntime"], "does not say what it can run"),
    ],
)
def test_a_runtime_that_does_not_work_there_stops_before_the_bundle_is_sent(
    server: Sshd, order: Order, backends: object, problem: str
) -> None:
    write_double(server.home, info={"backends": backends})

    report = deployed(server, order)

    assert problem in report.problem
    assert not list(server.home.glob(f"{CACHE}/bundles/*/*.tlc"))


def test_an_altered_bundle_is_refused_before_the_device_is_asked(server: Sshd, order: Order) -> None:
    content = order.bundle.read_bytes().replace(b"not a model", b"not A model")
    order.bundle.write_bytes(content)

    report = deployed(server, order)

    assert report.status == "failed"
    assert "damaged" in report.problem
    assert calls(server.home) == []


@pytest.fixture
def orin(server: Sshd, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    """An order for a device with TensorRT."""
    changed = {"tensorrt": "10.3.0", "memory_available_bytes": 1 << 30}
    monkeypatch.setattr(deploy_visit, "facts", lambda *words: facts(*words).model_copy(update=changed))
    return replace(order, bundle=write_bundle(tmp_path / "tiny.tlc", target="jetson-orin"))


def test_an_engine_is_built_once_in_a_quarter_of_what_is_free(server: Sshd, orin: Order) -> None:
    first, second = deployed(server, orin), deployed(server, orin)
    rebuilt = deployed(server, replace(orin, rebuild=True))

    assert first.status == "ok", first.problem
    build, *_ = (server.home / "calls").read_text().splitlines()[1:]
    assert build.endswith("--workspace 256M")
    assert [report.steps[0].reused for report in (first, second, rebuilt)] == [False, True, False]
    assert (Path(first.folder) / "tiny.plan.json").exists()


def test_an_engine_whose_build_the_system_ends_is_built_in_less_and_that_is_said(server: Sshd, orin: Order) -> None:
    (server.home / "fail-build").write_text('case "$*" in *64M) ;; *) kill -s KILL $$;; esac\n')

    report = deployed(server, orin)

    assert report.status == "ok", report.problem
    builds = [line.split()[-1] for line in (server.home / "calls").read_text().splitlines() if line[:5] == "build"]
    assert builds == ["256M", "128M", "64M"]
    assert "The workspace was 256 MiB; building again with half of it." in report.notes[0]


def test_an_engine_for_which_there_is_never_enough_memory_is_given_up(server: Sshd, orin: Order) -> None:
    (server.home / "fail-build").write_text("kill -s KILL $$\n")

    report = deployed(server, orin)

    assert report.problem.startswith("the system of device ended build (SIGKILL), as it does when memory runs out")
    assert calls(server.home) == ["info", *["build"] * 5]


def test_data_is_sent_once_and_evaluated_there(server: Sshd, order: Order, tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a b's.jpg").write_bytes(name.encode())
    with packed(tmp_path / "photos") as data:
        report = deployed(server, replace(order, data=data, limit=3))
        again = Run(server, replace(order, data=data, limit=3))
        again.done()

    step = report.step("eval")
    assert step is not None
    assert step.result["top1"] == 0.75
    (folder,) = server.home.glob(f"{CACHE}/data/*/files")
    assert (folder / "ants" / "a b's.jpg").read_bytes() == b"ants"
    (line, _) = [line for line in (server.home / "calls").read_text().splitlines() if line.startswith("eval ")]
    assert f"--data {folder} --limit 3" in line
    assert not [line for line in again.said if "data" in line]


def test_data_that_is_on_the_device_is_used_where_it_lies(server: Sshd, order: Order) -> None:
    deployed(server, replace(order, remote_data="photos/val"))

    assert f"--data {server.home}/photos/val" in (server.home / "calls").read_text()


def test_cleaning_leaves_nothing_and_touches_nothing_else(server: Sshd, order: Order) -> None:
    place = server.home / "place"
    place.mkdir()
    (place / "mine").write_text("kept")

    report = deployed(server, replace(order, remote_dir="place", clean=True))

    assert report.status == "ok", report.problem
    assert [path.name for path in place.iterdir()] == ["mine"]
    deployed(server, replace(order, clean=True))
    assert not (server.home / CACHE).exists()


def test_a_step_that_takes_too_long_is_ended(server: Sshd, order: Order) -> None:
    (server.home / "hold-bench").touch()

    report = deployed(server, replace(order, timeout_s=0.5))

    assert "bench did not end within 0.5 s" in report.problem
    assert "--timeout" in report.problem
    until(lambda: not alive(step_pid(server, "bench")))


def test_a_connection_that_drops_when_all_is_measured_does_not_measure_again(
    server: Sshd, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dropped(lock: DeviceLock) -> str:
        lock.abandon()
        raise Dropped(HOST, "the connection broke")

    monkeypatch.setattr(DeviceLock, "release", dropped)
    report = deployed(server, replace(order, clean=True))

    assert report.status == "ok", report.problem
    assert calls(server.home) == ["info", "check", "bench"]
    assert "when all was measured" in report.notes[0]
    assert "files may be left there" in report.notes[0]


def test_a_file_that_was_altered_on_the_device_is_sent_again(server: Sshd, order: Order) -> None:
    deployed(server, order)
    (sent,) = server.home.glob(f"{CACHE}/bundles/*/tiny.tlc")
    sent.write_bytes(sent.read_bytes()[:-1] + b"x")

    assert deployed(server, order).status == "ok"
    assert sent.read_bytes() == order.bundle.read_bytes()


def test_a_host_with_another_key_than_the_one_on_record_gets_nothing(
    server: Sshd, order: Order, tmp_path: Path
) -> None:
    other = server.folder / "known_hosts.other"
    key = (server.folder / "user.pub").read_text().split()[:2]
    other.write_text(f"[127.0.0.1]:{server.port} {key[0]} {key[1]}\n")
    config = server.configured("wrong", UserKnownHostsFile=str(other))

    report = deployed(replace(server, config=config), order)

    assert report.status == "failed"
    assert "host key is not the one on record" in report.problem
    assert "ssh-keygen -R" in report.problem
    assert not (server.home / CACHE).exists()


def test_a_host_that_stays_away_is_given_up_after_the_last_pause(server: Sshd, order: Order) -> None:
    (server.home / "hold-bench").touch()
    under_way = Run(server, order)
    until(lambda: "bench: bench: working" in under_way.said)
    server.process.send_signal(signal.SIGSTOP)  # nobody comes back in between
    server.drop()
    server.process.kill()
    server.process.wait()
    (server.home / "hold-bench").unlink()

    report = under_way.done()

    assert report.status == "failed"
    assert "device" in report.problem
    assert len([note for note in report.notes if "trying again" in note]) == 5
