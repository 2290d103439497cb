"""One step of a deployment: a job that ends with a JSON object, or says why not."""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tlc.runtime.deploy_report import StepName, StepReport
from tlc.runtime.device_job import Job, follow, job_state, output, script, start
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import Remote

_MOST_LOST = 2
_KILLED = 137  # 128 + SIGKILL: how a shell says it

_NOT_AS_RECORDED = 3
_WORDS = {"done": "done before", "running": "still running, waiting for it"}
_FORGET = 'for folder; do rm -f "$folder/key"; done'


class OutOfMemoryError(TlcError):
    """The device's system ended a step, as it does when memory runs out."""


@dataclass(frozen=True, slots=True)
class Watch:
    """How steps are waited for."""

    say: Callable[[str], None]
    """Gets every line of the step's stderr."""
    note: Callable[[str], None]
    """Gets what belongs into the report."""
    timeout_s: float
    cancelled: threading.Event
    started: set[str] = field(default_factory=set)
    """Steps that this run has started."""
    lost: "Counter[str]" = field(default_factory=Counter)
    """How often each step vanished."""


def run_step(remote: Remote, job: Job, watch: Watch, *, keep: Callable[[str, bytes], None]) -> StepReport:
    """Return what the job found, which runs if it has not; the name of its folder is the step's.

    `keep("json", ...)` and `keep("log", ...)` get what it printed on stdout and stderr, also where it failed. A step
    that vanished, or that the device rebooted under, is run again, twice at most. Raises TlcError where it failed,
    OutOfMemoryError where the system ended it, and Dropped, while it goes on, when the connection goes away.
    """
    name: StepName = PurePosixPath(job.folder).name  # type: ignore[assignment]
    begun = time.monotonic()
    state, code = job_state(remote, job)
    reused = state == "done" and name not in watch.started  # what was started before a drop is this run's own
    watch.say(
        f"{name}: {'done before' if reused else 'still running, waiting for it' if state == 'running' else '...'}"
    )
    while state != "done":
        if state in ("lost", "rebooted"):
            _count_loss(remote, name, state, watch)
        if state != "running":
            start(remote, job)
            watch.started.add(name)
        follow(
            remote,
            job,
            on_line=lambda line: watch.say(f"{name}: {line}"),
            timeout_s=watch.timeout_s,
            cancelled=watch.cancelled,
        )
        state, code = job_state(remote, job)
    stdout, stderr = output(remote, job)
    keep("json", stdout)
    keep("log", stderr.encode())
    if code:
        forget(remote, job.folder)  # the next run is to try it again
        raise _failure(remote, name, code, stdout, stderr)
    return StepReport(name=name, reused=reused, seconds=time.monotonic() - begun, result=_result(remote, job, stdout))


def forget(remote: Remote, *folders: str) -> None:
    """Let the next run of the jobs in these folders begin anew."""
    remote.check(script(_FORGET, *folders))


def _count_loss(remote: Remote, name: str, state: str, watch: Watch) -> None:
    watch.lost[name] += 1
    what = f"{remote.host} rebooted" if state == "rebooted" else f"the process on {remote.host} vanished"
    if watch.lost[name] > _MOST_LOST:
        raise TlcError(
            f"{what} during {name}, {watch.lost[name]} times in all.",
            hint="Look at its power supply, its temperature and its system log (`journalctl -b -1`).",
        )
    watch.note(f"{what} during {name}; {name} runs again")


def _result(remote: Remote, job: Job, stdout: bytes) -> dict[str, Any]:
    try:
        result = json.loads(stdout)
    except ValueError:
        result = None
    if not isinstance(result, dict):
        forget(remote, job.folder)
        raise TlcError(
            f"{PurePosixPath(job.folder).name} on {remote.host} printed no JSON object: {stdout[:100]!r}",
            hint="Send a tlc-run of this tlc (--runner), and run this again.",
        )
    return result


def _failure(remote: Remote, name: str, code: int, stdout: bytes, stderr: str) -> TlcError:
    """Say what tlc-run said: lines `error: ...` and `hint: ...`; a check that did not pass says it in its JSON."""
    if code == _KILLED:
        return OutOfMemoryError(
            f"the system of {remote.host} ended {name} (SIGKILL), as it does when memory runs out.",
            hint="Free memory there (on a Jetson: close the desktop), or add swap.",
        )
    said, hint = last_words(stderr, code)
    if code == _NOT_AS_RECORDED:
        said = _not_as_recorded(stdout) or said
    return TlcError(f"{name} failed on {remote.host}: {said}", hint=hint)


def last_words(stderr: str, code: int) -> tuple[str, str]:
    r"""Return what a program that failed said was wrong, and its hint; its last line where it is not one of ours.

    >>> last_words("error: no model\nhint: Check the path.", 1)
    ('no model', 'Check the path.')
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    said = errors[-1] if errors else lines[-1] if lines else f"status {code}"
    return said, hints[-1] if hints else ""


def _not_as_recorded(stdout: bytes) -> str:
    """Return the worst golden sample of a check that did not pass, "" where its JSON does not have it."""
    try:
        result = json.loads(stdout)
        for place, sample in enumerate(result["golden"]):
            if not sample["picture_passed"]:
                return f"golden picture {place} is prepared otherwise than where the bundle was made"
        snr_db, output, place = min(
            (-math.inf if output["snr_db"] is None else output["snr_db"], output["name"], place)
            for place, sample in enumerate(result["golden"])
            for output in sample["outputs"]
            if not output["passed"]
        )
        return f"output {output} of golden sample {place} is at {snr_db:.1f} dB, the limit is {result['min_snr_db']:g}"
    except (ValueError, TypeError, KeyError):
        return ""
