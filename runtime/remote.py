"""Another machine, over the OpenSSH client that is installed here, with the user's own configuration and keys.

All commands to one host share one connection (a ControlMaster of ssh_config(5)), so each costs a round trip and not a
login. Nothing is ever asked on a terminal: what a login lacks is an error that says what to do.
"""

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TypeVar

from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.remote_problems import connection_problem

CONFIG_VARIABLE = "TLC_SSH_CONFIG"
"""Names a file of ssh_config(5) that is used instead of the user's own."""
_ALIVE_S = 5
_ALIVE_COUNT = 3
_LOGIN_S = 20
_END_S = 1.0
_LONGEST_SOCKET = 60
_CHUNK_BYTES = 1 << 20
_SSH_FAILED = 255  # ssh(1): its own exit status when an error occurred

OnBytes = Callable[[int, int], None]
R = TypeVar("R", bound="Remote")


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended."""

    code: int
    """Exit status of the command itself."""
    stdout: bytes
    stderr: str


class RemoteError(TlcError):
    """A host that cannot be reached, or did not answer; `host` is its name as it was given."""

    def __init__(self, host: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{host}: {message}", hint=hint)
        self.host = host


class Dropped(RemoteError):  # noqa: N818 - says what happened
    """A connection that was there went away: trying again may help."""


class Remote:
    """A host by the name that ssh knows it by. Connects when it is first asked for something; ends with a `with`.

    `ssh` is the client's command line, `config` a file for its -F (default: what TLC_SSH_CONFIG names, else the user's
    own). A connection that broke is made again by the next call. Calls may come from several threads.

    Raises UsageError for a host that ssh would take for an option. Every call that needs the connection raises
    RemoteError for a host that is unknown, refuses, does not answer, has another key than the one on record or
    accepts none of the user's, and Dropped when the connection breaks during the call or cannot be made again.
    """

    def __init__(
        self, host: str, *, ssh: Sequence[str] = ("ssh",), config: Path | None = None, connect_timeout_s: int = 10
    ) -> None:
        if not host or host.startswith("-") or re.search(r"[\s\0]", host):
            raise UsageError(f"{host!r} is no name of a host", hint="Write it as for ssh: host, or user@host.")
        self.host = host
        found = str(config) if config is not None else os.environ.get(CONFIG_VARIABLE)
        self._ssh = [*ssh, *(["-F", found] if found else [])]
        self._connect_timeout_s = connect_timeout_s
        # A socket's path has room for about 100 bytes, and ssh adds some of its own.
        place = None if len(tempfile.gettempdir()) < _LONGEST_SOCKET else "/tmp"  # noqa: S108 - a private folder in it
        self._folder = tempfile.TemporaryDirectory(prefix="tlc-ssh-", dir=place)
        self._lock = threading.Lock()
        self._master: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the connection
        self._was_connected = False

    def run(self, script: str, *, input: bytes | None = None, timeout_s: float = 60) -> Completed:  # noqa: A002
        """Run a script by the host's `sh -c`, `input` on its stdin, and return what it said.

        Raises RemoteError also when it takes longer than `timeout_s`.
        """
        line = self._line(script)
        try:
            done = subprocess.run(  # noqa: S603
                line, input=input or b"", capture_output=True, check=False, timeout=timeout_s, env=_environment()
            )
        except subprocess.TimeoutExpired:
            raise self._slow(timeout_s) from None
        if done.returncode == _SSH_FAILED and (lost := self.lost()) is not None:
            raise lost
        return Completed(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def check(self, script: str, *, input: bytes | None = None, timeout_s: float = 60) -> str:  # noqa: A002
        """Run a script as `run` does and return its stdout as text. Raises TlcError when its status is not 0."""
        done = self.run(script, input=input, timeout_s=timeout_s)
        if done.code:
            raise self._failed(done)
        return done.stdout.decode(errors="replace")

    def popen(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that, started here, runs `argv` there with stdin, stdout and stderr passed through.

        Its status is the command's; 255 is ssh's own, and `lost` says then whether the connection broke.
        """
        return self._line(f"exec {shlex.join(argv)}")

    def lost(self) -> Dropped | None:
        """Return why the connection is gone; None while it stands, or where there was none."""
        master = self._master
        if master is None:
            return None
        with suppress(subprocess.TimeoutExpired):  # a command may end a moment before the connection that broke
            master.wait(_END_S)
        return None if master.poll() is None else self._dropped()

    def push(self, local: Path, remote: str, *, on_bytes: OnBytes | None = None) -> bool:
        """Copy a file to an absolute path there, unless it is there already; return whether anything was sent.

        What a broken copy left (`NAME.part`) is continued where it is a beginning of this file. The file appears whole,
        by rename, after its SHA-256 was computed there; one that may be executed here may be executed there.
        `on_bytes(done, total)` is called while it is sent. Raises TlcError when it cannot be written.
        """
        size, digest = local.stat().st_size, _sha256(local)
        part, folder = shlex.quote(f"{remote}.part"), shlex.quote(str(PurePosixPath(remote).parent))
        mode = "755" if os.access(local, os.X_OK) else "644"
        there = self.check(
            f"mkdir -p {folder} || exit; f={shlex.quote(remote)}; p={part}; "
            'if [ -f "$f" ]; then set -- $(sha256sum <"$f") || exit; '
            f'if [ "$1" = {digest} ]; then chmod {mode} "$f"; echo same; exit; fi; fi; '
            'if [ -f "$p" ]; then wc -c <"$p"; sha256sum <"$p"; fi'
        ).split()
        if there[:1] == ["same"]:
            return False
        begun = int(there[0]) if there else 0
        if begun and (begun > size or _sha256(local, begun) != there[1]):
            begun = 0
        self._send(local, f"cat {'>>' if begun else '>'}{part}", begun, size, on_bytes)
        self.check(
            f"f={shlex.quote(remote)}; p={part}; "
            'set -- $(sha256sum <"$p"); '
            f'if [ "$1" != {digest} ]; then rm -f "$p"; echo "the copy is damaged" >&2; exit 1; fi; '
            f'chmod {mode} "$p" && mv -f "$p" "$f"'
        )
        return True

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from there. It appears whole: its SHA-256 is that of the file. Raises TlcError otherwise."""
        from tlc.runtime.artifact import write_bytes

        done = self.run(f'f={shlex.quote(remote)}; sha256sum <"$f" && cat "$f"', timeout_s=600)
        if done.code:
            raise self._failed(done)
        digest, _, content = done.stdout.partition(b"\n")
        if hashlib.sha256(content).hexdigest() != digest.split()[0].decode():
            raise RemoteError(self.host, f"{remote} changed while it was copied", hint="Copy it again.")
        write_bytes(local, content)

    def close(self) -> None:
        """End the connection; a second call does nothing."""
        with self._lock:
            self._end()
            self._was_connected = False
            self._said.close()
            self._folder.cleanup()

    def __enter__(self: R) -> R:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, script: str) -> list[str]:
        """Return the command line for a script; connects first."""
        self._connect()
        return [*self._ssh, *self._options("ControlMaster=no"), "--", self.host, f"exec sh -c {shlex.quote(script)}"]

    def _options(self, *more: str) -> list[str]:
        """Return what the user's own configuration must not change, and how a dead connection is noticed."""
        fixed = (
            f"ControlPath={Path(self._folder.name) / 'master'}",
            "BatchMode=yes",
            f"ServerAliveInterval={_ALIVE_S}",
            f"ServerAliveCountMax={_ALIVE_COUNT}",
            f"ConnectTimeout={self._connect_timeout_s}",
            *("LogLevel=INFO", "RequestTTY=no", "RemoteCommand=none", "PermitLocalCommand=no"),
            "ClearAllForwardings=yes",
        )
        return ["-T", *(part for option in (*fixed, *more) for part in ("-o", option))]

    def _connect(self) -> None:
        """Make the connection, unless it stands."""
        with self._lock:
            if self._master is not None and self._master.poll() is None:
                return
            self._end()
            self._said.seek(0)
            self._said.truncate()
            socket = Path(self._folder.name) / "master"
            socket.unlink(missing_ok=True)
            # It ends with its stdin, and so with this process however that ends.
            line = [*self._ssh, *self._options("ControlMaster=yes"), "--", self.host, "exec cat >/dev/null"]
            try:
                self._master = subprocess.Popen(  # noqa: S603
                    line,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=self._said,
                    env=_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                raise TlcError(
                    f"cannot start {self._ssh[0]}: {error.strerror}", hint="Install OpenSSH's client."
                ) from error
            end_s = time.monotonic() + self._connect_timeout_s + _LOGIN_S
            while not socket.exists():
                if self._master.poll() is not None:
                    raise self._refused()
                if time.monotonic() > end_s:
                    self._end()
                    raise self._slow(self._connect_timeout_s + _LOGIN_S)
                time.sleep(0.01)
            self._was_connected = True

    def _end(self) -> None:
        """End the master; the lock is held."""
        if self._master is None:
            return
        assert self._master.stdin is not None
        with suppress(OSError):
            self._master.stdin.close()
        if self._master.poll() is None:
            self._master.terminate()
        self._master.wait()
        self._master = None

    def _send(self, local: Path, command: str, begun: int, size: int, on_bytes: OnBytes | None) -> None:
        """Write a file from the byte `begun` on to the stdin of a command there."""
        with tempfile.TemporaryFile() as said, local.open("rb") as file:
            child = subprocess.Popen(self._line(command), stdin=subprocess.PIPE, stderr=said, env=_environment())  # noqa: S603
            assert child.stdin is not None
            file.seek(begun)
            try:
                with suppress(BrokenPipeError), child.stdin:  # the status says why
                    while chunk := file.read(_CHUNK_BYTES):
                        child.stdin.write(chunk)
                        begun += len(chunk)
                        if on_bytes is not None:
                            on_bytes(begun, size)
                code = child.wait()
            except BaseException:
                child.kill()
                child.wait()
                raise
            if code == _SSH_FAILED and (lost := self.lost()) is not None:
                raise lost
            if code:
                said.seek(0)
                raise self._failed(Completed(code, b"", said.read().decode(errors="replace")))

    def _words(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def _refused(self) -> RemoteError:
        """Say why there is no connection; one that was there before is a dropped one, unless it is not let in now."""
        problem, hint, passing = connection_problem(self.host, self._words())
        kind = Dropped if self._was_connected and passing else RemoteError
        return kind(self.host, problem, hint=hint)

    def _dropped(self) -> Dropped:
        said = [line.strip() for line in self._words().splitlines() if line.strip()]
        last = f": {said[-1]}" if said else ""
        return Dropped(self.host, f"the connection broke{last}", hint="Check that it is up, and run this again.")

    def _slow(self, timeout_s: float) -> RemoteError:
        return RemoteError(
            self.host, f"no answer within {timeout_s:g} s", hint="Check that it is up and not overloaded."
        )

    def _failed(self, done: Completed) -> RemoteError:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        what = said[-1] if said else f"a command ended with status {done.code}"
        return RemoteError(self.host, what, hint="Put right on that machine what it names, and run this again.")


def _environment() -> dict[str, str]:
    """Messages are read, so they are asked for in English."""
    return {**os.environ, "LC_ALL": "C"}


def _sha256(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `size` bytes."""
    digest, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
