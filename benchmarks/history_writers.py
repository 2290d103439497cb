"""Many processes append to one history, and processes are killed while they append: is anything lost or broken?

    python benchmarks/history_writers.py --writers 8 --appends 100 --kills 200

Prints a Markdown table; exits with 1 if an append that returned is not in the file, or the file is damaged.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tlc.runtime.history import History

REPORT: dict[str, Any] = {
    "schema_version": 1,
    "kind": "bench",
    "tlc_version": "0.0.0",
    "command": "",
    "seed": 0,
    "environment": {"time_utc": "2026-01-02T03:04:05+00:00", "padding": "x" * 50_000},
    "machine": {"cpu_model": "invented"},
    "models": [],
    "warnings": [],
}
"""Without a number in it, but as large as a usual report."""


def child(work: Callable[[int], None]) -> tuple[int, int]:
    """Fork a process that does `work` with the end of a pipe to write to; return its id and the end to read from."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            work(writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return pid, reading


def said(reading: int) -> list[str]:
    """Return the whole lines that a process wrote before its end."""
    with os.fdopen(reading, "rb") as pipe:
        return [line.decode() for line in pipe.read().split(b"\n")[:-1]]


def append_many(path: Path, name: str, count: int, writing: int) -> None:
    """Append `count` reports that no one else appends, and say the name of each when its append returned."""
    for number in range(count):
        command = f"{name} {number}"
        with History(path) as history:
            history.append({**REPORT, "command": command})
        os.write(writing, f"{command}\n".encode())


def stored(path: Path) -> tuple[list[str], str]:
    """Return the name of every report in the file, and what SQLite says of the file."""
    with History(path, must_exist=True) as history:
        names = [history.report(run.run)["command"] for run in history.runs()]
    database = sqlite3.connect(path)
    (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    broken = database.execute("PRAGMA foreign_key_check").fetchall()
    database.close()
    return names, verdict if not broken else f"{len(broken)} rows without their run"


def concurrent(path: Path, writers: int, appends: int) -> dict[str, Any]:
    """Let `writers` processes append at once to a file that is not there yet."""
    started = time.monotonic()
    children = [
        child(lambda writing, name=f"writer {number}": append_many(path, name, appends, writing))  # type: ignore[misc]
        for number in range(writers)
    ]
    returned = [name for _, reading in children for name in said(reading)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in children]
    seconds = time.monotonic() - started
    names, integrity = stored(path)
    return {
        "trial": f"{writers} processes x {appends} appends",
        "returned": len(returned),
        "lost": len(set(returned) - set(names)),
        "twice": len(names) - len(set(names)),
        "failed": sum(code != 0 for code in codes),
        "integrity": integrity,
        "ms_per_append": round(1000 * seconds / max(1, len(returned)), 1),
    }


def killed(path: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a process while it appends without end, `kills` times, at moments drawn from `seed`; check after each."""
    moments = random.Random(seed)
    started = time.monotonic()
    with History(path) as history:
        history.append(REPORT)
    append_s = time.monotonic() - started
    returned = [REPORT["command"]]
    damaged, within, codes = 0, 0, []
    for number in range(kills):
        pid, reading = child(lambda writing, name=f"victim {number}": append_many(path, name, 10**9, writing))  # type: ignore[misc]
        time.sleep(moments.uniform(0, 4 * append_s))
        os.kill(pid, signal.SIGKILL)
        returned += said(reading)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        journal = path.with_name(f"{path.name}-journal")
        within += journal.exists() and journal.stat().st_size > 0
        database = sqlite3.connect(path, timeout=60)
        damaged += database.execute("PRAGMA integrity_check").fetchone() != ("ok",)
        database.close()
    names, integrity = stored(path)
    codes = [code for code in codes if code != -signal.SIGKILL]
    return {
        "trial": f"{kills} times kill -9, {within} of them inside a write",
        "returned": len(returned),
        "lost": len(set(returned) - set(names)),
        "twice": len(names) - len(set(names)),
        "failed": len(codes),
        "integrity": integrity if not damaged else f"damaged after {damaged} kills",
        "ms_per_append": round(1000 * (time.monotonic() - started) / max(1, len(returned)), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--appends", type=int, default=100)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Where the files are written and left; else a temporary one.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rows = [
            concurrent(folder / "concurrent.sqlite", options.writers, options.appends),
            killed(folder / "killed.sqlite", options.kills, options.seed),
        ]
    if options.json:
        print(json.dumps(rows))
    else:
        print("| " + " | ".join(rows[0]) + " |")
        print("|" + "---|" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(map(str, row.values())) + " |")
    return int(any(row["lost"] or row["twice"] or row["failed"] or row["integrity"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
