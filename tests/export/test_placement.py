"""Every rule of placement: a small float graph, and which inputs of which operators get a pair."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import CHANNELS, Net
from numpy.typing import NDArray
from onnx import numpy_helper

from tlc.export.contract import check_model
from tlc.export.placement import place, quantized_tensors
from tlc.runtime.errors import TlcError
from tlc.runtime.target import load_target


class FloatNet(Net):
    """The input is "x", (N, 16, 8, 8); weights are float32 and random."""

    def floats(self, *shape: int) -> str:
        return self.constant(0.1 * self.rng.standard_normal(shape, np.float32), "w")

    def conv(self, source: str, weights: str | None = None, *bias: str, **attributes: Any) -> str:
        return super().conv(source, weights or self.floats(CHANNELS, CHANNELS, 3, 3), *bias, **attributes)

    def pooled(self, source: str, *, axes: tuple[int, ...] = (2, 3)) -> str:
        return self.op("ReduceMean", source, axes=axes, keepdims=0)


def observed(model: onnx.ModelProto, names: list[str]) -> dict[str, NDArray[np.float32]]:
    if not names:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(1).standard_normal((4, CHANNELS, 8, 8), dtype=np.float32)
    return dict(zip(names, session.run(names, {"x": batch}), strict=True))


def placed(model: onnx.ModelProto, *, ignored: tuple[str, ...] = (), target: str = "jetson-orin") -> onnx.ModelProto:
    """Quantise with the ranges of four images; the contract's rules find nothing, and the outputs stay close."""
    tensors = observed(model, quantized_tensors(model, ignored=ignored))
    ranges = {name: (float(value.min()), float(value.max())) for name, value in tensors.items()}
    quantized = place(model, load_target(target), ranges, ignored=ignored)
    onnx.checker.check_model(quantized, full_check=True)
    assert check_model(quantized, load_target(target)) == []
    (name,) = (value.name for value in model.graph.output)
    expected, found = observed(model, [name])[name], observed(quantized, [name])[name]
    assert np.square(found - expected).sum() < 0.01 * np.square(expected).sum()
    return quantized


def pairs(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Which inputs of each operator come out of a pair: indices, by the operator's name."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = {
        node.name: [index for index, name in enumerate(node.input) if name in dequantized]
        for node in model.graph.node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    }
    return {name: indices for name, indices in found.items() if indices}


