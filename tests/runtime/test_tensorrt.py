"""The session over stand-ins for TensorRT and CUDA; what it computes is ONNX Runtime's."""

import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorrt_double import ORIN, TARGETS, cudart, forget, install, write_net

from tlc.export.engine import BuildOptions, build_engine
from tlc.runtime import tensorrt
from tlc.runtime.cuda import Device
from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import EngineHost
from tlc.runtime.inspector import read_layers
from tlc.runtime.plan import ProfileShapes, read_record, write_plan
from tlc.runtime.session import OrtSession
from tlc.runtime.target import load_target
from tlc.runtime.tensorrt import TensorRTSession

DYNAMIC = ProfileShapes(min=[1, 3, 8, 8], opt=[2, 3, 8, 8], max=[4, 3, 8, 8])


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def built(folder: Path, version: str, options: BuildOptions | None = None) -> Path:
    plan = folder / "model.plan"
    options = options or BuildOptions(rounds=1, shapes={"x": DYNAMIC})
    build_engine(write_net(folder / "model.onnx"), plan, load_target(TARGETS[version][0]), options)
    return plan


@pytest.fixture(scope="module", params=list(TARGETS))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch, folder, request.param, TARGETS[request.param][1])
        yield request.param, built(folder, request.param)


def opened(monkeypatch: pytest.MonkeyPatch, engine: tuple[str, Path], *, graph: bool = True) -> TensorRTSession:
    version, plan = engine
    install(monkeypatch, plan.parent, version, TARGETS[version][1])
    name, major, minor, integrated = TARGETS[version][1].split(";")
    gpu = Device(name, f"{major}.{minor}", integrated == "1", 1, 1)
    # Asking a child each time takes a second: other tests do.
    monkeypatch.setattr(tensorrt, "engine_host", lambda: EngineHost(version, "", True, gpu, "", "12.6", ""))
    return TensorRTSession(plan, graph=graph)


@pytest.mark.parametrize("graph", [True, False])
def test_outputs_are_those_of_the_onnx_file(
    monkeypatch: pytest.MonkeyPatch, engine: tuple[str, Path], graph: bool
) -> None:
    rng = np.random.default_rng(0)
    with opened(monkeypatch, engine, graph=graph) as session, OrtSession(engine[1].with_suffix(".onnx")) as reference:
        for batch in (1, 4, 4, 2):
            feeds = {"x": rng.standard_normal((batch, 3, 8, 8)).astype(np.float32)}
            np.testing.assert_array_equal(session.run(feeds)["y"], reference.run(feeds)["y"])
            assert session.uses_graph is graph
            assert session.last_gpu_ms is not None
        assert [spec.name for spec in session.inputs] == ["x"]
        assert session.inputs[0].shape == ("?", 3, 8, 8)
        assert session.notes == ()


def test_outputs_stay_when_the_next_run_overwrites_the_buffers(
    monkeypatch: pytest.MonkeyPatch, engine: tuple[str, Path]
) -> None:
    with opened(monkeypatch, engine) as session:
        first = session.run({"x": np.ones((1, 3, 8, 8), np.float32)})["y"]
        before = first.copy()
        session.run({"x": np.zeros((1, 3, 8, 8), np.float32)})

    np.testing.assert_array_equal(first, before)


def test_all_memory_is_given_back(monkeypatch: pytest.MonkeyPatch, engine: tuple[str, Path]) -> None:
    library = ctypes.CDLL(str(cudart()))
    before = library.fakeAllocations()
    session = opened(monkeypatch, engine)
    session.run({"x": np.ones((1, 3, 8, 8), np.float32)})
    session.run({"x": np.ones((3, 3, 8, 8), np.float32)})

    assert library.fakeAllocations() > before
    session.close()
    session.close()
    assert library.fakeAllocations() == before
    with pytest.raises(RuntimeError, match="is closed"):
        session.run({"x": np.ones((1, 3, 8, 8), np.float32)})


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("z", np.ones((1, 3, 8, 8), np.float32), r"takes x float32 \[\?, 3, 8, 8\], got z"),
        ("x", np.ones((1, 3, 8, 8), np.float64), "got float64"),
        ("x", np.ones((5, 3, 8, 8), np.float32), r"\[1, 3, 8, 8\] to \[4, 3, 8, 8\] expected, got float32 \[5, 3"),
    ],
)
def test_wrong_feeds_are_refused(
    monkeypatch: pytest.MonkeyPatch, engine: tuple[str, Path], name: str, array: np.ndarray, message: str
) -> None:
    with opened(monkeypatch, engine) as session, pytest.raises(TlcError, match=message):
        session.run({name: array})


