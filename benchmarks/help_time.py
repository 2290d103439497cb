"""CPU time of `tlc --help` in a fresh process, import included: python benchmarks/help_time.py [RUNS]"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path


def cpu_seconds(command: list[str]) -> float:
    """Return user + system time of one run of `command`, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    command = [str(Path(sys.executable).with_name("tlc")), "--help"]
    cpu_seconds(command)  # fills the file cache and writes the byte code
    seconds = sorted(cpu_seconds(command) for _ in range(runs))
    median = statistics.median(seconds)
    print(f"tlc --help: {median:.3f} s CPU median, {seconds[0]:.3f} min, {seconds[-1]:.3f} max of {runs} runs")


if __name__ == "__main__":
    main()
