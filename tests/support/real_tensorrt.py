"""NVIDIA's own TensorRT modules on a machine without a GPU, for the tests marked `tensorrt`.

They load once the libraries that they link to are there; without a GPU none of their functions is called. `stand_ins`
compiles empty ones with the right names and symbol versions, from what the modules ask for.

    pip download tensorrt==8.5.3.1 --no-deps --python-version 3.10 --only-binary :all: -d wheels       # 549 MB
    pip download tensorrt-cu12-bindings==10.3.0 --no-deps --only-binary :all: -d wheels                # this Python
    mkdir -p trt/8.5.3.1 trt/10.3.0
    unzip wheels/tensorrt-8.5.3.1-*.whl -d trt/8.5.3.1; unzip wheels/tensorrt_cu12_bindings-10.3.0-*.whl -d trt/10.3.0
    TLC_TENSORRT=$PWD/trt TLC_PYTHON310=.../python3.10 pytest -m tensorrt

TLC_PYTHON310 is a Python 3.10 with tlc's base dependencies.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

# What the bindings call of TensorRT: nothing else is undefined in them.
_BINDINGS_NEED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
_OF_NVIDIA = re.compile(r"lib(cublas|cublasLt|cudnn|nvinfer|nvinfer_plugin|nvonnxparser|nvparsers)\.so\.\d+")


def unpacked(version: str) -> Path:
    """Return the folder of that unpacked wheel, or skip the test."""
    root = os.environ.get("TLC_TENSORRT")
    if not root or not (Path(root) / version).is_dir():
        pytest.skip(f"no TensorRT {version}: set TLC_TENSORRT to a folder with the unpacked wheel in {version}/")
    for tool in ("cc", "nm", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: it makes the libraries that TensorRT links to")
    return Path(root) / version


def python310() -> str:
    """Return the interpreter for TensorRT 8, whose wheels end at Python 3.10, or skip the test."""
    program = os.environ.get("TLC_PYTHON310")
    if not program:
        pytest.skip("no Python 3.10: set TLC_PYTHON310 to one with tlc's base dependencies")
    return program


def stand_ins(package: Path, out: Path) -> Path:
    """Compile what the shared objects of `package` need of NVIDIA's and do not bring along; return the folder."""
    out.mkdir(exist_ok=True)
    binaries = sorted(package.glob("*.so*"))
    present = {path.name for path in binaries}
    linked = "\n".join(_output("readelf", "-d", path) for path in binaries)
    needed = {found[0] for found in _OF_NVIDIA.finditer(linked)}
    undefined = "\n".join(_output("nm", "-D", "--undefined-only", path) for path in binaries)
    for soname in sorted(needed - present):
        versioned = sorted(set(re.findall(rf" U (\w+)@{re.escape(soname)}$", undefined, re.MULTILINE)))
        source, script = out / "stub.c", out / "stub.map"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in versioned or _BINDINGS_NEED))
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(out / soname), str(source)]
        if versioned:
            script.write_text(f"{soname} {{ global: *; }};\n")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)
    return out


def _output(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
