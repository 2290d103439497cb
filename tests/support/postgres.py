"""A PostgreSQL server of its own for a test."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server with an empty database in `folder` and yield its URL; skip the test where there is none."""
    programs = [*Path("/usr/lib/postgresql").glob("*/bin"), *(Path(p) for p in os.environ["PATH"].split(":"))]
    tools = next((path for path in programs if (path / "initdb").exists() and (path / "postgres").exists()), None)
    if tools is None:
        assert not os.environ.get("TLC_REQUIRE_POSTGRESQL"), "PostgreSQL is not installed"
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    folder.mkdir(parents=True)
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to be root
        as_user = {"user": pwd.getpwnam("nobody").pw_uid}
        shutil.chown(folder, "nobody")
        for parent in folder.parents[:-2]:
            parent.chmod(parent.stat().st_mode | 0o111)
    data = folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **as_user}
    subprocess.run([tools / "initdb", "-D", data, "-U", "tlc", "--auth=trust", "--no-sync"], check=True, **quiet)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen([tools / "postgres", "-D", data, *options], **quiet)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield f"postgresql+psycopg://tlc@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for clients, as SIGTERM does
        server.wait(60)
