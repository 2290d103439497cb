"""Commands and files over a real SSH server, and what is said of one that is not there."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd import HOST, Sshd, free_port, running
from waiting import within

from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.remote import Dropped, Remote, RemoteError
from tlc.runtime.remote_problems import connection_problem


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def remote(sshd: Sshd) -> Iterator[Remote]:
    with Remote(HOST, config=sshd.config) as found:
        yield found


def test_a_script_gets_its_input_and_gives_output_and_status(remote: Remote, sshd: Sshd) -> None:
    done = remote.run("cat; printf '%s' \"$HOME\" >&2; exit 7", input=b"a\0b\nc")
    assert (done.code, done.stdout, done.stderr) == (7, b"a\0b\nc", str(sshd.home))
    assert remote.check("printf '%s' \"it's \\$5\"") == "it's $5"
    assert remote.run("cat").stdout == b""


def test_a_command_that_fails_is_told_in_its_own_last_words(remote: Remote) -> None:
    with pytest.raises(TlcError, match=r"^device: no such thing"):
        remote.check("echo first >&2; echo no such thing >&2; exit 3")
    with pytest.raises(TlcError, match=r"^device: a command ended with status 3"):
        remote.check("exit 3")


def test_a_status_of_255_that_is_the_commands_own_is_no_broken_connection(remote: Remote) -> None:
    assert remote.run("exit 255").code == 255


def test_commands_share_one_connection(sshd: Sshd) -> None:
    before = sshd.logins()
    with Remote(HOST, config=sshd.config) as remote:
        remote.check("true")
        threads = [threading.Thread(target=remote.check, args=("sleep 0.2",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sshd.logins() == before + 1
    assert within(5, lambda: sshd.sessions() == 0)


def test_the_connection_ends_with_the_process_that_made_it(sshd: Sshd) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tlc.runtime.remote import Remote; "
        "Remote('device', config=Path(sys.argv[1])).check('true'); os._exit(0)"
    )
    before = sshd.logins()
    subprocess.run([sys.executable, "-c", code, str(sshd.config)], check=True)
    assert sshd.logins() == before + 1
    assert within(5, lambda: sshd.sessions() == 0)


def test_a_command_line_runs_its_arguments_as_they_are(remote: Remote) -> None:
    line = remote.popen(["printf", "[%s]", "a b", "$HOME", "it's", "*"])
    assert subprocess.run(line, capture_output=True, check=True, text=True).stdout == "[a b][$HOME][it's][*]"


def test_a_script_that_takes_too_long_is_given_up(remote: Remote) -> None:
    with pytest.raises(RemoteError, match=r"^device: no answer within 0\.3 s"):
        remote.run("sleep 5", timeout_s=0.3)
    assert remote.check("echo on").strip() == "on"


def test_a_connection_that_breaks_during_a_command_is_made_again_by_the_next(remote: Remote, sshd: Sshd) -> None:
    remote.check("true")
    timer = threading.Timer(0.3, sshd.drop)
    timer.start()
    with pytest.raises(Dropped, match=r"^device: the connection broke") as raised:
        remote.run("sleep 10")
    assert raised.value.host == HOST
    assert remote.check("echo again").strip() == "again"


@pytest.mark.slow
def test_a_connection_without_a_word_is_given_up_after_fifteen_seconds(sshd: Sshd) -> None:
    with Remote(HOST, config=sshd.config) as remote:
        remote.check("true")
        timer = threading.Timer(1, sshd.silence)  # when the command runs there
        timer.start()
        start_s = time.monotonic()
        try:
            with pytest.raises(Dropped, match=r"^device: the connection broke: .*not responding"):
                remote.run("sleep 50")
        finally:
            sshd.drop()
        assert 10 < time.monotonic() - start_s < 30
        assert remote.check("echo again").strip() == "again"


def test_a_host_that_was_there_and_is_gone_is_a_dropped_one(tmp_path: Path) -> None:
    with running(tmp_path / "server") as server:
        remote = Remote(HOST, config=server.config)
        remote.check("true")
    assert remote.lost() is not None  # waits until ssh has noticed
    with remote, pytest.raises(Dropped, match="it refuses the connection"):
        remote.check("true")


def test_a_file_is_sent_once_and_keeps_its_mode(remote: Remote, sshd: Sshd, tmp_path: Path) -> None:
    local, there = tmp_path / "it's a file", sshd.home / "new folder/a'b"
    local.write_bytes(os.urandom(3_000_001))
    local.chmod(0o755)
    seen: list[tuple[int, int]] = []
    assert remote.push(local, str(there), on_bytes=lambda done, total: seen.append((done, total)))
    assert (there.read_bytes(), there.stat().st_mode & 0o777) == (local.read_bytes(), 0o755)
    assert seen[-1] == (3_000_001, 3_000_001)
    assert not there.with_name("a'b.part").exists()
    made = there.stat().st_ino
    local.chmod(0o644)
    assert not remote.push(local, str(there))
    assert (there.stat().st_ino, there.stat().st_mode & 0o777) == (made, 0o644)


def test_a_broken_copy_is_continued_where_it_is_a_beginning(remote: Remote, sshd: Sshd, tmp_path: Path) -> None:
    local, there = tmp_path / "file", sshd.home / "resumed"
    local.write_bytes(os.urandom(2_500_000))
    part = there.with_name("resumed.part")
    part.write_bytes(local.read_bytes()[:1_400_000])
    seen: list[int] = []
    assert remote.push(local, str(there), on_bytes=lambda done, _total: seen.append(done))
    assert seen[0] > 1_400_000
    assert there.read_bytes() == local.read_bytes()
    for other in (os.urandom(1000), local.read_bytes() + b"more"):
        there.unlink()
        part.write_bytes(other)
        seen.clear()
        assert remote.push(local, str(there), on_bytes=lambda done, _total: seen.append(done))
        assert seen[0] == 1 << 20
        assert there.read_bytes() == local.read_bytes()


def test_a_copy_that_breaks_leaves_its_beginning(remote: Remote, sshd: Sshd, tmp_path: Path) -> None:
    local, there = tmp_path / "file", sshd.home / "broken"
    local.write_bytes(os.urandom(30_000_000))

    def drop(done: int, _total: int) -> None:
        if done > 9_000_000 and not dropped:
            dropped.append(sshd.drop())

    dropped: list[int] = []
    with pytest.raises(Dropped):
        remote.push(local, str(there), on_bytes=drop)
    assert not there.exists()
    kept = there.with_name("broken.part").read_bytes()
    assert 0 < len(kept) < 30_000_000
    assert local.read_bytes().startswith(kept)
    seen: list[int] = []
    assert remote.push(local, str(there), on_bytes=lambda done, _total: seen.append(done))
    assert seen[0] > len(kept)
    assert there.read_bytes() == local.read_bytes()


def test_a_place_that_cannot_be_written_is_named(remote: Remote, sshd: Sshd, tmp_path: Path) -> None:
    local = tmp_path / "file"
    local.write_bytes(b"x")
    (sshd.home / "in the way").write_bytes(b"")
    with pytest.raises(TlcError, match=r"^device: .*in the way"):
        remote.push(local, str(sshd.home / "in the way/file"))


def test_a_file_is_fetched_whole(remote: Remote, sshd: Sshd, tmp_path: Path) -> None:
    there = sshd.home / "a b"
    there.write_bytes(bytes(range(256)) * 3000)
    remote.pull(str(there), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == there.read_bytes()
    with pytest.raises(TlcError, match="No such file"):
        remote.pull(str(sshd.home / "absent"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_unknown_host_key_is_not_accepted(sshd: Sshd) -> None:
    config = sshd.configured("nobody", UserKnownHostsFile="/dev/null")
    _refused(config, "its host key is not known here", "compare the fingerprint")
    asking = sshd.configured("asking", UserKnownHostsFile="/dev/null", StrictHostKeyChecking="ask")
    _refused(asking, "its host key is not known here", "compare the fingerprint")


def test_a_changed_host_key_is_refused(sshd: Sshd) -> None:
    kind, key = (sshd.folder / "user.pub").read_text().split()[:2]
    wrong = sshd.folder / "wrong_hosts"
    wrong.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    config = sshd.configured("changed", UserKnownHostsFile=str(wrong))
    _refused(config, "its host key is not the one on record", "ssh-keygen -R device")


def test_a_key_that_is_not_accepted_is_said(sshd: Sshd) -> None:
    config = sshd.configured("other_key", IdentityFile=str(sshd.folder / "host"))
    _refused(config, "it accepts none of the keys", "ssh-copy-id device")


def test_a_port_where_nothing_listens_is_said(sshd: Sshd) -> None:
    port = free_port()
    config = sshd.configured("refused", Port=str(port))
    _refused(config, rf"it refuses the connection \(port {port}\)", "Check that an SSH server runs there")


def test_a_name_that_resolves_to_nothing_is_said(sshd: Sshd) -> None:
    config = sshd.configured("nowhere", HostName="no-such-host.invalid")
    _refused(config, "no host of this name is known", "~/.ssh/config")


def test_a_server_that_does_not_answer_is_given_up(sshd: Sshd) -> None:
    import socket

    with socket.socket() as silent:  # accepts, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = sshd.configured("silent", Port=str(silent.getsockname()[1]))
        with (
            Remote(HOST, config=config, connect_timeout_s=1) as remote,
            pytest.raises(RemoteError, match=r"^device: it does not answer"),
        ):
            remote.check("true")


def test_a_configuration_that_ssh_does_not_read_is_said(sshd: Sshd) -> None:
    _refused(sshd.configured("bad", NoSuchOption="yes"), "ssh does not read its configuration", "Correct that line")


def test_a_client_that_is_not_installed_is_said(sshd: Sshd) -> None:
    with (
        Remote(HOST, ssh=["/nowhere/ssh"], config=sshd.config) as remote,
        pytest.raises(TlcError, match="cannot start /nowhere/ssh"),
    ):
        remote.check("true")


def test_the_configuration_can_be_named_by_the_environment(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_SSH_CONFIG", str(sshd.config))
    with Remote(HOST) as remote:
        assert remote.check("echo here").strip() == "here"


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch /tmp/x", "a b", "a\nb"])
def test_what_ssh_would_take_for_an_option_is_no_host(host: str) -> None:
    with pytest.raises(UsageError, match="is no name of a host"):
        Remote(host)


def test_what_ssh_says_for_the_first_time_is_passed_on() -> None:
    problem, hint, passing = connection_problem("box", "Banner\nssh: something new\n")
    assert (problem, hint, passing) == ("ssh says: ssh: something new", "Try `ssh box true` by hand.", True)
    assert connection_problem("box", "")[0] == "ssh ended without a word"


def _refused(config: Path, problem: str, hint: str) -> None:
    with Remote(HOST, config=config) as remote, pytest.raises(RemoteError, match=f"^device: {problem}") as raised:
        remote.check("true")
    assert not isinstance(raised.value, Dropped)
    assert hint in raised.value.hint
