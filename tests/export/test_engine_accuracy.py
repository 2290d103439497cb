"""Choosing among engines by accuracy, over stand-ins for TensorRT and CUDA."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tensorrt_double import forget, install

from tiny import PREPROCESS, write_bars
from tlc.export.engine import BuildOptions, build_engine
from tlc.export.metadata import write_metadata
from tlc.runtime.errors import TlcError
from tlc.runtime.target import load_target


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def write_scorer(path: Path, *, sign: float, quantized: bool = False, batch: int | str = "N") -> Path:
    """Write a net that tells `write_bars`' classes with sign 1, and always the wrong one with -1.

    The brightest row's mean against the brightest column's: a horizontal bar (class 0) or a vertical one (class 1).
    """
    constants: dict[str, NDArray[Any]] = {"one": np.array([[[[sign]]]], np.float32)}
    nodes = [helper.make_node("Conv", ["x", "one"], ["c"], name="conv")]
    if quantized:
        constants |= {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="d"),
            helper.make_node("Conv", ["xd", "one"], ["c"], name="conv"),
        ]
    shrink = "ReduceMax" if sign > 0 else "ReduceMin"
    for name, axis in (("rows", 3), ("columns", 2)):
        nodes += [
            helper.make_node("ReduceMean", ["c"], [f"{name}_mean"], name=f"{name}_mean", axes=[axis], keepdims=1),
            helper.make_node(shrink, [f"{name}_mean"], [name], name=name, axes=[1, 2, 3], keepdims=0),
        ]
    constants["axis"] = np.array([1], np.int64)
    nodes += [
        helper.make_node("Unsqueeze", ["rows", "axis"], ["rows_1"], name="rows_1"),
        helper.make_node("Unsqueeze", ["columns", "axis"], ["columns_1"], name="columns_1"),
        helper.make_node("Concat", ["rows_1", "columns_1"], ["y"], name="join", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "scorer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    write_metadata(path, path, PREPROCESS, ("flat", "upright"))
    return path


def build(folder: Path, onnx_file: Path, **options: Any) -> Any:
    data = write_bars(folder / "bars.npz")
    chosen = BuildOptions(rounds=1, samples=4, data=data, **options)
    return build_engine(onnx_file, folder / "model.plan", load_target("jetson-orin"), chosen)


def test_an_engine_that_loses_accuracy_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    good = write_scorer(tmp_path / "model.onnx", sign=1)
    bad = write_scorer(tmp_path / "int8.onnx", sign=-1, quantized=True)

    record = build(tmp_path, good, alternatives=(bad,))

    rows = {(row.onnx, row.precision): row for row in record.candidates}
    assert record.onnx == "model.onnx"
    assert rows["model.onnx", "fp16"].top1 == 1.0
    assert rows["model.onnx", "fp16"].verdict == "chosen: the fastest that keeps the accuracy"
    assert rows["int8.onnx", "int8"].top1 == 0.0
    assert rows["int8.onnx", "best"].verdict == "loses 100.00 points"
    assert not any("Accuracy was not checked" in warning for warning in record.warnings)


def test_when_none_keeps_it_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    # Without a float file the quantised one is its own reference; here the float file is good and cannot be built.
    good = write_scorer(tmp_path / "model.onnx", sign=1)
    bad = write_scorer(tmp_path / "int8.onnx", sign=-1, quantized=True)
    from tlc.export import engine

    monkeypatch.setattr(engine, "candidates", lambda files, target, options: [(files[1], "int8"), (files[1], "best")])

    with pytest.raises(
        TlcError, match=r"no engine keeps top-1 within 1 points of .*model\.onnx: .*100\.00 points"
    ) as e:
        build(tmp_path, good, alternatives=(bad,))
    assert "--max-drop" in e.value.hint
    assert not (tmp_path / "model.plan").exists()


def test_a_fixed_batch_is_filled_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")

    record = build(tmp_path, write_scorer(tmp_path / "model.onnx", sign=1, batch=7))

    assert record.candidates[0].top1 == 1.0
    assert record.comparison[0].samples == 7
