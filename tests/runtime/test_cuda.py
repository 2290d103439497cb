import ast
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_double import cudart, forget, install

from tlc.runtime import cuda as cuda_module
from tlc.runtime.cuda import Cuda, Device, load_cuda
from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import engine_host


def functions() -> set[str]:
    """Return the names of all CUDA functions that tlc calls."""
    tree = ast.parse(Path(cuda_module.__file__).read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {word for word in words if word.startswith("cuda") and word.isalnum()} | {"cudaGetErrorString"}


def test_a_real_library_has_every_function() -> None:
    found = [name for name in cuda_module._candidates() if Path(name).is_file()]
    if not found:
        pytest.skip("no libcudart here: it comes with CUDA, or with pip install nvidia-cuda-runtime-cu12")
    for name in found:
        library = ctypes.CDLL(name)
        assert [function for function in sorted(functions()) if not hasattr(library, function)] == []


def test_the_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_CUDART", str(cudart()))
    monkeypatch.setenv("TLC_FAKE_GPU", "Xavier NX;7;2;1")

    cuda = load_cuda()

    assert cuda.devices() == [Device("Xavier NX", "7.2", True, 4 << 30, 8 << 30)]
    assert cuda.runtime_version() == "12.6"


def test_a_failure_is_told_in_cudas_words() -> None:
    cuda = Cuda(ctypes.CDLL(str(cudart())))

    with pytest.raises(TlcError, match=r"CUDA: cudaStreamSynchronize: unknown error \(error 1\)"):
        cuda.synchronize(0)


def test_without_a_gpu_the_failure_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_CUDART", str(cudart()))
    monkeypatch.setenv("TLC_FAKE_NO_GPU", "1")

    with pytest.raises(TlcError, match="no CUDA-capable device is detected") as caught:
        load_cuda()
    assert "TLC_CUDART" in caught.value.hint


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_CUDART", "/nowhere/libcudart.so")

    with pytest.raises(TlcError, match=r"no usable CUDA runtime library: /nowhere/libcudart\.so"):
        load_cuda()


def test_what_a_crash_leaves_behind_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    (tmp_path / "modules" / "tensorrt.py").write_text("import os\nos.abort()\n")

    host = engine_host()
    forget()

    assert host.gpu is not None
    assert host.gpu.name == "Orin"
    assert host.tensorrt is None
    assert host.tensorrt_problem == "importing it ended the process with SIGABRT"


def test_building_needs_no_training_framework() -> None:
    modules = "tlc.export.engine, tlc.export.engine_worker, tlc.cli.build, tlc.runtime.tensorrt"
    code = f"import json, sys, {modules}\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set(json.loads(done.stdout)) & {"torch", "onnx", "nncf", "onnxscript", "scipy", "PIL", "tensorrt"} == set()
