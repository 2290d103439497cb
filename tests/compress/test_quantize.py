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

from tlc.compress.layer_noise import layer_noise
from tlc.compress.quantize import QuantizeSettings, check_calibration, quantize_onnx, quantize_within_budget
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.target import Target, load_target
from tlc.runtime.tensor import Feeds

COUNT = 24
TARGET = load_target("cpu-x86", flags=frozenset({"sse2", "avx512_vnni"}))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        body = self.first(image).relu()
        body = (body + self.inner(body)).relu()
        logits: Tensor = self.head(body.mean((2, 3)))
        return logits


class Noise:
    """Seeded images, made anew in each pass; counts how many were asked for."""

    def __init__(self) -> None:
        self.made = 0

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(0)
        while True:
            self.made += 1
            yield {"input": rng.standard_normal((1, 3, 8, 8), dtype=np.float32)}


@pytest.fixture(scope="module")
def float_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float") / "m.onnx"
    onnx_from_torch(Residual(), (3, 8, 8), path, opset=18)
    return path


@pytest.fixture(scope="module")
def int8_onnx(float_onnx: Path) -> Path:
    """Quantised with the defaults."""
    path = float_onnx.with_name("q.onnx")
    quantize(float_onnx, path)
    return path


def quantize(source: Path, out: Path, *, target: Target = TARGET, **settings: object) -> onnx.ModelProto:
    quantize_onnx(source, out, Noise(), count=COUNT, target=target, settings=QuantizeSettings.model_validate(settings))
    return onnx.load(out)


def run(path: Path, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": batch})[0])


def fused_ops(path: Path, fused: Path) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(fused)
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(fused).graph.node]


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def weights(model: onnx.ModelProto) -> list[NDArray[np.generic]]:
    return [value for value in constants(model).values() if value.ndim > 1]


def test_int8_logits_follow_the_float_ones(float_onnx: Path, int8_onnx: Path) -> None:
    batch = np.random.default_rng(1).standard_normal((16, 3, 8, 8), dtype=np.float32)
    expected, found = run(float_onnx, batch), run(int8_onnx, batch)
    noise = np.square(found - expected).sum() / np.square(expected).sum()
    assert 0 < noise < 0.01


def test_weights_are_int8_with_one_scale_per_channel(int8_onnx: Path) -> None:
    model = onnx.load(int8_onnx)
    assert {str(weight.dtype) for weight in weights(model)} == {"int8"}
    known = constants(model)
    scales = [known[n.input[1]] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in known]
    assert sorted(scale.size for scale in scales) == [4, 8, 8]


def test_onnx_runtime_fuses_every_convolution_and_the_residual_add(tmp_path: Path, int8_onnx: Path) -> None:
    ops = fused_ops(int8_onnx, tmp_path / "fused.onnx")
    assert ops.count("QLinearConv") == 2
    assert ops.count("QLinearAdd") == 1
    assert "Conv" not in ops


