"""`tlc deploy`: options, fleets and what is printed, against a real OpenSSH server and a double of tlc-run."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from deployments import calls, compiled_double, write_bundle, write_double
from sshd import Sshd, running

from tlc.cli.main import main
from tlc.runtime.deploy_report import DeployReport
from tlc.runtime.remote import CONFIG_VARIABLE


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A device, and a working folder with a bundle and a program for it."""
    monkeypatch.chdir(tmp_path)
    compiled_double(tmp_path)
    write_bundle(tmp_path / "tiny.tlc")
    with running(tmp_path / "sshd") as one:
        monkeypatch.setenv(CONFIG_VARIABLE, str(one.config))
        write_double(one.home)
        yield one


def tlc(*words: str) -> Result:
    return CliRunner().invoke(main, ["deploy", *words, "--runner", "tlc-run", "--ort-lib", "tlc-run"])


def test_the_table_has_what_was_measured_and_progress_goes_to_stderr(server: Sshd) -> None:
    golden = [{"picture_error": None, "picture_passed": True, "outputs": [{"name": "y", "snr_db": 61.25}]}]
    write_double(server.home, check={"golden": golden, "min_snr_db": 50.0, "passed": True})

    done = tlc("device", "tiny.tlc", "--remote-data", "photos")

    assert done.exit_code == 0, done.output
    header, row, _, results = done.stdout.splitlines()
    assert header.split("  ")[-1].strip() == "hottest"
    assert row.startswith("device  ok")
    assert "61.2" in row
    assert "75.00 %" in row
    assert results == "device: results: tlc-deploy/device"
    assert "bench: bench: working" in done.stderr
    assert "bench: working" not in done.stdout


def test_what_was_measured_is_kept_in_the_history_under_the_bundles_name(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLC_HISTORY", str(tmp_path / "history.sqlite"))

    tlc("device", "tiny.tlc", "--quiet", "--label", "first")
    tlc("device", "tiny.tlc", "--quiet", "--no-history")
    listed = CliRunner().invoke(main, ["history", "list"])

    assert listed.exit_code == 0, listed.output
    assert "first" in listed.stdout
    assert listed.stdout.count("tiny") == 1


def test_json_is_the_report_and_quiet_is_quiet(server: Sshd) -> None:
    done = tlc("device", "tiny.tlc", "--json", "--quiet", "--threads", "2", "--duration", "500ms")

    report = DeployReport.model_validate_json(done.stdout)
    assert [device.status for device in report.devices] == ["ok"]
    assert done.stderr == ""
    assert "--duration 0.5s --threads 2" in (server.home / "calls").read_text()


def test_a_fleet_file_names_devices_with_their_own_settings(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(
        'bundle = "tiny.tlc"\n[[device]]\nhost = "left"\nremote_dir = "left"\n'
        '[[device]]\nhost = "right"\nremote_dir = "right"\nthreads = 3\n'
    )

    done = tlc("--fleet", "fleet.toml", "--json")

    assert done.exit_code == 0, done.output
    assert [device["host"] for device in json.loads(done.stdout)["devices"]] == ["left", "right"]
    assert (server.home / "left/bundles").is_dir()
    assert (server.home / "right/bundles").is_dir()


def test_a_device_that_fails_has_its_problem_below_the_table_and_exit_status_1(server: Sshd) -> None:
    (server.home / "fail-check").write_text('echo "error: out of luck" >&2; exit 1\n')

    done = tlc("device", "tiny.tlc")

    assert done.exit_code == 1
    assert "device  failed" in done.stdout
    assert "device: check failed on device: out of luck." in done.stdout


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("tiny.tlc",), "There is no host to deploy to"),
        (("device",), "There is no bundle for device"),
        (("device", "device", "tiny.tlc"), "device is named twice"),
        (("-x", "tiny.tlc"), "No such option"),
        (("device", "tiny.tlc", "--data", "a", "--remote-data", "b"), "are two places for the same data"),
        (("device", "tiny.tlc", "--data", "nowhere"), "data nowhere is neither a folder nor an .npz"),
        (("device", "tiny.tlc", "--duration", "3"), "'3' has no unit"),
        (("device", "tiny.tlc", "--fleet", "nowhere.toml"), "cannot read fleet file nowhere.toml"),
    ],
)
def test_wrong_options_are_refused_before_a_device_is_asked(server: Sshd, words: tuple[str, ...], problem: str) -> None:
    done = tlc(*words)

    assert done.exit_code == 2
    assert problem in done.stderr
    assert calls(server.home) == []


def test_a_file_that_is_no_bundle_is_refused_before_a_device_is_asked(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "model.tlc").write_text("not a zip")

    done = tlc("device", "model.tlc")

    assert done.exit_code == 1
    assert "is not a whole zip file" in done.stderr
    assert calls(server.home) == []


def test_ctrl_c_ends_what_runs_on_the_device_before_it_says_so(server: Sshd) -> None:
    (server.home / "hold-bench").touch()
    command = [sys.executable, "-m", "tlc.cli", "deploy", "device", "tiny.tlc", "--runner", "tlc-run"]
    with subprocess.Popen(
        [*command, "--ort-lib", "tlc-run"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that were started in the background inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "bench: bench: working" in line:
                break
        os.killpg(child.pid, signal.SIGINT)  # a terminal sends it to everyone
        _, rest = child.communicate(timeout=60)

    (pid,) = server.home.glob(".cache/tlc/bundles/*/steps/bench/pid")
    assert child.returncode == 1
    assert "error: Interrupted; what ran on the devices was ended" in rest
    assert not Path(f"/proc/{pid.read_text().strip()}/exe").exists()
    assert not (server.home / ".cache/tlc/holder").exists()
