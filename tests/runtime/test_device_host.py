"""Models on a device: the device is this machine behind a real SSH server, its tlc-run a script around our worker."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, two_convolutions
from sshd import HOST, Sshd, running
from waiting import within

from tlc.runtime import device_host
from tlc.runtime.bench import Timing, bench_report
from tlc.runtime.bench_report import Launch
from tlc.runtime.device_host import DeviceHost
from tlc.runtime.environment import environment, machine_identity
from tlc.runtime.errors import TlcError
from tlc.runtime.gate import Effort, gate
from tlc.runtime.launch import launch
from tlc.runtime.limits import GateLimits
from tlc.runtime.process import Case, Failure, Limits
from tlc.runtime.remote import Dropped, Remote
from tlc.runtime.worker import write_feeds

SUPPORT = Path(__file__).resolve().parent.parent / "support"
INFO = {"tlc_version": "0.1.0", "backends": {"onnxruntime": {"version": "onnxruntime 1.31.1", "problem": ""}}}

Devices = Callable[..., DeviceHost]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def device(sshd: Sshd, tmp_path: Path) -> Iterator[Devices]:
    """Return a device whose worker is a module of Python's."""
    opened: list[tuple[Remote, DeviceHost]] = []

    def make(worker: str = "tlc.runtime.worker", *, info: str = json.dumps(INFO), **options: Any) -> DeviceHost:
        runner = tmp_path / "tlc-run"
        runner.write_text(
            "#!/bin/sh\n"
            f"if [ $1 = info ]; then echo {shlex.quote(info)}; exit; fi\n"
            f"PYTHONPATH={SUPPORT} OMP_NUM_THREADS=1 exec {sys.executable} -m {worker}\n"
        )
        runner.chmod(0o755)
        remote = Remote(HOST, config=sshd.config)
        base = tmp_path / "there"
        base.mkdir(exist_ok=True)
        options.setdefault("waits_s", (0.05, 0.2, 1.0))
        opened.append((remote, DeviceHost(remote, str(runner), str(base), **options)))
        return opened[-1][1]

    yield make
    for remote, host in opened:
        host.close()
        remote.close()


@pytest.fixture
def odd(tmp_path: Path) -> Callable[..., Case]:
    """Return a case that behaves as the options say."""

    def make(name: str, **options: Any) -> Case:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(name.encode())
        return Case(name, path, options={**options, "name": name})

    return make


def _failure(found: Any) -> Failure:
    assert isinstance(found, Failure), found
    return found


def test_a_device_is_described_as_the_machine_that_it_is(device: Devices) -> None:
    here = machine_identity(environment())
    host = device()
    found = host.environment()
    there = machine_identity(found)
    assert {name: there[name] for name in there if name != "versions"} == {
        name: here[name] for name in here if name != "versions"
    }
    assert found["versions"] == {"tlc": "0.1.0", "onnxruntime": "1.31.1"}
    assert found["device"] == HOST
    assert host.snapshot().busy_s is not None


def test_models_take_turns_on_a_device_and_are_sent_once(device: Devices, tmp_path: Path) -> None:
    models = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in models:
        graph = two_convolutions()
        graph.doc_string = path.name
        onnx.save(graph, str(path))
    host = device()
    cases = [Case(path.stem, path) for path in models]
    report = bench_report([cases], Timing(rounds=12), command="tlc bench", energy=False, host=host)
    assert [(model.status, model.problem) for model in report.models] == [("ok", "")] * 2
    assert [model.launches[0].rounds for model in report.models] == [12, 12]
    assert [model.path for model in report.models] == [str(path) for path in models]
    assert report.models[1].latency is not None
    assert report.models[1].latency.ratio is not None
    assert report.environment["device"] == HOST
    blocks_ns = sum(one.cpu_ratio * one.wall_ns for model in report.models for one in model.launches)
    assert host.cpu_s() >= blocks_ns / 1e9 - 0.05  # counted in ticks of 10 ms
    sent = sorted((tmp_path / "there/models").glob("*/*.onnx"), key=lambda path: path.name)
    assert [path.read_bytes() for path in sent] == [path.read_bytes() for path in models]
    made = [path.stat().st_ino for path in sent]
    host._placed.clear()  # as in another process
    launch(cases, rounds=1, seed=0, host=host)
    assert [path.stat().st_ino for path in sent] == made


def test_real_inputs_are_sent_too(device: Devices, tmp_path: Path) -> None:
    model, feeds = tmp_path / "a.onnx", tmp_path / "feeds.npz"
    onnx.save(two_convolutions(), str(model))
    shape = (3, CHANNELS, 8, 8)
    write_feeds(feeds, [{"x": np.zeros(shape, np.float32)}])
    found = launch([Case("a", model, feeds=feeds)], rounds=1, seed=0, host=device())["a"]
    assert isinstance(found, Launch), found
    assert found.setting.shapes == {"x": list(shape)}


