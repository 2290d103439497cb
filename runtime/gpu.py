"""What TensorRT and GPU this machine has, found out in a process of its own.

TensorRT 8.6 and 11's lean runtime crash, without an exception, when a runtime object is made on a machine without a
GPU, and a broken installation can crash at import. So a child imports the library and asks CUDA, and this process
touches neither before the answer is good. `python -m tlc.runtime.gpu` prints the answer as JSON.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tlc.runtime.cuda import Device, load_cuda
from tlc.runtime.errors import TlcError

_MODULE = "tlc.runtime.gpu"
_TIMEOUT_S = 120
WORKER_VARIABLE = "TLC_ENGINE_WORKER"
"""Set in children that may crash without harm: they ask for themselves."""
_POWER_MODE = Path("/var/lib/nvpmodel/status")


@dataclass(frozen=True, slots=True)
class EngineHost:
    """What decides whether an engine fits."""

    tensorrt: str | None
    """Version of the Python module `tensorrt`, such as "10.3.0"; None where there is none that works."""
    tensorrt_problem: str
    """Why there is none; "" otherwise."""
    can_build: bool
    """Whether the module has the builder and the ONNX parser; the lean runtime has neither."""
    gpu: Device | None
    gpu_problem: str
    """Why there is no GPU; "" otherwise."""
    cuda: str | None
    """Release of the CUDA runtime library, such as "12.6"."""
    power_mode: str
    """nvpmodel's mode on a Jetson, as it stores it; "" elsewhere. Which kernels are fastest depends on it."""


@cache
def engine_host() -> EngineHost:
    """Return what this machine has; asked once a process. Never raises for what is missing or broken."""
    if os.environ.get(WORKER_VARIABLE):
        return _machine(list(_steps())[-1])
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", _MODULE]
    try:
        child = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=_TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return _unknown(f"asking for it took more than {_TIMEOUT_S} s")
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        # The child prints before each step what it already knows, so a crash in the next step loses nothing else.
        reason = signal.Signals(-child.returncode).name if child.returncode < 0 else f"status {child.returncode}"
        if not lines:
            return _unknown(f"the process that asked ended with {reason}: {child.stderr.strip()[-300:]}")
        known = json.loads(lines[-1])
        known["tensorrt_problem"] = f"importing it ended the process with {reason}"
        return _machine(known)
    return _machine(json.loads(lines[-1]))


def require_gpu(host: EngineHost) -> Device:
    """Return the GPU. Raises TlcError, naming TensorRT's version, when there is none."""
    if host.gpu is None:
        here = f"TensorRT {host.tensorrt} is here" if host.tensorrt else "TensorRT is not importable"
        raise TlcError(
            f"{here} but no NVIDIA GPU: {host.gpu_problem}",
            hint="Run this on the device: engines are built and run on the kind of GPU that they are for.",
        )
    return host.gpu


def require_tensorrt(host: EngineHost) -> str:
    """Return TensorRT's version. Raises TlcError when its Python module does not work."""
    if host.tensorrt is None:
        raise TlcError(
            f"no working TensorRT for {sys.executable}: {host.tensorrt_problem}",
            hint="On a Jetson it belongs to JetPack's own Python: make the environment with --system-site-packages. "
            "Elsewhere: pip install tensorrt, in the release that the target names.",
        )
    return host.tensorrt


def main() -> int:
    """Print one JSON object per step, each with all that is known by then."""
    for known in _steps():
        sys.stdout.write(json.dumps(known) + "\n")
        sys.stdout.flush()
    return 0


def _steps() -> Iterator[dict[str, object]]:
    """Yield what is known after CUDA was asked, and after TensorRT was imported."""
    known: dict[str, object] = asdict(_unknown("not asked"))
    known["power_mode"] = _power_mode()
    try:
        cuda = load_cuda()
        devices = cuda.devices()
        known.update(cuda=cuda.runtime_version(), gpu=asdict(devices[0]) if devices else None)
        known["gpu_problem"] = "" if devices else "CUDA counts no device"
    except TlcError as error:
        known["gpu_problem"] = error.message
    yield known
    try:
        import tensorrt

        known.update(tensorrt=str(tensorrt.__version__), tensorrt_problem="")
        known["can_build"] = hasattr(tensorrt, "Builder") and hasattr(tensorrt, "OnnxParser")
    except (ImportError, OSError, AttributeError, TypeError) as error:
        known["tensorrt_problem"] = f"{type(error).__name__}: {error}"
    yield known


def _power_mode() -> str:
    try:
        return _POWER_MODE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _machine(known: dict[str, object]) -> EngineHost:
    gpu = known.pop("gpu")
    return EngineHost(gpu=Device(**gpu) if isinstance(gpu, dict) else None, **known)  # type: ignore[arg-type]


def _unknown(problem: str) -> EngineHost:
    return EngineHost(None, problem, False, None, problem, None, "")


if __name__ == "__main__":
    sys.exit(main())
