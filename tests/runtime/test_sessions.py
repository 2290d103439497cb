import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tlc.runtime.errors import TlcError
from tlc.runtime.launch import peak_memory_bytes
from tlc.runtime.process import Case
from tlc.runtime.session import OrtSession
from tlc.runtime.sessions import open_session
from tlc.runtime.target import load_target


def test_an_onnx_file_runs_in_onnx_runtime_unless_the_target_says_otherwise(onnx_file: Any) -> None:
    for target in (None, load_target("cpu-x86"), load_target("cpu-arm")):
        with open_session(onnx_file(), target) as session:
            assert type(session) is OrtSession


def test_an_openvino_target_runs_in_openvino(onnx_file: Any) -> None:
    pytest.importorskip("openvino")
    with open_session(onnx_file(), load_target("openvino"), threads=1) as session:
        assert type(session).__name__ == "OpenVinoSession"


def test_the_provider_of_a_target_is_asked_for(onnx_file: Any) -> None:
    target = load_target("cpu-x86").model_copy(update={"provider": "cuda"})
    with pytest.raises(TlcError, match="CUDAExecutionProvider"):
        open_session(onnx_file(), target)


@pytest.mark.parametrize("name", ["model.plan", "model.ENGINE"])
def test_an_engine_runs_in_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened = SimpleNamespace(TensorRTSession=lambda path: ("opened", path))
    monkeypatch.setitem(sys.modules, "tlc.runtime.tensorrt", opened)
    assert open_session(tmp_path / name) == ("opened", tmp_path / name)  # type: ignore[comparison-overlap]


def test_an_onnx_file_is_not_what_a_tensorrt_target_runs(onnx_file: Any) -> None:
    with pytest.raises(TlcError, match="is ONNX, and target jetson-orin runs engines") as caught:
        open_session(onnx_file(), load_target("jetson-orin"))
    assert "tlc build" in caught.value.hint


@pytest.mark.parametrize(("name", "ending"), [("model.pt", ".pt"), ("model", "no suffix")])
def test_another_suffix_is_refused(tmp_path: Path, name: str, ending: str) -> None:
    with pytest.raises(TlcError, match=f"ends in {ending}") as caught:
        open_session(tmp_path / name)
    assert ".onnx, .plan or .engine" in caught.value.hint


def test_the_memory_of_a_model_is_measured_in_the_targets_runtime(onnx_file: Any) -> None:
    pytest.importorskip("openvino")
    assert 0 < peak_memory_bytes(Case("model", onnx_file(), load_target("openvino"))) < 200 << 20


def test_an_error_of_the_targets_runtime_comes_back_from_the_child(onnx_file: Any) -> None:
    with pytest.raises(TlcError, match="target jetson-orin runs engines"):
        peak_memory_bytes(Case("model", onnx_file(), load_target("jetson-orin")))
