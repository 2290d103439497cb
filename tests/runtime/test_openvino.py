import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.openvino import OpenVinoSession
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.tensor import TensorSpec

pytest.importorskip("openvino")

BOUNDARY: dict[str, Any] = {
    "inputs": [("x", TensorProto.FLOAT, ["N", 16, 12, 12])],
    "outputs": [("y", TensorProto.FLOAT, ["N", 32, 12, 12])],
}


def _images(batch: int) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(1).normal(size=(batch, 16, 12, 12)).astype(np.float32)}


def _weights() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(32, 16, 3, 3)).astype(np.float32)


def _float(onnx_file: Any) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["c"], ["y"]),
    ]
    path: Path = onnx_file(nodes, **BOUNDARY, constants={"w": _weights()})
    return path


def _int8(onnx_file: Any) -> Path:
    """The same convolution behind uint8 activations, its weights int8 per channel."""
    weights = _weights()
    scale = np.abs(weights).max((1, 2, 3)) / 127
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    constants = {
        "sx": np.array(0.04, np.float32),
        "zx": np.array(128, np.uint8),
        "wq": np.rint(weights / scale[:, None, None, None]).astype(np.int8),
        "sw": scale.astype(np.float32),
        "zw": np.zeros(32, np.int8),
    }
    path: Path = onnx_file(nodes, **BOUNDARY, constants=constants)
    return path


def _refused(path: Path) -> TlcError:
    with pytest.raises(TlcError) as caught:
        OpenVinoSession(path)
    assert str(path) in caught.value.message
    assert "src/" not in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_are_those_of_onnx_runtime(onnx_file: Any, batch: int) -> None:
    path = _float(onnx_file)
    with OpenVinoSession(path) as session, OrtSession(path) as reference:
        # A CPU with bfloat16 would be off by 1e-2 here, were that not forbidden.
        np.testing.assert_allclose(
            session.run(_images(batch))["y"], reference.run(_images(batch))["y"], atol=1e-4, rtol=1e-4
        )


def test_an_output_is_not_overwritten_by_the_next_run(onnx_file: Any) -> None:
    with OpenVinoSession(_float(onnx_file)) as session:
        first = session.run(_images(1))["y"]
        kept = first.copy()
        session.run({"x": np.zeros((1, 16, 12, 12), np.float32)})
        np.testing.assert_array_equal(first, kept)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="integer kernels of x86")
def test_the_executed_graph_tells_integer_kernels_from_float_ones(onnx_file: Any) -> None:
    with OpenVinoSession(_float(onnx_file)) as session:
        assert session.product_precisions == {"f32": 1}
    with OpenVinoSession(_int8(onnx_file)) as session:
        assert set(session.product_precisions) <= {"i8", "u8"}
        assert sum(session.product_precisions.values()) == 1


def test_the_boundary_has_names_shapes_and_numpy_dtypes(onnx_file: Any) -> None:
    path = onnx_file(
        [helper.make_node("Cast", ["ids"], ["z"], to=TensorProto.FLOAT16), helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 3]), ("ids", TensorProto.INT64, [1, 2])],
        [("y", TensorProto.FLOAT, ["N", 3]), ("z", TensorProto.FLOAT16, [1, 2])],
    )
    session: Session = OpenVinoSession(path)
    assert session.inputs == (TensorSpec("x", ("?", 3), "float32"), TensorSpec("ids", (1, 2), "int64"))
    assert session.outputs == (TensorSpec("y", ("?", 3), "float32"), TensorSpec("z", (1, 2), "float16"))
    outputs = session.run({"x": np.ones((2, 3), np.float32), "ids": np.array([[1, 2]])})
    assert outputs["z"].dtype == np.float16


def test_an_input_of_unknown_rank_is_refused(onnx_file: Any) -> None:
    path = onnx_file(inputs=[("x", TensorProto.FLOAT, None)], outputs=[("y", TensorProto.FLOAT, None)])
    assert "dynamic rank" in _refused(path).message


@pytest.mark.parametrize(
    ("feeds", "expected"),
    [
        ({}, "takes x float32 [?, 3], got nothing"),
        ({"x": np.zeros((1, 4), np.float32)}, "x float32 [?, 3] expected, got float32 [1, 4]"),
        ({"x": np.zeros((1, 3))}, "x float32 [?, 3] expected, got float64 [1, 3]"),
    ],
)
def test_a_wrong_feed_is_named_with_what_was_expected(onnx_file: Any, feeds: Any, expected: str) -> None:
    with OpenVinoSession(onnx_file()) as session, pytest.raises(TlcError) as caught:
        session.run(feeds)
    assert expected in caught.value.message


class _Failing:
    def infer(self, *_: object, **__: object) -> None:
        raise RuntimeError(
            "Exception from src/inference/src/cpp/infer_request.cpp:224:\n"
            "Check 'getShape().isCompatible(dims)' failed at src/plugins/intel_cpu/src/memory_desc.h:99:\n"
            "ParameterMismatch: Can not clone with new dims.\n\n"
        )


def test_a_failure_inside_the_model_names_file_and_shapes(onnx_file: Any) -> None:
    session = OpenVinoSession(onnx_file())
    session._request = _Failing()
    with pytest.raises(TlcError, match=r"model\.onnx failed on x \[2, 3\]: ParameterMismatch: Can not clone") as caught:
        session.run({"x": np.zeros((2, 3), np.float32)})
    assert "src/" not in caught.value.message
    assert "batch of 1" in caught.value.hint


def test_missing_broken_and_foreign_files_are_named(onnx_file: Any, tmp_path: Path) -> None:
    assert _refused(tmp_path / "gone.onnx").message == f"no model file at {tmp_path / 'gone.onnx'}"
    (tmp_path / "junk.onnx").write_bytes(b"hello world" * 10)
    assert "not ONNX, or was cut short" in _refused(tmp_path / "junk.onnx").hint
    unknown = _refused(onnx_file([helper.make_node("Blah", ["x"], ["y"])]))
    assert "No conversion rule found for operations: Blah" in unknown.message
    assert "custom operators" in unknown.hint
    text = onnx_file(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["N"])],
        [("y", TensorProto.STRING, ["N"])],
    )
    assert "input x is string, and only numeric tensors" in _refused(text).message


def test_threads_are_checked_and_a_closed_session_does_not_run(onnx_file: Any) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        OpenVinoSession(onnx_file(), threads=0)
    session = OpenVinoSession(onnx_file(), threads=2)
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(RuntimeError, match="closed"):
        _ = session.product_precisions


def test_a_machine_without_openvino_is_told_how_to_get_it(onnx_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(TlcError, match="OpenVINO is not installed") as caught:
        OpenVinoSession(onnx_file())
    assert caught.value.hint == "pip install openvino"
