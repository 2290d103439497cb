import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.session import OrtSession, Session, zero_feeds
from tlc.runtime.tensor import TensorSpec


def _x(*shape: int, dtype: type = np.float32) -> dict[str, NDArray[Any]]:
    return {"x": np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape).astype(dtype)}


def _refused(path: Path) -> TlcError:
    with pytest.raises(TlcError) as caught:
        OrtSession(path)
    assert str(path) in caught.value.message
    assert "[ONNXRuntimeError]" not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def test_a_model_runs_at_any_batch_and_gives_its_outputs_by_name(onnx_file: Any) -> None:
    with OrtSession(onnx_file()) as session:
        for batch in (1, 5):
            feeds = _x(batch, 3)
            outputs = session.run(feeds)
            assert list(outputs) == ["y"]
            np.testing.assert_array_equal(outputs["y"], np.maximum(feeds["x"], 0))


def test_the_boundary_has_names_shapes_with_symbols_and_numpy_dtypes(onnx_file: Any) -> None:
    path = onnx_file(
        [helper.make_node("Cast", ["ids"], ["z"], to=TensorProto.FLOAT16), helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", None]), ("ids", TensorProto.INT64, [1, 2])],
        [("y", TensorProto.FLOAT, ["N", None]), ("z", TensorProto.FLOAT16, [1, 2])],
    )
    session: Session = OrtSession(path)
    assert session.inputs == (TensorSpec("x", ("N", "?"), "float32"), TensorSpec("ids", (1, 2), "int64"))
    assert session.outputs == (TensorSpec("y", ("N", "?"), "float32"), TensorSpec("z", (1, 2), "float16"))


def test_zero_feeds_are_a_batch_of_one_of_every_dtype_that_the_model_takes(onnx_file: Any) -> None:
    path = onnx_file(
        [helper.make_node("Cast", ["ids"], ["z"], to=TensorProto.FLOAT), helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT16, ["N", 3]), ("ids", TensorProto.BOOL, ["N", None])],
        [("y", TensorProto.FLOAT16, ["N", 3]), ("z", TensorProto.FLOAT, ["N", None])],
    )
    with OrtSession(path) as session:
        feeds = zero_feeds(session.inputs)
        assert {name: (array.shape, str(array.dtype)) for name, array in feeds.items()} == {
            "x": ((1, 3), "float16"),
            "ids": ((1, 1), "bool"),
        }
        assert session.run(feeds)["y"].shape == (1, 3)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert _refused(tmp_path / "gone.onnx").message == f"no model file at {tmp_path / 'gone.onnx'}"
    assert "no model file" in _refused(tmp_path).message


def test_what_is_not_onnx_or_cut_short_is_said_to_be(onnx_file: Any, tmp_path: Path) -> None:
    whole = onnx_file().read_bytes()
    for name, data in (("empty", b""), ("junk", b"hello world" * 10), ("cut", whole[:-20])):
        (tmp_path / name).write_bytes(data)
        assert "not ONNX, or was cut short" in _refused(tmp_path / name).hint


@pytest.mark.parametrize("domain", ["", "my.domain"])
def test_an_unknown_operator_is_named(onnx_file: Any, domain: str) -> None:
    error = _refused(onnx_file([helper.make_node("Blah", ["x"], ["y"], domain=domain)]))
    assert "Blah" in error.message
    assert "custom operators" in error.hint


def test_an_opset_from_the_future_is_named_without_source_paths(onnx_file: Any) -> None:
    error = _refused(onnx_file(opset=99))
    assert "Opset 99 is under development" in error.message
    assert "/onnxruntime_src/" not in error.message
    assert "lower opset" in error.hint


def test_an_operator_without_a_cpu_kernel_for_its_type_is_named(onnx_file: Any) -> None:
    boundary = ("x", TensorProto.BFLOAT16, ["N", 3]), ("y", TensorProto.BFLOAT16, ["N", 3])
    error = _refused(onnx_file(inputs=boundary[:1], outputs=boundary[1:]))
    assert "Could not find an implementation for" in error.message
    assert "float32" in error.hint


def test_a_missing_external_data_file_is_explained(onnx_file: Any, tmp_path: Path) -> None:
    path = onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        outputs=[("y", TensorProto.FLOAT, ["N", 400])],
        constants={"w": np.ones((3, 400), np.float32)},
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.data")
    OrtSession(path).close()
    (tmp_path / "w.data").unlink()
    assert "data file beside it" in _refused(path).hint


def test_an_input_that_is_no_numeric_tensor_is_refused(onnx_file: Any) -> None:
    path = onnx_file(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["N"])],
        [("y", TensorProto.STRING, ["N"])],
    )
    assert "input x is tensor(string), and only numeric tensors" in _refused(path).message


@pytest.mark.parametrize(
    ("feeds", "expected"),
    [
        ({}, "takes x float32 [N, 3], got nothing"),
        ({"z": np.zeros((1, 3), np.float32)}, "takes x float32 [N, 3], got z"),
        ({**_x(1, 3), "more": np.zeros(1)}, "takes x float32 [N, 3], got x, more"),
        (_x(1, 4), "x float32 [N, 3] expected, got float32 [1, 4]"),
        (_x(3), "x float32 [N, 3] expected, got float32 [3]"),
        (_x(1, 3, dtype=np.float64), "x float32 [N, 3] expected, got float64 [1, 3]"),
    ],
)
def test_a_wrong_feed_is_named_with_what_was_expected(onnx_file: Any, feeds: Any, expected: str) -> None:
    with OrtSession(onnx_file()) as session, pytest.raises(TlcError) as caught:
        session.run(feeds)
    assert expected in caught.value.message
    assert caught.value.hint


def test_a_failure_inside_the_model_names_file_and_shapes_and_prints_nothing(
    onnx_file: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = onnx_file(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        constants={"shape": np.array([1, 3], np.int64)},
    )
    with OrtSession(path) as session:
        assert session.run(_x(1, 3))["y"].shape == (1, 3)
        with pytest.raises(TlcError, match=r"model\.onnx failed on x \[2, 3\]: .*Reshape") as caught:
            session.run(_x(2, 3))
    assert "batch of 1" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_an_input_of_unknown_rank_takes_any_shape(onnx_file: Any) -> None:
    path = onnx_file(inputs=[("x", TensorProto.FLOAT, None)], outputs=[("y", TensorProto.FLOAT, None)])
    with OrtSession(path) as session:
        assert session.run(_x(2, 3, 4))["y"].shape == (2, 3, 4)


def test_threads_give_the_same_result_and_zero_is_refused(onnx_file: Any) -> None:
    path = onnx_file()
    with OrtSession(path, threads=2) as session:
        np.testing.assert_array_equal(session.run(_x(4, 3))["y"], np.maximum(_x(4, 3)["x"], 0))
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        OrtSession(path, threads=0)


def test_a_closed_session_does_not_run(onnx_file: Any) -> None:
    session = OrtSession(onnx_file())
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(_x(1, 3))


def test_onnx_runtime_keeps_nothing_about_the_machine(onnx_file: Any, tmp_path: Path) -> None:
    """Telemetry of 1.31 writes an identifier into the home folder and a file beside the temporary ones."""
    code = "import pathlib, sys; from tlc.runtime.session import OrtSession; OrtSession(pathlib.Path(sys.argv[1]))"
    told = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env = {**told, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    model = onnx_file().absolute()

    subprocess.run([sys.executable, "-c", code, str(model)], env=env, check=True, cwd=tmp_path)

    assert not [*(tmp_path / "home").rglob("*"), *(tmp_path / "tmp").rglob("*")]
