"""A session of another provider than the CPU runs every node there, or does not open."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from tlc.runtime import session as module
from tlc.runtime.errors import TlcError
from tlc.runtime.session import OrtSession
from tlc.runtime.target import PROVIDERS

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def _mixed(onnx_file: Any) -> Path:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Abs", ["r"], ["y"])]
    path: Path = onnx_file(nodes)
    return path


class _Runtime:
    """ONNX Runtime's session as another build has it, its nodes given by provider; computes on the CPU."""

    nodes: dict[str, list[str]]
    asked: dict[str, Any]
    create = staticmethod(ort.InferenceSession)

    def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any], enable_fallback: int) -> None:
        type(self).asked = {"providers": providers, "enable_fallback": enable_fallback, "options": options}
        self._session = self.create(path, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [*self.nodes, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=k) for k in kinds])
            for name, kinds in self.nodes.items()
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def every_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime say that it has every provider."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [name for name, _ in PROVIDERS.values()])


def _runtime(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, list[str]]) -> type[_Runtime]:
    runtime = type("_R", (_Runtime,), {"nodes": nodes})
    monkeypatch.setattr(module, "_RECORDS_PLACEMENT", True)
    monkeypatch.setattr(ort, "InferenceSession", runtime)
    return runtime


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_this_build_lacks_is_named_with_the_package_that_has_it(onnx_file: Any, provider: Any) -> None:
    name, package = PROVIDERS[provider]
    if name in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {name}")
    with pytest.raises(TlcError) as caught:
        OrtSession(onnx_file(), provider=provider)
    assert caught.value.message.startswith(f"this ONNX Runtime {ort.__version__} has no {name}, only ")
    assert caught.value.hint.endswith(f"pip uninstall onnxruntime, then pip install {package}.")


def test_a_provider_that_does_not_start_is_an_error_and_not_the_cpu(
    onnx_file: Any, every_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_parts", lambda _: [])
    monkeypatch.setattr(module, "_RECORDS_PLACEMENT", True)
    # ONNX Runtime itself drops a provider that it does not have, with a warning.
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(TlcError, match=r"could not start CUDAExecutionProvider, and would run .*model\.onnx on the CPU"),
    ):
        OrtSession(onnx_file(), provider="cuda")


def test_nodes_left_to_the_cpu_are_counted_and_refused(
    onnx_file: Any, every_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runtime(monkeypatch, {"CUDAExecutionProvider": ["Relu"], "CPUExecutionProvider": ["Abs", "Abs", "Unique"]})
    with pytest.raises(TlcError) as caught:
        OrtSession(_mixed(onnx_file), provider="cuda")
    assert "CUDAExecutionProvider leaves 3 of 4 nodes of " in caught.value.message
    assert caught.value.message.endswith("to the CPU: 2 Abs, 1 Unique")


def test_nodes_left_to_the_cpu_are_reported_where_they_are_allowed(
    onnx_file: Any, every_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runtime(monkeypatch, {"CUDAExecutionProvider": ["Relu"], "CPUExecutionProvider": ["Abs"]})
    with OrtSession(_mixed(onnx_file), provider="cuda", allow_cpu_nodes=True) as session:
        assert session.placement == {"CUDAExecutionProvider": 1, "CPUExecutionProvider": 1}
        np.testing.assert_array_equal(session.run({"x": X})["y"], np.maximum(X, 0))


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("cuda", {"use_tf32": "0"}),
        ("tensorrt", {}),
        ("openvino", {"device_type": "CPU", "precision": "FP32", "num_of_threads": "2", "num_streams": "1"}),
    ],
)
def test_a_provider_computes_in_the_precision_of_the_file_and_never_falls_back(
    onnx_file: Any, every_provider: None, monkeypatch: pytest.MonkeyPatch, provider: Any, options: dict[str, str]
) -> None:
    name = PROVIDERS[provider][0]
    runtime = _runtime(monkeypatch, {name: ["Relu"]})
    with OrtSession(onnx_file(), provider=provider, threads=2) as session:
        assert session.placement == {name: 1}
    assert runtime.asked["providers"] == [(name, options)]
    assert runtime.asked["enable_fallback"] == 0
    assert runtime.asked["options"].intra_op_num_threads == 2


def test_tensorrt_as_a_provider_has_int8_enabled_for_a_quantised_file_only(
    onnx_file: Any, every_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = _runtime(monkeypatch, {"TensorrtExecutionProvider": ["DequantizeLinear"]})
    scales = {"scale": np.float32(0.1), "zero": np.int8(0)}
    path = onnx_file(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        constants={name: np.asarray(value) for name, value in scales.items()},
    )
    OrtSession(path, provider="tensorrt").close()
    assert runtime.asked["providers"] == [("TensorrtExecutionProvider", {"trt_int8_enable": "1"})]


def test_an_onnx_runtime_that_does_not_tell_the_placement_is_asked_to_refuse(
    onnx_file: Any, every_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = _runtime(monkeypatch, {"CUDAExecutionProvider": []})
    monkeypatch.setattr(module, "_RECORDS_PLACEMENT", False)
    with OrtSession(onnx_file(), provider="cuda") as session:
        assert session.placement is None
    key = "session.disable_cpu_ep_fallback"
    assert runtime.asked["options"].get_session_config_entry(key) == "1"


def test_that_refusal_is_explained(onnx_file: Any, every_provider: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP, but fallback")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(TlcError, match="assigned to the default CPU EP") as caught:
        OrtSession(onnx_file(), provider="openvino")
    assert "did not start, or lacks some of its operators" in caught.value.hint


def test_the_cpu_has_no_placement_to_check(onnx_file: Any) -> None:
    with OrtSession(onnx_file()) as session:
        assert session.placement is None


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-openvino"
)
def test_the_real_openvino_provider_runs_all_or_is_refused(onnx_file: Any) -> None:
    with OrtSession(_mixed(onnx_file), provider="openvino") as session:
        np.testing.assert_array_equal(session.run({"x": X})["y"], np.maximum(X, 0))
        assert session.placement == {"OpenVINOExecutionProvider": 2}
    partly = onnx_file(
        [helper.make_node("Unique", ["x"], ["u"]), helper.make_node("Abs", ["u"], ["y"])],
        outputs=[("y", 1, ["M"])],
    )
    with pytest.raises(TlcError, match=r"leaves 1 of 2 nodes of .* to the CPU: 1 Unique"):
        OrtSession(partly, provider="openvino")
