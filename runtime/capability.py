"""What this machine can do: which runtimes, GPU and tools are here, and which targets they run.

Each question is put to a process of its own (`tlc.runtime.probes`), all at the same time. An answer that does not come
is a finding like any other.
"""

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tlc.runtime.environment import environment
from tlc.runtime.jetson import Jetson, read_jetson
from tlc.runtime.probes import (
    Package,
    Tool,
    cuda_devices,
    find_trtexec,
    imported,
    installed,
    nvidia_smi,
    output,
    system_tensorrt,
)
from tlc.runtime.target import PROVIDERS, Target

# Imported by a probe: each takes well under a second. The rest takes seconds, and is imported on request.
_QUICK = ("onnxruntime", "openvino", "tensorrt", "onnx")
_SLOW = ("torch", "nncf")
COMPRESSION = ("torch", "torchvision", "torch-pruning", "nncf", "onnx", "onnxscript", "onnxslim", "accelerate")
"""Distributions without which nothing is compressed here."""


class Gpu(BaseModel):
    """A GPU."""

    model_config = ConfigDict(frozen=True)

    name: str
    sm: str | None
    """Compute capability, such as "8.7"."""
    memory_bytes: int | None


class Machine(BaseModel):
    """What `probe` found."""

    model_config = ConfigDict(frozen=True)

    python: str
    """Version of this interpreter."""
    executable: str
    packages: dict[str, Package]
    gpus: tuple[Gpu, ...]
    driver: Tool
    """NVIDIA's driver: its version, or the CUDA that it speaks; the error is CUDA's."""
    cuda: Tool
    """CUDA's runtime library."""
    trtexec: Tool
    system_tensorrt: Tool
    """TensorRT of another Python of this machine, as JetPack installs it."""
    jetson: Jetson | None
    cpu: str | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    disk_free_bytes: int


def probe(*, root: Path = Path("/"), full: bool = False) -> Machine:
    """Return what this machine has; `full` imports PyTorch and NNCF too, which takes seconds.

    `root` is where proc/, sys/, etc/ and usr/ lie. Raises nothing: what cannot be found out is None, or has an error.
    """
    tried = (*_QUICK, *_SLOW) if full else _QUICK
    probes: dict[str, Callable[[], Any]] = {
        **{name: partial(imported, name) for name in tried},
        "nvidia-smi": nvidia_smi,
        "cuda": cuda_devices,
        "trtexec": partial(find_trtexec, root),
        "system": partial(system_tensorrt, root),
        "jetson": partial(read_jetson, root, output),
    }
    with ThreadPoolExecutor(len(probes)) as pool:
        running = {name: pool.submit(function) for name, function in probes.items()}
        found = {name: future.result() for name, future in running.items()}
    here = environment(root=root, libraries=())
    smi, cuda, jetson = found["nvidia-smi"], found["cuda"], found["jetson"]
    return Machine(
        python=here["python"].split()[-1],
        executable=sys.executable,
        packages={name: found.get(name) or installed(name) for name in (*_QUICK, *_SLOW, *COMPRESSION)},
        gpus=_gpus(smi, cuda, jetson),
        driver=_driver(smi, cuda),
        cuda=Tool(name="CUDA runtime", version=cuda.get("runtime"), error=cuda.get("runtime_error")),
        trtexec=found["trtexec"],
        system_tensorrt=found["system"],
        jetson=jetson,
        cpu=here["cpu_model"],
        memory_total_bytes=here["memory_total_bytes"],
        memory_available_bytes=here["memory_available_bytes"],
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
    )


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Return `probe()`, made once in this process."""
    return probe()


def missing(target: Target, machine: Machine | None = None) -> str | None:
    """Return why `machine` (default: this one) cannot run files in the target's runtime; None where it can."""
    if target.runtime == "onnxruntime" and target.provider == "cpu" and machine is None:
        return None  # tlc itself needs ONNX Runtime: it is imported already
    machine = machine or this_machine()
    if target.runtime == "tensorrt":
        return _missing_gpu(target, machine) or _missing_tensorrt(target, machine.packages["tensorrt"])
    package = machine.packages[target.runtime]
    if package.version is None:
        return f"{target.runtime} is not installed"
    if package.error is not None:
        return f"{target.runtime} {package.version} does not import: {package.error}"
    if target.runtime == "onnxruntime" and (provider := PROVIDERS[target.provider][0]) not in package.providers:
        return f"onnxruntime {package.version} has no {provider}"
    return None


def missing_to_build(target: Target, machine: Machine | None = None) -> str | None:
    """Return why `machine` (default: this one) cannot build the target's engines; None where it can, or needs none."""
    if target.runtime != "tensorrt":
        return None
    machine = machine or this_machine()
    if (gpu := _missing_gpu(target, machine)) is not None:
        return gpu
    python = _missing_tensorrt(target, machine.packages["tensorrt"])
    if python is None or machine.trtexec.path is not None:
        return None
    return f"{python}, and there is no trtexec"


def missing_to_compress(machine: Machine | None = None) -> str | None:
    """Return why `machine` (default: this one) cannot compress; None where it can."""
    machine = machine or this_machine()
    packages = [machine.packages[name] for name in COMPRESSION]
    absent = [package.name for package in packages if package.version is None]
    if absent:
        return f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"
    broken = [f"{package.name} does not import: {package.error}" for package in packages if package.error is not None]
    return "; ".join(broken) or None


def _missing_gpu(target: Target, machine: Machine) -> str | None:
    assert target.tensorrt is not None
    if not machine.gpus:
        return "there is no NVIDIA GPU"
    if machine.driver.error is not None:
        return f"{machine.gpus[0].name} is here, but CUDA cannot use it: {machine.driver.error}"
    if any(gpu.sm is None or gpu.sm in target.tensorrt.sm for gpu in machine.gpus):
        return None
    here = ", ".join(f"{gpu.name} (SM {gpu.sm})" for gpu in machine.gpus)
    return f"the GPU here is {here}, and {target.name} means SM {', '.join(target.tensorrt.sm)}"


def _missing_tensorrt(target: Target, package: Package) -> str | None:
    """Engines are built and run by the target's major release, and by a minor one that knows all that it does."""
    assert target.tensorrt is not None
    if package.version is None:
        return "TensorRT is not installed in this Python"
    if package.error is not None:
        return f"tensorrt {package.version} does not import: {package.error}"
    here, wanted = _release(package.version), target.tensorrt.release
    if here is not None and (here[0] != wanted[0] or here[1] < wanted[1]):
        return f"TensorRT {package.version} is installed, and {target.name} means {target.tensorrt.version}"
    return None


def _release(text: str | None) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else None


def _gpus(smi: Mapping[str, Any], cuda: Mapping[str, Any], jetson: Jetson | None) -> tuple[Gpu, ...]:
    """Of CUDA's answer, nvidia-smi's and the Jetson's device tree, the first that there is."""
    rows = cuda.get("gpus") or smi.get("gpus") or []
    if not rows and jetson is not None:
        rows = [{"name": jetson.model, "sm": jetson.sm, "memory_bytes": None}]
    return tuple(Gpu.model_validate(row) for row in rows)


def _driver(smi: Mapping[str, Any], cuda: Mapping[str, Any]) -> Tool:
    spoken = cuda.get("driver")
    release = smi.get("driver") or (f"for CUDA {spoken}" if spoken else None)
    error = cuda.get("driver_error") or smi.get("error")
    return Tool(name="NVIDIA driver", path=shutil.which("nvidia-smi"), version=release, error=error)
