"""Every repair: afterwards nothing is left, and the outputs are those of the source as far as the grid allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import CHANNELS, Net, residual, two_convolutions
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from tlc.calibration.metrics import sqnr_db
from tlc.export.contract import check_model
from tlc.export.repair import Repaired, repair
from tlc.export.repair_grids import float_value
from tlc.export.view import View
from tlc.runtime.target import load_target

UINT8_ZERO = np.uint8(0)
IMAGES = np.random.default_rng(1).standard_normal((4, CHANNELS, 8, 8), dtype=np.float32)


def run(model: onnx.ModelProto) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": IMAGES})]


def repaired(model: onnx.ModelProto, target: str = "jetson-orin", **known: Any) -> Repaired:
    device = load_target(target, flags=frozenset({"sse2", "avx512_vnni"}))
    before = model.SerializeToString()
    assert check_model(model, device), "nothing to repair"
    result = repair(model, device, **known)
    assert model.SerializeToString() == before
    assert result.left == tuple(check_model(result.model, device))
    return result


def clean(model: onnx.ModelProto, target: str = "jetson-orin", **known: Any) -> onnx.ModelProto:
    result = repaired(model, target, **known)
    assert result.left == ()
    return result.model


def ratio_db(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    return min(sqnr_db(a, b) for a, b in zip(run(before), run(after), strict=True))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def constant(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def scales(model: onnx.ModelProto) -> list[float]:
    """Scales of the activations' quantisers, in the graph's order."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        float(constant(model, node.input[1]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored
    ]


def behind_relu(scale: Any = 0.02, zero_point: Any = UINT8_ZERO, **attributes: Any) -> onnx.ModelProto:
    net = Net()
    return net.model(net.conv(net.pair(net.op("Relu", "x"), scale, zero_point, **attributes)))


def test_uint8_becomes_int8_with_the_scale_times_255_by_127() -> None:
    source = behind_relu()
    model = clean(source)

    assert scales(model) == [pytest.approx(0.02 * 255 / 127)]
    assert ops(model).count("Relu") == 1
    assert ratio_db(source, model) > 35


def test_values_that_a_grid_from_zero_cut_off_stay_cut_off() -> None:
    net = Net()
    source = net.model(net.conv(net.pair(net.conv(net.pair("x")), zero_point=np.uint8(0))))
    model = clean(source)

    assert ops(model).count("Relu") == 1
    assert ratio_db(source, model) > 20


def test_a_zero_point_goes_by_what_the_grid_represents_or_by_known_ranges() -> None:
    net = Net()
    source = net.model(net.conv(net.pair("x", 0.04, np.int8(28))))

    assert scales(clean(source)) == [pytest.approx(0.04 * (28 + 128) / 128)]
    assert scales(clean(source, ranges={"x": (-4.0, 5.0)})) == [pytest.approx(5 / 127)]
    assert ratio_db(source, clean(source)) > 30


def test_a_zero_point_that_is_missing_means_uint8() -> None:
    source = behind_relu(zero_point=None)
    model = clean(source)

    assert scales(model) == [pytest.approx(0.02 * 255 / 127)]


def test_one_scale_per_activation_is_the_largest() -> None:
    each = np.linspace(0.01, 0.03, CHANNELS)
    source = behind_relu(each, np.zeros(CHANNELS, np.int8), axis=1)

    assert scales(clean(source)) == [pytest.approx(0.03)]


def test_biases_become_float() -> None:
    net = Net()
    grid = net.constant(np.full(CHANNELS, 1e-3, np.float32)), net.constant(np.zeros(CHANNELS, np.int32))
    integers = net.constant(np.arange(CHANNELS, dtype=np.int32))
    bias = net.op("DequantizeLinear", integers, *grid, axis=0)
    source = net.model(net.conv(net.pair("x"), net.weights(CHANNELS, CHANNELS, 3, 3), bias))
    model = clean(source)

    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    np.testing.assert_allclose(constant(model, conv.input[2]), np.arange(CHANNELS) * 1e-3, rtol=1e-6)
    assert ratio_db(source, model) == np.inf


