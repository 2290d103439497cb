"""A device as a host of workers: `ssh DEVICE tlc-run worker` stands where a process of this machine would.

Models and inputs are sent once, under the hash of their content. What state the device is in is read from copies of
its /proc and /sys files, by the functions that read this machine's.
"""

import getpass
import json
import os
import re
import shlex
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from tlc.runtime import sysfs
from tlc.runtime.bench_report import BenchWarning
from tlc.runtime.device_job import AGAIN, SSH_FAILED
from tlc.runtime.device_lock import DeviceLock
from tlc.runtime.device_models import place_model
from tlc.runtime.environment import environment
from tlc.runtime.errors import TlcError
from tlc.runtime.health import Snapshot, snapshot
from tlc.runtime.host import PID_WORD, Host, Process, available_bytes, kill_group, request_of, require_onnx_or_engine
from tlc.runtime.power import Meter
from tlc.runtime.remote import Dropped, Remote, RemoteError
from tlc.runtime.remote_power import open_remote_meters
from tlc.runtime.remote_tree import FIXED, MEMORY, METERS, MOVING, fetch_tree

if TYPE_CHECKING:
    from tlc.runtime.process import Case, Limits

_MOST_DROPS = 5
_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_SIGNALLED = 128  # a shell's status for a command that a signal ended is this and the signal's number
# The shell stays, since ssh does not pass on by which signal a command ended. A command in the background has no stdin
# of its own unless it is given one.
_START = f'exec 3<&0; "$@" <&3 3<&- & exec 3<&-; echo "{PID_WORD} $!" >&2; wait $!'
_STAT = 'cat "/proc/$1/stat" 2>/dev/null'
# Numbers of processes are given out again: only one that is a worker is ended.
_KILL = """
for pid; do
  if tr '\\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q worker; then kill -KILL "$pid"; fi
done 2>/dev/null
"""


class DeviceHost(Host):
    """A device that is measured for as long as the `with` lasts; nothing else of tlc runs on it meanwhile.

    `runner` is tlc-run there and `base` tlc's folder, both absolute; `options` are given to tlc-run. A connection that
    breaks is made again, five times at most, after waits of `waits_s`.

    Raises TlcError where another measurement or deployment is under way on it, and RemoteError where it is not reached.
    """

    def __init__(
        self,
        remote: Remote,
        runner: str,
        base: str,
        *,
        options: Sequence[str] = (),
        waits_s: Sequence[float] = _WAITS_S,
    ) -> None:
        self.name = remote.host
        self._remote, self._runner, self._options = remote, runner, list(options)
        self._base, self._waits_s = base, waits_s
        self._run = uuid.uuid4().hex
        self._placed: dict[tuple[str, int, int], str] = {}
        self._cpu_s = 0.0
        self._pids: list[int] = []
        self._drops: list[str] = []
        self._boot_id: str | None = None
        self._cores: set[int] = set()
        self._closed = False
        self._lock = self._locked()

    def environment(self) -> dict[str, Any]:
        """Return what the device tells, with the versions of the libraries that tlc-run finds there."""
        system, release, machine = self._remote.check("uname -s; uname -r; uname -m").split("\n")[:3]
        info = self._info()
        with _folder() as place:
            root = fetch_tree(self._remote, (*FIXED, *MOVING), Path(place))
            here = environment(root=root, libraries=())
            self._boot_id = sysfs.text(root / "proc/sys/kernel/random/boot_id")
            self._cores = _usable_cores(root)
            load = (sysfs.text(root / "proc/loadavg") or "").split()[:3]
            online = re.findall(r"^cpu\d+ ", sysfs.text(root / "proc/stat") or "", re.MULTILINE)
        return {
            **here,
            "device": self.name,
            "logical_cores": len(online) or None,
            "usable_cores": len(self._cores) or None,
            "load_average": [float(value) for value in load] or None,
            "os": system,
            "os_release": release,
            "machine": machine,
            "python": None,
            "versions": _versions(info),
        }

    def snapshot(self) -> Snapshot:
        """Return the device as it is now; NVIDIA's own counters of slowdowns are not among it."""
        with _folder() as place:
            try:
                self._require_lock()
                root = fetch_tree(self._remote, MOVING, Path(place))
            except Dropped as error:
                self.again(error)
                root = fetch_tree(self._remote, MOVING, Path(place))
            found = snapshot(root, cores=self._cores or _usable_cores(root))
            return replace(found, throttle_counts=sysfs.throttle_counts(root), gpu_slowdowns=())

    def cpu_s(self) -> float:
        """Return the CPU time of all workers that have ended."""
        return self._cpu_s

    def open_meters(self) -> tuple[list[Meter], list[str]]:
        """Return its counters of energy, and why there are no others."""
        with _folder() as place:
            return open_remote_meters(self._remote, fetch_tree(self._remote, METERS, Path(place)))

    def start(self, case: "Case", limits: "Limits", errors: IO[bytes]) -> Process:
        """Send what the model needs and start its worker, which watches its memory by itself."""
        require_onnx_or_engine(case, self.name)
        self._require_lock()
        return _RemoteProcess(self, case, limits, errors)

    def again(self, error: Dropped) -> None:
        """Wait until the device can be reached again, and end what still runs there.

        Raises `error` where it does not come back or drops out too often, and TlcError where it was started anew.
        """
        self._drops.append(error.message)
        self._lock.abandon()
        for wait_s in self._waits_s if len(self._drops) <= _MOST_DROPS else ():
            time.sleep(wait_s)
            with suppress(RemoteError):
                script = f"set -- {shlex.join(map(str, self._pids))}\n{_KILL}cat /proc/sys/kernel/random/boot_id"
                boot_id = self._remote.check(script).strip()
                self._lock = self._locked()
                break
        else:
            raise error
        self._pids.clear()
        if self._boot_id is not None and boot_id != self._boot_id:
            raise TlcError(
                f"{self.name} was started anew while it was measured",
                hint="Find out why (power, heat, memory), and measure again.",
            )

    def warnings(self) -> list[BenchWarning]:
        """Return that the connection broke, if it did."""
        if not self._drops:
            return []
        times = "once" if len(self._drops) == 1 else f"{len(self._drops)} times"
        message = (
            f"The connection broke {times} ({self._drops[0]}); the launches that it cut short were measured again. "
            "Their numbers count, but look after the network."
        )
        return [BenchWarning(code="reconnected", model=None, message=message)]

    def placed(self, path: Path) -> str:
        """Return where a file lies on the device; sends it, and what belongs to it, unless it is there."""
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
        if key not in self._placed:
            self._placed[key] = place_model(self._remote, self._base, path)
        return self._placed[key]

    def close(self) -> None:
        """Give the device back; the connection stays. A second call does nothing."""
        if not self._closed:
            self._closed = True
            with suppress(Dropped):
                self._lock.release()
            self._lock.abandon()

    def __enter__(self) -> "DeviceHost":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _locked(self) -> DeviceLock:
        who = f"{getpass.getuser()}@{socket.gethostname()}"
        return DeviceLock(self._remote, self._base, run=self._run, what="measuring", who=who)

    def _require_lock(self) -> None:
        """Raise Dropped where the device was given away because the connection broke unnoticed."""
        if not self._lock.held:
            raise Dropped(self.name, "the connection broke", hint=AGAIN)

    def _info(self) -> Mapping[str, Any]:
        """Return what tlc-run says of itself. Raises TlcError where it does not run there."""
        done = self._remote.run(shlex.join([self._runner, "info", "--json", *self._options]))
        try:
            info = json.loads(done.stdout)
        except ValueError:
            info = None
        if done.code or not isinstance(info, dict):
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
            raise TlcError(
                f"{self.name}: tlc-run does not run there: {said[-1].strip()}",
                hint="Build it for that device: docs/cross.md.",
            )
        return info


