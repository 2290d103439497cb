import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from tlc.export.fp16 import fp16_from_float
from tlc.export.onnx import onnx_from_torch
from tlc.export.opset import lower_opset
from tlc.runtime.errors import TlcError


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 4))


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": batch})[0])


def test_half_the_size_and_nearly_the_same_float32_logits(tmp_path: Path, network: nn.Sequential) -> None:
    single, half = tmp_path / "m.onnx", tmp_path / "h.onnx"
    onnx_from_torch(network, (3, 16, 16), single, opset=18)
    fp16_from_float(single, half)
    batch = np.random.default_rng(0).standard_normal((3, 3, 16, 16), dtype=np.float32)
    found, expected = run(half, batch), run(single, batch)
    assert found.dtype == np.float32
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 5e-3
    weights = {tensor.data_type for tensor in onnx.load(half).graph.initializer if len(tensor.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert half.stat().st_size < 0.7 * single.stat().st_size


def test_the_same_file_gives_the_same_bytes(tmp_path: Path, network: nn.Sequential) -> None:
    onnx_from_torch(network, (3, 16, 16), tmp_path / "m.onnx", opset=18)
    for name in ("a.onnx", "b.onnx"):
        fp16_from_float(tmp_path / "m.onnx", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_weight_beyond_the_range_is_refused_by_name(tmp_path: Path, network: nn.Sequential) -> None:
    with torch.no_grad():
        network.get_parameter("4.weight")[1, 2] = -70000.0
    onnx_from_torch(network, (3, 16, 16), tmp_path / "m.onnx", opset=18)
    with pytest.raises(TlcError, match=r"m.onnx cannot be float16: 4.weight holds 70000, the limit is 65504"):
        fp16_from_float(tmp_path / "m.onnx", tmp_path / "h.onnx")
    assert not (tmp_path / "h.onnx").exists()


class Attention(nn.Module):
    """Patches and self-attention with the batch moved to the second axis, as torchvision's ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.patches(image).flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        logits: Tensor = self.head((tokens + mixed).mean(1))
        return logits


SCRIPT = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"


def test_attention_loads_without_crashing_the_process(tmp_path: Path) -> None:
    onnx_from_torch(Attention(), (3, 16, 16), tmp_path / "m.onnx", opset=18)
    fp16_from_float(tmp_path / "m.onnx", tmp_path / "h.onnx")
    assert subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "h.onnx")], check=False).returncode == 0


def save(path: Path, body: str, initialisers: str, opset: int = 18) -> Path:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[N, 4] input) => (float[N, 4] logits) <{initialisers}> {{ {body} }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def run_in_float16(path: Path, batch: np.ndarray) -> np.ndarray:
    """Run by onnx's reference: many of ONNX Runtime's CPU kernels compute in float32, where nothing overflows."""
    with np.errstate(over="ignore"):
        values: Any = ReferenceEvaluator(onnx.load(path)).run(None, {"input": batch})
    return np.asarray(values[0])


HUGE = "a = Mul (input, big) b = Relu (a) c = Mul (b, small) logits = Tanh (c)"
BATCHES = [np.array([[1, -2, 0.5, 3]], np.float32), np.array([[0.1, 2, -0.5, 0.25]], np.float32)]
SAMPLES = [{"input": batch} for batch in BATCHES]


def test_what_overflows_on_the_samples_stays_float32_from_its_writer_to_its_readers(tmp_path: Path) -> None:
    single = save(tmp_path / "m.onnx", HUGE, "float big = {60000}, float small = {0.00001}")
    record = fp16_from_float(single, tmp_path / "h.onnx", samples=SAMPLES)
    assert [(node.op_type, node.reason) for node in record.kept] == [
        ("Mul", "overflow"),
        ("Relu", "overflow"),
        ("Mul", "overflow"),
    ]
    assert record.kept[0].why == "a reaches 1.8e+05, float16 ends at 65504"
    assert (record.nodes, record.samples) == (4, 2)
    for batch in BATCHES:
        np.testing.assert_allclose(run(tmp_path / "h.onnx", batch), run(single, batch), rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(run_in_float16(tmp_path / "h.onnx", batch), run(single, batch), rtol=2e-3, atol=1e-6)
    casts = [node for node in onnx.load(tmp_path / "h.onnx").graph.node if node.op_type == "Cast"]
    assert len(casts) == 2  # in front of Tanh, and behind it: nothing between the three nodes


def test_without_samples_the_same_graph_overflows(tmp_path: Path) -> None:
    single = save(tmp_path / "m.onnx", HUGE, "float big = {60000}, float small = {0.00001}")
    assert fp16_from_float(single, tmp_path / "h.onnx").kept == ()
    assert np.abs(run_in_float16(tmp_path / "h.onnx", BATCHES[0]) - run(single, BATCHES[0])).max() > 0.01


def test_what_vanishes_in_float16_stays_float32(tmp_path: Path) -> None:
    body = "a = Mul (input, tiny) b = Div (a, divisor) logits = Tanh (b)"
    single = save(tmp_path / "m.onnx", body, "float tiny = {0.0000001}, float divisor = {0.0000001}")
    record = fp16_from_float(single, tmp_path / "h.onnx", samples=SAMPLES)
    assert [(node.op_type, node.reason) for node in record.kept] == [("Mul", "underflow"), ("Div", "underflow")]
    assert "a is at most 3e-07, float16's smallest steps are 6e-8" in record.kept[0].why
    np.testing.assert_allclose(run(tmp_path / "h.onnx", BATCHES[0]), run(single, BATCHES[0]), rtol=2e-3)


def test_small_values_beside_large_ones_do_no_harm(tmp_path: Path) -> None:
    single = save(tmp_path / "m.onnx", "a = Mul (input, s) logits = Softmax (a)", "float[4] s = {20, 1, 1, 1}")
    assert fp16_from_float(single, tmp_path / "h.onnx", samples=SAMPLES).kept == ()


def test_what_drowns_in_a_sum_does_no_harm(tmp_path: Path) -> None:
    body = "big = Neg (input) tiny = Mul (input, s) logits = Add (tiny, big)"
    single = save(tmp_path / "m.onnx", body, "float s = {0.0000001}")
    assert fp16_from_float(single, tmp_path / "h.onnx", samples=SAMPLES).kept == ()


def test_a_mean_of_squares_is_float32_without_samples_too(tmp_path: Path) -> None:
    body = "n = LayerNormalization <epsilon = 1e-12> (input, s) logits = Identity (n)"
    model = onnx.load(save(tmp_path / "m.onnx", body, "float[4] s = {1, 2, 3, 4}"))
    lower_opset(model, 16)
    onnx.save(model, tmp_path / "m.onnx")
    record = fp16_from_float(tmp_path / "m.onnx", tmp_path / "h.onnx")
    assert [node.op_type for node in record.kept] == ["Pow", "ReduceMean", "Add", "Sqrt"]
    batch = 5000 * BATCHES[0]
    np.testing.assert_allclose(run(tmp_path / "h.onnx", batch), run(tmp_path / "m.onnx", batch), rtol=5e-3, atol=5e-3)


def test_named_nodes_stay_float32(tmp_path: Path) -> None:
    single = save(tmp_path / "m.onnx", "[first] a = Mul (input, s) logits = Tanh (a)", "float s = {3}")
    fp16_from_float(single, tmp_path / "h.onnx", keep=["first"])
    model = onnx.load(tmp_path / "h.onnx")
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_an_infinite_mask_and_integers_pass(tmp_path: Path) -> None:
    body = """one = Constant <value_float = 1.0> () a = Mul (input, one) big = Greater (a, one)
    m = Where (big, minus, a) i = Cast <to = 7> (a) f = Cast <to = 1> (i) e = Exp (m) logits = Add (e, f)"""
    single = save(tmp_path / "m.onnx", body, "float minus = {-1}")
    model = onnx.load(single)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(-np.inf, np.float32), "minus"))
    onnx.save(model, single)
    record = fp16_from_float(single, tmp_path / "h.onnx", samples=SAMPLES)
    assert record.kept == ()
    np.testing.assert_allclose(run(tmp_path / "h.onnx", BATCHES[0]), run(single, BATCHES[0]), rtol=2e-3)


def test_scales_of_resizing_stay_float32(tmp_path: Path) -> None:
    body = "u = Resize (input, , scales) v = Resize (u, , half) logits = Neg (v)"
    save(tmp_path / "m.onnx", body, "float[2] scales = {1, 3}, float[2] half = {1, 0.33334}")
    fp16_from_float(tmp_path / "m.onnx", tmp_path / "h.onnx")
    np.testing.assert_allclose(run(tmp_path / "h.onnx", BATCHES[0]), run(tmp_path / "m.onnx", BATCHES[0]))


def test_no_samples_at_all_and_branches_are_refused(tmp_path: Path) -> None:
    single = save(tmp_path / "m.onnx", HUGE, "float big = {6}, float small = {1}")
    with pytest.raises(TlcError, match="no samples to measure"):
        fp16_from_float(single, tmp_path / "h.onnx", samples=[])
    branch = """zero = Constant <value_float = 0.0> () sum = ReduceSum <keepdims = 0> (input) up = Greater (sum, zero)
    logits = If (up) <then_branch = t () => (float[N, 4] p) { p = Neg (input) },
                      else_branch = e () => (float[N, 4] q) { q = Abs (input) }>"""
    single = save(tmp_path / "b.onnx", branch, "float unused = {1}")
    with pytest.raises(TlcError, match=r"If .* holds a graph of its own"):
        fp16_from_float(single, tmp_path / "h.onnx")
    assert not (tmp_path / "h.onnx").exists()
