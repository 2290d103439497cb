"""tlc-run speaks the language of tlc's own reports."""

import json
import os
import subprocess
from pathlib import Path

import onnxruntime
import pytest
from onnx import TensorProto, helper, save

from tlc.runtime.report import LatencyRecord, Measurement

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tlc_run() -> Path:
    """The built program: `make native` puts it into build/native; TLC_RUN names another."""
    program = Path(os.environ.get("TLC_RUN") or REPOSITORY / "build" / "native" / "tlc-run")
    if not program.is_file():
        assert not os.environ.get("TLC_REQUIRE_NATIVE"), f"{program} is not built"
        pytest.skip(f"{program} is not built: run `make native`")
    return program


@pytest.fixture(scope="module")
def report(tlc_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What `tlc-run bench --json` says of y = relu(x)."""
    model = tmp_path_factory.mktemp("model") / "relu.onnx"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 8, 8]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*")
    command = [str(tlc_run), "bench", str(model), "--runs", "30", "--json", "--ort-lib", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parsed: dict[str, object] = json.loads(done.stdout)
    return parsed


def test_its_latency_is_a_latency_record_without_the_speedup(report: dict[str, object]) -> None:
    latency = report["latency"]
    assert isinstance(latency, dict)
    assert set(latency) == set(LatencyRecord.model_fields) - {"speedup"}
    record = LatencyRecord.model_validate({**latency, "speedup": {"estimate": 1.0, "low": 1.0, "high": 1.0}})
    assert len(record.samples_ms) == 30
    assert record.throughput_per_s == pytest.approx(1000 / record.mean_ms)


def test_its_sizes_are_fields_of_a_measurement(report: dict[str, object]) -> None:
    assert {"size_bytes", "peak_memory_bytes", "latency"} <= set(report) & set(Measurement.model_fields)


def test_it_has_the_version_of_the_python_package(tlc_run: Path) -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    version = project.partition('\nversion = "')[2].partition('"')[0]
    done = subprocess.run([tlc_run, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tlc-run {version}\n"