def weighted(make: Callable[[Net], str]) -> onnx.ModelProto:
    net = Net()
    return net.model(net.conv(net.pair("x"), make(net)))


def test_half_range_integers_are_doubled_which_changes_nothing() -> None:
    source = weighted(lambda net: net.weights(CHANNELS, CHANNELS, 3, 3, largest=63))
    model = clean(source)

    assert ratio_db(source, model) == np.inf


def test_half_range_weights_come_from_the_float_file_where_there_is_one() -> None:
    source = weighted(lambda net: net.weights(CHANNELS, CHANNELS, 3, 3, largest=63))
    exact = weights_of(source) + np.random.default_rng(2).uniform(-0.003, 0.003, (CHANNELS, CHANNELS, 3, 3))
    net = Net()
    net.nodes = [onnx.NodeProto()] * 3  # the convolution's name counts those before it
    reference = net.model(net.conv("x", net.constant(exact.astype(np.float32))))
    del reference.graph.node[:3]

    from_integers, from_floats = (weights_of(clean(source, reference=known)) for known in (None, reference))

    assert np.abs(from_integers - exact).max() > 0.0029
    assert np.abs(from_floats - exact).max() < 0.0028


def weights_of(model: onnx.ModelProto) -> NDArray[Any]:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    view = View(model)
    dequantizer = view.dequantizer(conv.input[1])
    assert dequantizer is not None
    value = float_value(view, dequantizer)
    assert value is not None
    return value


def test_an_axis_is_written_and_scales_turned_to_it() -> None:
    net = Net(("N", 32))
    weights = net.weights(32, 32, axis=1)
    del net.nodes[-1].attribute[:]
    net.shape = ("N", CHANNELS, 8, 32)
    source = net.model(net.op("MatMul", net.pair("x"), weights))
    result = repair(source, load_target("jetson-orin"))

    assert [change.rule for change in result.changes] == ["missing-axis"]
    assert result.left == ()
    turned = weighted(lambda net: net.weights(CHANNELS, CHANNELS, 3, 3, axis=1))
    assert ratio_db(turned, clean(turned)) > 35


def test_transposed_convolutions_get_one_scale() -> None:
    net = Net()
    source = net.model(net.op("ConvTranspose", net.pair("x"), net.weights(CHANNELS, CHANNELS, 2, 2, axis=1)))

    assert ratio_db(source, clean(source)) > 40


def test_channels_of_zeros_get_a_scale() -> None:
    net = Net()
    weights = net.weights(CHANNELS, CHANNELS, 3, 3)
    net.constants["w2"][3] = 0
    net.constants["ws0"][3] = 0
    source = net.model(net.conv(net.pair("x"), weights))

    assert ratio_db(source, clean(source)) > 45


def test_pairs_around_float_weights_before_tensorrt_10_are_exact() -> None:
    source = two_convolutions()
    model = clean(source, "jetson-xavier")

    assert ratio_db(source, model) == np.inf
    assert ops(model).count("QuantizeLinear") == ops(source).count("QuantizeLinear") + 2


def test_a_pair_moves_behind_the_activation() -> None:
    net = Net()
    hidden = net.op("Relu", net.pair(net.conv(net.pair("x"))))
    source = net.model(net.conv(hidden))
    model = clean(source)

    assert ops(model).index("Relu") == ops(model).index("Conv") + 1
    assert ops(model).count("QuantizeLinear") == 2
    assert ratio_db(source, model) > 30


def test_the_branch_of_a_convolution_is_added_unrounded() -> None:
    source = residual(branch=True)
    model = clean(source)

    assert ops(model).count("QuantizeLinear") == ops(source).count("QuantizeLinear") - 1
    assert ratio_db(source, model) > 30


def test_a_skip_branch_takes_the_grid_of_another_pair_on_its_tensor() -> None:
    source = residual(skip=False)
    model = clean(source)

    assert scales(model) == [pytest.approx(0.02)] * 4


