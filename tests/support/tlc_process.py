"""`tlc` in a process forked from one that has imported its libraries, which takes longer than most commands."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tlc.cli.main import main

PROCESSES = multiprocessing.get_context("forkserver")
"""Starts processes that have torch and tlc imported; its own start takes some ten seconds."""
PROCESSES.set_forkserver_preload(
    ["tlc_process", "tlc.compress.pipeline", "tlc.compress.text_work", "timm", "torch.onnx._internal.exporter._core"]
)


def run_tlc(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Return what `tlc ARGUMENTS` does in `folder` with this environment and no input."""
    with tempfile.TemporaryDirectory() as written:
        streams = (os.devnull, f"{written}/stdout", f"{written}/stderr")
        process = PROCESSES.Process(target=_tlc, args=(list(arguments), folder, dict(environment), streams))
        process.start()
        process.join()
        out, err = (Path(stream).read_text(encoding="utf-8", errors="replace") for stream in streams[1:])
    assert process.exitcode is not None
    return subprocess.CompletedProcess(["tlc", *arguments], process.exitcode, out, err)


def _tlc(arguments: list[str], folder: Path, environment: dict[str, str], streams: Sequence[str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_CREAT, 0o600), number)
    sys.argv = ["tlc", *arguments]
    main()
