"""Files that other tools quantised: what is found in them, and that the repair leaves nothing and costs little."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tlc.export.contract import check_model
from tlc.export.fidelity import output_sqnr_db
from tlc.export.repair import repair
from tlc.runtime.target import load_target

DATA = Path(__file__).parent.parent / "data"
LIMIT_DB = 4.0
Images = Sequence[NDArray[np.float32]]


def images(seed: int) -> Images:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, 3, 16, 16), dtype=np.float32) for _ in range(16)]


def onnxruntime(out: Path, **options: object) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(images(0))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.left, None)
            return None if image is None else {"input": image}

    quantize_static(DATA / "float.onnx", out, Reader(), **options)


def onnxruntime_symmetric(out: Path) -> None:
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    onnxruntime(out, per_channel=True, extra_options=symmetric)


def nncf(out: Path, preset: str = "performance") -> None:
    import nncf as library

    quantized = library.quantize(
        onnx.load(DATA / "float.onnx"),
        library.Dataset(images(0), lambda image: {"input": image}),
        preset=library.QuantizationPreset(preset),
    )
    onnx.save(quantized, out)


def kept(name: str) -> Callable[[Path], None]:
    return lambda out: onnx.save(onnx.load(DATA / name), out)


ASYMMETRIC = {"nonzero-zero-point"}
UNSIGNED = {"uint8-zero-point"}
ALWAYS = {"small-layer"}  # the classifier has ten outputs

TOOLS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "onnxruntime": (onnxruntime, ASYMMETRIC | {"quantised-bias", "rounded-residual-branch"}),
    "onnxruntime-symmetric": (onnxruntime_symmetric, {"quantised-bias", "pair-before-activation"}),
    "nncf": (nncf, UNSIGNED | {"per-channel-activation", "half-range-weights", "rounded-residual-branch"}),
    "nncf-mixed": (lambda out: nncf(out, "mixed"), ASYMMETRIC | {"per-channel-activation"}),
    "torch": (kept("torch.onnx"), UNSIGNED),
    "modelopt": (kept("modelopt.onnx"), set()),
}


@pytest.fixture(scope="module", params=TOOLS)
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, onnx.ModelProto]:
    out = tmp_path_factory.mktemp("foreign") / "int8.onnx"
    TOOLS[request.param][0](out)
    return request.param, onnx.load(out)


@pytest.mark.parametrize("target", ["jetson-orin", "jetson-xavier", "cuda-trt11"])
def test_the_repair_leaves_nothing_and_costs_less_than_the_limit(
    foreign: tuple[str, onnx.ModelProto], target: str
) -> None:
    tool, model = foreign
    device = load_target(target)
    exact = onnx.load(DATA / "float.onnx")

    found = {violation.rule for violation in check_model(model, device)}
    repaired = repair(model, device)
    (name,) = [value.name for value in exact.graph.output]
    feeds = [{"input": image} for image in images(1)]
    before, after = output_sqnr_db(exact, [model, repaired.model], feeds)

    assert TOOLS[tool][1] <= found
    assert repaired.left == ()
    assert repaired.unknown_ranges == ()
    assert after[name] > before[name] - LIMIT_DB
    assert before[name] > 15


@pytest.mark.parametrize("target", ["cpu-x86", "openvino", "jetson-nano"])
def test_other_targets_take_the_repaired_file(foreign: tuple[str, onnx.ModelProto], target: str) -> None:
    _, model = foreign
    device = load_target(target, flags=frozenset({"sse2", "avx512_vnni"}))
    ranges = dict.fromkeys((name for node in model.graph.node for name in node.output), (-8.0, 8.0))

    assert repair(model, device, ranges).left == ()