@pytest.mark.parametrize(("contract", "dtype"), [("ort-u8s8", "uint8"), ("ort-s8s8", "int8")])
def test_activations_have_the_type_of_the_target(tmp_path: Path, float_onnx: Path, contract: str, dtype: str) -> None:
    target = TARGET.model_copy(update={"contract": contract})
    model = quantize(float_onnx, tmp_path / "q.onnx", target=target)
    known = constants(model)
    kinds = {str(known[node.input[2]].dtype) for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {dtype}


@pytest.mark.parametrize(("reduced", "largest"), [(False, 127), (True, 64)])
def test_reduced_range_uses_seven_bits_of_the_weights(
    tmp_path: Path, float_onnx: Path, reduced: bool, largest: int
) -> None:
    target = TARGET.model_copy(update={"weights_reduced_range": reduced})
    model = quantize(float_onnx, tmp_path / "q.onnx", target=target)
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights(model)) == largest


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_quantize import quantize
quantize(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path, float_onnx: Path, int8_onnx: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(float_onnx), str(tmp_path / "q.onnx")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert (tmp_path / "q.onnx").read_bytes() == int8_onnx.read_bytes()


def test_samples_stream_and_only_as_many_as_asked_for(tmp_path: Path, float_onnx: Path) -> None:
    samples = Noise()
    seen: list[tuple[int, int]] = []
    quantize_onnx(
        float_onnx,
        tmp_path / "q.onnx",
        samples,
        count=COUNT,
        target=TARGET,
        settings=QuantizeSettings(),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[:COUNT] == [(index + 1, COUNT) for index in range(COUNT)]
    assert samples.made == len(seen)


def test_a_generator_is_refused_because_it_runs_dry(tmp_path: Path, float_onnx: Path) -> None:
    with pytest.raises(TypeError, match="more than once"):
        quantize_onnx(
            float_onnx, tmp_path / "q.onnx", iter(Noise()), count=COUNT, target=TARGET, settings=QuantizeSettings()
        )


def test_nothing_is_printed(tmp_path: Path, float_onnx: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantize(float_onnx, tmp_path / "q.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pattern", ["inner", "in*"])
def test_an_ignored_layer_keeps_its_float_weights(tmp_path: Path, float_onnx: Path, pattern: str) -> None:
    model = quantize(float_onnx, tmp_path / "q.onnx", ignored=(pattern,))
    np.testing.assert_array_equal(constants(model)["inner.weight"], constants(onnx.load(float_onnx))["inner.weight"])
    assert sorted(str(weight.dtype) for weight in weights(model)) == ["float32", "int8", "int8"]


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path, float_onnx: Path) -> None:
    with pytest.raises(UsageError, match=r"'layer9\.\*' matches none of the 3 layers \(first, inner, head"):
        quantize(float_onnx, tmp_path / "q.onnx", ignored=("layer9.*",))


@pytest.mark.parametrize(("available", "used"), [(16, 16), (245, 245), (5000, 300)])
def test_all_images_are_used_up_to_the_limit(available: int, used: int) -> None:
    assert check_calibration(available, QuantizeSettings()) == used


def test_too_few_calibration_images_are_refused() -> None:
    with pytest.raises(TlcError, match="too few calibration samples: 15, the limit is 16"):
        check_calibration(15, QuantizeSettings())


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        body = nn.functional.silu(self.first(image))
        body = nn.functional.hardswish(self.depthwise(body))
        logits: Tensor = self.head(self.last(body).relu().mean((2, 3)))
        return logits


def test_convolutions_before_swish_and_depthwise_ones_become_integer_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    onnx_from_torch(Swish(), (3, 8, 8), tmp_path / "m.onnx", opset=18)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    ops = fused_ops(tmp_path / "q.onnx", tmp_path / "fused.onnx")
    assert ops.count("QLinearConv") == 3
    assert "Conv" not in ops
    assert "QLinearSigmoid" in ops
    batch = np.random.default_rng(1).standard_normal((16, 3, 8, 8), dtype=np.float32)
    expected, found = run(tmp_path / "m.onnx", batch), run(tmp_path / "q.onnx", batch)
    assert np.square(found - expected).sum() / np.square(expected).sum() < 0.01


def within_budget(
    source: Path, out: Path, drops: list[float], *, max_exclusions: int = 3, budget: float = 1.0
) -> tuple[list[tuple[str, ...]], int, bool]:
    remaining = iter(drops)
    record = quantize_within_budget(
        source,
        out,
        Noise(),
        count=COUNT,
        target=TARGET,
        settings=QuantizeSettings(max_exclusions=max_exclusions),
        drop_points=lambda _: next(remaining),
        budget_points=budget,
    )
    return [attempt.excluded for attempt in record.attempts], record.chosen, record.met


def test_full_int8_within_the_budget_is_the_only_attempt(tmp_path: Path, float_onnx: Path) -> None:
    assert within_budget(float_onnx, tmp_path / "q.onnx", [0.5]) == ([()], 0, True)
    assert len(weights(onnx.load(tmp_path / "q.onnx"))) == 3


def test_the_worst_layers_go_back_to_float_until_the_budget_is_met(
    tmp_path: Path, float_onnx: Path, int8_onnx: Path
) -> None:
    ranking = layer_noise(float_onnx, int8_onnx, islice(Noise(), COUNT))
    excluded, chosen, met = within_budget(float_onnx, tmp_path / "q.onnx", [3.0, 2.0, 0.9])
    assert [len(names) for names in excluded] == [0, 1, 2]
    assert excluded[2] == tuple(layer.name for layer in ranking[:2])
    assert (chosen, met) == (2, True)
    assert sorted(str(weight.dtype) for weight in weights(onnx.load(tmp_path / "q.onnx"))) == [
        "float32",
        "float32",
        "int8",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["q.onnx"]


def test_a_budget_out_of_reach_keeps_what_lost_least(tmp_path: Path, float_onnx: Path) -> None:
    excluded, chosen, met = within_budget(float_onnx, tmp_path / "q.onnx", [3.0, 1.5, 2.0], max_exclusions=2)
    assert [len(names) for names in excluded] == [0, 1, 2]
    assert (chosen, met) == (1, False)


def test_no_exclusions_allowed_means_one_attempt(tmp_path: Path, float_onnx: Path) -> None:
    assert within_budget(float_onnx, tmp_path / "q.onnx", [3.0], max_exclusions=0) == ([()], 0, False)


def test_the_layer_with_an_outlier_ranks_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Residual()
    with torch.no_grad():
        module.inner.weight[:, 0, 0, 0] *= 300  # one weight per channel takes the whole scale
        module.first.weight[0] *= 1e-3
    onnx_from_torch(module, (3, 8, 8), tmp_path / "m.onnx", opset=18)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    ranking = layer_noise(tmp_path / "m.onnx", tmp_path / "q.onnx", islice(Noise(), 8))
    assert sorted(layer.module for layer in ranking) == ["first", "head", "inner"]
    assert ranking[0].module == "inner"
    assert ranking[0].divergence > 2 * ranking[1].divergence > 0
