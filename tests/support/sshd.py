"""OpenSSH's real server on the loopback interface, with keys, a home folder and a configuration of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = "device"
_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running server, and a client's configuration (`config`, for ssh -F) that knows it as "device"."""

    process: subprocess.Popen[bytes]
    folder: Path
    home: Path
    """$HOME of what is run there."""
    config: Path
    port: int

    def drop(self) -> int:
        """Break every connection, as a server that ends, and return how many processes served one."""
        return self._signal(signal.SIGKILL)

    def silence(self) -> int:
        """Let every connection stand without a word, as a cable that is pulled; `drop` ends that, too."""
        return self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> int:
        sessions = [pid for pid in _descendants(self.process.pid) if _name(pid).startswith("sshd")]
        for pid in sessions:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(sessions)

    def sessions(self) -> int:
        """Return how many processes serve connections now."""
        return sum(_name(pid).startswith("sshd") for pid in _descendants(self.process.pid))

    def logins(self) -> int:
        """Return how many logins there have been; the server writes of each before the client hears of it."""
        return (self.folder / "log").read_text().count("Accepted publickey")

    def configured(self, name: str, **options: str) -> Path:
        """Return the client's configuration with some options changed, in a file of that name."""
        path = self.folder / name
        lines = [line for line in self.config.read_text().splitlines() if line.split()[0] not in options]
        path.write_text("\n".join([*lines, *(f"  {key} {value}" for key, value in options.items())]) + "\n")
        return path


@contextmanager
def running(folder: Path) -> Iterator[Sshd]:
    """Start a server whose files lie in `folder`; skips the test, and says why, where there is no sshd."""
    folder = folder.absolute()
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    program, keygen = shutil.which("sshd", path=places), shutil.which("ssh-keygen")
    if program is None or keygen is None or shutil.which("ssh") is None:
        pytest.skip("no OpenSSH server and client: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the server separates privileges; made at boot
    home = folder / "home"
    home.mkdir(parents=True)
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)], check=True)
    port = free_port()
    kind, key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile none\nStrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nMaxStartups 50\nSetEnv HOME={home}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        f"  StrictHostKeyChecking yes\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    server = Sshd(process, folder, home, folder / "ssh_config", port)
    try:
        _wait_for(server)
        yield server
    finally:
        server.drop()
        process.terminate()
        process.wait()


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _wait_for(server: Sshd) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and server.process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail(f"sshd did not start: {(server.folder / 'log').read_text()}")


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
