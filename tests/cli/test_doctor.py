"""`tlc doctor` and `tlc targets` say what this machine can do and what to do about the rest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from machines import machine

from tlc.cli.main import main
from tlc.runtime import capability
from tlc.runtime.capability import Gpu, Machine
from tlc.runtime.jetson import Jetson
from tlc.runtime.probes import Package, Tool
from tlc.runtime.target import load_target, target_names

ORIN = Jetson(
    model="NVIDIA Jetson AGX Orin Developer Kit",
    soc="tegra234",
    sm="8.7",
    l4t="36.4.3",
    jetpack="6.2",
    tensorrt="10.3.0.30",
    dla_cores=2,
    power_mode="MAXN",
    clocks_locked=False,
)
ORIN_GPU = (Gpu(name="Orin", sm="8.7", memory_bytes=2**35),)


def _orin(**changes: Any) -> Machine:
    driver = Tool(name="NVIDIA driver", version="for CUDA 12.6")
    orin: dict[str, Any] = {"gpus": ORIN_GPU, "driver": driver, "jetson": ORIN}
    return machine(**(orin | changes))


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    capability.this_machine.cache_clear()
    yield
    capability.this_machine.cache_clear()


def _run(monkeypatch: pytest.MonkeyPatch, machine: Machine, *arguments: str) -> Result:
    monkeypatch.setattr(capability, "probe", lambda **_: machine)
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def _steps(monkeypatch: pytest.MonkeyPatch, machine: Machine, *arguments: str) -> list[str]:
    answer = json.loads(_run(monkeypatch, machine, "doctor", "--json", *arguments).stdout)
    steps: list[str] = answer["next_steps"]
    return steps


def test_a_pc_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, machine(), "doctor")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "  onnxruntime    1.31.1 with CPU" in lines
    assert "  tensorrt       not installed" in lines
    assert any(line.split() == ["cpu-x86", "runs", "here"] for line in lines)
    assert any(line.split() == ["jetson-orin", "not", "here:", "there", "is", "no", "NVIDIA", "GPU"] for line in lines)
    assert lines[-1].endswith("copy the ONNX files to the device, and run tlc build there")


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, machine(packages=[Package(name="openvino")]), "doctor", "--target", "openvino")
    assert any(
        line.split() == ["openvino", "not", "here:", "openvino", "is", "not", "installed"]
        for line in result.stdout.splitlines()
    )
    assert result.exit_code == 1


def test_a_jetson_with_its_own_facts_and_next_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    system = Tool(
        name="TensorRT of the system's Python", path="/usr/lib/python3/dist-packages/tensorrt", version="10.3.0"
    )
    result = _run(monkeypatch, _orin(system_tensorrt=system), "doctor")
    text = " ".join(result.stdout.split())
    assert "Jetson NVIDIA Jetson AGX Orin Developer Kit (tegra234)" in text
    assert "JetPack 6.2 (Jetson Linux 36.4.3) DLA cores 2 power mode MAXN clocks not locked" in text
    assert "GPU 0 Orin, SM 8.7, 32.0 GiB" in text
    assert "jetson-orin not here: TensorRT is not installed in this Python" in text
    assert "TensorRT 10.3.0 is in the system's Python: make the environment with" in text
    assert "lock the clocks: sudo jetson_clocks" in text


def test_trtexec_alone_builds_but_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _orin(trtexec=Tool(name="trtexec", path="/usr/src/tensorrt/bin/trtexec", version="10.3.0"))
    result = _run(monkeypatch, machine, "doctor", "--target", "jetson-orin")
    assert "is built here, not run: TensorRT is not installed in this Python" in result.stdout
    assert "trtexec                          10.3.0 (/usr/src/tensorrt/bin/trtexec)" in result.stdout
    assert result.exit_code == 1


def test_the_status_is_that_of_the_target_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, machine(), "doctor", "--target", "cpu-x86").exit_code == 0
    assert _run(monkeypatch, machine(), "doctor", "--target", "jetson-orin").exit_code == 1
    assert _run(monkeypatch, machine(), "doctor", "--target", "jetson-orin", "--json").exit_code == 1
    assert _run(monkeypatch, machine(), "doctor", "--target", "jetson").exit_code == 2
    ready = _orin(packages=[Package(name="tensorrt", version="10.3.0", imported=True)])
    assert _run(monkeypatch, ready, "doctor", "--target", "jetson-orin").exit_code == 0


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (machine(packages=[Package(name="openvino")]), "For target openvino: pip install openvino"),
        (machine(packages=[Package(name="onnx", version="1", error="boom")]), "Reinstall onnx: pip install --force-"),
        (machine(packages=[Package(name="torch")]), "pip install '.[compress]'"),
        (_orin(), "sudo apt install nvidia-jetpack"),
        (_orin(jetson=None), "pip install 'tensorrt=="),
        (_orin(packages=[Package(name="tensorrt", version="10.3", error="was ended by SIGSEGV")]), "Repair TensorRT"),
        (_orin(driver=Tool(name="NVIDIA driver", error="cuInit failed")), "Make the GPU usable"),
        (_orin(packages=[Package(name="tensorrt", version="8.6.2")]), "TensorRT 8.6.2 on SM 8.7 is no target yet"),
        (machine(disk_free_bytes=2**30), "Free some disk: 1.0 GiB are left"),
        (machine(memory_available_bytes=2**29), "Close other programs: 0.5 GiB of memory"),
    ],
)
def test_each_thing_missing_has_a_next_step(monkeypatch: pytest.MonkeyPatch, machine: Machine, expected: str) -> None:
    assert [step for step in _steps(monkeypatch, machine) if expected in step]


def test_a_provider_that_onnx_runtime_lacks_has_a_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = load_target("cpu-x86").model_dump(exclude={"tensorrt"}) | {"name": "pc", "provider": "cuda"}
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in facts.items())
    (tmp_path / "pc.toml").write_text(text)
    (step,) = _steps(monkeypatch, machine(), "--target", str(tmp_path / "pc.toml"))
    assert step == "For target pc: pip uninstall onnxruntime, then pip install onnxruntime-gpu"


def test_a_gpu_and_tensorrt_that_fit_some_target_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = _orin(packages=[Package(name="tensorrt", version="10.3.0")])
    assert not [step for step in _steps(monkeypatch, ready, "--target", "cuda") if "TensorRT" in step]


def test_nothing_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _steps(monkeypatch, machine(), "--target", "cpu-x86") == []
    assert "Nothing is missing." in _run(monkeypatch, machine(), "doctor", "--target", "cpu-x86").stdout


def test_targets_are_listed_with_what_can_be_done_with_them_here(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, machine(), "targets")
    assert [line.split()[0] for line in result.stdout.splitlines() if line[:1] != " "] == ["target", *target_names()]
    (orin,) = [line for line in result.stdout.splitlines() if line.startswith("jetson-orin ")]
    assert orin.split()[:9] == ["jetson-orin", "TensorRT", "10.3", "fp32", "fp16", "int8", "17", "compress", "only:"]
    (x86,) = [line for line in result.stdout.splitlines() if line.startswith("cpu-x86 ")]
    assert x86.split()[-2:] == ["compress,", "run"]


def test_a_device_can_run_what_it_cannot_compress(monkeypatch: pytest.MonkeyPatch) -> None:
    device = machine(packages=[Package(name="torch"), Package(name="openvino")])
    lines = " ".join(_run(monkeypatch, device, "targets", "cpu-arm", "openvino").stdout.split())
    assert "run only: torch is not installed" in lines
    assert "nothing: openvino is not installed; torch is not installed" in lines


def test_targets_as_json_have_every_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(_run(monkeypatch, machine(), "targets", "--json").stdout)
    assert [row["name"] for row in rows] == list(target_names())
    for row in rows:
        here = row.pop("here")
        assert row == load_target(row["name"]).model_dump(mode="json")
        assert here["cannot_compress"] is None
        assert (here["cannot_run"] is None) == (row["runtime"] != "tensorrt")


def test_a_target_is_printed_as_a_file_to_change(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["targets", "jetson-orin", "--toml"])
    (tmp_path / "robot.toml").write_text(result.stdout)
    assert load_target(str(tmp_path / "robot.toml")) == load_target("jetson-orin")
    assert "--toml takes one target, got 0" in CliRunner().invoke(main, ["targets", "--toml"]).stderr
