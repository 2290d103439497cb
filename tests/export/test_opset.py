from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import parser
from torch import nn
from torchvision import models

from tlc.export.contract import check_model
from tlc.export.onnx import onnx_from_torch
from tlc.export.opset import lower_opset, opset_of
from tlc.runtime.errors import TlcError
from tlc.runtime.target import load_target


def graph(opset: int, body: str, initialisers: str = "", shape: str = '"N", 8, 6') -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[{shape}] x) => (float y) {f"<{initialisers}>" if initialisers else ""} {{ {body} }}"""
    model: onnx.ModelProto = parser.parse_model(text.replace('"N"', "N"))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model)
    inferred.graph.ClearField("value_info")
    if not inferred.graph.output[0].type.tensor_type.HasField("shape"):
        inferred.graph.output[0].type.tensor_type.shape.dim.extend(
            [onnx.TensorShapeProto.Dimension()] * len(model.graph.input[0].type.tensor_type.shape.dim)
        )
    return inferred


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def lowered(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    lower_opset(copy, opset)
    assert opset_of(copy) == opset
    onnx.checker.check_model(copy, full_check=True)
    return copy


SCALE = "float[6] s = {1, 2, 3, -1, 0.5, 4}, float[6] b = {0, 1, -1, 2, 0, 3}"
GROUPS = "float[2] s = {2, -3}, float[2] b = {1, 4}"
CHANNELS = "float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {0, 1, 2, 3, 4, 5, 6, -7}"


@pytest.mark.parametrize("opset", [13, 16])
@pytest.mark.parametrize(
    ("newer", "body", "initialisers"),
    [
        (17, "y = LayerNormalization (x, s, b)", SCALE),
        (17, "y = LayerNormalization <epsilon = 0.1> (x, s)", SCALE),
        (17, "t = Transpose <perm = [0, 2, 1]> (x) y = LayerNormalization <axis = 2> (t, s)", CHANNELS),
        (18, "y = GroupNormalization <num_groups = 2> (x, s, b)", GROUPS),
        (21, "y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, s, b)", CHANNELS),
        (20, "y = Gelu (x)", ""),
        (20, 'y = Gelu <approximate = "tanh"> (x)', ""),
        (18, "y = Mish (x)", ""),
        (22, "y = HardSwish (x)", ""),
        (24, "y = Swish (x)", ""),
        (24, "y = Swish <alpha = 1.5> (x)", ""),
        (23, "y = RMSNormalization (x, s)", SCALE),
        (18, "y = Trilu (x)", ""),
        (18, "y = Trilu <upper = 0> (x, k)", "int64 k = {-1}"),
        (18, "z = Shape <start = 1> (x) y = Cast <to = 1> (z)", ""),
        (18, "z = Shape <start = -2, end = -1> (x) y = Cast <to = 1> (z)", ""),
        (18, "one = Constant <value_float = 1.0> () z = CastLike (one, x) y = Add (x, z)", ""),
        (18, "y = ReduceMean <noop_with_empty_axes = 0> (x, axes)", "int64[1] axes = {1}"),
        (18, "y, z = Split <axis = 1, num_outputs = 2> (x)", ""),
        (18, "y = Reshape <allowzero = 0> (x, shape)", "int64[2] shape = {0, -1}"),
        (20, "y = ReduceMax (x, axes)", "int64[1] axes = {-1}"),
    ],
)
def test_a_decomposition_gives_what_the_operator_gives(newer: int, body: str, initialisers: str, opset: int) -> None:
    x = 3 * np.random.default_rng(0).standard_normal((2, 8, 6), dtype=np.float32)
    model = graph(newer, body, initialisers)
    expected = run(model, x)
    np.testing.assert_allclose(run(lowered(model, opset), x), expected, rtol=1e-5, atol=1e-5)


def test_a_mean_takes_its_axes_as_the_opset_wants_them() -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 6), dtype=np.float32)
    model = graph(23, "y = RMSNormalization (x, s)", SCALE)
    np.testing.assert_allclose(run(lowered(model, 19), x), run(model, x), rtol=1e-5, atol=1e-6)


def test_batch_normalisation_and_resizing_lose_attributes_that_hold_defaults() -> None:
    body = """n = BatchNormalization <training_mode = 0> (x, s, s, b, s)
    y = Resize <mode = "linear", antialias = 0, keep_aspect_ratio_policy = "stretch"> (n, , scales)"""
    scale = "float[3] s = {1, 2, 3}, float[3] b = {0, 1, -1}, float[4] scales = {1, 1, 2, 2}"
    model = graph(18, body, scale, '"N", 3, 4, 4')
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(run(lowered(model, 13), x), run(model, x), rtol=1e-6, atol=1e-6)


def test_grid_sampling_gets_its_older_mode() -> None:
    body = 'y = GridSample <mode = "linear"> (x, grid)'
    grid = "float[1, 2, 2, 2] grid = {-1, -1, 0, 0, 0.5, 0.3, 1, 1}"
    model = graph(20, body, grid, "1, 3, 4, 4")
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(run(lowered(model, 16), x), run(model, x), rtol=1e-6)


def test_a_float16_layer_normalisation_computes_in_float32() -> None:
    """Squares of float16 overflow from 256 on, and its epsilon would be 0."""
    body = "h = Cast <to = 10> (x) n = LayerNormalization <epsilon = 1e-8> (h, s) y = Cast <to = 1> (n)"
    model = graph(17, body, "float16[6] s = {15360, 15360, 15360, 15360, 15360, 15360}")  # the bits of 1
    x = 4000 * np.random.default_rng(0).standard_normal((2, 8, 6), dtype=np.float32)
    found = run(lowered(model, 16), x)
    np.testing.assert_allclose(found, (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True), atol=4e-3)


def test_layer_normalisation_ends_in_the_nodes_that_runtimes_fuse(tmp_path: Path) -> None:
    model = lowered(graph(17, "y = LayerNormalization (x, s, b)", SCALE), 16)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node] == ["LayerNormalization"]


def test_operators_inside_a_branch_are_lowered_too() -> None:
    body = """total = ReduceSum <keepdims = 0> (x) zero = Constant <value_float = 0.0> ()
    positive = Greater (total, zero)
    y = If (positive) <then_branch = t () => (float[N, 8, 6] a) { a = Gelu (x) },
                       else_branch = e () => (float[N, 8, 6] c) { c = Neg (x) }>"""
    model = graph(20, body)
    x = np.ones((1, 8, 6), np.float32)
    np.testing.assert_allclose(run(lowered(model, 13), x), run(model, x), rtol=1e-6)


@pytest.mark.parametrize(
    ("newer", "body", "initialisers", "message"),
    [
        (18, "y = ReduceMean (x, axes)", "", "its axes are computed at run time"),
        (19, 'y = Pad <mode = "wrap"> (x, pads)', "int64[6] pads = {0, 0, 1, 0, 0, 1}", "its mode 'wrap'"),
        (18, "y = Reshape <allowzero = 1> (x, shape)", "int64[2] shape = {0, 3}", "it reshapes to an empty tensor"),
        (18, "z = BitwiseNot (x) y = Cast <to = 1> (z)", "", "the operator exists from opset 18 on"),
        (17, "y, m = LayerNormalization (x, s)", SCALE, "its mean and deviation are outputs too"),
    ],
)
def test_what_cannot_be_lowered_is_refused_by_name(newer: int, body: str, initialisers: str, message: str) -> None:
    if "(x, axes)" in body:
        body = f"whole = Shape (x) axes = Slice (whole, one, two) {body}"
        initialisers = "int64[1] one = {1}, int64[1] two = {2}"
    with pytest.raises(TlcError, match=message):
        lower_opset(graph(newer, body, initialisers), 13)


class Mixed(nn.Module):
    """One of each layer for which the exporter writes an operator newer than opset 13."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Hardswish(), nn.Upsample(scale_factor=2)),
            *(nn.Mish(), nn.AvgPool2d(2), nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)),
        )
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.SiLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(image).flatten(2).transpose(1, 2).chunk(2, dim=1)
        logits: torch.Tensor = self.head(self.norm(left + right)).mean(1)
        return logits


