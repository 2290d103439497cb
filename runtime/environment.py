"""The machine and the software that a measurement was made with.

Reads /proc and /sys where there are any; what a system does not tell is None. Libraries are looked up by their
metadata and never imported.
"""

import hashlib
import hmac
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tlc.runtime import cgroup, sysfs
from tlc.runtime.jetson import clocks_locked

_LIBRARIES = (
    "tlc",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
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
# Facts that are compared as they are.
_SAME = (
    *("machine_id", "machine", "os", "cpu_model", "cpu_flags", "board", "logical_cores", "usable_cores", "cpu_quota"),
    *("cpuset", "cpu_turbo", "cpu_smt", "clocks_locked", "power_mode", "gpus", "gpu_driver", "container"),
)
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch", "numpy")
_APPLICATION = bytes.fromhex("eb5d160561b247adb6189d05dcc8395d")  # drawn once, at random


def environment(
    *, root: Path = Path("/"), libraries: Sequence[str] = _LIBRARIES, now: datetime | None = None
) -> dict[str, Any]:
    """Return what decides how fast this machine runs a model, as JSON values; fields that cannot be read are None.

    `root` is where proc/, sys/, etc/, run/ and var/ lie. `cpu_flags` holds the instruction sets of interest,
    `cpu_policies` is that of `tlc.runtime.sysfs`, `cpu_quota` and `cpuset` are spelled as by control groups of version
    2, `versions` are the installed ones of `libraries`, `time_utc` is ISO 8601. Nothing in it names the user or the
    host; `machine_id` tells machines apart, and cannot be traced back to the system's own.
    """
    cpu = sysfs.colon_table(root / "proc/cpuinfo")
    memory = sysfs.colon_table(root / "proc/meminfo")
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    flags = cpu_flags(root=root)
    board = sysfs.text(root / "proc/device-tree/model")
    return {
        "cpu_model": cpu.get("model name") or board,
        "cpu_flags": sorted(flags & _FLAGS) or None,
        "board": board,
        "logical_cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "cpu_quota": cgroup.cpu_quota(root),
        "cpuset": cgroup.cpuset(root),
        "cpu_governor": sysfs.text(cpufreq / "scaling_governor"),
        "cpu_max_khz": sysfs.integer(cpufreq / "cpuinfo_max_freq"),
        "cpu_policies": sysfs.cpu_policies(root) or None,
        "cpu_turbo": sysfs.turbo(root),
        "cpu_smt": sysfs.simultaneous_threads(root),
        "clocks_locked": clocks_locked(root),
        "power_mode": sysfs.text(root / "var/lib/nvpmodel/status")
        or sysfs.text(root / "sys/firmware/acpi/platform_profile"),
        "temperatures_c": sysfs.temperatures_c(root) or None,
        "load_average": _load_average(),
        "memory_total_bytes": _kib_to_bytes(memory.get("MemTotal")),
        "memory_available_bytes": _kib_to_bytes(memory.get("MemAvailable")),
        "memory_limit_bytes": cgroup.memory_limit_bytes(root),
        "gpus": sysfs.nvidia_gpus(root),
        "gpu_driver": sysfs.nvidia_driver(root),
        "container": sysfs.container(root),
        "virtual_machine": _virtual(root, flags),
        "os": platform.system() or None,
        "os_release": platform.release() or None,
        "machine": platform.machine() or None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": _versions(libraries),
        "machine_id": _machine_id(root),
        "time_utc": (now or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
    }


def machine_identity(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an `environment` that must be equal for stored numbers to be comparable, as JSON values.

    What differs from boot to boot of one machine is left out or rounded: of the kernel the first two numbers count, of
    memory whole GiB, of libraries those that run models. A fact that the environment lacks is None.
    """
    release = str(environment.get("os_release") or "").split(".")
    total = environment.get("memory_total_bytes")
    limit = environment.get("memory_limit_bytes")
    governors = {policy["governor"] for policy in environment.get("cpu_policies") or () if policy["governor"]}
    versions = environment.get("versions") or {}
    return {
        **{name: environment.get(name) for name in _SAME},
        "cpu_governors": sorted(governors) or None,
        "memory_total_gib": None if total is None else round(total / 2**30),
        "memory_limit_bytes": limit if limit is None or total is None or limit < total else None,
        "kernel": ".".join(release[:2]) if len(release) > 1 else None,
        "versions": {name: versions[name] for name in _RUNTIMES if name in versions},
    }


def identity_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each fact in which two results of `machine_identity` differ; none where none does.

    `a` is called "there" and `b` "here". A fact that only one of them has differs.
    """
    found = []
    for name in sorted(a.keys() | b.keys()):
        there, here = a.get(name), b.get(name)
        if there == here:
            continue
        if name == "versions":
            before, now = dict(there or {}), dict(here or {})
            found += [
                _difference(library, before.get(library), now.get(library))
                for library in sorted(before.keys() | now.keys())
                if before.get(library) != now.get(library)
            ]
        elif name == "cpu_flags" and there and here:
            only_there, only_here = sorted(set(there) - set(here)), sorted(set(here) - set(there))
            found.append(_difference(name, only_there or "nothing more", only_here or "nothing more"))
        else:
            found.append(_difference(name, there, here))
    return found


def cpu_flags(*, root: Path = Path("/")) -> frozenset[str]:
    """Return the CPU's feature flags as Linux spells them (`avx512_vnni`, `asimddp`); empty where it does not tell."""
    cpu = sysfs.colon_table(root / "proc/cpuinfo")
    return frozenset((cpu.get("flags") or cpu.get("Features") or "").split())


def _difference(name: str, there: object, here: object) -> str:
    return f"{name}: {_spelled(there)} there, {_spelled(here)} here"


def _spelled(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "unknown" if value is None else str(value)


def _machine_id(root: Path) -> str | None:
    """Return this application's own form of /etc/machine-id, as 32 hexadecimal digits; None without that file.

    That id is confidential: machine-id(5) asks to hash it with a key before it leaves the machine. As there, the id is
    the key of an HMAC-SHA256 of a constant of the application, cut to 128 bits and marked as a random UUID:
    `systemd-id128 machine-id --app-specific=UUID` prints the same.
    """
    try:
        key = bytes.fromhex(sysfs.text(root / "etc/machine-id") or "")
    except ValueError:  # "uninitialized" on first boot
        return None
    if len(key) != 16:
        return None
    found = bytearray(hmac.new(key, _APPLICATION, hashlib.sha256).digest()[:16])
    found[6] = found[6] & 0x0F | 0x40
    found[8] = found[8] & 0x3F | 0x80
    return found.hex()


def _virtual(root: Path, flags: frozenset[str]) -> bool | None:
    """x86 has a flag for it, a device tree a node; None where neither is there to tell."""
    if "hypervisor" in flags or (root / "proc/device-tree/hypervisor").exists():
        return True
    return False if "fpu" in flags or (root / "proc/device-tree").is_dir() else None


def _kib_to_bytes(text: str | None) -> int | None:
    """`"8046428 kB"`, which /proc/meminfo means as KiB."""
    kib = text.split()[0] if text else ""
    return int(kib) * 1024 if kib.isdecimal() else None


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
