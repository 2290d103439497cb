"""OpenVINO answers tlc-run as it answers Python: the same bits, since it is the same library with the same settings."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from native_build import built
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tlc.runtime.openvino import OpenVinoSession

openvino = pytest.importorskip("openvino", reason="the package openvino is not installed")


@pytest.fixture(scope="module")
def probe() -> Path:
    return built("tlc_backend_probe")


@pytest.fixture(scope="module")
def library() -> str:
    """The C library of the installed package."""
    (found,) = (Path(openvino.__file__).parent / "libs").glob("libopenvino_c.so*")
    return str(found)


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> Path:
    """Write an ONNX file whose inputs and outputs are (name, type, shape)."""
    taken, given = ([helper.make_tensor_value_info(*each) for each in part] for part in (inputs, outputs))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", taken, given, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def conv_net(path: Path) -> Path:
    """Two convolutions and a matrix product, with an open batch and two outputs."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return values

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["features"]),
        helper.make_node("MatMul", ["features", "w3"], ["logits"]),
    ]
    constants = {"w1": weights(16, 3, 3, 3), "w2": weights(32, 16, 3, 3), "w3": weights(32, 10)}
    inputs = [("x", TensorProto.FLOAT, ["N", 3, 24, 24])]
    outputs = [("logits", TensorProto.FLOAT, ["N", 10]), ("features", TensorProto.FLOAT, ["N", 32])]
    return save(path, nodes, inputs, outputs, constants)


def quantized_net(path: Path) -> Path:
    """A convolution between QuantizeLinear and DequantizeLinear, computed with integers."""
    rng = np.random.default_rng(1)
    scale, zero = np.float32(0.02), np.int8(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zero"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zero"], ["dx"]),
        helper.make_node("DequantizeLinear", ["qw", "sw", "zero"], ["dw"]),
        helper.make_node("Conv", ["dx", "dw"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8)
    constants = {"sx": scale, "sw": np.float32(0.01), "zero": zero, "qw": weights}
    shape = [1, 8, 16, 16]
    return save(
        path,
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, [1, 16, 14, 14])],
        {name: np.asarray(value) for name, value in constants.items()},
    )


KINDS = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "int32": TensorProto.INT32, "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}  # fmt: skip


def identities(path: Path) -> Path:
    """Every type in, and the same values out."""
    shape = [2, 3]
    nodes = [helper.make_node("Concat", [name, name], [f"{name}_twice"], axis=0) for name in KINDS]
    outputs = [(f"{name}_twice", kind, [4, 3]) for name, kind in KINDS.items()]
    return save(path, nodes, [(name, kind, shape) for name, kind in KINDS.items()], outputs, {})


def run(
    probe: Path,
    library: str,
    model: Path,
    feeds: Sequence[Sequence[NDArray[Any]]],
    how: str = "path",
    contexts: int = 1,
) -> tuple[dict[str, Any], list[list[NDArray[Any]]]]:
    """Return what the probe says of the model, and the outputs of every feed."""
    folders = [model.with_name(f"{model.stem}-{how}-{number}") for number in range(len(feeds))]
    for folder, feed in zip(folders, feeds, strict=True):
        folder.mkdir()
        for number, array in enumerate(feed):
            np.save(folder / f"{number}.npy", array)
    command = [str(word) for word in (probe, "openvino", library, how, model, contexts, *folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    count = len(facts["outputs"])
    return facts, [[np.load(folder / f"out{number}.npy") for number in range(count)] for folder in folders]


def check_equal(
    probe: Path, library: str, model: Path, feeds: Sequence[Sequence[NDArray[Any]]], how: str, contexts: int
) -> None:
    """Hold names, types, shapes and every bit of the outputs against Python's session."""
    facts, found = run(probe, library, model, feeds, how, contexts)
    with OpenVinoSession(model) as session:
        assert facts["runtime"] == session.runtime
        for part, specs in (("inputs", session.inputs), ("outputs", session.outputs)):
            shapes = [[-1 if isinstance(dim, str) else dim for dim in spec.shape] for spec in specs]
            assert [(each["name"], each["dtype"]) for each in facts[part]] == [(s.name, s.dtype) for s in specs]
            assert [each["shape"] for each in facts[part]] == shapes
        names = [spec.name for spec in session.inputs]
        for feed, outputs in zip(feeds, found, strict=True):
            expected = session.run(dict(zip(names, feed, strict=True)))
            for value, array in zip(expected.values(), outputs, strict=True):
                assert array.dtype == value.dtype
                np.testing.assert_array_equal(array, value, strict=True)


@pytest.mark.parametrize(("how", "contexts"), [("path", 1), ("bytes", 4)])
def test_float_outputs_are_python_s_bit_for_bit(
    tmp_path: Path, probe: Path, library: str, how: str, contexts: int
) -> None:
    rng = np.random.default_rng(2)
    feeds = [[rng.standard_normal((batch, 3, 24, 24)).astype(np.float32)] for batch in (1, 3, 1, 2)]
    check_equal(probe, library, conv_net(tmp_path / "conv.onnx"), feeds, how, contexts)


def test_quantised_outputs_are_python_s_bit_for_bit(tmp_path: Path, probe: Path, library: str) -> None:
    rng = np.random.default_rng(3)
    feeds = [[rng.standard_normal((1, 8, 16, 16)).astype(np.float32)] for _ in range(3)]
    check_equal(probe, library, quantized_net(tmp_path / "int8.onnx"), feeds, "path", 2)


def test_every_type_comes_back_as_it_went_in(tmp_path: Path, probe: Path, library: str) -> None:
    feed = [np.array([[0, 1, 2], [3, 4, 5]]).astype(name) for name in KINDS]
    facts, (outputs,) = run(probe, library, identities(tmp_path / "types.onnx"), [feed])
    assert [each["dtype"] for each in facts["inputs"]] == list(KINDS)
    for array, out in zip(feed, outputs, strict=True):
        np.testing.assert_array_equal(out, np.concatenate([array, array]), strict=True)


def error_of(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    return done.stderr


def test_a_file_that_is_no_model_is_refused_in_openvino_s_words(tmp_path: Path, probe: Path, library: str) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    error = error_of([probe, "openvino", library, "path", broken, "1"])
    assert f"cannot load {broken}: " in error
    assert "hint: The file is not ONNX, or was cut short" in error
    assert "Exception from" not in error


def test_a_wrong_shape_is_refused_by_its_name(tmp_path: Path, probe: Path, library: str) -> None:
    np.save(tmp_path / "0.npy", np.zeros((1, 3, 24, 25), np.float32))
    error = error_of([probe, "openvino", library, "path", conv_net(tmp_path / "conv.onnx"), "1", tmp_path])
    assert "error: input x is float32 [?x3x24x24], got float32 [1x3x24x25]" in error


def test_a_missing_library_and_one_that_is_another_are_said(tmp_path: Path, probe: Path) -> None:
    model = conv_net(tmp_path / "conv.onnx")
    missing = error_of([probe, "openvino", "/nowhere/libopenvino_c.so", "path", model, "1"])
    assert "error: cannot load OpenVINO: /nowhere/libopenvino_c.so" in missing
    assert "hint: Install OpenVINO" in missing
    other = error_of([probe, "openvino", "libm.so.6", "path", model, "1"])
    assert "has no ov_get_openvino_version, so it is not OpenVINO" in other
