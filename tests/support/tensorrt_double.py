"""Putting the stand-ins for TensorRT and CUDA where tlc, and the children it starts, find them."""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SUPPORT = Path(__file__).resolve().parent
ORIN = "Orin;8;7;1"
XAVIER = "Xavier;7;2;1"
PC = "RTX 4090;8;9;0"
TARGETS = {
    "8.5.3.1": ("jetson-xavier", XAVIER),
    "10.3.0": ("jetson-orin", ORIN),
    "10.13.3.9": ("cuda", PC),
    "11.1.0.106": ("cuda-trt11", PC),
}
"""By release: a target that it is for, and a GPU that the target has."""


@cache
def cudart() -> Path:
    """Compile fake_cudart.c, or skip the test."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the stand-in for CUDA's library is a small C file")
    library = Path(tempfile.mkdtemp(prefix="tlc-cudart-")) / "libcudart.so"
    source = SUPPORT / "fake_cudart.c"
    # Symbolic: its functions call each other, not those of a real libcudart that PyTorch has loaded.
    options = ["-shared", "-fPIC", "-O1", "-Wl,-Bsymbolic"]
    subprocess.run([compiler, *options, "-o", str(library), str(source)], check=True)
    return library


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str, gpu: str = ORIN) -> None:
    """Make `import tensorrt` give the stand-in of `version` ("" for none), and CUDA's library one with that GPU."""
    forget()
    place = folder / "modules"
    place.mkdir(exist_ok=True)
    text = f"import fake_tensorrt\nglobals().update(fake_tensorrt.names({version!r}))\n"
    (place / "tensorrt.py").write_text(text if version else "raise ImportError('no TensorRT in this test')\n")
    paths = [str(place), str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("TLC_CUDART", str(cudart()))
    monkeypatch.setenv("TLC_FAKE_GPU", gpu)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.syspath_prepend(str(place))


def forget() -> None:
    """Leave nothing of a stand-in in this process."""
    from tlc.runtime import tensorrt_io
    from tlc.runtime.gpu import engine_host

    engine_host.cache_clear()
    tensorrt_io._LOGGERS.clear()
    sys.modules.pop("tensorrt", None)


def write_net(path: Path, *, quantized: bool = False, batch: int | str = "N", half: bool = False) -> Path:
    """Write conv, relu, pool, flatten: x (batch, 3, 8, 8) -> y (batch, 4); with Q/DQ on the convolution's inputs."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    constants = {"w": weight}
    nodes = []
    feeds = ["x", "w"]
    if quantized:
        constants |= {"s": np.array(0.02, np.float32), "ws": np.array(0.03, np.float32)}
        zero = numpy_helper.from_array(np.array(0, np.int8), "z")
        for name, scale in (("x", "s"), ("w", "ws")):
            nodes.append(helper.make_node("QuantizeLinear", [name, scale, "z"], [f"{name}q"], name=f"q_{name}"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}q", scale, "z"], [f"{name}d"], name=f"d_{name}"))
        feeds = ["xd", "wd"]
    nodes += [
        helper.make_node("Conv", feeds, ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    if quantized:
        initializers.append(zero)
    if half:
        initializers.append(numpy_helper.from_array(np.ones(1, np.float16), "unused"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {"tlc.classes": '["a", "b", "c", "d"]', "tlc.preprocess": '{"size": [8, 8]}'})
    onnx.save(model, path)
    return path
