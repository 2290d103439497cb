"""The parent's side of a worker: starts it, asks it, and says what became of it when it does not answer.

A process per model keeps memory and CPU time of one model apart from everything else, and lets a model crash, hang or
outgrow memory without taking others with it.
"""

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tlc.runtime.bench_report import Status
from tlc.runtime.host import LOCAL, PID_WORD, Host
from tlc.runtime.target import Target

_POLL_S = 0.1
_END_S = 5
_OPEN_LEAST_S = 60


@dataclass(frozen=True, slots=True)
class Case:
    """One model in one setting, to be run in a process of its own."""

    name: str
    path: Path
    target: Target | None = None
    """None: ONNX Runtime's CPU provider."""
    threads: int = 1
    streams: int = 1
    """Inferences at once, each in a session of its own."""
    batch: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    """How long open dimensions are, by name."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Whole shapes, by input."""
    feeds: Path | None = None
    """An .npz of real inputs, run in turns: "0/NAME", "1/NAME" and so on. None: see `sample_feeds`."""
    worker: str = "tlc.runtime.worker"
    """Module that is started."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """JSON for that module."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker is given up."""

    timeout_s: float = 300
    """For one answer: a block of runs, or the warm-up."""
    memory_bytes: int | None = None
    """Resident memory; None: 95 % of what is available when it starts."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of a model that could not be measured."""

    status: Status
    problem: str
    """A sentence, and one with the next step."""


class WorkerError(Exception):
    """A worker failed; it has ended."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.problem)
        self.failure = failure


class Worker:
    """A process that runs one model. Ends with a `with`.

    `opened` is its first answer, see `tlc.runtime.worker`. Every call raises WorkerError when the worker reports an
    error, ends, does not answer within the limits, or takes more memory than they allow; it is killed then. On a `host`
    that is not this machine, it raises Dropped when the connection breaks.
    """

    def __init__(self, case: Case, limits: Limits, host: Host = LOCAL) -> None:
        self._limits = limits
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = host.start(case, limits, self._errors)
        except BaseException:
            self._errors.close()
            raise
        self._child = self._process.child
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            # Starting may have to import a framework from a cold disk.
            timeout_s = max(limits.timeout_s, _OPEN_LEAST_S)
            request = self._process.request.model_dump_json(exclude_unset=True)
            self.opened = self._asked(request, "loading and the first inference", timeout_s)
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Return the worker's answer to one request."""
        return self._asked(json.dumps({"do": do, **values}), _DOING.get(do, do), self._limits.timeout_s)

    def device_memory_bytes(self) -> int | None:
        """Return what the process holds of a GPU's own memory; None without one."""
        return self._process.device_memory_bytes()

    def close(self) -> None:
        """End the process, by force where it does not end by itself; a second call does nothing."""
        assert self._child.stdin is not None
        if self._child.poll() is None:
            self._process.ending()
        with suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(timeout=0 if self._child.poll() is not None else _END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()

    def _asked(self, line: str, doing: str, timeout_s: float) -> dict[str, Any]:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the answer says so
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()
        answered = self._awaited(doing, timeout_s)
        if not answered:
            raise WorkerError(self._ended(doing))
        answer: dict[str, Any] = json.loads(answered)
        if "error" in answer:
            problem = f"{doing.capitalize()} failed: {answer['error'].rstrip('.')}. {answer['hint']}".strip()
            raise WorkerError(Failure(answer["status"], problem))
        return answer

    def _awaited(self, doing: str, timeout_s: float) -> bytes:
        """Return the next line of the worker, b"" when it ended."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                return self._answers.get(timeout=_POLL_S)
            except queue.Empty:
                pass
            if (excess := self._process.excess()) is not None:
                held, limit = excess
                self._process.kill()
                raise WorkerError(
                    Failure(
                        "out_of_memory",
                        f"{doing.capitalize()} took {_mb(held)} of memory, the limit is {_mb(limit)}. "
                        "Allow more, free some, or run a smaller batch.",
                    )
                )
            if time.monotonic() > end:
                self._process.kill()
                raise WorkerError(
                    Failure(
                        "hung",
                        f"{doing.capitalize()} did not end within {timeout_s:g} s. "
                        "Allow more time if the model is that slow.",
                    )
                )

    def _ended(self, doing: str) -> Failure:
        """Say how the process ended while it was asked for something."""
        code = self._process.status()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines()]
        said = [line for line in lines if line and not line.startswith(PID_WORD)]
        last = f" Its last words: {said[-1][:300]}" if said else ""
        if code == -signal.SIGKILL:
            return Failure(
                "out_of_memory",
                f"The system ended the process during {doing} (SIGKILL), as it does when memory runs out. "
                "Free some, or run a smaller batch.",
            )
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return Failure("crashed", f"The process ended during {doing} with {how}.{last}")

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put(b"")


_DOING = {"warm": "warming up", "block": "a block of runs", "run_for": "running for energy", "profile": "profiling"}


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
