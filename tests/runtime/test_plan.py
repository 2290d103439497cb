import struct
from pathlib import Path
from typing import Any

import pytest

from tlc.runtime.artifact import sha256_file
from tlc.runtime.cuda import Device
from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import EngineHost
from tlc.runtime.plan import EngineRecord, check_plan, plan_version, read_record, sidecar, write_plan


def plan_bytes(*numbers: int, serialization: int = 0) -> bytes:
    return b"ftrt" + struct.pack("<I", serialization) + bytes(16) + bytes(numbers) + b"engine"


def record(plan: Path, **changes: Any) -> EngineRecord:
    facts: dict[str, Any] = {
        "target": "jetson-orin", "plan_sha256": sha256_file(plan), "plan_bytes": 1, "onnx": "model.onnx",
        "onnx_sha256": "0" * 64, "builder": "python", "tensorrt": "10.3.0.26", "sm": "8.7", "gpu": "Orin",
        "power_mode": "", "precision": "best", "strongly_typed": False, "inputs": [], "outputs": [], "profile": {},
        "builder_level": None, "pools_bytes": {}, "version_compatible": False, "hardware_compatible": False,
        "stripped": False, "refittable": False, "dla_core": None, "dla_layer_ratio": None, "timing_cache_hit": None,
        "build_s": 1.0, "attempts": [], "device_memory_bytes": None, "gpu_ms": None, "layers": None, "comparison": [],
        "candidates": [], "warnings": [], "preprocess": None, "classes": [],
    }  # fmt: skip
    return EngineRecord(**{**facts, **changes})


def host(tensorrt: str = "10.3.0", sm: str = "8.7") -> EngineHost:
    return EngineHost(tensorrt, "", True, Device("GPU", sm, True, 1, 1), "", "12.6", "")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(plan_bytes(10, 3, 0, 26))
    return path


def test_the_header_tells_the_version(plan: Path) -> None:
    assert plan_version(plan) == "10.3.0.26"


@pytest.mark.parametrize("content", [plan_bytes(8, 5, 3, 1), plan_bytes(10, 3, 0, 26, serialization=1)])
def test_a_layout_that_is_not_documented_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "old.plan"
    path.write_bytes(content)

    assert plan_version(path) is None


@pytest.mark.parametrize("content", [b"", b"ftrt", b"\x08\x07" + bytes(40)])
def test_another_file_is_not_a_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(content)

    with pytest.raises(TlcError, match="is not a TensorRT plan") as caught:
        plan_version(path)
    assert "tlc build" in caught.value.hint


def test_what_is_written_is_read(plan: Path) -> None:
    written = record(plan)

    write_plan(plan, plan.read_bytes(), written)

    assert read_record(plan) == written
    assert sidecar(plan).name == "model.plan.json"
    check_plan(plan, written, host())


def test_a_plan_without_sidecar_is_refused(plan: Path) -> None:
    with pytest.raises(TlcError, match=r"has no sidecar model\.plan\.json"):
        read_record(plan)


def test_a_broken_sidecar_names_the_field(plan: Path) -> None:
    sidecar(plan).write_text(record(plan).model_dump_json().replace('"sm":"8.7"', '"sm":87'))

    with pytest.raises(TlcError, match=r"is not an engine's record: sm: "):
        read_record(plan)


@pytest.mark.parametrize(
    ("changes", "machine", "message"),
    [
        ({"plan_sha256": "1" * 64}, host(), "is not the plan that model.plan.json describes"),
        ({"tensorrt": "10.7.0.23"}, host(), "was built by TensorRT 10.3.0.26, its sidecar says 10.7.0.23"),
        ({}, host("10.7.0"), "was built by TensorRT 10.3.0.26, this machine has 10.7.0: a plan runs on the release"),
        ({"version_compatible": True}, host("8.6.1"), "this machine has 8.6.1: version-compatible plan, but"),
        ({}, host(sm="8.6"), r"was built for SM 8.7 \(Orin\), this GPU is SM 8.6 \(GPU\)"),
        ({"hardware_compatible": True}, host(sm="7.5"), "this GPU is SM 7.5"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_next_step(
    plan: Path, changes: dict[str, Any], machine: EngineHost, message: str
) -> None:
    with pytest.raises(TlcError, match=message) as caught:
        check_plan(plan, record(plan, **changes), machine)
    assert "uild" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({"version_compatible": True}, host("10.13.3")),
        ({"version_compatible": True}, host("11.1.0")),
        ({"hardware_compatible": True}, host(sm="9.0")),
    ],
)
def test_compatible_plans_fit_more(plan: Path, changes: dict[str, Any], machine: EngineHost) -> None:
    check_plan(plan, record(plan, **changes), machine)


def test_versions_compare_as_numbers(plan: Path) -> None:
    with pytest.raises(TlcError, match=r"this machine has 10\.13\.3"):
        check_plan(plan, record(plan), host("10.13.3"))
