"""INT8 files for TensorRT and OpenVINO, from the functions that also make ONNX Runtime's."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from tlc.compress.layer_noise import layer_noise, tensor_ranges
from tlc.compress.quantize import QuantizeSettings, quantize_onnx, quantize_within_budget
from tlc.export.contract import check_model
from tlc.export.onnx import onnx_from_torch
from tlc.export.qdq import float_convolution_outputs
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.target import Target, load_target
from tlc.runtime.tensor import Feeds

COUNT = 24
ORIN, XAVIER, NANO = (load_target(f"jetson-{name}") for name in ("orin", "xavier", "nano"))
OPENVINO = load_target("openvino", flags=frozenset({"sse2", "avx512_vnni"}))


class Wide(nn.Module):
    """Channels enough for INT8: a residual block, and a swish."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        body = self.first(image).relu()
        body = (body + self.inner(body)).relu()
        logits: Tensor = self.head(nn.functional.silu(self.last(body)).mean((2, 3)))
        return logits


class Noise:
    """Seeded images, made anew in each pass."""

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(0)
        while True:
            yield {"input": rng.standard_normal((1, 3, 8, 8), dtype=np.float32)}


@pytest.fixture(scope="module")
def float_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("float") / "m.onnx")


def exported(path: Path) -> Path:
    """Write a network with a convolution that rounds badly: nearly all its weights are 0.4 steps, and become 0."""
    torch.manual_seed(0)
    module = Wide()
    with torch.no_grad():
        module.inner.weight.fill_(0.4 / 127)
        module.inner.weight[:, 0, 0, 0] = 1.0
    onnx_from_torch(module, (3, 8, 8), path, opset=16)
    return path


def quantize(source: Path, out: Path, target: Target, **settings: object) -> onnx.ModelProto:
    quantize_onnx(source, out, Noise(), count=COUNT, target=target, settings=QuantizeSettings.model_validate(settings))
    return onnx.load(out)