def test_what_has_no_known_range_is_left_and_named() -> None:
    net = Net()
    source = net.model(net.op("GlobalAveragePool", net.op("Relu", net.conv(net.pair("x")))))
    result = repaired(source)

    assert [violation.rule for violation in result.left] == ["float-pooling-input"]
    assert result.unknown_ranges == ("relu4",)
    assert scales(clean(source, ranges={"relu4": (0.0, 6.35)})) == [pytest.approx(0.02), pytest.approx(0.05)]


@pytest.mark.parametrize("behind", ["convolution", "activation"])
def test_concatenated_tensors_share_a_scale(behind: str) -> None:
    net = Net()
    joined = net.op("Concat", net.pair("x", 0.02), net.pair(net.op("Relu", "x"), 0.03), axis=1)
    if behind == "activation":
        joined = net.op("Relu", joined)
    source = net.model(net.conv(joined, net.weights(CHANNELS, 2 * CHANNELS, 3, 3)))

    assert scales(clean(source)) == [pytest.approx(0.03), pytest.approx(0.03)]


def test_what_is_rounded_behind_its_concatenation_is_not_rounded_before() -> None:
    net = Net()
    joined = net.op("Concat", net.pair("x", 0.02), net.pair(net.op("Relu", "x"), 0.03), axis=1)
    source = net.model(net.conv(net.pair(joined, 0.03), net.weights(CHANNELS, 2 * CHANNELS, 3, 3)))
    model = clean(source)

    assert scales(model) == [pytest.approx(0.03)]
    assert ratio_db(source, model) > 25


def test_small_layers_go_back_to_float() -> None:
    net = Net()
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.pair(net.op("Relu", net.conv(net.pair("x"))))))
    source = net.model(net.op("Gemm", net.pair(pooled), net.weights(10, CHANNELS), transB=1))
    model = clean(source)

    assert ops(model).count("QuantizeLinear") == 2
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    assert constant(model, gemm.input[1]).dtype == np.float32


def test_shared_pairs_are_copied_which_changes_nothing() -> None:
    net = Net()
    rounded = net.pair("x")
    source = net.model(net.conv(rounded), net.conv(rounded))

    assert ratio_db(source, clean(source)) == np.inf


def test_pairs_that_serve_nothing_go_and_outputs_keep_their_names() -> None:
    net = Net()
    source = net.model(net.pair(net.conv(net.pair("x"))))
    model = clean(source)

    assert [value.name for value in model.graph.output] == [value.name for value in source.graph.output]
    assert ops(model)[-1] == "Conv"


def test_float16_scales_become_float32() -> None:
    net = Net()
    half = net.op("Cast", "x", to=TensorProto.FLOAT16)
    grid = net.constant(np.float16(0.02)), net.constant(np.int8(0))
    rounded = net.op("DequantizeLinear", net.op("QuantizeLinear", half, *grid), *grid)
    pooled = net.op("MaxPool", rounded, kernel_shape=[2, 2])
    source = net.model(net.op("Cast", pooled, to=TensorProto.FLOAT), opset=19)

    model = clean(source, "jetson-xavier")
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}


def test_a_device_without_int8_gets_the_float_graph() -> None:
    net = Net()
    hidden = net.op("Relu", net.conv(net.pair("x", 0.05)))
    source = net.model(net.conv(net.pair(hidden, 0.3, np.uint8(0))))
    model = clean(source, "jetson-nano")

    assert set(ops(model)) == {"Conv", "Relu"}
    assert ratio_db(source, model) > 25


def test_the_opset_is_lowered() -> None:
    net = Net()
    source = net.model(net.op("Relu", "x"), opset=21)

    assert clean(source).opset_import[0].version == load_target("jetson-orin").opset


def test_bounds_of_slices_are_narrowed_before_tensorrt_10() -> None:
    net = Net()
    part = net.op("Slice", net.pair("x"), *(net.constant(np.array([value])) for value in (1, 2**63 - 1, 1)))
    source = net.model(net.conv(part, net.weights(CHANNELS, CHANNELS - 1, 3, 3)))
    model = clean(source, "jetson-xavier")

    ends = next(node for node in model.graph.node if node.op_type == "Slice").input[2]
    assert constant(model, ends).tolist() == [2**31 - 1]


