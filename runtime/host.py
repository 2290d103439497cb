"""Where models are measured: a machine that starts workers and says what state it is in. `LOCAL` is this one.

A device (`tlc.runtime.device_host`) is another place where the same processes are started: what takes turns, counts
and decides stays here, in one implementation.
"""

import os
import re
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tlc.runtime.environment import environment
from tlc.runtime.errors import TlcError
from tlc.runtime.health import Snapshot, cpu_s, snapshot
from tlc.runtime.power import Meter, device_memory_bytes, open_meters
from tlc.runtime.remote import Dropped
from tlc.runtime.worker import Request

if TYPE_CHECKING:
    from tlc.runtime.bench_report import BenchWarning
    from tlc.runtime.process import Case, Limits

PID_WORD = "tlc-pid"
"""Begins the line on stderr by which a worker on a device says its process id."""
_RESERVE_RATIO = 0.05
"""Share of the memory available that a model may not take, unless told how much it may."""


class Process(ABC):
    """A worker's process, as the host that runs it sees it; `child` carries its stdin and stdout."""

    child: "subprocess.Popen[bytes]"
    request: Request
    """Its first: what to open, by the paths that it has there."""

    @abstractmethod
    def excess(self) -> tuple[int, float] | None:
        """Return how much memory it holds and may hold, in bytes, if that is too much and is watched from here."""

    @abstractmethod
    def device_memory_bytes(self) -> int | None:
        """Return what it holds of a GPU's own memory; None without one, and where that cannot be read."""

    @abstractmethod
    def status(self) -> int:
        """Return how it ended, as `subprocess` does: -N for a signal. Raises Dropped if its connection did."""

    @abstractmethod
    def ending(self) -> None:
        """Take note of it while it still runs; its stdin is closed next."""

    @abstractmethod
    def kill(self) -> None:
        """End the process and whatever it started."""


class Host(ABC):
    """A machine that runs workers."""

    name: str
    """As the user wrote it; "" for this machine."""

    @abstractmethod
    def environment(self) -> dict[str, Any]:
        """Return what `tlc.runtime.environment.environment` tells of it."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Return the machine as it is now."""

    @abstractmethod
    def cpu_s(self) -> float:
        """Return the CPU time that this measurement has taken there until now, seconds."""

    @abstractmethod
    def open_meters(self) -> tuple[list[Meter], list[str]]:
        """Return its counters of energy, and why there are no others."""

    @abstractmethod
    def start(self, case: "Case", limits: "Limits", errors: IO[bytes]) -> Process:
        """Start a worker whose stderr goes to `errors`. Raises TlcError where it cannot be started there."""

    def again(self, error: Dropped) -> None:
        """Return when what `error` broke can be tried again; raise where it cannot."""
        raise error

    def warnings(self) -> "list[BenchWarning]":
        """Return what happened to the connection, which those who read the numbers should know."""
        return []


class _Local(Host):
    name = ""

    def environment(self) -> dict[str, Any]:
        return environment()

    def snapshot(self) -> Snapshot:
        return snapshot()

    def cpu_s(self) -> float:
        return cpu_s()

    def open_meters(self) -> tuple[list[Meter], list[str]]:
        return open_meters()

    def start(self, case: "Case", limits: "Limits", errors: IO[bytes]) -> Process:
        return _LocalProcess(case, limits, errors)


LOCAL: Host = _Local()


class _LocalProcess(Process):
    def __init__(self, case: "Case", limits: "Limits", errors: IO[bytes]) -> None:
        self._limit_bytes = limits.memory_bytes or available_bytes()
        self.request = request_of(case, case.path.absolute(), case.feeds and case.feeds.absolute())
        # Safe path: a file in the working directory must not stand in for a module (Python 3.11 and later).
        self.child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", case.worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )

    def excess(self) -> tuple[int, float] | None:
        held = _resident_bytes(self.child.pid)
        return (held, self._limit_bytes) if held is not None and held > self._limit_bytes else None

    def device_memory_bytes(self) -> int | None:
        return device_memory_bytes(self.child.pid)

    def status(self) -> int:
        return self.child.wait()

    def ending(self) -> None:
        pass

    def kill(self) -> None:
        kill_group(self.child)


def request_of(case: "Case", path: Path, feeds: Path | None, *, memory_bytes: int | None = None) -> Request:
    """Return the first request of a worker that has the model and its inputs at these paths.

    With `memory_bytes` it watches that limit itself.
    """
    watched = {} if memory_bytes is None else {"memory_bytes": memory_bytes}
    return Request(
        path=path,
        target=case.target,
        threads=case.threads,
        streams=case.streams,
        batch=case.batch,
        sizes=dict(case.sizes),
        shapes={name: list(shape) for name, shape in case.shapes.items()},
        feeds=feeds,
        options=dict(case.options),
        **watched,
    )


def kill_group(child: "subprocess.Popen[bytes]") -> None:
    """End a process that leads a session, and whatever it started in it."""
    with suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def available_bytes(root: Path = Path("/")) -> float:
    """Return the memory that one process may take: what the system, or the container, has left but a reserve.

    `root` is where proc/ and sys/ lie.
    """
    known = [_meminfo_bytes(root), _container_bytes(root)]
    return (1 - _RESERVE_RATIO) * min((size for size in known if size is not None), default=float("inf"))


def _resident_bytes(pid: int) -> int | None:
    """Return the resident size of another process; None where it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _meminfo_bytes(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _container_bytes(root: Path) -> int | None:
    """Limit of the control group less what it uses (cgroup v2, https://docs.kernel.org/admin-guide/cgroup-v2.html)."""
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(limit) - int(used) if limit.isdecimal() else None


def require_onnx_or_engine(case: "Case", host: str) -> None:
    """Raise TlcError for a model that only this machine's Python can run."""
    if case.worker != "tlc.runtime.worker":
        raise TlcError(
            f"{case.path} is a PyTorch model, and {host} runs ONNX files and engines",
            hint="Export it first, such as with `tlc compress`, and give the .onnx.",
        )
