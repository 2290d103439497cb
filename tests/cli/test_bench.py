import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from tlc.cli.main import main
from tlc.runtime.bench_report import BenchReport


def _model(path: Path, width: int = 8) -> Path:
    weight = numpy_helper.from_array(np.ones((3, width), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "T", width])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return _model(tmp_path / "model.onnx")


def _bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments), "--quiet", "--no-energy"])


def test_the_report_holds_every_sample_and_the_file_is_what_json_prints(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = _bench(model, model, "--rounds", 5, "--size", "T=4", "--json", "-o", out)
    assert done.exit_code == 0, done.output
    report = BenchReport.model_validate_json(done.stdout)
    assert report == BenchReport.model_validate_json(out.read_text())
    first, second = report.models
    assert (first.name, second.name) == (str(model), f"{model} #2")
    assert first.setting.shapes == {"x": [1, 4, 3]}
    assert first.size_bytes == model.stat().st_size
    assert first.weights_bytes == 3 * 8 * 4
    assert first.latency is not None
    assert first.latency.samples == 5 * first.launches[0].block == len(first.launches[0].samples_ns)
    assert first.latency.quantile(50).ms in {sample / 1e6 for sample in first.launches[0].samples_ns}
    assert second.latency is not None
    assert second.latency.ratio is not None
    assert second.latency.ratio.low <= second.latency.ratio.estimate <= second.latency.ratio.high
    assert "size_assumed" not in {warning.code for warning in report.warnings}
    assert report.machine
    assert report.environment["logical_cores"]


def test_a_sweep_measures_every_combination(model: Path) -> None:
    done = _bench(model, "--rounds", 2, "--batch", "1,2", "--size", "T=4,8", "--json")
    shapes = [row["setting"]["shapes"]["x"] for row in json.loads(done.stdout)["models"]]
    assert shapes == [[1, 4, 3], [1, 8, 3], [2, 4, 3], [2, 8, 3]]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_samples_are_a_table_with_one_row_each(model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"samples.{suffix}"
    done = _bench(model, "--rounds", 3, "--launches", 2, "--samples", path, "--json")
    report = BenchReport.model_validate_json(done.stdout)
    rows: list[dict[str, Any]]
    if suffix == "json":
        rows = json.loads(path.read_text())
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    kept = [sample for launch in report.models[0].launches for sample in launch.samples_ns]
    assert [row["latency_ns"] for row in rows] == kept
    assert {row["launch"] for row in rows} == {0, 1}
    assert max(row["round"] for row in rows) == 1  # three rounds in two launches are two each


def test_the_table_has_a_row_per_model_under_its_setting(model: Path, tmp_path: Path) -> None:
    other = _model(tmp_path / "other.onnx", 16)
    done = _bench(model, other, "--rounds", 2)
    lines = done.stdout.splitlines()
    assert lines[0] == "1 thread, batch 1: x 1x1x3"
    assert lines[1].split()[:4] == ["in", "p50", "ms", "99"]
    assert [line.split()[0] for line in lines[2:4]] == [str(model), str(other)]
    assert "onnxruntime" in lines[2]


def test_a_broken_model_is_reported_and_the_others_are_measured(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    done = _bench(broken, model, "--rounds", 2)
    assert done.exit_code == 1
    assert f"{broken} failed. Loading and the first inference failed:" in done.stdout
    assert any(line.startswith(str(model)) and "onnxruntime" in line for line in done.stdout.splitlines())
    report = BenchReport.model_validate_json(_bench(broken, model, "--rounds", 2, "--json").stdout)
    assert [row.status for row in report.models] == ["failed", "ok"]
    assert report.models[1].latency is not None
    assert report.models[1].latency.ratio is None  # there is no first model to compare with


def test_layers_and_roofline_are_printed(model: Path) -> None:
    done = _bench(model, "--rounds", 2, "--profile", "--roofline", "--size", "T=64")
    assert done.exit_code == 0, done.output
    assert "1 layer," in done.stdout
    assert "MatMul" in done.stdout
    assert "operations" in done.stdout
    assert "reached" in done.stdout


def test_an_open_dimension_that_nobody_gave_is_named(model: Path) -> None:
    done = _bench(model, "--rounds", 1)
    assert f"{model} ran with T of length 1. Say how long real inputs are, such as --size T=128." in done.stdout


def test_real_inputs_are_used(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.ones((1, 7, 3), np.float32))
    done = _bench(model, "--rounds", 2, "--inputs", tmp_path / "inputs.npz", "--json")
    assert json.loads(done.stdout)["models"][0]["setting"]["shapes"] == {"x": [1, 7, 3]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch", "0"], 2, "'0' is not a number above 0"),
        (["--threads", "1,x"], 2, "'1,x' is not a number above 0"),
        (["--size", "T"], 2, "--size 'T' has no name and value"),
        (["--size", "T=0"], 2, "--size T=0 is not a length"),
        (["--shape", "x=axb"], 2, "--shape 'x=axb' is not a shape"),
        (["--samples", "samples.txt"], 2, "--samples samples.txt is neither .json nor .parquet"),
        (["--duration", "5"], 2, "'5' has no unit"),
        (["--target", "nothing"], 2, "nothing"),
        (["missing.onnx"], 1, "no model at missing.onnx"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    model: Path, arguments: list[str], code: int, message: str
) -> None:
    done = _bench(model, *arguments)
    assert done.exit_code == code
    assert message in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "Z=3"], "has no input or open dimension Z: it takes x float32 [N, T, 3]"),
        (["--shape", "x=1x3"], "input x float32 [N, T, 3] cannot have shape 1x3"),
    ],
)
def test_shapes_that_the_model_does_not_take_are_its_failure(model: Path, arguments: list[str], message: str) -> None:
    done = _bench(model, "--rounds", 1, *arguments)
    assert done.exit_code == 1
    assert message in done.stdout
