"""Kill the demo at random moments, resume it, and compare what it ends with to an unbroken run.

    python benchmarks/kill_resume.py --chains 4 --kills 5

Each chain is one demo that is killed (SIGKILL) again and again, and resumed each time. Exits with 1 on any difference.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHIPPED = ("original", "student", "pruned", "original-int8", "original-int8-mixed", "fp16", "int8", "int8-mixed")


def artifacts(out: Path) -> dict[str, str]:
    """Return the sha256 of every file that the run is for; measured times differ and are no artifact."""
    files = [out / f"{name}.onnx" for name in SHIPPED] + sorted((out / "model").iterdir())
    files += [out.with_name(out.name + "-inputs") / "model.pt"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()}


def demo(out: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    """Start the demo beside `out`, by a name that is the same in every folder: the network's record holds it."""
    command = [sys.executable, "-m", "tlc.cli", "demo", "--out", out.name, "--quiet", *["--resume"] * resume]
    out.parent.mkdir(exist_ok=True)
    return subprocess.Popen(command, cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end; stop here if it failed."""
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"the demo failed: {errors.decode()[-2000:]}")


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        whole = Path(folder) / "whole" / "demo"
        finish(demo(whole, resume=False))
        seconds = time.monotonic() - start
        expected = artifacts(whole)
        moments: list[list[float]] = []
        different: list[str] = []
        for chain in range(options.chains):
            out = Path(folder) / f"chain{chain}" / "demo"
            moments.append([])
            for _ in range(options.kills):
                process = demo(out, resume=out.exists())
                moment = rng.uniform(1, max(10.0, seconds / 3))
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    moments[-1].append(round(moment, 2))
            finish(demo(out, resume=out.exists()))
            found = artifacts(out)
            different += [f"chain{chain}: {name}" for name in expected if found.get(name) != expected[name]]
            print(f"chain {chain}: killed after {moments[-1]} s, different: {different}", file=sys.stderr, flush=True)
    times = {"unbroken_s": round(seconds, 1), "killed_after_s": moments}
    print(json.dumps({**times, "files": len(expected), "different": different}))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
