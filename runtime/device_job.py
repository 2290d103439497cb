"""Commands on a device that outlive the connection: started apart from it, watched over it, and found again by it.

A job is a folder on the device. `key` says what it computes, `boot` in which start of the device it began, `pid` leads
its process group, `stdout` and `stderr` are what it printed, and `rc`, which appears whole, is its exit status.
"""

import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tlc.runtime.errors import TlcError
from tlc.runtime.remote import Dropped, Remote

State = Literal["absent", "running", "done", "lost", "rebooted"]
"""`absent`: it was never started with this key. `lost`: it ended without saying how. `rebooted`: the device did."""

ALIVE = r"""
alive() { # PID TEXT: whether that process lives and has TEXT on its command line; numbers are given out again
  [ -n "$1" ] && tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -- "$2"
}
"""

_POLL_S = 0.2
SSH_FAILED = 255
"""ssh(1): its own exit status when an error occurred."""
AGAIN = "Check that it is up, and run this again."

_STATE = (
    ALIVE
    + r"""
cd "$1" 2>/dev/null && [ "$(cat key 2>/dev/null)" = "$2" ] || { echo absent; exit 0; }
[ "$(cat boot 2>/dev/null)" = "$(cat /proc/sys/kernel/random/boot_id)" ] && same=1 || same=0
if [ $same = 1 ] && alive "$(cat pid 2>/dev/null)" "$1"; then echo running
elif [ -s rc ]; then echo "done $(cat rc)"
elif [ $same = 1 ]; then echo lost
else echo rebooted; fi
"""
)

_STOP = (
    ALIVE
    + r"""
pid=$(cat "$1/pid" 2>/dev/null)
if alive "$pid" "$1"; then kill -s KILL -- "-$pid"; fi
"""
)

# sync: after a power cut, an `rc` must not lie beside output that never reached the disk.
_START = (
    _STOP
    + r"""
set -e
mkdir -p "$1"
rm -f "$1/rc" "$1/pid" "$1/key" "$1/stdout"
: >"$1/stderr"
cat /proc/sys/kernel/random/boot_id >"$1/boot"
printf %s "$2" >"$1/key"
folder=$1
shift 2
setsid sh -c 'folder=$1; cd "$2" || exit; shift 2
"$@" >"$folder/stdout" 2>"$folder/stderr"
echo $? >"$folder/rc.part"; sync "$folder/stdout" "$folder/rc.part" 2>/dev/null || sync
mv "$folder/rc.part" "$folder/rc"' tlc-job "$folder" "$@" </dev/null >/dev/null 2>&1 &
echo $! >"$folder/pid"
"""
)

# The rate of looking falls after two seconds: a measurement may be what is looked at.
_FOLLOW = (
    ALIVE
    + r"""
cd "$1" || exit 1
tail -n +1 -f stderr & tail=$!
pid=$(cat pid) seen=0
while alive "$pid" "$1"; do
  if [ $seen -lt 10 ]; then seen=$((seen + 1)); sleep 0.2 2>/dev/null || sleep 1; else sleep 1; fi
done
sleep 0.2 2>/dev/null || sleep 1
kill $tail
"""
)


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """Whoever waited for a job no longer does; the job has been ended."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command and where its results lie on the device; paths are absolute."""

    folder: str
    key: str
    """Of everything that decides the outcome; a job of another key in this folder is ended and replaced."""
    argv: Sequence[str]
    cwd: str


def job_state(remote: Remote, job: Job) -> tuple[State, int | None]:
    """Return what has become of the job, and its exit status if it is done."""
    word, _, status = remote.check(script(_STATE, job.folder, job.key)).strip().partition(" ")
    state: State = word  # type: ignore[assignment]
    return state, int(status) if status else None


def start(remote: Remote, job: Job) -> None:
    """Start the job anew, in a session of its own."""
    remote.check(script(_START, job.folder, job.key, job.cwd, *job.argv))


def stop(remote: Remote, job: Job) -> None:
    """End the job and all that it started; nothing if it has ended."""
    remote.check(script(_STOP, job.folder))


def follow(
    remote: Remote, job: Job, *, on_line: Callable[[str], None], timeout_s: float, cancelled: threading.Event
) -> None:
    """Wait until the job ends; `on_line` gets its lines on stderr as they come, those before this call first.

    Raises Dropped when the connection goes away (the job goes on), and ends the job where it raises TlcError, after
    `timeout_s`, or Cancelled.
    """
    command = remote.popen(["sh", "-c", _FOLLOW, "tlc-follow", job.folder])
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not end it before the job has been ended
    ) as child:
        threading.Thread(target=_read, args=(child, lines), daemon=True).start()
        end = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    line = lines.get(timeout=_POLL_S)
                except queue.Empty:
                    line = b""
                if line is None:
                    break
                if line:
                    on_line(line.decode(errors="replace").rstrip())
                if cancelled.is_set():
                    stop(remote, job)
                    raise Cancelled
                if time.monotonic() > end:
                    stop(remote, job)
                    raise TlcError(
                        f"{job.argv[1] if len(job.argv) > 1 else job.argv[0]} did not end within {timeout_s:g} s.",
                        hint="Allow more with --timeout if the device is that slow.",
                    )
        finally:
            child.kill()
    if child.returncode == SSH_FAILED:
        raise remote.lost() or Dropped(remote.host, "the connection broke", hint=AGAIN)


def output(remote: Remote, job: Job) -> tuple[bytes, str]:
    """Return what the job printed on stdout, and the end of what it printed on stderr."""
    done = remote.run(script('cat "$1/stdout"; tail -c 4000 "$1/stderr" >&2', job.folder))
    return done.stdout, done.stderr


def script(text: str, *arguments: str) -> str:
    """Return a shell script with its arguments set: $1 and so on."""
    return f"set -- {shlex.join(arguments)}\n{text}"


def _read(child: "subprocess.Popen[bytes]", lines: "queue.SimpleQueue[bytes | None]") -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put(None)
