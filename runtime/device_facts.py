"""What a device is and has, asked over SSH before anything is sent to it."""

import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from tlc.runtime import sysfs
from tlc.runtime.environment import environment
from tlc.runtime.errors import TlcError
from tlc.runtime.jetson import read_jetson
from tlc.runtime.remote import Remote, RemoteError
from tlc.runtime.remote_tree import FIXED, MOVING, fetch_tree

_LIBRARIES = {"tensorrt": "libnvinfer", "onnxruntime": "libonnxruntime", "openvino": "libopenvino_c"}
# Where a loader looks, then where pip puts wheels, whose libraries a program can be pointed to.
_PLACES = (
    "/usr/lib/*-linux-gnu*",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
    "/opt/*/lib",
    "/usr/lib/python3*/dist-packages/*/capi",
    "/usr/local/lib/python3*/*-packages/*/capi",
    "/usr/local/lib/python3*/*-packages/*/libs",
    '"$HOME"/.local/lib/python3*/site-packages/*/capi',
    '"$HOME"/.local/lib/python3*/site-packages/*/libs',
)
_ASK = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
say machine "$(uname -m)"
say system "$(uname -s)"
say kernel "$(uname -r)"
say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say python "$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null)"
say mode "$(nvpmodel -q 2>/dev/null | tr '\n' ' ')"
d=$folder; until [ -d "$d" ]; do d=${d%/*}; d=${d:-/}; done
say free_kib "$(df -Pk "$d" | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)"
nvidia-smi --query-gpu=name,compute_cap,memory.total --format=csv,noheader,nounits 2>/dev/null | while read -r row; do
  say gpu "$row"
done
for f in $(for d in $(printf %s "$LD_LIBRARY_PATH" | tr : ' ') PLACES; do
  ls -d "$d"/libnvinfer.so.[0-9]* "$d"/libonnxruntime.so* "$d"/libopenvino_c.so* 2>/dev/null
done); do say library "$(readlink -f "$f")"; done
"""
_PACKAGES = r"""
dpkg-query -W -f='Package: ${Package}\nStatus: ${Status}\nVersion: ${Version}\n\n' 'libnvinfer*' nvidia-jetpack \
  2>/dev/null; true
"""


class Library(BaseModel):
    """A shared library on the device."""

    model_config = ConfigDict(frozen=True)

    path: str
    version: str | None
    """From its file's name, such as "8.5.2"."""


class DeviceGpu(BaseModel):
    """An NVIDIA GPU of the device."""

    model_config = ConfigDict(frozen=True)

    name: str
    sm: str | None
    """Compute capability, such as "8.7"."""
    memory_bytes: int | None
    """None where it shares the system's."""


class DeviceFacts(BaseModel):
    """What decides whether, and how, a model can be deployed; what the device does not tell is None."""

    model_config = ConfigDict(frozen=True)

    host: str
    machine: str
    """`uname -m`, such as "aarch64"."""
    system: str
    """`uname -s`: "Linux"."""
    kernel: str
    glibc: str | None
    """Such as "2.31"."""
    board: str | None
    l4t: str | None
    """Release of Jetson Linux, such as "35.3.1"."""
    jetpack: str | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    disk_free_bytes: int | None
    """Where the folder is, or will be."""
    power_mode: str | None
    clocks_locked: bool | None
    boot_id: str | None
    """Another one after each start."""
    gpus: tuple[DeviceGpu, ...]
    gpu_driver: str | None
    tensorrt: str | None
    """Version of its library, such as "8.5.2"."""
    libraries: dict[str, tuple[Library, ...]]
    """Found by "tensorrt", "onnxruntime" and "openvino", in the order in which they are looked for."""
    python: str | None


def facts(remote: Remote, folder: str = "") -> DeviceFacts:
    """Return what the device is and has; `folder` (default: its home) is where space is looked for.

    Raises RemoteError where it cannot be reached, and TlcError where it is not Linux.
    """
    with tempfile.TemporaryDirectory(prefix="tlc-") as place:
        root = fetch_tree(remote, (*FIXED, *MOVING), Path(place))
        packages = remote.run(_PACKAGES).stdout
        if packages:
            (root / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
            (root / "var/lib/dpkg/status").write_bytes(packages)
        said = _said(remote, folder)
        if said["system"] != ["Linux"]:
            raise TlcError(f"{remote.host} runs {said['system'][0]}, not Linux", hint="Deploy to a Linux device.")
        here = environment(root=root, libraries=())
        mode = re.search(r"NV Power Mode:\s*(\S+)", _one(said, "mode") or "")
        jetson = read_jetson(root, lambda _argv: (_one(said, "mode") or "", None))
        libraries = {name: _libraries(said.get("library", []), file) for name, file in _LIBRARIES.items()}
        gpus = tuple(_gpu(row) for row in said.get("gpu", []))
        if jetson is not None and not gpus:
            gpus = (DeviceGpu(name=jetson.model, sm=jetson.sm, memory_bytes=None),)
        glibc = re.fullmatch(r"glibc (\d+\.\d+).*", _one(said, "glibc") or "")
        free = _one(said, "free_kib") or ""
        return DeviceFacts(
            host=remote.host,
            machine=said["machine"][0],
            system=said["system"][0],
            kernel=said["kernel"][0],
            glibc=glibc and glibc[1],
            board=here["board"],
            l4t=jetson and jetson.l4t,
            jetpack=jetson and jetson.jetpack,
            memory_total_bytes=here["memory_total_bytes"],
            memory_available_bytes=here["memory_available_bytes"],
            disk_free_bytes=int(free) * 1024 if free.isdecimal() else None,
            power_mode=mode[1] if mode else here["power_mode"],
            clocks_locked=here["clocks_locked"],
            boot_id=sysfs.text(root / "proc/sys/kernel/random/boot_id"),
            gpus=gpus,
            gpu_driver=here["gpu_driver"],
            tensorrt=next((one.version for one in libraries["tensorrt"] if one.version), jetson and jetson.tensorrt),
            libraries=libraries,
            python=_one(said, "python"),
        )


def _said(remote: Remote, folder: str) -> dict[str, list[str]]:
    """Return what the device says of itself, by key. Raises RemoteError where its shell does not do as asked."""
    where = shlex.quote(folder) if folder else '"$HOME"'
    script = f"folder={where}\n{_ASK.replace('PLACES', ' '.join(_PLACES))}"
    found: dict[str, list[str]] = {}
    for line in remote.run(script).stdout.decode(errors="replace").splitlines():
        key, equals, value = line.partition("=")
        if equals and value.strip():
            found.setdefault(key, []).append(value.strip())
    if not {"machine", "system", "kernel"} <= found.keys():
        raise RemoteError(
            remote.host, "it does not say what it is: `uname` printed nothing", hint="Give a host with a POSIX shell."
        )
    return found


def _one(said: dict[str, list[str]], key: str) -> str | None:
    return next(iter(said.get(key, [])), None)


def _libraries(paths: Sequence[str], name: str) -> tuple[Library, ...]:
    found = []
    for path in dict.fromkeys(paths):
        match = re.fullmatch(rf"{name}\.so(?:\.([\d.]+))?", PurePosixPath(path).name)
        if match:
            found.append(Library(path=path, version=match[1]))
    return tuple(found)


def _gpu(row: str) -> DeviceGpu:
    """Read a row of nvidia-smi: name, compute capability, MiB. A Jetson's answers "[N/A]" to the last."""
    name, *rest = [part.strip() for part in row.split(",")]
    sm, memory = (*rest, "", "")[:2]
    return DeviceGpu(
        name=name,
        sm=sm if re.fullmatch(r"\d+\.\d+", sm) else None,
        memory_bytes=int(memory) * 2**20 if memory.isdecimal() else None,
    )