def test_a_gate_decides_on_a_device(device: Devices, odd: Callable[..., Case]) -> None:
    host = device("odd_worker")
    report = gate(
        odd("slow", ms=4),
        odd("fast", ms=1),
        GateLimits(max_slowdown_ratio=0.05),
        seed=1,
        effort=Effort(rounds=10, launches=1),
        host=host,
    )
    assert report.verdict == "fail"
    assert report.bench.environment["device"] == HOST


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"then": "refuse"}, "failed", "the model wants more"),
        ({"then": "exit"}, "crashed", "with status 7. Its last words: the last words"),
        ({"then": "crash"}, "crashed", "SIGSEGV"),
    ],
)
def test_a_model_that_fails_there_is_told_apart_as_here(
    device: Devices, odd: Callable[..., Case], options: dict[str, Any], status: str, words: str
) -> None:
    case = odd("bad", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        local = _failure(launch([replace(case, worker="odd_worker")], rounds=2, seed=0)["bad"])
    found = launch([case, odd("good")], rounds=2, seed=0, host=device("odd_worker"))
    remote = _failure(found["bad"])
    assert remote.status == local.status == status
    assert remote.problem.startswith(local.problem)  # its shell adds what a signal is called
    assert words in remote.problem
    assert isinstance(found["good"], Launch)


def test_a_model_that_hangs_is_ended_there(device: Devices, odd: Callable[..., Case]) -> None:
    host = device("odd_worker")
    found = launch([odd("hangs", then="hang", good=3)], rounds=2, seed=0, limits=Limits(timeout_s=1), host=host)
    assert _failure(found["hangs"]).status == "hung"
    (pid,) = host._pids
    assert within(5, lambda: not Path(f"/proc/{pid}").exists())


def test_a_model_that_outgrows_its_memory_is_told(device: Devices, odd: Callable[..., Case]) -> None:
    limits = Limits(timeout_s=20, memory_bytes=300_000_000)
    found = launch([odd("grows", then="grow", good=3)], rounds=50, seed=0, limits=limits, host=device("odd_worker"))
    failure = _failure(found["grows"])
    assert failure.status == "out_of_memory"
    assert "the limit is 300 MB" in failure.problem


def test_a_connection_that_breaks_is_made_again_and_the_launch_repeated(
    device: Devices, odd: Callable[..., Case], sshd: Sshd
) -> None:
    host = device("odd_worker")
    dropped: list[int] = []

    def drop(_what: str, done: int, _total: int) -> None:
        if done == 3 and not dropped:
            dropped.append(sshd.drop())

    report = bench_report([[odd("a"), odd("b")]], Timing(rounds=6), command="", on_progress=drop, host=host)
    assert dropped
    assert [model.launches[0].rounds for model in report.models] == [6, 6]
    (warning,) = [warning for warning in report.warnings if warning.code == "reconnected"]
    assert warning.message.startswith("The connection broke once (device: ")
    assert "were measured again" in warning.message
    assert within(5, lambda: not any(Path(f"/proc/{pid}").exists() for pid in host._pids))


def test_a_device_that_was_given_away_unnoticed_is_taken_again(
    device: Devices, odd: Callable[..., Case], sshd: Sshd
) -> None:
    host = device("odd_worker")
    first = host._lock
    sshd.drop()
    assert within(5, lambda: not first.held)
    assert isinstance(launch([odd("a")], rounds=1, seed=0, host=host)["a"], Launch)
    assert host._lock.held
    second = host._lock
    sshd.drop()
    assert within(5, lambda: not second.held)
    assert host.snapshot().busy_s is not None
    assert host.warnings()[0].message.startswith("The connection broke 2 times")


def test_a_connection_that_keeps_breaking_is_given_up(
    device: Devices, odd: Callable[..., Case], sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_host, "_MOST_DROPS", 2)
    host = device("odd_worker")
    drops: list[int] = []

    def drop(done: int, _total: int) -> None:
        if done == 1:
            drops.append(sshd.drop())

    with pytest.raises(Dropped, match=r"^device: the connection broke"):
        launch([odd("a")], rounds=4, seed=0, host=host, on_progress=drop)
    assert len(drops) == 3  # the first and two more


def test_a_device_that_was_started_anew_is_not_compared_with_itself(
    device: Devices, odd: Callable[..., Case], sshd: Sshd
) -> None:
    host = device("odd_worker")
    host.environment()
    host._boot_id = "another"

    def drop(done: int, _total: int) -> None:
        if done == 1:
            sshd.drop()

    with pytest.raises(TlcError, match="device was started anew while it was measured"):
        launch([odd("a")], rounds=4, seed=0, host=host, on_progress=drop)


def test_two_do_not_measure_on_one_device_at_once(device: Devices) -> None:
    first = device()
    with pytest.raises(TlcError, match="under way on device"):
        device()
    first.close()
    device().close()


def test_a_program_that_does_not_run_there_is_said(device: Devices) -> None:
    with pytest.raises(TlcError, match=r"^device: tlc-run does not run there: it says nothing"):
        device(info="not JSON").environment()


def test_a_pytorch_model_is_refused(device: Devices, tmp_path: Path) -> None:
    case = Case("net", tmp_path / "net.pt", worker="tlc.compress.torch_worker")
    with pytest.raises(TlcError, match=r"net\.pt is a PyTorch model, and device runs ONNX files and engines"):
        launch([case], rounds=1, seed=0, host=device())
