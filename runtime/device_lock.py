"""One deployment at a time on a device, and its settings put back whatever happens to the connection.

A process on the device holds the lock, by flock(1), and reads from this side. When this side is gone it lets a job
that runs come to its end, puts changed settings back, and ends; a lock never outlives the process that holds it.
"""

import queue
import subprocess
import threading
from contextlib import suppress
from types import TracebackType

from tlc.runtime.device_job import AGAIN, ALIVE, SSH_FAILED, script
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import Dropped, Remote

BEAT_S = 5.0
_QUIET_S = 30
"""Without a sign of life for so long, the other side is taken to be gone: its network may have died unnoticed."""
_FIRST_WORD_S = 30.0
_END_S = 60.0

_SETTINGS = r"""
restore() { # run what puts settings back, if they were changed since this start of the device
  [ -e restore.sh ] || return 0
  if sh restore.sh >restore.log 2>&1 9>&-; then rm -f restore.sh; else tail -n 1 restore.log; return 1; fi
}
"""

_HOLD = (
    ALIVE
    + _SETTINGS
    + r"""
base=$1 run=$2 what=$3 who=$4 most=$5
trap '' PIPE # nobody may be there to be told, at the end
uptime() { read -r up _ </proc/uptime; up=${up%%.*}; }
jobs() { # process groups of the steps that run
  for file in "$base"/bundles/*/steps/*/pid; do
    pid=$(cat "$file" 2>/dev/null) && alive "$pid" "${file%/pid}" && printf '%s ' "$pid"
  done 9>&-
}
mkdir -p "$base" && cd "$base" || exit 1
command -v flock >/dev/null || { echo "noflock"; exit 0; }
exec 9>>lock
if ! flock -n 9; then
  { read -r its_pid; read -r its_run; read -r its_what; read -r its_who; read -r its_start; } <holder
  read -r beat <beat; uptime; quiet=$((up - beat)); running=$(jobs)
  if [ "$its_run" = "$run" ] || { [ $quiet -gt "$most" ] && { [ "$its_what" = "$what" ] || [ -z "$running" ]; }; }; then
    kill "$its_pid"
    flock -w 10 9 || { echo "stuck $its_pid"; exit 0; }
  else
    echo "held by $its_who, $its_what, for $((up - its_start)) s${running:+; running: $running}"
    exit 0
  fi
fi
uptime
printf '%s\n' $$ "$run" "$what" "$who" "$up" >holder
echo "$up" >beat
echo mine
while read -r word; do
  [ "$word" = end ] && break
  uptime; echo "$up" >beat
done
if [ "$word" != end ]; then
  echo "-$most" >beat
  while [ -n "$(jobs)" ]; do sleep 1 9>&-; done
fi
said=$(restore) && said=restored
rm -f holder beat
echo "$said"
"""
)

# jetson_clocks asks before it replaces a stored file, and nobody answers here. Neither its clocks nor governors outlive
# a reboot. https://docs.nvidia.com/jetson/archives/r36.4/DeveloperGuide/SD/PlatformPowerAndPerformance.html
_LOCK_CLOCKS = r"""
base=$1 sys=$2
cd "$base" || exit 1
root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
boot=$(cat /proc/sys/kernel/random/boot_id)
[ -e restore.sh ] && grep -qF "$boot" restore.sh && exit 0
{
  echo '[ "$(cat /proc/sys/kernel/random/boot_id)" = '"$boot"' ] || exit 0'
  echo 'root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }'
} >restore.part
if command -v jetson_clocks >/dev/null; then
  rm -f clocks.conf
  root jetson_clocks --store "$base/clocks.conf" || exit 1
  echo "root jetson_clocks --restore '$base/clocks.conf'" >>restore.part
  mv restore.part restore.sh
  root jetson_clocks
else
  set -- "$sys"/devices/system/cpu/cpufreq/policy*/scaling_governor
  [ -e "$1" ] || { echo "it has neither jetson_clocks nor cpufreq" >&2; exit 1; }
  for file; do
    echo "echo $(cat "$file") | root tee '$file' >/dev/null || failed=1" >>restore.part
  done
  echo '[ -z "$failed" ]' >>restore.part
  mv restore.part restore.sh
  for file; do echo performance | root tee "$file" >/dev/null || exit 1; done
fi
"""

_RESTORE = _SETTINGS + 'cd "$1" && restore'


