from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from tlc.export.qdq import (
    carry_through,
    dequantize_rows,
    float_convolution_outputs,
    quantize_tensors,
    set_activation_type,
    store_int8_weights,
)

SCALE = np.float32(0.05)


def quantizer(source: str, result: str, zero_point: str = "z") -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "s", zero_point], [f"{result}_q"]),
        helper.make_node("DequantizeLinear", [f"{result}_q", "s", zero_point], [result]),
    ]


def fire_module(other_zero_point: int = 0) -> onnx.ModelProto:
    """Two quantised branches, Concat, MaxPool, and a convolution with INT8 weights."""
    weight = np.random.default_rng(0).integers(-127, 128, (4, 6, 3, 3)).astype(np.int8)
    constants = {
        "s": SCALE,
        "z": np.uint8(0),
        "z2": np.uint8(other_zero_point),
        "w_q": weight,
        "w_s": np.full(4, 0.01, np.float32),
        "w_z": np.zeros(4, np.int8),
    }
    nodes = [
        *quantizer("x", "a"),
        helper.make_node("Relu", ["x"], ["r"]),
        *quantizer("r", "b", "z2"),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], axis=0),
        helper.make_node("Conv", ["p", "w"], ["v"]),
        *quantizer("v", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4, 5, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, *, fused: bool = False) -> np.ndarray:
    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)
    return np.asarray(session.run(None, {"x": batch})[0])


def fused_ops(model: onnx.ModelProto, path: Path) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def test_carrying_a_grid_through_changes_no_value() -> None:
    model = fire_module()
    before = run(model)
    assert carry_through(model) == 2
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model), before)


def test_the_convolution_behind_concat_becomes_integer(tmp_path: Path) -> None:
    model = fire_module()
    assert "QLinearConv" not in fused_ops(model, tmp_path / "a.onnx")
    carry_through(model)
    assert "QLinearConv" in fused_ops(model, tmp_path / "b.onnx")


def test_carrying_through_twice_adds_nothing() -> None:
    model = fire_module()
    carry_through(model)
    assert carry_through(model) == 0


def test_branches_on_different_grids_stay_as_they_are() -> None:
    assert carry_through(fire_module(other_zero_point=3)) == 0


def test_another_activation_type_changes_no_value_and_no_weight() -> None:
    model = fire_module(other_zero_point=3)
    before = run(model)
    assert set_activation_type(model, "uint8") == 0
    assert set_activation_type(model, "int8") == 2
    zero_points = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert zero_points["z"].dtype == zero_points["w_z"].dtype == np.int8
    assert (zero_points["z"].item(), zero_points["z2"].item()) == (-128, -125)
    np.testing.assert_array_equal(run(model), before)
    assert set_activation_type(model, "uint8") == 2
    np.testing.assert_array_equal(run(model), before)


def test_a_quantised_output_is_not_reported() -> None:
    model = fire_module()
    carry_through(model)
    assert float_convolution_outputs(model) == []


def test_a_convolution_read_in_float_gets_the_grid_of_its_range() -> None:
    model = fire_module()
    carry_through(model)
    del model.graph.node[-2:]
    model.graph.node.append(helper.make_node("Sigmoid", ["v"], ["y"]))
    before = run(model)
    assert float_convolution_outputs(model) == ["v"]
    quantize_tensors(model, {"v": (-2.0, 3.1)})
    assert float_convolution_outputs(model) == []
    added = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert added["v_scale"].item() == np.float32(5.1 / 255)
    assert added["v_zero_point"].item() == 100
    logit = np.clip(np.log(before / (1 - before)), -2.0, 3.1)
    after = run(model)
    np.testing.assert_allclose(np.log(after / (1 - after)), logit, atol=0.5 * 0.02 + 1e-4)


def test_a_reader_that_quantises_already_lends_its_grid() -> None:
    model = fire_module()
    carry_through(model)
    model.graph.node.append(helper.make_node("Sigmoid", ["v"], ["other"]))
    assert float_convolution_outputs(model) == ["v"]
    quantize_tensors(model, {"v": (-100.0, 100.0)})
    assert "v_scale" not in [tensor.name for tensor in model.graph.initializer]
    (quantizer_of_v,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "v")
    assert quantizer_of_v.input[1] == "s"


def test_stored_int8_weights_give_the_same_outputs_in_fewer_bytes() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 3, 3, 3)).astype(np.float32)
    scale = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
    weight[0, 0, 0, 0] = 2.5 * scale[0]  # a tie goes to the even integer
    constants = {"w": weight, "s": scale, "z": np.zeros(16, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
        helper.make_node("Conv", ["x", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 16, 6, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before, size = run(model), model.ByteSize()

    assert store_int8_weights(model) == 1

    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "Conv"]
    assert model.ByteSize() < 0.6 * size
    np.testing.assert_array_equal(run(model), before)


def embedding(scale: np.ndarray, *, zero_point: int = 0, axis: int = 0) -> onnx.ModelProto:
    """A table of 7 rows in INT8, looked up by token."""
    table = np.random.default_rng(0).integers(-127, 128, (7, 4)).astype(np.int8)
    constants = {"t_q": table, "t_s": scale, "t_z": np.full(scale.shape, zero_point, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["t_q", "t_s", "t_z"], ["t"], axis=axis),
        helper.make_node("Gather", ["t", "x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["N", "T"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", "T", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("scale", [np.float32(0.03), np.linspace(0.01, 0.09, 7, dtype=np.float32)], ids=["one", "rows"])
def test_only_the_rows_of_a_table_that_are_read_are_dequantised(scale: np.ndarray) -> None:
    model = embedding(np.asarray(scale))
    tokens = np.array([[0, 6, 3], [5, 5, 1]])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    before = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": tokens})[0]
    assert dequantize_rows(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert "DequantizeLinear" not in [node.op_type for node in model.graph.node]
    after = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": tokens})[0]
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    "model",
    [embedding(np.asarray(np.float32(0.1)), zero_point=3), embedding(np.full(4, 0.1, np.float32), axis=1)],
    ids=["zero point", "scale per column"],
)
def test_other_tables_are_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    assert dequantize_rows(model) == 0
    assert model.SerializeToString() == before
