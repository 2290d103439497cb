"""The file that ships as a module: its numbers before and after training are those of the file that it writes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from tlc.compress.onnx_network import OnnxNetwork
from tlc.compress.quantize import QuantizeSettings, quantize_onnx, write_trained
from tlc.compress.rounding import Grid
from tlc.export.contract import check_model
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError
from tlc.runtime.target import Target, load_target
from tlc.runtime.tensor import Feeds

COUNT = 16
VNNI = frozenset({"sse2", "avx512_vnni"})
TARGETS = [load_target(name, flags=VNNI) for name in ("cpu-x86", "cpu-arm", "openvino")]
TARGETS += [load_target(f"jetson-{name}") for name in ("xavier", "orin")]
TARGETS += [load_target("cpu-x86", flags=frozenset({"sse2"})).model_copy(update={"name": "cpu-x86-7-bits"})]
SMALL_RATIO = 1e-4
"""What sums in another order leave, of the largest logit."""
ONE_LEVEL_RATIO = 0.05
"""What a few values that rounded the other way may change."""


class Mixed(nn.Module):
    """A residual block, a depthwise convolution, a swish, pooling, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last = nn.Conv2d(32, 16, 1, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        body = self.first(image).relu()
        body = nn.functional.max_pool2d((body + self.inner(body)).relu(), 2)
        body = torch.cat([body, nn.functional.hardtanh(self.depthwise(body), 0, 6)], 1)
        logits: Tensor = self.head(nn.functional.silu(self.last(body)).mean((2, 3)))
        return logits


class Noise:
    """Seeded images, made anew in each pass."""

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(0)
        while True:
            yield {"input": rng.standard_normal((1, 3, 16, 16), dtype=np.float32)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Path]]:
    """Of each target: the float file, the INT8 file, and the one with float32 around the INT8 layers."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    module, found = Mixed(), {}
    for opset in {target.opset for target in TARGETS}:
        onnx_from_torch(module, (3, 16, 16), folder / f"{opset}.onnx", opset=opset)
    for target in TARGETS:
        source = folder / f"{target.opset}.onnx"
        out, around = (folder / f"{target.name}-{name}.onnx" for name in ("int8", "around"))
        settings = QuantizeSettings(bias_correction="off")
        quantize_onnx(source, out, Noise(), count=COUNT, target=target, settings=settings, around=around)
        found[target.name] = source, out, around
    return found


every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


def images() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((64, 3, 16, 16), dtype=np.float32)


def run(model: onnx.ModelProto, *, fused: bool) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": images()})[0])


def logits(network: nn.Module) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = network.eval()(torch.from_numpy(images())).numpy()
    return found


def trained(path: Path, steps: int = 4) -> OnnxNetwork:
    """Return the network after a few large steps towards other answers."""
    network = OnnxNetwork(onnx.load(path)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    inputs = torch.from_numpy(images())
    wanted = torch.randn(len(inputs), 4, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        (network(inputs) - wanted).square().mean().backward()
        optimizer.step()
    return network


@every_target
def test_an_untrained_module_computes_and_writes_what_the_file_says(
    files: dict[str, tuple[Path, Path, Path]], target: Target
) -> None:
    model = onnx.load(files[target.name][2])
    network = OnnxNetwork(model)

    expected = run(model, fused=False)

    assert np.abs(logits(network) - expected).max() < ONE_LEVEL_RATIO * np.abs(expected).max()
    assert np.median(np.abs(logits(network) - expected)) < SMALL_RATIO * np.abs(expected).max()
    assert np.array_equal(run(network.to_onnx(), fused=False), expected)


@every_target
def test_the_file_of_a_trained_module_computes_what_the_module_does(
    files: dict[str, tuple[Path, Path, Path]], target: Target
) -> None:
    network = trained(files[target.name][2])

    expected = logits(network)
    found = run(network.to_onnx(), fused=False)

    before = run(onnx.load(files[target.name][2]), fused=False)
    assert np.abs(before - expected).max() > 2 * ONE_LEVEL_RATIO * np.abs(expected).max()  # training went somewhere
    assert np.abs(found - expected).max() < ONE_LEVEL_RATIO * np.abs(expected).max()
    assert np.median(np.abs(found - expected)) < SMALL_RATIO * np.abs(expected).max()


def kinds(model: onnx.ModelProto) -> dict[str, tuple[int, list[int]]]:
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in model.graph.initializer}


@every_target
def test_training_moves_no_quantiser(files: dict[str, tuple[Path, Path, Path]], target: Target, tmp_path: Path) -> None:
    source, int8, around = files[target.name]
    write_trained(trained(around).to_onnx(), source, tmp_path / "q.onnx", Noise(), count=COUNT, target=target)

    before, after = onnx.load(int8), onnx.load(tmp_path / "q.onnx")

    assert [node.SerializeToString() for node in after.graph.node] == [
        node.SerializeToString() for node in before.graph.node
    ]
    assert check_model(after, target) == check_model(before, target)
    assert kinds(after) == kinds(before)


def test_onnx_runtime_fuses_a_trained_file_as_the_one_before(
    files: dict[str, tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    target = TARGETS[0]
    network = trained(files[target.name][2])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(network.to_onnx().SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    expected = logits(network)

    assert fused.count("QLinearConv") == 4
    assert "Conv" not in fused
    # Its integer kernels also round the bias and the result of each layer by themselves.
    assert np.abs(run(network.to_onnx(), fused=True) - expected).max() < ONE_LEVEL_RATIO * np.abs(expected).max()


def test_seven_bits_stay_seven(files: dict[str, tuple[Path, Path, Path]]) -> None:
    model = trained(files[TARGETS[-1].name][2]).to_onnx()
    largest = {
        tensor.name: int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
        for tensor in model.graph.initializer
        if len(tensor.dims) == 4
    }
    assert sorted(largest.values()) == [64, 64, 64, 127]  # NNCF leaves depthwise convolutions their 8


def test_equal_grids_stay_equal(files: dict[str, tuple[Path, Path, Path]]) -> None:
    target = next(target for target in TARGETS if target.name == "jetson-xavier")
    network = trained(files[target.name][2])

    def groups(model: onnx.ModelProto) -> dict[str, set[str]]:
        """Each activation's scale, with all that equal it."""
        known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        scales = {name: float(value) for name, value in known.items() if name.endswith("_scale") and value.size == 1}
        return {name: {other for other, their in scales.items() if their == own} for name, own in scales.items()}

    before, after = groups(onnx.load(files[target.name][2])), groups(network.to_onnx())
    assert max(len(group) for group in before.values()) > 1  # of the concatenation
    assert after == before


