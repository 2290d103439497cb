from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from tlc.calibration.metrics import sqnr_db
from tlc.export.contract import check_model
from tlc.export.fidelity import measured_ranges
from tlc.export.onnx import onnx_from_torch
from tlc.export.placement import place, quantized_tensors
from tlc.export.typed import typed_from_qdq
from tlc.runtime.errors import TlcError
from tlc.runtime.target import load_target


class Net(nn.Module):
    """Convolutions with a residual branch, a normalisation and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.stem(image)
        features = torch.relu(self.block(features) + features)
        logits: torch.Tensor = self.head(self.norm(features.mean((2, 3))))
        return logits


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 16, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("typed") / "m.onnx"
    onnx_from_torch(Net(), (3, 16, 16), path, opset=19)
    model = onnx.load(path)
    ranges = measured_ranges(model, quantized_tensors(model), [{"input": images()}])
    return place(model, load_target("cuda"), ranges)


def run(model: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": images()})[0])


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_outputs_stay_close_and_float32(quantized: onnx.ModelProto) -> None:
    typed = typed_from_qdq(quantized)
    found, expected = run(typed), run(quantized)
    assert found.dtype == np.float32
    assert sqnr_db(expected.ravel(), found.ravel()) > 30


def test_pairs_scales_and_layers_are_float16_and_weights_int8(quantized: onnx.ModelProto) -> None:
    typed = typed_from_qdq(quantized)
    kinds = types(typed)
    dequantizers = [node for node in typed.graph.node if node.op_type == "DequantizeLinear"]
    assert {kinds[node.input[1]] for node in dequantizers} == {TensorProto.FLOAT16}
    assert {kinds[node.output[0]] for node in dequantizers} == {TensorProto.FLOAT16}
    assert {kinds[node.input[0]] for node in dequantizers} == {TensorProto.INT8}
    layers = [node for node in typed.graph.node if node.op_type in ("Conv", "Gemm", "MatMul", "LayerNormalization")]
    assert {kinds[node.output[0]] for node in layers} == {TensorProto.FLOAT16}
    weights = [tensor for tensor in typed.graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {TensorProto.INT8}


def test_no_weight_moves_by_more_than_half_a_step(quantized: onnx.ModelProto) -> None:
    typed = typed_from_qdq(quantized)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in typed.graph.initializer}
    layer = next(node for node in typed.graph.node if node.op_type == "Conv")
    weight = next(node for node in typed.graph.node if node.output[0] == layer.input[1])
    scale = stored[weight.input[1]].astype(np.float64).reshape(-1, 1, 1, 1)
    source = next(node for node in quantized.graph.node if node.output[0] == weight.input[0])
    original = numpy_helper.to_array(next(t for t in quantized.graph.initializer if t.name == source.input[0]))
    # the largest weight may be cut off by what rounding took off the scale: 127 steps of 2^-11
    assert (np.abs(stored[weight.input[0]] * scale - original) <= scale * (0.5 + 127 * 2**-11)).all()


def test_the_target_accepts_what_comes_out(quantized: onnx.ModelProto) -> None:
    violations = check_model(typed_from_qdq(quantized), load_target("cuda-trt11"))
    assert [broken for broken in violations if broken.severity == "refused"] == []


def test_a_layer_with_a_scale_below_float16_stays_float32(quantized: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    layer = next(node for node in model.graph.node if node.op_type == "Conv")
    pair = next(node for node in model.graph.node if node.output[0] == layer.input[1])
    for tensor in model.graph.initializer:
        if tensor.name == pair.input[1]:
            scale = numpy_helper.to_array(tensor).copy()
            scale[0] = 1e-8
            tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    typed = typed_from_qdq(model)
    kinds = types(typed)
    kept = next(node for node in typed.graph.node if node.name == layer.name)
    assert {kinds[name] for name in kept.input[:2]} == {TensorProto.FLOAT}
    others = [node for node in typed.graph.node if node.op_type == "Conv" and node.name != layer.name]
    assert {kinds[node.output[0]] for node in others} == {TensorProto.FLOAT16}
    assert sqnr_db(run(model).ravel(), run(typed).ravel()) > 30


def test_named_nodes_stay_float32(quantized: onnx.ModelProto) -> None:
    name = next(node.name for node in quantized.graph.node if node.op_type == "LayerNormalization")
    typed = typed_from_qdq(quantized, keep_float32=[name])
    node = next(node for node in typed.graph.node if node.name == name)
    assert {types(typed)[source] for source in node.input} == {TensorProto.FLOAT}


def test_unfit_files_are_refused(quantized: onnx.ModelProto) -> None:
    old = onnx.ModelProto()
    old.CopyFrom(quantized)
    old.opset_import[0].version = 18
    with pytest.raises(TlcError, match="opset 18, the limit is 19"):
        typed_from_qdq(old)
    with pytest.raises(TlcError, match="names 1 nodes that the graph lacks, 'nowhere' first"):
        typed_from_qdq(quantized, keep_float32=["nowhere"])
    plain = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    )
    with pytest.raises(TlcError, match="no Q/DQ pair"):
        typed_from_qdq(plain)