def test_an_engine_that_cannot_be_captured_runs_without_and_says_so(
    monkeypatch: pytest.MonkeyPatch, engine: tuple[str, Path]
) -> None:
    monkeypatch.setenv("TLC_FAKE_NO_GRAPH", "1")
    with opened(monkeypatch, engine) as session:
        session.run({"x": np.ones((1, 3, 8, 8), np.float32)})
        assert not session.uses_graph
        assert "No CUDA graph" in session.notes[0]


def test_layers_and_their_times(monkeypatch: pytest.MonkeyPatch, engine: tuple[str, Path]) -> None:
    with opened(monkeypatch, engine) as session:
        layers = read_layers(session.inspect())
        times = session.layer_times_ms({"x": np.ones((1, 3, 8, 8), np.float32)}, runs=3)

    assert [layer.name for layer in layers] == ["conv", "relu", "pool", "flat"]
    assert times == dict.fromkeys(["conv", "relu", "pool", "flat"], 0.25)


def test_tensors_by_index_before_8_5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "8.5.3.1", TARGETS["8.5.3.1"][1])
    plan = built(tmp_path, "8.5.3.1")
    # The same plan as an older release would have written it.
    content = plan.read_bytes().replace(b'"8.5.3.1"', b'"8.4.1.5"')
    changes = {"tensorrt": "8.4.1.5", "plan_sha256": hashlib.sha256(content).hexdigest()}
    write_plan(plan, content, read_record(plan).model_copy(update=changes))
    install(monkeypatch, tmp_path, "8.4.1.5", TARGETS["8.5.3.1"][1])

    feeds = {"x": np.ones((2, 3, 8, 8), np.float32)}
    with TensorRTSession(plan) as session, OrtSession(tmp_path / "model.onnx") as reference:
        np.testing.assert_array_equal(session.run(feeds)["y"], reference.run(feeds)["y"])
        assert session.profiles["x"] == DYNAMIC


def test_without_a_gpu_the_library_is_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0", ORIN)
    plan = built(tmp_path, "10.3.0")
    install(monkeypatch, tmp_path, "10.3.0", ORIN)
    monkeypatch.setenv("TLC_FAKE_NO_GPU", "1")

    with pytest.raises(TlcError, match=r"TensorRT 10\.3\.0 is here but no NVIDIA GPU: .*no CUDA-capable device"):
        TensorRTSession(plan)
    assert "tensorrt" not in sys.modules


def test_without_tensorrt_the_message_says_where_it_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"ftrt" + bytes(40))
    install(monkeypatch, tmp_path, "")

    with pytest.raises(TlcError, match="no TensorRT in this test") as caught:
        TensorRTSession(plan)
    assert "--system-site-packages" in caught.value.hint


def test_a_module_that_crashes_at_import_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"ftrt" + bytes(40))
    install(monkeypatch, tmp_path, "10.3.0")
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "modules" / "tensorrt.py").write_text(crash)

    with pytest.raises(TlcError, match="importing it ended the process with SIGSEGV"):
        TensorRTSession(plan)


def test_a_plan_of_another_release_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "10.3.0", ORIN)
    plan = built(tmp_path, "10.3.0")
    install(monkeypatch, tmp_path, "10.7.0", ORIN)

    with pytest.raises(TlcError, match=r"was built by TensorRT 10\.3\.0\.0, this machine has 10\.7\.0") as caught:
        TensorRTSession(plan)
    assert "tlc build model.onnx --target jetson-orin" in caught.value.hint


def test_the_session_module_imports_nothing_of_nvidia() -> None:
    code = "import sys, tlc.runtime.tensorrt, tlc.runtime.gpu; assert 'tensorrt' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0