def test_the_scale_learns_as_learned_step_size_quantisation_says() -> None:
    grid = Grid(*(np.array(value, np.float32) for value in (0.5, -2, 3)))
    values = torch.tensor([-3.0, -0.6, 0.1, 0.9, 1.4, 9.0], requires_grad=True)

    rounded = grid(values, 0)
    rounded.backward(torch.ones(6))

    assert rounded.tolist() == [-1.0, -0.5, 0.0, 1.0, 1.5, 1.5]
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    # -2 and 3 where the grid ends, else level minus value in steps; times the scale, for the logarithm.
    expected = 0.5 * (-2 + (-1 + 1.2) + (0 - 0.2) + (2 - 1.8) + (3 - 2.8) + 3) / (6 * 3) ** 0.5
    assert grid.log_ratio.grad is not None
    assert float(grid.log_ratio.grad) == pytest.approx(expected, rel=1e-5)


def test_scales_per_channel_learn_by_themselves() -> None:
    ends = np.full(2, 127, np.float32)
    grid = Grid(np.array([0.1, 10], np.float32), -ends, ends)
    values = torch.tensor([[[0.26, 100.0], [0.26, 14.0]]])

    rounded = grid(values, 1)
    rounded[0, 0].sum().backward()

    np.testing.assert_allclose(rounded.detach().numpy(), [[[0.3, 12.7], [0.0, 10.0]]], rtol=1e-6)
    assert grid.log_ratio.grad is not None
    assert float(grid.log_ratio.grad[0]) != 0
    assert float(grid.log_ratio.grad[1]) == 0


def test_a_file_of_two_inputs_is_refused(files: dict[str, tuple[Path, Path, Path]]) -> None:
    model = onnx.load(files["cpu-x86"][0])
    model.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(TlcError, match="the graph has 2 inputs: input, mask; training takes one"):
        OnnxNetwork(model)


def test_a_lone_dequantizer_is_refused(files: dict[str, tuple[Path, Path, Path]]) -> None:
    model = onnx.load(files["cpu-x86"][2])
    quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    model.graph.node.remove(quantizer)
    value = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, ["batch", 3, 16, 16])
    model.graph.input[0].CopyFrom(value)
    for node in model.graph.node:
        node.input[:] = ["input" if name == quantizer.output[0] else name for name in node.input]
    with pytest.raises(TlcError, match="cannot be trained: it is not the second of a pair with one grid"):
        OnnxNetwork(model)
