"""A worker whose model does what its options say: `python -m odd_worker`, with this folder on PYTHONPATH.

`ms` is how long a run takes; after `good` runs it behaves as `then` says: crash, hang, leak, grow, raise, print.
"""

import ctypes
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.runtime.errors import TlcError
from tlc.runtime.session import Session
from tlc.runtime.tensor import TensorSpec
from tlc.runtime.worker import Request, serve


class OddSession(Session):
    """Waits, keeps a log of its runs, and goes wrong on time."""

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        if options.get("then") == "refuse":
            raise TlcError("the model wants more", hint="Give it more.")
        self._inputs = (TensorSpec("x", ("N", 3), "float32"),)
        self._outputs = (TensorSpec("y", ("N",), "float32"),)
        self._log, self._options = path, options
        self._runs = 0
        self._held: list[NDArray[Any]] = []

    @property
    def runtime(self) -> str:
        return "odd 1.0"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._runs += 1
        end = time.perf_counter() + self._options.get("ms", 0.5) / 1000
        if self._runs > self._options.get("good", 0):
            self._go_wrong(self._options.get("then", "nothing"))
        while time.perf_counter() < end:
            pass
        if self._options.get("log"):
            with Path(self._options["log"]).open("a") as log:
                log.write(json.dumps([self._options["name"], float(feeds["x"].flat[0])]) + "\n")
        return {"y": feeds["x"].sum(axis=1)}

    def _go_wrong(self, then: str) -> None:
        if then == "crash":
            ctypes.string_at(0)
        elif then == "hang":
            time.sleep(3600)
        elif then == "exit":
            print("the last words", file=sys.stderr, flush=True)
            sys.exit(7)
        elif then == "leak":
            self._held.append(np.ones(64 << 10, np.uint8))
        elif then == "grow":
            self._held.append(np.ones(64 << 20, np.uint8))
        elif then == "raise":
            raise ArithmeticError("no such luck")
        elif then == "print":
            print("a library talks on stdout", flush=True)

    def close(self) -> None:
        self._held.clear()


def open_model(request: Request) -> OddSession:
    """Return the session that the options describe."""
    return OddSession(request.path, request.options)


if __name__ == "__main__":
    sys.exit(serve(open_model, lambda _request: None))