def test_what_cannot_be_repaired_is_left() -> None:
    net = Net()
    source = net.model(net.op("Resize", "x", "", net.constant(np.ones(4, np.float32)), mode="cubic"))

    assert [violation.rule for violation in repaired(source).left] == ["operator-limit"]


def test_integers_that_something_else_reads_keep_their_grid() -> None:
    net = Net()
    grid = net.constant(np.float32(0.02)), net.constant(np.uint8(3))
    integers = net.op("QuantizeLinear", "x", *grid)
    weights = net.constant(np.ones((CHANNELS, CHANNELS, 1, 1), np.int8))
    unit = net.constant(np.float32(1)), net.constant(np.int8(0))
    product = net.op("QLinearConv", integers, *grid, weights, *unit, *grid)
    source = net.model(net.op("DequantizeLinear", product, *grid))
    result = repaired(source)

    assert {violation.rule for violation in result.left} >= {"integer-operator", "nonzero-zero-point"}
    assert ratio_db(source, result.model) == np.inf


def test_a_file_that_older_opsets_cannot_express_stays_as_it_is() -> None:
    net = Net()
    source = net.model(net.conv(net.pair("x", zero_point=np.int16(0))), opset=21)

    assert {violation.rule for violation in repaired(source).left} == {"grid-type", "opset"}


def test_onnx_runtime_gets_its_type_one_scale_and_rounded_outputs() -> None:
    each = np.linspace(0.01, 0.03, CHANNELS)
    many = behind_relu(each, np.zeros(CHANNELS, np.uint8), axis=1)
    mixed = behind_relu(each, np.arange(CHANNELS).astype(np.uint8), axis=1)
    signed = two_convolutions()
    net = Net()
    inner = net.conv(net.pair("x", zero_point=np.uint8(128)))
    output = net.model(net.op("HardSwish", inner))

    assert scales(clean(many, "cpu-x86")) == [pytest.approx(0.03)]
    assert ratio_db(mixed, clean(mixed, "cpu-x86")) > 20
    assert ratio_db(signed, clean(signed, "cpu-x86")) == np.inf
    assert repaired(output, "cpu-x86").unknown_ranges == (inner,)
    assert ops(clean(output, "cpu-x86", ranges={inner: (-3.0, 3.0)})).count("QuantizeLinear") == 2


def fused(model: onnx.ModelProto, path: Path) -> list[str]:
    """Operators after ONNX Runtime's own optimisations."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ops(onnx.load(path))


def test_onnx_runtime_convolves_in_integers_after_the_repair_and_not_before(tmp_path: Path) -> None:
    net = Net()
    inner = net.conv(net.pair(net.op("Relu", "x"), zero_point=np.uint8(0)))
    source = net.model(net.op("HardSwish", inner))
    model = clean(source, "cpu-x86", ranges={inner: (-20.0, 20.0)})

    assert "QLinearConv" not in fused(source, tmp_path / "before.onnx")
    assert "QLinearConv" in fused(model, tmp_path / "after.onnx")


def test_onnx_runtime_fails_behind_many_scales_and_runs_behind_one(tmp_path: Path) -> None:
    net = Net()
    inner = net.conv(net.pair(net.op("Relu", "x"), np.full(CHANNELS, 0.02), np.zeros(CHANNELS, np.uint8), axis=1))
    source = net.model(net.op("HardSwish", net.pair(inner, 0.2, np.uint8(128))))

    def optimised(model: onnx.ModelProto) -> NDArray[Any]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": IMAGES})[0])

    with pytest.raises(Exception, match="input zero point must be a scalar"):
        optimised(source)
    assert sqnr_db(run(source)[0], optimised(clean(source, "cpu-x86"))) > 20


def test_repairing_twice_changes_nothing_more() -> None:
    once = clean(residual(branch=True))

    assert repair(once, load_target("jetson-orin")).changes == ()
