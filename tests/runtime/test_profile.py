from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tensorrt_double import TARGETS, forget, install, write_net

from tlc.export.engine import BuildOptions, build_engine
from tlc.runtime import tensorrt
from tlc.runtime.bench_report import LayerTime
from tlc.runtime.cuda import Device
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.gpu import EngineHost
from tlc.runtime.profile import layer_share, layer_times, read_events
from tlc.runtime.target import Target, load_target

OnnxFile = Callable[..., Path]
FEEDS = {"x": np.zeros((2, 64), np.float32)}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def two_products(onnx_file: OnnxFile) -> Path:
    """A product of 64 by 512 and a softmax: nodes that no runtime fuses into one."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Softmax", ["h"], ["y"], name="softmax"),
    ]
    weights = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    tensors = [(("x", TensorProto.FLOAT, ["N", 64]),), (("y", TensorProto.FLOAT, ["N", 512]),)]
    return onnx_file(nodes, *tensors, constants={"w": weights})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_layers_come_in_the_order_of_execution_with_their_shares(onnx_file: OnnxFile, runtime: str) -> None:
    target = None
    if runtime == "openvino":
        pytest.importorskip("openvino")
        target = load_target("openvino")

    layers = layer_times(two_products(onnx_file), target, threads=1, feeds=FEEDS, runs=5)

    # OpenVINO calls the last layer as the output.
    (product,) = [place for place, layer in enumerate(layers) if layer.name == "product"]
    (softmax,) = [place for place, layer in enumerate(layers) if layer.kind.startswith("Softmax")]
    assert product < softmax
    assert layers[product].kind.startswith(("MatMul", "FullyConnected"))
    assert min(layer.ms for layer in layers) >= 0
    total = sum(layer.ms for layer in layers)
    assert [layer.ratio for layer in layers] == pytest.approx([layer.ms / (total or 1) for layer in layers])


def test_onnxruntime_leaves_no_file_behind(
    onnx_file: OnnxFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = two_products(onnx_file)

    layer_times(path, threads=1, feeds=FEEDS, runs=1)

    assert list(tmp_path.iterdir()) == [path]


def event(name: str, start: int, us: int, kind: str = "Conv", *, index: int = 0, cat: str = "Node") -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": start, "dur": us, "args": {"op_name": kind, "node_index": str(index)}}


def test_only_the_last_runs_count_and_outliers_do_not() -> None:
    times = [900, 900, 10, 11, 12, 500]
    events = [event("conv_kernel_time", 1000 * run, us) for run, us in enumerate(times)]

    assert read_events(events, runs=4) == [LayerTime(name="conv", kind="Conv", ms=0.0115, ratio=1.0)]


def test_shares_are_those_of_the_sum_and_events_of_the_session_do_not_count() -> None:
    events = [
        event("model_run", 0, 100, cat="Session"),
        event("b_fence_before", 39, 1, "Relu"),
        event("b_kernel_time", 40, 10, "Relu", index=1),
        event("a_kernel_time", 5, 30),
    ]

    assert read_events(events, runs=1) == [
        LayerTime(name="a", kind="Conv", ms=0.03, ratio=0.75),
        LayerTime(name="b", kind="Relu", ms=0.01, ratio=0.25),
    ]


def test_nodes_of_one_name_are_kept_apart() -> None:
    events = [event("_kernel_time", 0, 10, index=0), event("_kernel_time", 20, 30, index=1)]

    assert [layer.ms for layer in read_events(events, runs=1)] == [0.01, 0.03]


def test_a_loop_counts_once_with_what_is_in_it() -> None:
    events = [
        event("inner_kernel_time", 10, 20, "Add", index=0),
        event("inner_kernel_time", 40, 20, "Add", index=0),
        event("loop_kernel_time", 10, 60, "Loop", index=1),
        event("after_kernel_time", 70, 0, "Relu", index=2),
        event("last_kernel_time", 71, 20, "Relu", index=3),
    ]

    found = {layer.name: layer.ms for layer in read_events(events, runs=1)}

    assert found == {"loop": 0.06, "after": 0.0, "last": 0.02}


def test_a_graph_inside_a_node_is_not_counted_twice(onnx_file: OnnxFile) -> None:
    def branch(name: str, op_type: str) -> Any:
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op_type, ["x"], ["b"], name=f"{name}_inside")], name, [], [out])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], name="max", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"], name="greater"),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("t", "Exp"), else_branch=branch("e", "Cos")),
    ]
    path = onnx_file(
        nodes,
        [("x", TensorProto.FLOAT, ["N", 64])],
        [("y", TensorProto.FLOAT, ["N", 64])],
        constants={"zero": np.float32(0)},
    )

    names = [layer.name for layer in layer_times(path, threads=1, feeds=FEEDS, runs=3)]

    assert "if" in names
    assert not any("inside" in name for name in names)


def test_openvino_counters_are_freed_of_the_first_runs(onnx_file: OnnxFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from tlc.runtime.openvino import OpenVinoSession

    # Ten runs of 300 us, then thirty of 100 us: means of 300 and of 150.
    means = iter([[("a", "Conv", 300.0)], [("a", "Conv", 150.0), ("new", "Conv", 50.0)]])
    monkeypatch.setattr(OpenVinoSession, "node_times_us", lambda _: next(means))

    layers = layer_times(two_products(onnx_file), load_target("openvino"), threads=1, feeds=FEEDS, runs=30)

    assert [layer.ms for layer in layers] == pytest.approx([0.1, 0.05])


def test_layers_of_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = "10.3.0"
    target, gpu = TARGETS[version]
    install(monkeypatch, tmp_path, version, gpu)
    plan = tmp_path / "model.plan"
    build_engine(write_net(tmp_path / "model.onnx", batch=1), plan, load_target(target), BuildOptions(rounds=1))
    install(monkeypatch, tmp_path, version, gpu)
    name, major, minor, integrated = gpu.split(";")
    device = Device(name, f"{major}.{minor}", integrated == "1", 1, 1)
    # Asking a child each time takes a second: other tests do.
    monkeypatch.setattr(tensorrt, "engine_host", lambda: EngineHost(version, "", True, device, "", "12.6", ""))

    layers = layer_times(plan, threads=1, feeds={"x": np.ones((1, 3, 8, 8), np.float32)}, runs=3)

    assert [layer.name for layer in layers] == ["conv", "relu", "pool", "flat"]
    assert [(layer.ms, layer.ratio) for layer in layers] == [(0.25, 0.25)] * 4
    assert all(layer.kind for layer in layers)


def gpu_target(**changes: Any) -> Target:
    return load_target("cpu-x86").model_copy(update=changes)


@pytest.mark.parametrize("changes", [{"provider": "cuda"}, {"provider": "tensorrt"}, {"runtime": "tensorrt"}])
def test_what_runs_on_a_gpu_is_not_timed_by_onnxruntime(onnx_file: OnnxFile, changes: dict[str, str]) -> None:
    with pytest.raises(TlcError, match=r"what runs on the GPU, and target cpu-x86 runs .*model\.onnx"):
        layer_times(two_products(onnx_file), gpu_target(**changes), threads=1, feeds=FEEDS, runs=1)


def test_other_files_have_no_layers(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match=r"model\.pt2 has no time by layer") as caught:
        layer_times(tmp_path / "model.pt2", threads=1, feeds=FEEDS, runs=1)
    assert caught.value.hint == "Export it to ONNX and profile that file."


def test_no_run_is_a_wrong_option(onnx_file: OnnxFile) -> None:
    with pytest.raises(UsageError, match="at least 1 run, got 0"):
        layer_times(two_products(onnx_file), threads=1, feeds=FEEDS, runs=0)


def test_the_sum_is_told_beside_the_whole() -> None:
    layers = [
        LayerTime(name="a", kind="Conv", ms=3.0, ratio=0.75),
        LayerTime(name="b", kind="Relu", ms=1.0, ratio=0.25),
    ]

    assert layer_share(layers, 5.0) == "2 layers take 4.000 ms together, 80% of p50 5.000 ms."
