from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, Net, two_convolutions
from onnx import TensorProto, helper, numpy_helper

from tlc.export.graph import Macs, input_specs, macs
from tlc.export.roofline import roofline, weights_bytes
from tlc.runtime.bench_report import Peaks
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.session import sample_feeds

PEAKS = Peaks(threads=1, fp32_per_s=1e9, int8_per_s=4e9, bytes_per_s=1e6)
FAST_MEMORY = PEAKS.model_copy(update={"bytes_per_s": 1e15})
MICROSOFT = "com.microsoft"


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def network(
    nodes: Sequence[onnx.NodeProto],
    *shapes: Sequence[int | str | None],
    kinds: Sequence[int] = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT),
    out: int = TensorProto.FLOAT,
    opset: int = 17,
    constants: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Return a graph of inputs "x0", "x1", ... and the output "y"."""
    inputs = zip(kinds, shapes, strict=False)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(f"x{place}", kind, shape) for place, (kind, shape) in enumerate(inputs)],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def product(batch: int | str | None = "N") -> onnx.ModelProto:
    """10 inputs by 20 outputs: 800 bytes of weights."""
    return network([helper.make_node("MatMul", ["x0", "w"], ["y"])], [batch, 10], constants={"w": floats(10, 20)})


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def counted(model: onnx.ModelProto, batch: int = 1) -> Macs:
    return macs(model, sample_feeds(input_specs(model), batch=batch))


def test_what_bounds_a_model_is_the_slower_of_arithmetic_and_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, product())

    by_memory = roofline(path, 2.0, PEAKS, batch=4)
    by_compute = roofline(path, 2.0, FAST_MEMORY, batch=4)

    assert by_memory is not None
    assert by_compute is not None
    assert by_memory.operations == 2 * 4 * 10 * 20
    assert by_memory.moved_bytes == 4 * (10 * 20 + 4 * 10 + 4 * 20)
    assert by_memory.achieved_per_s == pytest.approx(1600 / 2e-3)
    assert by_memory.bound_by == "memory"
    assert by_memory.bound_ms == pytest.approx(1.28)
    assert by_memory.reached_ratio == pytest.approx(0.64)
    assert by_compute.bound_by == "compute"
    assert by_compute.bound_ms == pytest.approx(1.6e-3)
    assert by_compute.peaks == FAST_MEMORY


@pytest.mark.parametrize("batch", ["N", None], ids=["named", "nameless"])
def test_an_open_first_dimension_is_the_batch(tmp_path: Path, batch: str | None) -> None:
    path = saved(tmp_path, product(batch))

    found = roofline(path, 1.0, PEAKS, batch=3)

    assert found is not None
    assert found.operations == 2 * 3 * 10 * 20


def test_other_sizes_are_given_by_name_or_as_whole_shapes(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x0", "w"], ["y"])]
    path = saved(tmp_path, network(nodes, ["N", "T", 10], constants={"w": floats(10, 20)}))

    named = roofline(path, 1.0, PEAKS, sizes={"T": 7}, batch=2)
    whole = roofline(path, 1.0, PEAKS, shapes={"x0": [2, 7, 10]})

    assert named == whole
    assert named is not None
    assert named.operations == 2 * 2 * 7 * 10 * 20
    with pytest.raises(UsageError, match="no input or open dimension L"):
        roofline(path, 1.0, PEAKS, sizes={"L": 7})


def test_int8_operations_count_against_the_int8_peak(tmp_path: Path) -> None:
    whole = roofline(saved(tmp_path, two_convolutions()), 1.0, FAST_MEMORY)

    each = 8 * 8 * CHANNELS * CHANNELS * 9
    assert whole is not None
    assert whole.operations == 2 * 2 * each
    assert whole.bound_ms == pytest.approx(2000 * 2 * each / 4e9)


def test_a_layer_with_one_float_factor_is_no_int8_layer() -> None:
    net = Net()
    hidden = net.conv(net.op("Relu", net.conv(net.pair("x"))))

    each = 8 * 8 * CHANNELS * CHANNELS * 9
    assert counted(net.model(hidden)) == Macs(floating=each, int8=each)


def test_pairs_of_16_bits_are_no_int8() -> None:
    net = Net()
    weights = net.weights(CHANNELS, CHANNELS, 3, 3)
    model = net.model(net.conv(net.pair("x", zero_point=np.uint16(0)), weights), opset=21)

    assert counted(model) == Macs(floating=8 * 8 * CHANNELS * CHANNELS * 9, int8=0)


def test_integer_operators_count() -> None:
    scale, zero = floats(1)[0], np.uint8(0)
    constants = {"s": scale, "z": zero, "k": np.ones((6, 4, 3, 3), np.uint8), "w": np.ones((10, 20), np.int8)}
    conv = helper.make_node("QLinearConv", ["x0", "s", "z", "k", "s", "z", "s", "z"], ["y"])
    integer = helper.make_node("MatMulInteger", ["x0", "w"], ["y"])
    dynamic = helper.make_node("DynamicQuantizeMatMul", ["x0", "w", "s"], ["y"], domain=MICROSOFT)
    uint8 = TensorProto.UINT8

    convolution = network([conv], ["N", 4, 5, 5], kinds=[uint8], out=uint8, constants=constants)
    assert counted(convolution, 2) == Macs(0, 2 * 3 * 3 * 6 * 4 * 9)
    whole = network([integer], ["N", 10], kinds=[uint8], out=TensorProto.INT32, constants=constants)
    assert counted(whole, 3) == Macs(0, 3 * 10 * 20)
    assert counted(network([dynamic], ["N", 10], constants=constants), 3) == Macs(0, 3 * 10 * 20)


def attention_by_products(batch: int, positions: int, width: int) -> int:
    """Projections to queries, keys and values; queries by keys; weights by values."""
    return batch * positions * width * 3 * width + 2 * batch * positions * positions * width


def test_attention_of_onnxruntime_counts_what_it_is_made_of() -> None:
    constants = {"w": floats(8, 24), "b": floats(24)}
    node = helper.make_node("Attention", ["x0", "w", "b"], ["y"], domain=MICROSOFT, num_heads=2)

    assert counted(network([node], ["N", 5, 8], constants=constants), 3) == Macs(attention_by_products(3, 5, 8), 0)


def test_of_quantised_attention_the_projections_are_int8() -> None:
    scale = floats(1)[0]
    constants = {"w": np.ones((8, 24), np.int8), "b": floats(24), "s": scale, "z": np.uint8(0), "wz": np.int8(0)}
    inputs = ["x0", "w", "b", "s", "s", "", "z", "wz"]
    node = helper.make_node("QAttention", inputs, ["y"], domain=MICROSOFT, num_heads=2)
    model = network([node], ["N", 5, 8], kinds=(TensorProto.UINT8,), constants=constants)

    whole = attention_by_products(3, 5, 8)
    assert counted(model, 3) == Macs(floating=2 * 3 * 5 * 5 * 8, int8=whole - 2 * 3 * 5 * 5 * 8)


@pytest.mark.parametrize(
    ("domain", "heads", "opset"), [(MICROSOFT, {"num_heads": 2}, 17), ("", {"q_num_heads": 2, "kv_num_heads": 2}, 23)]
)
def test_attention_after_its_projections(domain: str, heads: dict[str, Any], opset: int) -> None:
    op_type = "MultiHeadAttention" if domain else "Attention"
    node = helper.make_node(op_type, ["x0", "x1", "x2"], ["y"], domain=domain, **heads)
    model = network([node], ["N", 4, 8], ["N", 5, 8], ["N", 5, 8], opset=opset)

    assert counted(model, 3) == Macs(2 * 3 * 4 * 5 * 8, 0)


def test_of_a_table_only_the_rows_looked_up_are_moved(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "x0"], ["y"])]
    path = saved(tmp_path, network(nodes, ["N", "T"], kinds=(TensorProto.INT64,), constants={"table": floats(1000, 8)}))

    few = roofline(path, 1.0, PEAKS, sizes={"T": 6})
    many = roofline(path, 1.0, PEAKS, sizes={"T": 5000})

    assert few is not None
    assert many is not None
    assert few.operations == 0
    assert few.moved_bytes == 6 * 8 + 6 * 8 * 4 + 6 * 8 * 4
    assert many.moved_bytes == 5000 * 8 + 5000 * 8 * 4 + 1000 * 8 * 4


def test_weights_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["more"], value=numpy_helper.from_array(np.ones(3, np.float16))),
        helper.make_node("MatMul", ["x0", "w"], ["y"]),
    ]
    path = saved(tmp_path, network(nodes, ["N", 10], constants={"w": floats(10, 20), "integers": np.ones(7, np.int8)}))

    assert weights_bytes(path) == 4 * 10 * 20 + 7 + 2 * 3


def test_four_bits_are_half_a_byte(tmp_path: Path) -> None:
    model = product()
    model.graph.initializer.append(TensorProto(name="q", data_type=TensorProto.INT4, dims=[5], raw_data=bytes(3)))

    assert weights_bytes(saved(tmp_path, model)) == 800 + 3


def test_weights_in_a_data_file_count(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(product(), path, save_as_external_data=True, location="model.data", size_threshold=0)

    assert path.stat().st_size < 800
    assert weights_bytes(path) == 800


@pytest.mark.parametrize("name", ["model.pt2", "model.plan"])
def test_other_files_have_no_roofline(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")

    assert roofline(tmp_path / name, 1.0, PEAKS) is None
    assert weights_bytes(tmp_path / name) is None


def test_a_file_that_is_no_onnx_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08")

    with pytest.raises(TlcError, match="is not an ONNX file"):
        roofline(tmp_path / "model.onnx", 1.0, PEAKS)
    with pytest.raises(TlcError, match="is not an ONNX file"):
        weights_bytes(tmp_path / "model.onnx")


def test_operators_of_another_runtime_are_told(tmp_path: Path) -> None:
    path = saved(tmp_path, network([helper.make_node("TRT_Plugin", ["x0"], ["y"], domain="trt")], ["N", 10]))

    with pytest.raises(TlcError, match=r"cannot run the graph for the shapes in it: .*TRT_Plugin") as caught:
        roofline(path, 1.0, PEAKS)
    assert "give the file that it was made from" in caught.value.hint


def test_a_latency_is_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a latency is positive, got 0 ms"):
        roofline(saved(tmp_path, product()), 0, PEAKS)