@pytest.mark.parametrize("target", ["jetson-nano", "jetson-xavier", "jetson-orin", "cuda"])
def test_a_module_of_newer_layers_comes_out_in_operators_that_the_target_reads(tmp_path: Path, target: str) -> None:
    torch.manual_seed(0)
    device = load_target(target)
    onnx_from_torch(Mixed(), (3, 8, 8), tmp_path / "m.onnx", opset=device.opset)
    model = onnx.load(tmp_path / "m.onnx")
    assert opset_of(model) == device.opset
    assert [broken for broken in check_model(model, device) if broken.rule != "dynamic-shape"] == []


@pytest.mark.slow  # exporting takes some ten seconds each
@pytest.mark.parametrize("target", ["jetson-nano", "jetson-xavier"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "swin_t", "convnext_tiny"])
def test_families_with_newer_operators_come_out_in_operators_that_the_target_reads(
    tmp_path: Path, name: str, target: str
) -> None:
    torch.manual_seed(0)
    device = load_target(target)
    onnx_from_torch(models.get_model(name), (3, 64, 64), tmp_path / "m.onnx", opset=device.opset)
    violations = check_model(onnx.load(tmp_path / "m.onnx"), device)
    assert [broken for broken in violations if broken.severity == "refused" and broken.rule != "dynamic-shape"] == []