class _RemoteProcess(Process):
    """A worker on a device; `child` is the ssh client that carries its stdin and stdout."""

    def __init__(self, host: DeviceHost, case: "Case", limits: "Limits", errors: IO[bytes]) -> None:
        self._host, self._errors = host, errors
        remote = host._remote
        limit_bytes = limits.memory_bytes
        if limit_bytes is None:
            with _folder() as place:
                available = available_bytes(fetch_tree(remote, MEMORY, Path(place)))
            limit_bytes = None if available == float("inf") else int(available)
        path = Path(host.placed(case.path))
        feeds = None if case.feeds is None else Path(host.placed(case.feeds))
        self.request = request_of(case, path, feeds, memory_bytes=limit_bytes)
        self.child = subprocess.Popen(  # noqa: S603
            remote.popen(["sh", "-c", _START, "sh", host._runner, "worker", *host._options]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )

    def excess(self) -> None:
        """It watches itself."""
        return

    def device_memory_bytes(self) -> int | None:
        """Return what nvidia-smi says of the process."""
        pid = self._pid()
        query = "nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits 2>/dev/null; true"
        rows = [row.split(",") for row in self._host._remote.check(query).splitlines()]
        used = [row[1].strip() for row in rows if len(row) == 2 and row[0].strip() == str(pid)]
        return sum(int(mib) << 20 for mib in used) if used and all(mib.isdecimal() for mib in used) else None

    def status(self) -> int:
        """Return how it ended; its shell's status tells a signal."""
        code = self.child.wait()
        if code == SSH_FAILED and (lost := self._host._remote.lost()) is not None:
            self._left_behind()
            raise lost
        return _SIGNALLED - code if _SIGNALLED < code < SSH_FAILED else code

    def ending(self) -> None:
        """Count its CPU time."""
        self._note(_STAT)

    def kill(self) -> None:
        """End it there, and the client here."""
        if self.child.poll() is None:
            self._note(f"{_STAT}; {_KILL}")
        self._left_behind()
        kill_group(self.child)

    def _left_behind(self) -> None:
        """Remember it, in case that it outlives a connection that breaks."""
        pid = self._pid()
        if pid is not None:
            self._host._pids.append(pid)

    def _note(self, script: str) -> None:
        pid = self._pid()
        if pid is None:
            return
        with suppress(RemoteError):  # with the connection it ends by itself
            said = self._host._remote.run(f"set -- {pid}\n{script}", timeout_s=15).stdout.decode(errors="replace")
            times = said.rpartition(")")[2].split()[11:13]  # utime and stime of proc(5), in ticks
            self._host._cpu_s += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    def _pid(self) -> int | None:
        """Return its process id there, which is the first that it says; the file's position is the child's."""
        said = os.pread(self._errors.fileno(), 4096, 0).decode(errors="replace")
        found = re.search(rf"^{PID_WORD} (\d+)$", said, re.MULTILINE)
        return None if found is None else int(found[1])


def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="tlc-")


def _usable_cores(root: Path) -> set[int]:
    """Read `0-3,6` of /proc/self/status."""
    listed = sysfs.colon_table(root / "proc/self/status").get("Cpus_allowed_list", "")
    found: set[int] = set()
    for part in listed.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _versions(info: Mapping[str, Any]) -> dict[str, str]:
    """Return versions by library: tlc-run says "onnxruntime 1.23.0", and null for what it does not find."""
    backends = info.get("backends") or {}
    found = {name: (entry or {}).get("version") for name, entry in backends.items()}
    versions = {name: str(version).rpartition(" ")[2] for name, version in found.items() if version}
    return {"tlc": str(info.get("tlc_version")), **versions}
