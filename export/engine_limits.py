"""How much memory a builder may take, and where its timings are kept."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tlc.runtime.environment import environment
from tlc.runtime.gpu import EngineHost
from tlc.runtime.plan import version_key

MIN_WORKSPACE_BYTES = 64 << 20
_MIB = 1 << 20


def pool_limits(
    target_workspace_bytes: int, host: EngineHost, *, workspace_bytes: int | None = None, root: Path = Path("/")
) -> dict[str, int]:
    """Return limits of memory pools by TensorRT's names, in bytes.

    The workspace is what the caller asks for, else the target's, at most half of the GPU memory that is free; on a
    Jetson, where CPU and GPU share it, a quarter of the memory that is available. TensorRT's own default is all of the
    GPU's memory. From 8.6 on a Jetson also limits TACTIC_DRAM, what a kernel may take while it is tried: by default
    three quarters of all memory, so that trying kernels gets other processes killed.
    """
    available = environment(root=root, libraries=())["memory_available_bytes"]
    shared = host.gpu is not None and host.gpu.integrated
    free: int | None = available if shared else (host.gpu.free_bytes if host.gpu else None)
    workspace = workspace_bytes or target_workspace_bytes
    if workspace_bytes is None and free is not None:
        workspace = max(MIN_WORKSPACE_BYTES, min(workspace, free // (4 if shared else 2)))
    limits = {"WORKSPACE": workspace // _MIB * _MIB}
    if shared and available is not None and (host.tensorrt is None or version_key(host.tensorrt) >= (8, 6)):
        limits["TACTIC_DRAM"] = max(workspace, available // 2) // _MIB * _MIB
    return limits


def timing_cache_path(host: EngineHost, env: Mapping[str, str] = os.environ) -> Path:
    """Return where timings of this TensorRT, GPU and power mode are kept.

    TensorRT refuses timings of another release, and warns that those of another GPU lead to bad choices; those of
    another power mode would go unnoticed. So all four are in the name: under $XDG_CACHE_HOME or ~/.cache.
    """
    base = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "~")).expanduser() / ".cache")
    gpu = host.gpu
    parts = (host.tensorrt or "none", gpu.name if gpu else "none", f"sm{gpu.sm}" if gpu else "", host.power_mode)
    name = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part) for part in parts if part)
    return base / "tlc" / "timing" / f"{name}.cache"


def smaller(limits: Mapping[str, int]) -> dict[str, int] | None:
    """Return limits with half the workspace for another try after memory ran out; None when it is at its least."""
    return _scaled(limits, 0.5) if limits["WORKSPACE"] > MIN_WORKSPACE_BYTES else None


def larger(limits: Mapping[str, int], free_bytes: int | None) -> dict[str, int] | None:
    """Return limits with four times the workspace, for a layer that no kernel fits; None when that much is not free."""
    return _scaled(limits, 4) if free_bytes is None or 4 * limits["WORKSPACE"] <= free_bytes else None


def _scaled(limits: Mapping[str, int], factor: float) -> dict[str, int]:
    return {name: max(MIN_WORKSPACE_BYTES, int(value * factor) // _MIB * _MIB) for name, value in limits.items()}
