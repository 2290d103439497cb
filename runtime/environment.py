"""The machine and the software that a measurement was made with.

Reads /proc and /sys where there are any; what a system does not tell is None. Libraries are looked up by their
metadata and never imported.
"""

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "tlc",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "pydantic",
    "pillow",
    "onnx",
    "onnxscript",
    "onnxslim",
    "nncf",
    "torch",
    "torchvision",
    "torch-pruning",
    "timm",
    "transformers",
    "accelerate",
    "safetensors",
    "scikit-learn",
)
# Those that decide which kernels run (x86, then ARM), and `hypervisor`: a virtual machine has neighbours.
_FLAGS = frozenset(
    (
        *("sse4_1", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
        *("avx_vnni_int8", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "hypervisor"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
    )
)


def environment(
    *, root: Path = Path("/"), libraries: Sequence[str] = _LIBRARIES, now: datetime | None = None
) -> dict[str, Any]:
    """Return what decides how fast this machine runs a model, as JSON values; fields that cannot be read are None.

    `root` is where proc/ and sys/ lie. `cpu_flags` holds the instruction sets of interest, `versions` the installed
    ones of `libraries`, `time_utc` is ISO 8601. Nothing in it names the user or the host.
    """
    cpu = _colon_table(root / "proc/cpuinfo")
    memory = _colon_table(root / "proc/meminfo")
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    return {
        "cpu_model": cpu.get("model name") or _text(root / "proc/device-tree/model"),
        "cpu_flags": sorted(cpu_flags(root=root) & _FLAGS) or None,
        "logical_cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "cpu_quota": _text(root / "sys/fs/cgroup/cpu.max"),
        "cpu_governor": _text(cpufreq / "scaling_governor"),
        "cpu_max_khz": _integer(_text(cpufreq / "cpuinfo_max_freq")),
        "load_average": _load_average(),
        "memory_total_bytes": _kib_to_bytes(memory.get("MemTotal")),
        "memory_available_bytes": _kib_to_bytes(memory.get("MemAvailable")),
        "os": platform.system() or None,
        "os_release": platform.release() or None,
        "machine": platform.machine() or None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": _versions(libraries),
        "time_utc": (now or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
    }


def cpu_flags(*, root: Path = Path("/")) -> frozenset[str]:
    """Return the CPU's feature flags as Linux spells them (`avx512_vnni`, `asimddp`); empty where it does not tell."""
    cpu = _colon_table(root / "proc/cpuinfo")
    return frozenset((cpu.get("flags") or cpu.get("Features") or "").split())


def _colon_table(path: Path) -> dict[str, str]:
    """Return the `key : value` lines of a /proc file; of a repeated key, as one per core, the first."""
    table: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            table.setdefault(key.strip(), value.strip())
    return table


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _kib_to_bytes(text: str | None) -> int | None:
    """`"8046428 kB"`, which /proc/meminfo means as KiB."""
    kib = _integer(text.split()[0]) if text else None
    return None if kib is None else kib * 1024


def _usable_cores() -> int | None:
    """Cores that this process may run on; None where the system has no affinity (macOS, Windows)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return None if affinity is None else len(affinity(0))


def _load_average() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
