"""Questions to this machine, each in a process of its own: what is asked can raise, hang or crash."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

_TIMEOUT_S = 30.0


class Package(BaseModel):
    """A Python package."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str | None = None
    """None: not installed."""
    imported: bool = False
    """Whether a process imported it; False too where that was not tried."""
    error: str | None = None
    """Why the import failed."""
    providers: tuple[str, ...] = ()
    """Execution providers of ONNX Runtime."""

    @property
    def works(self) -> bool:
        """Whether it is installed and nothing says that it is broken."""
        return self.version is not None and self.error is None


class Tool(BaseModel):
    """A program or library."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: str | None = None
    version: str | None = None
    error: str | None = None


def installed(name: str) -> Package:
    """What the package's metadata says."""
    try:
        return Package(name=name, version=version(name))
    except PackageNotFoundError:
        return Package(name=name)


_IMPORT = """
import json, sys
import {name} as module
providers = module.get_available_providers() if {name!r} == "onnxruntime" else ()
print(json.dumps({{"version": str(getattr(module, "__version__", "of unknown version")), "providers": providers}}))
"""


def imported(name: str) -> Package:
    """What a process that imports the package says."""
    try:
        there = find_spec(name) is not None
    except (ImportError, ValueError):  # a half-removed package
        there = True
    if not there:
        return Package(name=name)
    answer, error = _answer([sys.executable, "-c", _IMPORT.format(name=name)])
    if error is not None:
        return Package(name=name, version=installed(name).version or "of unknown version", error=error)
    found = str(answer["version"]).partition("-")[0]  # OpenVINO appends its build
    return Package(name=name, version=found, imported=True, providers=tuple(answer["providers"]))


_DEVICES = """
import ctypes, json
def library(*names):
    for name in names:
        try:
            return ctypes.CDLL(name), None
        except OSError as error:
            said = f"there is no {names[0]}" if "No such file" in str(error) else str(error)
    return None, said
found = {}
runtime, error = library(*(f"libcudart.so{end}" for end in (".13", ".12", ".11.0", ".10.2", "")),
                         "/usr/local/cuda/lib64/libcudart.so")
number = ctypes.c_int()
if runtime is None:
    found["runtime_error"] = error
elif runtime.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
    found["runtime"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
driver, error = library("libcuda.so.1")
if driver is None:
    found["driver_error"] = error
elif (status := driver.cuInit(0)) != 0:
    found["driver_error"] = f"cuInit failed with CUDA error {status}"
else:
    if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
        found["driver"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    driver.cuDeviceGetCount(ctypes.byref(number))
    found["gpus"] = []
    for index in range(number.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        driver.cuDeviceGetName(name, 256, device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        found["gpus"].append({"name": name.value.decode(errors="replace"), "memory_bytes": memory.value,
                              "sm": f"{major.value}.{minor.value}"})
print(json.dumps(found))
"""


def cuda_devices() -> dict[str, Any]:
    """What CUDA's own libraries say, asked without a tool; 75 and 76 are the compute capability's two parts."""
    answer, error = _answer([sys.executable, "-c", _DEVICES])
    return {"driver_error": error, "runtime_error": error} if error is not None else answer


def nvidia_smi() -> dict[str, Any]:
    """Return GPUs and driver by nvidia-smi; {} without it. Old ones do not know compute_cap, Jetson's no memory."""
    for capability in (",compute_cap", ""):
        text, error = output(
            ["nvidia-smi", f"--query-gpu=name,driver_version,memory.total{capability}", "--format=csv,noheader,nounits"]
        )
        if error is None:
            rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.count(",") >= 2]
            gpus = [
                {
                    "name": row[0],
                    "memory_bytes": int(row[2]) * 2**20 if row[2].isdecimal() else None,
                    "sm": row[3] if len(row) > 3 and re.fullmatch(r"\d+\.\d+", row[3]) else None,
                }
                for row in rows
            ]
            return {"gpus": gpus, "driver": rows[0][1] if rows else None}
    return {"error": error} if shutil.which("nvidia-smi") else {}


def find_trtexec(root: Path) -> Tool:
    """JetPack and NVIDIA's Debian packages leave it outside PATH. It prints its version in front of anything else."""
    usual = root / "usr/src/tensorrt/bin/trtexec"
    found = shutil.which("trtexec") or (str(usual) if os.access(usual, os.X_OK) else None)
    if found is None:
        return Tool(name="trtexec")
    text, error = output([found, "--help"])
    number = re.search(r"\[TensorRT v(\d+)\]", text)
    return Tool(name="trtexec", path=found, version=_tensorrt_version(int(number[1])) if number else None, error=error)


def _tensorrt_version(number: int) -> str:
    """8503 is 8.5.3 and 100300 is 10.3.0: NV_TENSORRT_VERSION in NvInferVersion.h got more digits with 10."""
    per_major = 10000 if number >= 100000 else 1000
    return f"{number // per_major}.{number % per_major // 100}.{number % 100}"


def system_tensorrt(root: Path) -> Tool:
    """TensorRT of the system's Python, which a virtual environment does not see."""
    name = "TensorRT of the system's Python"
    python = root / "usr/bin/python3"
    folders = sorted((root / "usr/lib").glob("python3*/dist-packages/tensorrt"))
    if not folders or not python.exists():
        return Tool(name=name)
    text, error = output([str(python), "-c", "import tensorrt; print(tensorrt.__version__)"])
    lines = text.split()
    return Tool(name=name, path=str(folders[0]), version=lines[-1] if lines and error is None else None, error=error)


def _answer(command: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Return the JSON object on the last line that the command prints, and None; or {} and why there is none."""
    text, error = output(command)
    if error is not None:
        return {}, error
    try:
        answer = json.loads(text.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {}, f"it printed {text[-80:]!r} instead of an answer"
    return (answer, None) if isinstance(answer, dict) else ({}, f"it answered {answer!r}")


def output(command: Sequence[str]) -> tuple[str, str | None]:
    """Return what the command prints, and None; or "" and what went wrong, in half a line."""
    # Safe path: a file in the working directory must not stand in for a module (Python 3.11 and later).
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT_S, env=env
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer in {_TIMEOUT_S:g} s"
    except OSError as error:
        return "", f"{command[0]}: {error.strerror}"
    if done.returncode < 0:
        return "", f"the process was ended by {_signal(-done.returncode)}"
    if done.returncode > 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return "", lines[-1].strip()[:200] if lines else f"it exited with status {done.returncode}"
    return done.stdout, None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
