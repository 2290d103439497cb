"""Running a builder as a child, and saying what its end means.

Builders are killed by the kernel when memory runs out, and crash on some graphs. In a process of their own that is a
message and a next step, instead of the end of tlc.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from tlc.runtime.errors import TlcError
from tlc.runtime.gpu import WORKER_VARIABLE

R = TypeVar("R", bound=BaseModel)
Cause = Literal["memory", "no_kernel", "other"]

_WORKER = "tlc.export.engine_worker"
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|insufficient memory|Tactic Device request|cudaErrorMemoryAllocation|bad_alloc", re.I
)
_NO_KERNEL = re.compile(r"could not find any implementation", re.I)
_STAGE = re.compile(r"^stage: (.+)$", re.MULTILINE)


class ChildError(TlcError):
    """A child failed; `cause` says whether other limits may help."""

    def __init__(self, message: str, *, hint: str, cause: Cause) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


class WorkerAnswer(BaseModel):
    """What a worker writes: a result, or what went wrong."""

    model_config = ConfigDict(extra="forbid")

    result: dict[str, object] | None = None
    error: str = ""
    hint: str = ""


def run_worker(action: str, request: BaseModel, answer: type[R], *, limits: str, timeout_s: float) -> R:
    """Run `python -m tlc.export.engine_worker ACTION REQUEST ANSWER` and return its result as `answer`.

    `limits` are words on memory for messages. Raises ChildError when the child fails or does not end in time.
    """
    with tempfile.TemporaryDirectory(prefix="tlc-engine-") as work:
        question, reply = Path(work, "request.json"), Path(work, "answer.json")
        question.write_text(request.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", _WORKER, action, str(question), str(reply)]
        log = run_child(command, what=f"TensorRT's {action}", limits=limits, timeout_s=timeout_s)
        if not reply.is_file():
            raise RuntimeError(f"{' '.join(command)} wrote no answer:\n{log[-2000:]}")
        answered = WorkerAnswer.model_validate_json(reply.read_text(encoding="utf-8"))
    if answered.result is None:
        raise ChildError(
            answered.error, hint=_hint_for(answered.error, limits) or answered.hint, cause=cause_of(answered.error)
        )
    return answer.model_validate(answered.result)


def run_child(command: list[str], *, what: str, limits: str, timeout_s: float, check: bool = True) -> str:
    """Run a command and return what it printed, both streams together.

    Raises ChildError when a signal ended it or time ran out, and with `check` when its exit status is not 0.
    """
    env = {**os.environ, "PYTHONSAFEPATH": "1", WORKER_VARIABLE: "1"}
    try:
        done = subprocess.run(  # noqa: S603
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env=env,
            timeout=timeout_s,
        )
    except FileNotFoundError as error:
        raise ChildError(f"cannot run {command[0]}: {error.strerror}", hint="Check the path.", cause="other") from error
    except subprocess.TimeoutExpired as error:
        raise ChildError(
            f"{what} took more than {timeout_s:g} s and was stopped",
            hint="Give it more with --timeout, or try fewer kernels: --level 2 (TensorRT 8.6 and later).",
            cause="other",
        ) from error
    if done.returncode < 0:
        raise _ended_by_signal(-done.returncode, what, done.stdout, limits)
    if done.returncode and check:
        text = tail(done.stdout)
        raise ChildError(
            f"{what} failed with status {done.returncode}: {text}",
            hint=_hint_for(done.stdout, limits) or "The words above are TensorRT's own: they name the layer.",
            cause=cause_of(done.stdout),
        )
    return done.stdout


def cause_of(text: str) -> Cause:
    """Tell from TensorRT's words whether memory ran out, or no kernel fits a layer."""
    if _NO_KERNEL.search(text):
        return "no_kernel"
    return "memory" if _MEMORY.search(text) else "other"


def tail(log: str, lines: int = 6) -> str:
    """Return the last errors of a log, or its last lines where none is marked as one, on one line."""
    marked = [line for line in log.splitlines() if "[E]" in line or "rror" in line]
    return " | ".join(line.strip() for line in (marked or log.splitlines())[-lines:] if line.strip())


def _ended_by_signal(number: int, what: str, log: str, limits: str) -> ChildError:
    name = signal.Signals(number).name
    stages = _STAGE.findall(log)
    while_ = f" while {stages[-1]}" if stages else ""
    if number == signal.SIGKILL:
        return ChildError(
            f"{what} was ended by {name}{while_}: the system kills what takes the last memory ({limits})",
            hint="Give it less with --workspace, add swap, close the desktop, or build with --level 2.",
            cause="memory",
        )
    return ChildError(
        f"{what} was ended by {name}{while_}: TensorRT itself crashed. {tail(log, 3)}".rstrip(),
        hint="Try tlc check on the file, fewer kernels (--level 2), or the next patch release of TensorRT.",
        cause="other",
    )


def _hint_for(text: str, limits: str) -> str:
    cause = cause_of(text)
    if cause == "memory":
        return f"Memory ran out ({limits}): stop what else uses the GPU, or give the builder less with --workspace."
    if cause == "no_kernel":
        return (
            f"No kernel fits that layer. Mostly the workspace is too small ({limits}): raise --workspace. "
            "Else the driver is older than TensorRT wants, or the graph has constants to fold: run tlc check."
        )
    return ""
