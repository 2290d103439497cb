"""Several hosts on one machine: OpenSSH servers in network namespaces of their own, joined by a bridge."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_NET = f"10.213.{os.getpid() % 250}"  # of the bridge alone; nothing outside is reached


@dataclass(frozen=True, slots=True)
class Host:
    """A host of its own: an address, a home folder and a server."""

    name: str
    namespace: str
    home: Path
    server: "subprocess.Popen[bytes]"

    def unplug(self) -> None:
        """Take its cable out."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        """Put its cable back."""
        _ip("-n", self.namespace, "link", "set", "eth0", "up")


@contextmanager
def hosts(folder: Path, names: list[str]) -> Iterator[tuple[dict[str, Host], Path]]:
    """Yield the hosts by name, and a configuration for ssh -F that knows them; skips the test where it cannot."""
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if os.geteuid() != 0 or shutil.which("ip") is None or sshd is None:
        pytest.skip("hosts of one's own need root, iproute2 and openssh-server")
    folder.mkdir(parents=True)
    tag = f"tlc{os.getpid() % 100000}"
    try:
        _ip("netns", "add", tag)
        _ip("netns", "del", tag)
        _ip("link", "add", tag, "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(_ip, "link", "del", tag)
        _ip("addr", "add", f"{_NET}.1/24", "dev", tag)
        _ip("link", "set", tag, "up")
        for key in ("host", "user"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / key))
        kind, key = (folder / "host.pub").read_text().split()[:2]
        found, config, known = {}, [], []
        for number, name in enumerate(names, start=2):
            address = f"{_NET}.{number}"
            found[name] = stack.enter_context(_host(folder, sshd, tag, name, number, address))
            config.append(f"Host {name}\n  HostName {address}\n")
            known.append(f"{address} {kind} {key}\n")
        (folder / "known_hosts").write_text("".join(known))
        (folder / "ssh_config").write_text(
            "".join(config) + f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        )
        yield found, folder / "ssh_config"


@contextmanager
def _host(folder: Path, sshd: str, bridge: str, name: str, number: int, address: str) -> Iterator[Host]:
    namespace, cable = f"{bridge}-{name}", f"{bridge}v{number}"
    home = folder / name
    home.mkdir()
    (folder / f"{name}.config").write_text(
        f"ListenAddress {address}:22\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\n"
        f"StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nSetEnv HOME={home}\n"
    )
    _ip("netns", "add", namespace)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", cable, "master", bridge, "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        server = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sshd, "-D", "-e", "-f", str(folder / f"{name}.config")],
            stderr=subprocess.DEVNULL,
        )
        yield Host(name, namespace, home, server)
        server.terminate()
        server.wait()
    finally:
        for pid in _run("ip", "netns", "pids", namespace).split():
            subprocess.run(["kill", "-9", pid], check=False, stderr=subprocess.DEVNULL)
        _ip("netns", "del", namespace)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
