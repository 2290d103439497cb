"""Peak memory of a model in a process of its own.

`python -m tlc.runtime.memory MODEL --threads N --runs R` loads and runs MODEL once in this process and prints one JSON
object to stdout; `--target JSON` runs it in that target's runtime. `peak_memory_bytes` starts it and reads the answer.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tlc.runtime.errors import TlcError
from tlc.runtime.session import zero_feeds
from tlc.runtime.sessions import import_runtime, open_session
from tlc.runtime.target import Target

_MODULE = "tlc.runtime.memory"  # not __name__, which is __main__ in the child
_STATUS = Path("/proc/self/status")


def peak_memory_bytes(
    model: Path,
    target: Target | None = None,
    *,
    threads: int = 1,
    runs: int = 5,
    sizes: Mapping[str, int] | None = None,
) -> int:
    """Return the peak resident memory that loading `model` and running it `runs` times adds to an empty process.

    The process is fresh, has imported the runtime (the target's, or ONNX Runtime), and runs a batch of one, zeros of
    each input's dtype; `sizes` says how long its other open dimensions are, 1 if it does not. The peak includes what
    loading needs for a moment, and the pages of the runtime's library that only a session touches; it does not include
    memory of a GPU of its own.
    Raises TlcError with the child's message when the model cannot be loaded or run, and when the system killed it.
    """
    command = [sys.executable, "-m", _MODULE, str(model.absolute()), "--threads", str(threads), "--runs", str(runs)]
    if sizes:
        command += ["--sizes", json.dumps(dict(sizes))]
    if target is not None:
        command += ["--target", target.model_dump_json()]
    # Safe path: a file in the working directory must not stand in for a module (Python 3.11 and later).
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=env)  # noqa: S603
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise TlcError(
            f"the process that measures the memory of {model} was ended by {name}",
            hint="SIGKILL mostly means that memory ran out: free some, or measure on a machine with more.",
        )
    try:
        answer: dict[str, int | str] = json.loads(child.stdout)
    except json.JSONDecodeError:
        raise RuntimeError(f"{' '.join(command)} failed with status {child.returncode}:\n{child.stderr}") from None
    if "error" in answer:
        raise TlcError(str(answer["error"]), hint=str(answer["hint"]))
    return int(answer["peak_bytes"]) - int(answer["empty_bytes"])


def own_peak_bytes() -> int:
    """Return the largest resident size that this process has had.

    On Linux that is VmHWM, true to some 100 kB, since the kernel counts pages per core in batches. getrusage's
    ru_maxrss would be wrong there: it survives exec, so the child of a process that once held 600 MB begins at 600 MB.
    """
    if _STATUS.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        if found is None:
            raise TlcError(f"{_STATUS} has no VmHWM", hint="Measure memory on a kernel that reports it.")
        return int(found[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raise TlcError(f"peak memory cannot be read on {sys.platform}", hint="Measure memory on Linux or macOS.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one model in this process and print `{"empty_bytes", "peak_bytes"}`, or `{"error", "hint"}`."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", type=json.loads, default={})
    parser.add_argument("--target", type=Target.model_validate_json)
    options = parser.parse_args(arguments)
    answer: dict[str, int | str]
    try:
        import_runtime(options.model, options.target)
        answer = {"empty_bytes": own_peak_bytes()}
        with open_session(options.model, options.target, threads=options.threads) as session:
            feeds = zero_feeds(session.inputs, options.sizes)
            for _ in range(options.runs):
                session.run(feeds)
        answer["peak_bytes"] = own_peak_bytes()
    except TlcError as error:
        answer = {"error": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
