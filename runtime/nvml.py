"""NVIDIA's management library, by its Python bindings (`nvidia-ml-py`), where a machine has both.

https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html. What a GPU does not answer is left out.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

# Bits of nvmlDeviceGetCurrentClocksEventReasons that make a GPU slower than it could be; idleness is none of them.
_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}
_POLICIES = {0: "power cap", 1: "heat"}
"""Of nvmlPerfPolicyType_t; the GPU counts the nanoseconds that each has slowed it."""


@cache
def open_nvml() -> tuple[Any, str]:
    """Return the module, ready to be asked, and ""; or None and why there is none. Asked once a process."""
    try:
        pynvml: Any = import_module("pynvml")
    except ImportError:
        return None, "NVML: the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
    return pynvml, ""


def devices() -> list[tuple[int, Any]]:
    """Return number and handle of each GPU; none where NVML does not work."""
    nvml, _ = open_nvml()
    count = 0 if nvml is None else asked(nvml.nvmlDeviceGetCount) or 0
    found = [(place, asked(nvml.nvmlDeviceGetHandleByIndex, place)) for place in range(count)]
    return [(place, handle) for place, handle in found if handle is not None]


def asked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what an NVML function answers; None where the GPU or the driver does not support it."""
    nvml, _ = open_nvml()
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def slowdown_counts() -> dict[str, int]:
    """Return for how many nanoseconds each GPU has been slowed since its driver was loaded, by GPU and cause."""
    nvml, _ = open_nvml()
    found = {}
    for place, handle in devices():
        for policy, cause in _POLICIES.items():
            time = asked(nvml.nvmlDeviceGetViolationStatus, handle, policy)
            if time is not None:
                found[f"GPU {place} {cause} (ns)"] = int(time.violationTime)
    return found


def slowdown_reasons() -> tuple[str, ...]:
    """Return what slows the GPUs at this moment, such as "GPU 0: power cap"."""
    nvml, _ = open_nvml()
    found = []
    for place, handle in devices():
        # The name until driver 535; both return the same bits.
        mask = asked(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        found += [f"GPU {place}: {name}" for bit, name in _REASONS.items() if mask & bit]
    return tuple(found)


def device_memory_bytes(pid: int) -> int | None:
    """Return the memory that a process holds on all GPUs; None without one, and where the driver does not list it.

    In a container the driver may know the process by the host's number, and on a Jetson memory is the machine's.
    """
    nvml, _ = open_nvml()
    total = None
    for _, handle in devices():
        for process in asked(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ():
            if process.pid == pid and process.usedGpuMemory is not None:
                total = (total or 0) + int(process.usedGpuMemory)
    return total