def run(path: Path) -> NDArray[np.float32]:
    """Logits (64, 4) of images other than those of the calibration."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(1).standard_normal((64, 3, 8, 8), dtype=np.float32)
    return np.asarray(session.run(["logits"], {"input": batch})[0])


def float_layers(model: onnx.ModelProto) -> set[str]:
    """Names of the weights that layers read as they are."""
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return {node.input[1] for node in layers} & {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize("target", [ORIN, XAVIER], ids=lambda target: target.name)
def test_the_file_for_tensorrt_is_what_its_contract_asks_for(tmp_path: Path, float_onnx: Path, target: Target) -> None:
    model = quantize(float_onnx, tmp_path / "q.onnx", target)
    assert check_model(model, target) == []
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zero_points = [constants[node.input[2]] for node in quantizers]
    assert {str(value.dtype) for value in zero_points} == {"int8"}
    assert not any(value.any() for value in zero_points)
    assert {str(constants[node.input[2]].dtype) for node in model.graph.node if node.op_type == "Conv"} == {"float32"}
    assert float_layers(model) == {"head.weight"}
    expected, found = run(float_onnx), run(tmp_path / "q.onnx")
    assert 0 < np.square(found - expected).sum() < 0.01 * np.square(expected).sum()


def test_tensorrt_before_10_gets_float_weights_in_front_of_their_pair(tmp_path: Path, float_onnx: Path) -> None:
    weights = {}
    for target in (XAVIER, ORIN):
        stored = quantize(float_onnx, tmp_path / "q.onnx", target).graph.initializer
        weights[target.name] = {str(numpy_helper.to_array(tensor).dtype) for tensor in stored if len(tensor.dims) == 4}
    assert weights == {"jetson-xavier": {"float32"}, "jetson-orin": {"int8"}}


@pytest.mark.parametrize("how", ["fast", "accurate"])
def test_bias_correction_takes_off_the_mean_error(tmp_path: Path, float_onnx: Path, how: str) -> None:
    errors = {}
    for setting in ("off", how):
        quantize(float_onnx, tmp_path / f"{setting}.onnx", ORIN, bias_correction=setting)
        errors[setting] = np.abs((run(tmp_path / f"{setting}.onnx") - run(float_onnx)).mean(0)).max()
    assert errors[how] < 0.2 * errors["off"]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_quantize_targets import ORIN, quantize
quantize(Path(sys.argv[2]), Path(sys.argv[3]), ORIN)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path, float_onnx: Path) -> None:
    quantize(float_onnx, tmp_path / "here.onnx", ORIN)
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(float_onnx), str(tmp_path / "there.onnx")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there.onnx").read_bytes()


@pytest.mark.parametrize("target", [ORIN, XAVIER], ids=lambda target: target.name)
def test_an_ignored_layer_stays_in_float(tmp_path: Path, float_onnx: Path, target: Target) -> None:
    model = quantize(float_onnx, tmp_path / "q.onnx", target, ignored=("inner",))
    assert float_layers(model) == {"inner.weight", "head.weight"}
    assert check_model(model, target) == []


@pytest.mark.parametrize("target", [ORIN, XAVIER], ids=lambda target: target.name)
def test_the_worst_layer_goes_back_to_float_until_the_budget_is_met(
    tmp_path: Path, float_onnx: Path, target: Target
) -> None:
    drops = iter([3.0, 0.5])
    record = quantize_within_budget(
        float_onnx,
        tmp_path / "q.onnx",
        Noise(),
        count=COUNT,
        target=target,
        settings=QuantizeSettings(),
        drop_points=lambda _: next(drops),
        budget_points=1.0,
        full=tmp_path / "full.onnx",
    )
    assert [len(attempt.excluded) for attempt in record.attempts] == [0, 1]
    assert (record.chosen, record.met) == (1, True)
    assert sorted(layer.module for layer in record.ranking) == ["first", "inner", "last"]
    assert record.ranking == layer_noise(float_onnx, tmp_path / "full.onnx", islice(Noise(), COUNT))
    assert all(layer.divergence > 0 for layer in record.ranking)
    worst = record.ranking[0].module
    assert float_layers(onnx.load(tmp_path / "q.onnx")) == {f"{worst}.weight", "head.weight"}


def test_zero_points_other_than_0_are_refused_before_anything_runs(tmp_path: Path, float_onnx: Path) -> None:
    with pytest.raises(UsageError, match="preset = 'mixed' needs zero points other than 0, which jetson-orin"):
        quantize(float_onnx, tmp_path / "q.onnx", ORIN, preset="mixed")


def test_a_device_without_int8_is_refused(tmp_path: Path, float_onnx: Path) -> None:
    with pytest.raises(TlcError, match="target jetson-nano has no INT8 arithmetic: fp32, fp16"):
        quantize(float_onnx, tmp_path / "q.onnx", NANO)


def test_openvino_gets_what_nncf_places(tmp_path: Path, float_onnx: Path) -> None:
    model = quantize(float_onnx, tmp_path / "q.onnx", OPENVINO)
    assert check_model(model, OPENVINO) == []
    assert len(float_convolution_outputs(model)) == 1  # in front of the swish, which OpenVINO fuses
    for_onnx_runtime = OPENVINO.model_copy(update={"contract": "ort-u8s8", "runtime": "onnxruntime"})
    assert float_convolution_outputs(quantize(float_onnx, tmp_path / "o.onnx", for_onnx_runtime)) == []


def test_ranges_are_means_or_extremes_over_the_samples(float_onnx: Path) -> None:
    samples = [{"input": np.full((1, 3, 8, 8), value, np.float32)} for value in (1, 2, -3)]
    model = onnx.load(float_onnx)
    assert tensor_ranges(model, ["input"], samples, over_samples="mean") == {"input": (0.0, 0.0)}
    assert tensor_ranges(model, ["input"], samples, over_samples="extreme") == {"input": (-3.0, 2.0)}
    assert tensor_ranges(model, [], samples, over_samples="extreme") == {}