class DeviceLock:
    """The right to deploy to a device, for as long as the `with` lasts.

    `base` is the folder of tlc there, `run` tells this run of a command from all others (a run that comes back after
    its connection dropped takes its own lock over), `what` is the bundle, and `who` whom another user is told of.

    Raises TlcError where another deployment has the lock; one whose other side has been silent for 30 s gives way,
    unless a step of it runs for another bundle.
    """

    def __init__(self, remote: Remote, base: str, *, run: str, what: str, who: str) -> None:
        self._remote = remote
        self._child = subprocess.Popen(  # noqa: S603
            remote.popen(["sh", "-c", _HOLD, "tlc-lock", base, run, what, who, str(_QUIET_S)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for whoever gives the lock back
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._ended = threading.Event()
        try:
            self._require_mine(self._lines.get(timeout=_FIRST_WORD_S), base)
        except queue.Empty:
            self._child.kill()
            raise TlcError(
                f"{remote.host} did not give its lock within {_FIRST_WORD_S:g} s.", hint="Look what keeps it busy."
            ) from None
        except BaseException:
            self._child.kill()
            raise
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    @property
    def held(self) -> bool:
        """Whether the connection that it is held by stands, as far as is known here."""
        return self._child.poll() is None

    def release(self) -> str:
        """Give the lock back; return what could not be put back of the device's settings, "" if all was.

        Raises Dropped when the connection went away before: the device puts them back by itself.
        """
        self._stop_beating()
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.write(b"end\n")
            self._child.stdin.close()
        try:
            self._child.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return f"its settings were not put back within {_END_S:g} s"
        if self._child.returncode == SSH_FAILED:
            raise Dropped(self._remote.host, "the connection broke", hint=AGAIN)
        said = []
        while line := self._lines.get():
            said.append(line)
        return "" if "restored" in said else (said or ["nothing is known of its settings"])[-1]

    def abandon(self) -> None:
        """Let go without a word, as a dropped connection does; a second call, or one after `release`, does nothing."""
        self._stop_beating()
        self._child.kill()
        self._child.wait()

    def __enter__(self) -> "DeviceLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Dropped):
            with suppress(TlcError):
                self.release()
        self.abandon()

    def _require_mine(self, word: str, base: str) -> None:
        kind, _, rest = word.partition(" ")
        if kind == "mine":
            return
        if kind == "held":
            raise TlcError(
                f"another deployment is under way on {self._remote.host}: {rest}.",
                hint="Wait for it, or end it where it was started; numbers of two at once would be worth nothing.",
            )
        if kind == "noflock":
            raise TlcError(
                f"{self._remote.host} has no flock, which util-linux and BusyBox have.", hint="Install util-linux."
            )
        if kind == "stuck":
            raise TlcError(
                f"process {rest} on {self._remote.host} keeps the lock {base}/lock and does not end.",
                hint=f"End it: ssh {self._remote.host} kill -9 {rest}",
            )
        self._child.wait()
        raise self._remote.lost() or Dropped(self._remote.host, "the connection broke", hint=AGAIN)

    def _stop_beating(self) -> None:
        self._ended.set()
        self._beats.join()

    def _beat(self) -> None:
        assert self._child.stdin is not None
        while not self._ended.wait(BEAT_S):
            try:
                self._child.stdin.write(b"\n")
                self._child.stdin.flush()
            except (OSError, ValueError):
                return

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line.decode(errors="replace").strip())
        self._lines.put("")


def lock_clocks(remote: Remote, base: str, *, sysfs: str = "/sys") -> None:
    """Fix the device's clocks at their highest, having written down how they are put back; needs the lock.

    By jetson_clocks on a Jetson, by the governor `performance` elsewhere; `sysfs` is where the device has its /sys.
    Raises TlcError where root is needed and cannot be had without a password.
    """
    done = remote.run(script(_LOCK_CLOCKS, base, sysfs))
    if done.code:
        why = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        raise TlcError(
            f"the clocks of {remote.host} cannot be locked: {why}",
            hint="Allow `sudo -n jetson_clocks` (elsewhere `sudo -n tee`) to this user, or leave --lock-clocks out.",
        )


def restore_settings(remote: Remote, base: str) -> None:
    """Put back what an earlier deployment changed and could not put back; needs the lock. Raises TlcError."""
    remote.check(script(_RESTORE, base))