def scales(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The scale of each quantiser, by the name of the tensor that it reads."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {node.input[0]: constants[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def quantizers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "QuantizeLinear"]


def test_inputs_and_weights_are_rounded_and_nothing_before_an_activation() -> None:
    net = FloatNet()
    first = net.conv("x", None, net.floats(CHANNELS))
    second = net.conv(net.op("Relu", first))
    assert pairs(placed(net.model(second))) == {first: [0, 1], second: [0, 1]}


def test_grids_are_symmetric_written_out_and_of_the_right_axis() -> None:
    net = FloatNet()
    weights = net.floats(CHANNELS, CHANNELS, 3, 3)
    model = net.model(net.conv("x", weights))
    quantized = place(model, load_target("jetson-xavier"), {"x": (-1.0, 3.0)})
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero_point = constants[node.input[1]], constants[node.input[2]]
            assert (str(scale.dtype), str(zero_point.dtype)) == ("float32", "int8")
            assert scale.shape == zero_point.shape
            assert not zero_point.any()
    assert scales(quantized)["x"] == np.float32(3 / 127)
    largest = np.abs(net.constants[weights]).max((1, 2, 3))
    np.testing.assert_allclose(scales(quantized)[weights], largest / 127, rtol=1e-6)
    assert [[(a.name, a.i) for a in node.attribute] for node in quantizers(quantized)] == [[], [("axis", 0)]]
    np.testing.assert_array_equal(constants[weights], net.constants[weights])


def test_the_weights_axis_follows_the_operator() -> None:
    net = FloatNet(("N", CHANNELS, 32))
    product = net.op("MatMul", "x", net.floats(32, 24))
    model = net.model(product)
    quantized = place(model, load_target("jetson-orin"), {"x": (-1.0, 1.0)})
    weights = quantizers(quantized)[1]
    assert weights.attribute[0].i == 1
    assert scales(quantized)[weights.input[0]].shape == (24,)


def test_a_transposed_convolution_has_one_scale() -> None:
    net = FloatNet()
    quantized = placed(net.model(net.op("ConvTranspose", "x", net.floats(CHANNELS, 24, 2, 2))))
    assert [scale.shape for scale in scales(quantized).values()] == [(), ()]
    assert not any(node.attribute for node in quantizers(quantized))


def test_a_channel_of_zeros_and_a_silent_tensor_get_a_positive_scale() -> None:
    net = FloatNet()
    weights = net.floats(CHANNELS, CHANNELS, 3, 3)
    net.constants[weights][2] = 0
    quantized = place(net.model(net.conv("x", weights)), load_target("jetson-orin"), {"x": (0.0, 0.0)})
    assert all((scale > 0).all() for scale in scales(quantized).values())


def test_of_a_residual_block_the_skip_branch_is_rounded() -> None:
    net = FloatNet()
    stem = net.op("Relu", net.conv("x"))
    inner = net.conv(net.op("Relu", net.conv(stem)))
    total = net.op("Add", inner, stem)
    last = net.conv(net.op("Relu", total))
    found = pairs(placed(net.model(last)))
    assert found[total] == [1]
    assert found[last] == [0, 1]


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_convolved_branches_the_shorter_one_is_the_skip_branch(swapped: bool) -> None:
    net = FloatNet()
    stem = net.op("Relu", net.conv("x"))
    branches = [net.conv(net.op("Relu", net.conv(stem))), net.conv(stem)]
    total = net.op("Add", *(reversed(branches) if swapped else branches))
    assert pairs(placed(net.model(net.conv(net.op("Relu", total)))))[total] == [0 if swapped else 1]


def test_what_a_convolution_feeds_twice_is_no_residual_block() -> None:
    net = FloatNet()
    stem = net.conv("x")
    total = net.op("Add", stem, net.op("Tanh", net.op("Softplus", stem)))
    assert total not in pairs(placed(net.model(total)))


def test_a_sum_beside_a_layer_left_in_float_stays_in_float() -> None:
    net = FloatNet()
    stem = net.op("Relu", "x")
    inner = net.conv(stem)
    total = net.op("Add", inner, stem)
    assert pairs(placed(net.model(total), ignored=(inner,))) == {}


def test_every_reader_has_a_pair_of_its_own() -> None:
    net = FloatNet()
    stem = net.op("Relu", net.conv("x"))
    total = net.op("Add", net.conv(stem), net.conv(stem))
    quantized = placed(net.model(total))
    readers = [name for node in quantized.graph.node for name in node.input]
    written = [node.output[0] for node in quantized.graph.node if node.op_type == "DequantizeLinear"]
    assert len(written) == 7
    assert all(readers.count(name) == 1 for name in written)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pooling_between_quantised_layers_is_rounded(kind: str) -> None:
    net = FloatNet()
    pool = net.op(kind, net.op("Relu", net.conv("x")), kernel_shape=[2, 2])
    quantized = placed(net.model(net.conv(pool)))
    assert pairs(quantized)[pool] == [0]
    grids = {name: float(scale) for name, scale in scales(quantized).items() if scale.ndim == 0}
    before = next(node.input[0] for node in quantizers(quantized) if node.output[0].startswith(pool))
    assert (grids[before] == grids[pool]) == (kind == "MaxPool")


@pytest.mark.parametrize(("axes", "rounded"), [((2, 3), True), ((-1, -2), True), ((1,), False)])
def test_the_mean_of_an_image_counts_as_pooling_and_that_of_channels_does_not(
    axes: tuple[int, ...], rounded: bool
) -> None:
    net = FloatNet()
    mean = net.pooled(net.op("Relu", net.conv("x")), axes=axes)
    assert (mean in pairs(placed(net.model(mean)))) == rounded


def test_pooling_in_a_float_network_stays_as_it_is() -> None:
    net = FloatNet()
    pool = net.op("MaxPool", net.op("Relu", "x"), kernel_shape=[2, 2])
    assert pairs(placed(net.model(pool))) == {}


def test_concatenated_tensors_share_the_scale_of_the_widest() -> None:
    net = FloatNet()
    wide = net.constant(np.ones((CHANNELS, CHANNELS, 3, 3), np.float32))
    branches = [net.op("Relu", net.conv("x")), net.op("Relu", net.conv("x", wide))]
    joined = net.op("Concat", *branches, axis=1)
    last = net.conv(joined, net.floats(CHANNELS, 32, 3, 3))
    quantized = placed(net.model(last))
    assert pairs(quantized)[joined] == [0, 1]
    found = scales(quantized)
    assert found[branches[0]] == found[branches[1]] == found[joined]


def test_a_scale_is_shared_through_operators_that_move_values() -> None:
    net = FloatNet()
    first = net.op("Relu", net.conv("x"))
    joined = net.op("Concat", first, net.op("Relu", "x"), axis=1)
    moved = net.op("Transpose", joined, perm=[0, 1, 3, 2])
    halves = net.op("Split", moved, outputs=2, axis=1)
    other = net.op("Concat", net.op("Relu", net.conv(halves)), f"{halves}_1", axis=1)
    quantized = placed(net.model(net.conv(other, net.floats(CHANNELS, 32, 3, 3))))
    found = scales(quantized)
    assert len({float(found[name]) for name in (first, halves, f"{halves}_1", other)}) == 1


def test_a_concatenation_that_only_float_layers_read_stays_in_float() -> None:
    net = FloatNet()
    joined = net.op("Concat", net.op("Relu", net.conv("x")), "x", axis=1)
    assert joined not in pairs(placed(net.model(net.op("Softmax", joined, axis=1))))


def test_squeeze_and_excitation_scales_the_rounded_tensor() -> None:
    net = FloatNet()
    image = net.op("Relu", net.conv("x"))
    pool = net.op("GlobalAveragePool", image)
    squeezed = net.conv(pool, net.floats(CHANNELS, CHANNELS, 1, 1), pads=[0, 0, 0, 0])
    scaled = net.op("Mul", image, net.op("Sigmoid", squeezed))
    found = pairs(placed(net.model(net.conv(scaled))))
    assert found[pool] == found[scaled] == [0]
    assert squeezed not in found


def test_a_swish_stays_in_one_piece() -> None:
    net = FloatNet()
    first = net.conv("x")
    swish = net.op("Mul", first, net.op("Sigmoid", first))
    last = net.conv(swish)
    assert pairs(placed(net.model(last))) == {first: [0, 1], last: [0, 1]}


@pytest.mark.parametrize(
    ("outputs", "inputs", "kernel", "groups", "integer"),
    [
        pytest.param(32, 16, 3, 1, True, id="enough channels"),
        pytest.param(12, 16, 3, 1, True, id="few, but beside many and a multiple of 8"),
        pytest.param(16, 16, 3, 16, True, id="depthwise"),
        pytest.param(16, 16, 1, 16, False, id="depthwise, kernel of 1"),
        pytest.param(20, 20, 3, 20, False, id="depthwise, no multiple of 8"),
        pytest.param(8, 8, 3, 1, False, id="few channels inside the network"),
    ],
)
def test_small_convolutions_stay_in_float(outputs: int, inputs: int, kernel: int, groups: int, integer: bool) -> None:
    net = FloatNet()
    stem = net.op("Relu", net.conv("x", net.floats(inputs, CHANNELS, 3, 3)))
    layer = net.conv(stem, net.floats(outputs, inputs // groups, kernel, kernel), group=groups)
    assert (layer in pairs(placed(net.model(layer)))) == integer


def test_a_first_layer_of_three_channels_is_an_exception() -> None:
    net = FloatNet(("N", 3, 8, 8))
    first = net.conv("x", net.floats(8, 3, 3, 3))
    assert quantized_tensors(net.model(first)) == ["x"]


def test_products_with_a_vector_and_small_ones_stay_in_float() -> None:
    net = FloatNet()
    vector = net.op("Gemm", net.pooled("x"), net.floats(24, CHANNELS), transB=1)
    assert quantized_tensors(net.model(vector)) == []
    net = FloatNet(("N", CHANNELS, 32))
    assert quantized_tensors(net.model(net.op("MatMul", "x", net.floats(32, 8)))) == []
    assert quantized_tensors(net.model(net.op("MatMul", "x", net.floats(32, 24)))) == ["x"]


def test_texts_of_open_length_are_not_taken_for_vectors() -> None:
    net = FloatNet(("N", "T", 32))
    product = net.op("MatMul", "x", net.floats(32, 24))
    first = net.op("Gather", product, net.constant(np.int64(0)), axis=1)
    assert quantized_tensors(net.model(product)) == ["x"]
    assert quantized_tensors(net.model(net.op("MatMul", first, net.floats(24, 24)))) == ["x"]


def test_attention_stays_in_float_between_its_layers() -> None:
    net = FloatNet(("N", CHANNELS, 32))
    normal = net.op("LayerNormalization", "x", net.constant(np.ones(32, "f")), net.constant(np.zeros(32, "f")))
    query, key, value = (net.op("MatMul", normal, net.floats(32, 32)) for _ in range(3))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]))
    mixed = net.op("MatMul", net.op("Softmax", scores), value)
    last = net.op("MatMul", mixed, net.floats(32, 32))
    total = net.op("Add", last, "x")
    model = net.model(total)
    quantized = place(model, load_target("jetson-orin"), dict.fromkeys(quantized_tensors(model), (-4.0, 4.0)))
    assert check_model(quantized, load_target("jetson-orin")) == []
    assert pairs(quantized) == {name: [0, 1] for name in (query, key, value, last)}


def test_ignored_layers_stay_in_float() -> None:
    net = FloatNet()
    first = net.conv("x")
    second = net.conv(net.op("Relu", first))
    assert pairs(placed(net.model(second), ignored=(first,))) == {second: [0, 1]}


def test_a_device_without_int8_is_refused() -> None:
    net = FloatNet()
    with pytest.raises(TlcError, match="target jetson-nano has no INT8 arithmetic"):
        place(net.model(net.conv("x")), load_target("jetson-nano"), {"x": (-1.0, 1.0)})
