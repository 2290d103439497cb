"""Which Jetson this is, what is installed on it, and whether its clocks stand still."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

Run = Callable[[Sequence[str]], tuple[str, str | None]]
"""Returns what a command prints and None, or "" and what went wrong."""

# Compute capability by SoC: https://developer.nvidia.com/cuda-gpus, "Jetson products"; Thor is 11.0 from CUDA 13 on.
_SM = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
# JetPack by release of Jetson Linux: https://developer.nvidia.com/embedded/jetpack-archive
_JETPACK = {
    "32.6": "4.6",
    "32.7": "4.6.x",
    "35.1": "5.0.2",
    **dict.fromkeys(("35.2", "35.3", "35.4", "35.5", "35.6"), "5.1.x"),
    **dict.fromkeys(("36.2", "36.3"), "6.0"),
    **dict.fromkeys(("36.4", "36.5"), "6.1 or 6.2"),
    "38.2": "7.0",
    "38.4": "7.1",
}


class Jetson(BaseModel):
    """An NVIDIA Jetson module; what it does not tell is None."""

    model_config = ConfigDict(frozen=True)

    model: str
    """As its device tree spells it."""
    soc: str | None
    sm: str | None
    """Compute capability of its GPU."""
    l4t: str | None
    """Release of Jetson Linux, such as "36.4.3"."""
    jetpack: str | None
    tensorrt: str | None
    """Version of libnvinfer, by the package manager."""
    dla_cores: int | None
    """Deep Learning Accelerators that are switched on."""
    power_mode: str | None
    clocks_locked: bool | None
    """Whether CPU and GPU cannot change their frequency: `jetson_clocks` was called."""


def read_jetson(root: Path, run: Run) -> Jetson | None:
    """Return the Jetson whose proc/, sys/, etc/ and var/ lie in `root`; None on another machine."""
    tree = root / "proc/device-tree"
    compatible = _text(tree / "compatible")
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    soc = re.search(r"nvidia,(tegra\d+)", compatible)
    model = _text(tree / "model")
    if release is None and (soc is None or "Jetson" not in model):
        return None
    l4t = None if release is None else f"{release[1]}.{release[2]}"
    packages = _debian_packages(root)
    mode = re.search(r"NV Power Mode:\s*(\S+)", run(["nvpmodel", "-q"])[0])
    return Jetson(
        model=model or "Jetson",
        soc=soc and soc[1],
        sm=_SM.get(soc[1]) if soc else None,
        l4t=l4t,
        jetpack=packages.get("nvidia-jetpack") or _JETPACK.get(".".join((l4t or "").split(".")[:2])),
        tensorrt=next((packages[name] for name in packages if re.fullmatch(r"libnvinfer\d+", name)), None),
        dla_cores=_dla_cores(tree),
        power_mode=mode and mode[1],
        clocks_locked=clocks_locked(root),
    )


def _text(path: Path) -> str:
    """Device-tree strings end in a zero byte, and lists have one between each two."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _debian_packages(root: Path) -> dict[str, str]:
    """Return name and upstream version of what is installed: "10.3.0.30-1+cuda12.5" is 10.3.0.30."""
    found = {}
    for paragraph in _text(root / "var/lib/dpkg/status").split("\n\n"):
        name = re.search(r"^Package: (nvidia-jetpack|libnvinfer\d+)$", paragraph, re.MULTILINE)
        version = re.search(r"^Version: ([^\s+-]+)", paragraph, re.MULTILINE)
        if name and version and re.search(r"^Status: .* installed$", paragraph, re.MULTILINE):
            found[name[1]] = version[1]
    return found


def _dla_cores(tree: Path) -> int | None:
    """Count the accelerators of the device tree that are not disabled; None where it cannot be read."""
    if not tree.is_dir():
        return None
    nodes = [*tree.glob("host1x*/nvdla*"), *tree.glob("bus@0/host1x*/nvdla*")]
    return sum(_text(node / "status") in ("", "okay", "ok") for node in nodes)


def clocks_locked(root: Path) -> bool | None:
    """Compare the lowest and highest frequency that CPU and GPU may take; None where the kernel does not tell."""
    sys = root / "sys"
    gpus = [folder for folder in sys.glob("class/devfreq/*") if re.search(r"gpu|gp10b|gv11b|ga10b", folder.name)]
    ranges = [
        *((_text(gpu / "min_freq"), _text(gpu / "max_freq")) for gpu in gpus),
        *(
            (_text(policy / "scaling_min_freq"), _text(policy / "scaling_max_freq"))
            for policy in sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq")
        ),
    ]
    known = [low == high for low, high in ranges if low and high]
    return all(known) if known else None
