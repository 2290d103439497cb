"""`tlc bench --device` and `tlc gate --device`: the device is this machine behind a real SSH server."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from graphs import two_convolutions
from native_build import built
from sshd import Sshd, running

from tlc.cli.main import main
from tlc.runtime import device_open
from tlc.runtime.bench_report import BenchReport
from tlc.runtime.elf import Program
from tlc.runtime.gate_report import GateReport

INFO = {"tlc_version": "0.1.0", "backends": {"onnxruntime": {"version": "onnxruntime 1.31.1", "problem": ""}}}
SMALL_LIBRARY = Path(shutil.which("true") or "/bin/true")
"""Something that a loader would take; Python's worker has its own runtime."""


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(autouse=True)
def _reached(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_SSH_CONFIG", str(sshd.config))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(two_convolutions(), str(path))
    return path


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a script around Python's worker in place of tlc-run."""
    script = tmp_path / "tlc-run"
    script.write_text(
        "#!/bin/sh\n"
        f"if [ $1 = info ]; then echo {shlex.quote(json.dumps(INFO))}; exit; fi\n"
        f"OMP_NUM_THREADS=1 exec {sys.executable} -m tlc.runtime.worker\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(device_open, "find_runner", lambda _given, _facts: Program(script, "any", None))


def _tlc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--quiet"])


def _bench(*arguments: object) -> Result:
    return _tlc("bench", *arguments, "--no-energy", "--rounds", 3, "--ort-lib", SMALL_LIBRARY)


@pytest.mark.usefixtures("python")
def test_a_model_is_measured_on_a_device(model: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    done = _bench(model, "--device", "device", "--remote-dir", there, "--json")
    assert done.exit_code == 0, done.output
    report = BenchReport.model_validate_json(done.stdout)
    assert report.environment["device"] == "device"
    assert report.environment["versions"] == {"tlc": "0.1.0", "onnxruntime": "1.31.1"}
    assert (report.models[0].name, report.models[0].status) == (str(model), "ok")
    assert report.models[0].size_bytes == model.stat().st_size
    assert [path.name for path in there.glob("models/*/*")] == ["model.onnx"]
    assert len(list(there.glob("bin/*/tlc-run"))) == 1
    assert (there / "lib").is_dir()


@pytest.mark.usefixtures("python")
def test_several_devices_are_told_apart_and_one_that_is_not_there_stops_no_other(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "report-{device}.json"
    done = _bench(model, "--device", "device", "--device", "nobody@device", "--device", "again", "-o", out)
    assert done.exit_code == 1
    assert "error: nobody@device: it accepts none of the keys" in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("on ")] != []
    assert sorted(path.name for path in tmp_path.glob("report-*")) == ["report-again.json", "report-device.json"]
    names = [json.loads(path.read_text())["environment"]["device"] for path in sorted(tmp_path.glob("report-*"))]
    assert names == ["again", "device"]


@pytest.mark.usefixtures("python")
def test_a_gate_decides_by_what_a_device_shows(model: Path) -> None:
    arguments = ("--device", "device", "--ort-lib", SMALL_LIBRARY, "--rounds", 10, "--launches", 1, "--no-history")
    done = _tlc("gate", model, "--p50-under", "10s", *arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == f"PASS: {model} on device"
    slow = _tlc("gate", model, "--p50-under", "0.0001ms", *arguments, "--json")
    assert slow.exit_code in (3, 4), slow.output  # 4 on a machine that is busy meanwhile
    assert GateReport.model_validate_json(slow.stdout).bench.environment["device"] == "device"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile",), "--profile is measured on this machine alone"),
        (("--roofline",), "--roofline is measured on this machine alone"),
        (("--device", "b", "-o", "x.json"), "--output x.json would be written by 2 devices"),
        (("--device", "-oProxyCommand=x"), "is no name of a host"),
    ],
)
def test_what_cannot_be_done_on_a_device_is_refused(model: Path, arguments: tuple[str, ...], message: str) -> None:
    done = _bench(model, "--device", "device", *arguments)
    assert message in done.stderr
    assert done.exit_code in (1, 2)


def test_what_is_for_a_device_alone_is_refused_without_one(model: Path) -> None:
    done = _bench(model)
    assert (done.exit_code, "--ort-lib is for a device" in done.stderr) == (2, True)


def test_a_limit_on_accuracy_is_refused_on_a_device(model: Path) -> None:
    done = _tlc("gate", model, "--baseline", model, "--max-drop", 1, "--data", model, "--device", "device")
    assert done.exit_code == 2
    assert "A limit on accuracy is not held on a device" in done.stderr


def test_tlc_run_measures_on_a_device(model: Path) -> None:
    program = built()
    other = model.with_name("other.onnx")
    shutil.copy(model, other)
    done = _tlc(
        *("bench", model, other, "--no-energy", "--rounds", 5, "--launches", 2, "--memory-limit", "2GB"),
        *("--device", "device", "--runner", program, "--json"),
    )
    assert done.exit_code == 0, done.output
    report = BenchReport.model_validate_json(done.stdout)
    assert [one.status for one in report.models] == ["ok", "ok"], report.models
    assert [len(one.launches) for one in report.models] == [2, 2]
    assert report.models[0].runtime.startswith("onnxruntime ")
    assert report.models[0].launches[0].memory.peak_bytes > 0
    assert report.environment["versions"]["onnxruntime"] == report.models[0].runtime.split()[1]
