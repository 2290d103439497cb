"""Several processes append at once, processes are killed while they append: nothing is lost, nothing is damaged."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_nothing_is_lost_by_eight_writers_nor_by_fifty_kills(tmp_path: Path) -> None:
    script = REPOSITORY / "benchmarks" / "history_writers.py"
    options = ["--writers", "8", "--appends", "4", "--kills", "50", "--json", "--folder", str(tmp_path)]

    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    concurrent, killed = json.loads(done.stdout)
    assert concurrent | {"ms_per_append": 0} == {
        "trial": "8 processes x 4 appends",
        "returned": 32,
        "lost": 0,
        "twice": 0,
        "failed": 0,
        "integrity": "ok",
        "ms_per_append": 0,
    }
    assert (killed["lost"], killed["twice"], killed["failed"], killed["integrity"]) == (0, 0, 0, "ok")
    assert killed["returned"] > 1, "no append ended before its process was killed"
    assert " 0 of them inside a write" not in killed["trial"], "the kills show nothing"
    # What the script says, once more without it.
    for name, least in (("concurrent", 32), ("killed", killed["returned"])):
        database = sqlite3.connect(tmp_path / f"{name}.sqlite")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM runs").fetchone()[0] >= least
        database.close()
