"""A stand-in for the module `pynvml`: GPUs as the test describes them."""

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """Raised where a GPU does not support what it is asked."""


def fake_nvml(
    *, energy_mj: int | None = 0, violation_ns: dict[int, int] | None = None, reasons: int = 0, processes: Any = ()
) -> SimpleNamespace:
    """One GPU. The answers are attributes of `gpu`, so that a test can change them; None is "not supported"."""
    gpu = SimpleNamespace(energy_mj=energy_mj, violation_ns=violation_ns, reasons=reasons, processes=processes)

    def supported(value: Any) -> Any:
        if value is None:
            raise NVMLError("Not Supported")
        return value

    return SimpleNamespace(
        gpu=gpu,
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda place: f"handle {place}",
        nvmlDeviceGetTotalEnergyConsumption=lambda _: supported(gpu.energy_mj),
        nvmlDeviceGetViolationStatus=lambda _, policy: SimpleNamespace(
            violationTime=supported(gpu.violation_ns)[policy]
        ),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: supported(gpu.reasons),
        nvmlDeviceGetComputeRunningProcesses=lambda _: supported(gpu.processes),
    )
