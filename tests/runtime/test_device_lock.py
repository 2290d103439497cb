"""`tlc.runtime.device_lock` against a real OpenSSH server; sudo, jetson_clocks and /sys are doubles."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sshd import HOST, Sshd, running
from waiting import until

from tlc.runtime.device_job import Job, script, start, stop
from tlc.runtime.device_lock import DeviceLock, lock_clocks, restore_settings
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import Remote

GOVERNOR = "devices/system/cpu/cpufreq/policy0/scaling_governor"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with running(tmp_path / "sshd") as one:
        yield one


@pytest.fixture
def remote(server: Sshd) -> Iterator[Remote]:
    with Remote(HOST, config=server.config) as one:
        yield one


@pytest.fixture
def base(server: Sshd) -> str:
    return f"{server.home}/tlc"


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A board whose clocks are governed by `schedutil`."""
    governor = tmp_path / "sys" / GOVERNOR
    governor.parent.mkdir(parents=True)
    governor.write_text("schedutil\n")
    return tmp_path / "sys"


def lock(remote: Remote, base: str, run: str = "one", what: str = "tiny 0123") -> DeviceLock:
    return DeviceLock(remote, base, run=run, what=what, who="ann@laptop")


def running_job(remote: Remote, base: str) -> Job:
    job = Job(f"{base}/bundles/0123/steps/bench", "key", ["sleep", "60"], "/")
    start(remote, job)
    return job


def holder(base: str) -> Path:
    return Path(base) / "holder"


def test_the_second_is_told_who_has_it_and_gets_it_when_the_first_is_done(remote: Remote, base: str) -> None:
    with lock(remote, base) as first:
        with pytest.raises(TlcError, match=r"under way on device: by ann@laptop, tiny 0123, for \d+ s\.") as caught:
            lock(remote, base, run="two")
        assert "Wait for it" in caught.value.hint
        assert first.release() == ""

    with lock(remote, base, run="two") as second:
        assert second.release() == ""
    assert not holder(base).exists()


def test_a_run_that_comes_back_takes_its_own_lock_over(remote: Remote, base: str) -> None:
    first = lock(remote, base, run="one")

    with lock(remote, base, run="one") as second:
        assert second.release() == ""
    first.abandon()


def test_a_lock_ends_with_the_process_that_held_it(remote: Remote, base: str) -> None:
    first = lock(remote, base)
    subprocess.run(["kill", "-9", holder(base).read_text().split()[0]], check=True)

    with lock(remote, base, run="two") as second:
        assert second.release() == ""
    first.abandon()


def test_one_whose_other_side_is_silent_gives_way_unless_its_step_runs(remote: Remote, base: str) -> None:
    first = lock(remote, base)
    job = running_job(remote, base)
    (Path(base) / "beat").write_text("-31\n")  # as 31 s of silence

    with pytest.raises(TlcError, match=r"for \d+ s; running: \d+"):
        lock(remote, base, run="two", what="other 4567")
    with lock(remote, base, run="three", what="tiny 0123") as same_bundle:
        assert same_bundle.release() == ""
    stop(remote, job)
    first.abandon()


def test_the_lock_of_a_side_that_is_gone_is_kept_until_its_step_ends(remote: Remote, base: str) -> None:
    first = lock(remote, base)
    job = running_job(remote, base)
    first.abandon()

    time.sleep(0.3)
    assert holder(base).exists()
    stop(remote, job)
    until(lambda: not holder(base).exists())


def test_clocks_are_locked_and_put_back_at_the_end(remote: Remote, base: str, sysfs: Path) -> None:
    with lock(remote, base) as held:
        lock_clocks(remote, base, sysfs=str(sysfs))
        locked = (sysfs / GOVERNOR).read_text()
        assert held.release() == ""

    assert locked == "performance\n"
    assert (sysfs / GOVERNOR).read_text() == "schedutil\n"
    assert not (Path(base) / "restore.sh").exists()


