"""Every rule: a small graph that breaks it, and its neighbour that does not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, Net, residual, two_convolutions
from onnx import TensorProto, helper, numpy_helper

from tlc.calibration.preprocess import Preprocess
from tlc.calibration.token_set import TextInput
from tlc.export.contract import Violation, check_model
from tlc.export.metadata import write_metadata
from tlc.runtime.target import load_target


def found(model: onnx.ModelProto, target: str = "jetson-orin") -> list[Violation]:
    return check_model(model, load_target(target, flags=frozenset({"sse2", "avx512_vnni"})))


def rules(model: onnx.ModelProto, target: str = "jetson-orin") -> set[str]:
    return {violation.rule for violation in found(model, target)}


def rounded_once(scale: object = 0.02, zero_point: object = np.int8(0), **attributes: object) -> onnx.ModelProto:
    """A convolution behind one pair with that grid."""
    net = Net()
    return net.model(net.conv(net.pair("x", scale, zero_point, **attributes)))


def weighted_by(**weights: Any) -> onnx.ModelProto:
    net = Net()
    return net.model(net.conv(net.pair("x"), net.weights(CHANNELS, CHANNELS, 3, 3, **weights)))


def test_a_graph_made_for_tensorrt_is_clean() -> None:
    assert found(two_convolutions()) == []
    assert found(residual()) == []


def test_a_violation_tells_node_reason_and_next_step() -> None:
    (first, second) = found(rounded_once(zero_point=np.int8(3)))

    assert (first.node, first.op_type) == ("quantizelinear0", "QuantizeLinear")
    assert second.op_type == "DequantizeLinear"
    assert first.rule == "nonzero-zero-point"
    assert first.severity == "refused"
    assert "its zero point is 3" in first.why
    assert first.fix.startswith("Quantise symmetrically")
    assert first.repairable


def test_uint8() -> None:
    assert rules(rounded_once(zero_point=np.uint8(0))) == {"uint8-zero-point"}
    assert rules(rounded_once(zero_point=np.int8(0))) == set()


def test_a_zero_point_that_is_not_there() -> None:
    assert rules(rounded_once(zero_point=None)) == {"missing-zero-point"}


def test_a_zero_point_that_is_computed() -> None:
    net = Net()
    zero = net.op("QuantizeLinear", net.constant(np.float32(0)), net.constant(np.float32(1)), net.constant(np.int8(0)))
    grid = net.constant(np.float32(0.02)), zero
    rounded = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", *grid), *grid)

    broken = found(net.model(net.conv(rounded)))

    assert {violation.rule for violation in broken} == {"dynamic-zero-point"}
    assert not any(violation.repairable for violation in broken)


def test_a_scale_that_is_computed() -> None:
    net = Net()
    scale = net.op("ReduceMax", net.op("Abs", "x"), keepdims=0)
    zero = net.constant(np.int8(0))
    rounded = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, zero), scale, zero)

    assert "dynamic-scale" in rules(net.model(net.conv(rounded)))


def test_as_many_zero_points_as_scales() -> None:
    net = Net()
    weights = net.weights(CHANNELS, CHANNELS, 3, 3)
    net.constants["wz1"] = np.zeros(1, np.int8)

    assert rules(net.model(net.conv(net.pair("x"), weights))) == {"grid-size"}


@pytest.mark.parametrize("scale", [0.0, -0.1, np.nan])
def test_scales_are_above_zero(scale: float) -> None:
    assert rules(rounded_once(scale=scale)) == {"scale-not-positive"}


def test_one_scale_per_activation() -> None:
    many = {"scale": np.full(CHANNELS, 0.02), "zero_point": np.zeros(CHANNELS, np.int8)}

    assert rules(rounded_once(**many, axis=1)) == {"per-channel-activation"}


def test_sixteen_bits() -> None:
    assert rules(rounded_once(zero_point=np.int16(0))) == {"grid-type"}


def test_float16_scales_before_tensorrt_10() -> None:
    net = Net()
    half = net.op("Cast", "x", to=TensorProto.FLOAT16)
    grid = net.constant(np.float16(0.02)), net.constant(np.int8(0))
    rounded = net.op("DequantizeLinear", net.op("QuantizeLinear", half, *grid), *grid)
    wide = net.op("Cast", rounded, to=TensorProto.FLOAT)
    model = net.model(net.op("Relu", wide), opset=19)

    assert "float16-scale" in rules(model, "jetson-xavier")
    assert "float16-scale" not in rules(model, "jetson-orin")


def test_a_bias_in_integers() -> None:
    def biased(*, rounded: bool) -> onnx.ModelProto:
        net = Net()
        grid = net.constant(np.full(CHANNELS, 1e-4, np.float32)), net.constant(np.zeros(CHANNELS, np.int32))
        bias = net.constant(np.ones(CHANNELS, np.int32 if rounded else np.float32))
        if rounded:
            bias = net.op("DequantizeLinear", bias, *grid, axis=0)
        return net.model(net.conv(net.pair("x"), net.weights(CHANNELS, CHANNELS, 3, 3), bias))

    assert rules(biased(rounded=True)) == {"quantised-bias"}
    assert rules(biased(rounded=False)) == set()


def test_stored_integers_before_tensorrt_10() -> None:
    assert rules(two_convolutions(), "jetson-xavier") == {"int8-weights"}

    net = Net()
    weights = net.constant(net.rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32))
    assert rules(net.model(net.conv(net.pair("x"), net.pair(weights, 0.03))), "jetson-xavier") == set()


def test_an_axis_that_is_not_written() -> None:
    assert rules(weighted_by(axis=1)) == {"weight-axis"}
    net = Net()
    weights = net.weights(CHANNELS, CHANNELS, 3, 3)
    del net.nodes[-1].attribute[:]
    assert rules(net.model(net.conv(net.pair("x"), weights))) == {"missing-axis"}


def test_weights_of_seven_bits() -> None:
    assert rules(weighted_by(largest=64)) == {"half-range-weights"}
    assert rules(weighted_by(largest=65)) == set()


def test_transposed_convolutions_have_one_scale() -> None:
    def upsample(axis: int | None) -> onnx.ModelProto:
        net = Net()
        return net.model(net.op("ConvTranspose", net.pair("x"), net.weights(CHANNELS, CHANNELS, 2, 2, axis=axis)))

    assert rules(upsample(1)) == {"per-channel-transposed-conv"}
    assert rules(upsample(None)) == set()


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Clip", "Sigmoid"])
def test_a_pair_before_an_activation(activation: str) -> None:
    net = Net()
    hidden = net.op(activation, net.pair(net.conv(net.pair("x"))))

    assert "pair-before-activation" in rules(net.model(net.conv(net.pair(hidden))))


def test_a_pair_inside_a_swish() -> None:
    def swish(*, rounded: bool) -> onnx.ModelProto:
        net = Net()
        inner = net.conv(net.pair("x"))
        gate = net.op("Sigmoid", inner)
        product = net.op("Mul", inner, net.pair(gate) if rounded else gate)
        return net.model(net.conv(net.pair(product)))

    assert rules(swish(rounded=True)) == {"pair-before-activation"}
    assert rules(swish(rounded=False)) == set()


def test_a_skip_branch_in_float() -> None:
    (broken,) = found(residual(skip=False))

    assert (broken.rule, broken.op_type) == ("float-skip-branch", "Add")


def test_both_branches_rounded() -> None:
    assert rules(residual(branch=True)) == {"rounded-residual-branch"}


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "AveragePool", "MaxPool"])
def test_pooling_of_float(pool: str) -> None:
    def pooled(*, rounded: bool) -> onnx.ModelProto:
        net = Net()
        hidden = net.op("Relu", net.conv(net.pair("x")))
        attributes: dict[str, Any] = {} if pool == "GlobalAveragePool" else {"kernel_shape": [2, 2]}
        return net.model(net.op(pool, net.pair(hidden) if rounded else hidden, **attributes))

    assert rules(pooled(rounded=False)) == {"float-pooling-input"}
    assert rules(pooled(rounded=True)) == set()


def test_a_maximum_may_be_rounded_behind_the_pooling() -> None:
    net = Net()
    hidden = net.op("MaxPool", net.op("Relu", net.conv(net.pair("x"))), kernel_shape=[2, 2])

    assert rules(net.model(net.conv(net.pair(hidden)))) == set()


@pytest.mark.parametrize(("first", "second", "clean"), [(0.02, 0.02, True), (0.02, 0.03, False), (0.02, None, False)])
def test_scales_of_what_is_concatenated(first: float, second: float | None, clean: bool) -> None:
    net = Net()
    other = net.op("Relu", "x")
    joined = net.op("Concat", net.pair("x", first), other if second is None else net.pair(other, second), axis=1)
    weights = net.weights(CHANNELS, 2 * CHANNELS, 3, 3)

    assert rules(net.model(net.conv(joined, weights))) == (set() if clean else {"concat-scales"})


@pytest.mark.parametrize(
    ("shape", "group", "clean"),
    [
        ((16, 16, 3, 3), 1, True),
        ((12, 16, 3, 3), 1, True),  # behind the input, with one count a multiple of 8
        ((12, 12, 3, 3), 1, False),
        ((16, 1, 3, 3), 16, True),
        ((16, 1, 1, 1), 16, False),
    ],
)
def test_few_channels(shape: tuple[int, ...], group: int, clean: bool) -> None:
    net = Net(("N", shape[1] * group, 8, 8))
    model = net.model(net.conv(net.pair("x"), net.weights(*shape), group=group, pads=[0, 0, 0, 0]))

    assert rules(model) == (set() if clean else {"small-layer"})


@pytest.mark.parametrize(("depth", "width", "clean"), [(16, 16, True), (16, 10, False), (8, 32, False)])
def test_small_products(depth: int, width: int, clean: bool) -> None:
    net = Net(("N", depth))
    model = net.model(net.op("Gemm", net.pair("x"), net.weights(width, depth), transB=1))

    assert rules(model) == (set() if clean else {"small-layer"})


def test_a_product_with_a_vector() -> None:
    net = Net((1, 32))

    assert rules(net.model(net.op("MatMul", net.pair("x"), net.weights(32, 32, axis=1)))) == {"small-layer"}


def test_one_pair_for_two_layers() -> None:
    net = Net()
    rounded = net.pair("x")
    (broken,) = found(net.model(net.conv(rounded), net.conv(rounded)))

    assert broken.rule == "shared-pair"
    assert "conv3, conv5" in broken.why


def test_a_pair_that_serves_no_integers() -> None:
    net = Net()

    assert rules(net.model(net.pair(net.op("Relu", net.conv(net.pair("x")))))) == {"pair-without-reader"}


@pytest.mark.parametrize("op_type", ["DynamicQuantizeLinear", "QLinearMatMul"])
def test_integer_operators(op_type: str) -> None:
    model = helper.make_model(helper.make_graph([helper.make_node(op_type, ["x"], ["y"])], "g", [], []))

    assert "integer-operator" in rules(model)


def test_operators_by_release() -> None:
    net = Net()
    model = net.model(net.op("HardSwish", "x"), opset=14)

    assert rules(model, "jetson-nano") == {"unsupported-operator", "opset"}
    assert rules(model, "jetson-xavier") == set()
    (broken,) = [one for one in found(model, "jetson-nano") if one.rule == "unsupported-operator"]
    assert broken.why == "TensorRT 8.2 does not read HardSwish; 8.4 does"


def test_operators_inside_a_branch() -> None:
    branch = helper.make_graph([helper.make_node("Det", ["x"], ["d"])], "then", [], [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)

    assert "unsupported-operator" in rules(helper.make_model(helper.make_graph([node], "g", [], [])))


def test_operators_of_another_domain() -> None:
    model = helper.make_model(helper.make_graph([helper.make_node("Fancy", ["x"], ["y"], domain="acme")], "g", [], []))

    assert "custom-operator" in rules(model)


def test_inputs_that_have_to_be_constants() -> None:
    def weighted(*, computed: bool) -> onnx.ModelProto:
        net = Net((1, 1, 8, 8))
        weights = net.constant(np.ones((1, 1, 3, 3), np.float32))
        return net.model(net.op("Conv", "x", net.op("Exp", weights) if computed else weights))

    assert rules(weighted(computed=True), "jetson-nano") == {"computed-input", "opset"}
    assert rules(weighted(computed=False), "jetson-nano") == {"opset"}
    assert rules(weighted(computed=True), "jetson-xavier") == set()


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("MaxPool", {"kernel_shape": [2, 2], "outputs": 2}),
        ("Resize", {"mode": "cubic"}),
        ("TopK", {"sorted": 0, "outputs": 2}),
    ],
)
def test_settings_that_the_parser_does_not_read(op_type: str, attributes: dict[str, Any]) -> None:
    net = Net()
    extra = [net.constant(np.array([3]))] if op_type == "TopK" else []
    if op_type == "Resize":
        extra = ["", net.constant(np.ones(4, np.float32))]

    assert rules(net.model(net.op(op_type, "x", *extra, **attributes))) == {"operator-limit"}


def test_integers_of_64_bits() -> None:
    def shifted(value: int) -> onnx.ModelProto:
        net = Net()
        return net.model(net.op("Cast", net.op("Add", net.op("Shape", "x"), net.constant(np.int64(value))), to=1))

    assert rules(shifted(2**40), "jetson-xavier") == {"int64-range"}
    assert rules(shifted(2**30), "jetson-xavier") == set()
    assert rules(shifted(2**40), "jetson-orin") == set()


def test_the_largest_integer_may_end_a_slice() -> None:
    net = Net()
    bounds = [net.constant(np.array([value])) for value in (1, 2**63 - 1, 1)]

    assert rules(net.model(net.op("Slice", "x", *bounds)), "jetson-xavier") == set()


def test_open_sizes() -> None:
    net = Net(("N", CHANNELS, "H", "W"))
    (broken,) = found(net.model(net.op("Relu", "x")))

    assert (broken.rule, broken.node) == ("dynamic-shape", "x")
    assert "[2, 3]" in broken.why
    assert "tlc build" in broken.fix
    assert rules(Net(("N", CHANNELS, 8, 8)).model("x")) == set()


def test_the_length_of_texts_may_be_open_up_to_a_recorded_limit(tmp_path: Path) -> None:
    onnx.save(Net(("N", "T")).model("x"), tmp_path / "m.onnx")
    for fed in (
        Preprocess(size=(8, 8), resize=None, mean=(0.5,), std=(0.5,), channels="gray"),
        text_input("y"),
        text_input("x"),
    ):
        write_metadata(tmp_path / "m.onnx", tmp_path / "fed.onnx", fed, ())
        expected = set() if fed == text_input("x") else {"dynamic-shape"}
        assert rules(onnx.load(tmp_path / "fed.onnx"), "jetson-orin") == expected


def text_input(name: str) -> TextInput:
    inputs = (name, "attention_mask")
    return TextInput(task="sequence-classification", max_length=64, inputs=inputs, pad_id=0, tokenizer_sha256=64 * "0")


def test_int8_on_a_device_without() -> None:
    (precision, opset) = found(two_convolutions(), "jetson-nano")

    assert (precision.rule, opset.rule) == ("precision", "opset")
    assert precision.why == "the graph has 6 Q/DQ nodes; jetson-nano has no INT8 arithmetic"


def test_opset() -> None:
    net = Net()
    model = net.model(net.op("Relu", "x"), opset=21)

    assert rules(model, "jetson-orin") == {"opset"}
    assert rules(model, "cuda") == set()
    assert rules(model, "cpu-x86") == {"opset"}


def test_onnx_runtime_wants_its_type_and_one_scale() -> None:
    signed = rounded_once()
    many = rounded_once(np.full(CHANNELS, 0.02), np.zeros(CHANNELS, np.uint8), axis=1)

    assert rules(signed, "cpu-x86") == {"activation-type"}
    assert rules(signed, "cpu-arm") == set()
    assert rules(many, "cpu-x86") == {"per-channel-activation"}
    assert rules(many, "openvino") == set()


def test_onnx_runtime_wants_rounded_outputs() -> None:
    net = Net()
    inner = net.conv(net.pair("x", zero_point=np.uint8(0)))
    model = net.model(net.op("HardSwish", inner))

    assert rules(model, "cpu-x86") == {"float-convolution-output"}


def test_float16_on_a_cpu() -> None:
    net = Net()
    half = net.op("Add", net.op("Cast", "x", to=TensorProto.FLOAT16), net.constant(np.float16(1)))
    model = net.model(net.op("Cast", half, to=TensorProto.FLOAT))

    assert rules(model, "cpu-x86") == {"precision"}
    assert rules(model, "cuda") == set()


def test_constants_may_be_nodes() -> None:
    model = rounded_once(zero_point=np.int8(3))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("z"))
    node = helper.make_node("Constant", [], [tensor.name], value=numpy_helper.from_array(np.asarray(3, np.int8)))
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, node)

    assert rules(model) == {"nonzero-zero-point"}