@pytest.mark.parametrize("way", ["error", "drop"])
def test_clocks_are_put_back_however_it_ends(server: Sshd, remote: Remote, base: str, sysfs: Path, way: str) -> None:
    def fails() -> None:
        with lock(remote, base):
            lock_clocks(remote, base, sysfs=str(sysfs))
            if way == "drop":
                server.drop()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    until(lambda: (sysfs / GOVERNOR).read_text() == "schedutil\n")


def test_what_an_earlier_run_could_not_put_back_is_put_back_by_the_next(remote: Remote, base: str, sysfs: Path) -> None:
    first = lock(remote, base)
    lock_clocks(remote, base, sysfs=str(sysfs))
    subprocess.run(["kill", "-9", holder(base).read_text().split()[0]], check=True)
    first.abandon()

    with lock(remote, base, run="two") as second:
        restore_settings(remote, base)
        assert (sysfs / GOVERNOR).read_text() == "schedutil\n"
        assert second.release() == ""


def test_after_a_reboot_nothing_is_put_back(remote: Remote, base: str, sysfs: Path) -> None:
    with lock(remote, base) as held:
        lock_clocks(remote, base, sysfs=str(sysfs))
        path = Path(base) / "restore.sh"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        path.write_text(path.read_text().replace(boot, "another-start"))
        (sysfs / GOVERNOR).write_text("ondemand\n")  # what the board came up with
        assert held.release() == ""

    assert (sysfs / GOVERNOR).read_text() == "ondemand\n"


def test_what_cannot_be_put_back_is_said(remote: Remote, base: str, sysfs: Path) -> None:
    with lock(remote, base) as held:
        lock_clocks(remote, base, sysfs=str(sysfs))
        (sysfs / GOVERNOR).unlink()
        (sysfs / GOVERNOR).mkdir()
        problem = held.release()

    assert "scaling_governor" in problem


def test_a_board_without_clocks_to_lock_is_refused(remote: Remote, base: str, tmp_path: Path) -> None:
    with lock(remote, base), pytest.raises(TlcError, match="it has neither jetson_clocks nor cpufreq") as caught:
        lock_clocks(remote, base, sysfs=str(tmp_path))
    assert "--lock-clocks" in caught.value.hint


def test_a_jetson_stores_its_clocks_before_they_are_locked_and_restores_them(
    server: Sshd, base: str, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("jetson_clocks", "sudo"):
        # jetson_clocks asks before it replaces a file; sudo runs what it is given.
        (programs / name).write_text(
            '#!/bin/sh\n[ "$1" = -n ] && shift && exec "$@"\n'
            f'echo "$@" >>{tmp_path}/clocks\n'
            'if [ "$1" = --store ]; then [ ! -e "$2" ] || exit 1; : >"$2"; fi\n'
        )
        (programs / name).chmod(0o755)
    with Remote(HOST, config=server.config) as remote:
        (server.home / "tlc").mkdir()
        (server.home / "tlc" / "clocks.conf").write_text("left over")
        with lock(remote, base) as held:
            _with_path(remote, programs, base)
            assert held.release() == ""

    said = (tmp_path / "clocks").read_text().splitlines()
    assert said == [f"--store {base}/clocks.conf", "", f"--restore {base}/clocks.conf"]


def _with_path(remote: Remote, programs: Path, base: str) -> None:
    """Lock the clocks as `lock_clocks` does, where the device has other programs."""
    from tlc.runtime.device_lock import _LOCK_CLOCKS

    remote.check(f"PATH={programs}:$PATH\n" + script(_LOCK_CLOCKS, base, "/sys"))
    path = Path(base) / "restore.sh"
    path.write_text(f"PATH={programs}:$PATH\n" + path.read_text())


def test_a_device_without_flock_is_refused(server: Sshd, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "mkdir", "cat", "date"):
        (programs / name).symlink_to(shutil.which(name) or name)

    class Bare(Remote):
        def popen(self, argv: Sequence[str]) -> list[str]:
            return super().popen(["env", f"PATH={programs}", *argv])

    with (
        Bare(HOST, config=server.config) as remote,
        pytest.raises(TlcError, match="device has no flock") as caught,
    ):
        lock(remote, f"{server.home}/tlc")
    assert "util-linux" in caught.value.hint
