"""How soon searches find what: the best student so far, minute by minute, of several studies side by side.

    python benchmarks/search_curve.py FILE...

FILE is the report.json of `tlc compress --time-limit`, or what `tlc search --json` printed. What counts is a trial's
value, which is what students are ranked by: the logarithm of the speed-up times the probability of keeping the budget.
Shown is its exponential, the speed-up that can be expected; 1 is the original. All times are since the study's first
trial. The last lines say when each study was as good as the first one was in the end.
"""

import json
import math
import sys
from pathlib import Path

STEPS = 12


def finished(path: Path) -> list[tuple[float, float]]:
    """Return (minutes, expected speed-up) of every finished trial of a study, in the order of time."""
    record = json.loads(path.read_text())
    trials = record.get("search", record)["trials"]
    return sorted((one["ended_s"] / 60, math.exp(one["value"])) for one in trials if one["value"] is not None)


def best(trials: list[tuple[float, float]], minutes: float) -> float:
    """Return the best of what was finished by then."""
    return max((value for ended, value in trials if ended <= minutes), default=1.0)


def main(paths: list[Path]) -> None:
    """Print the table."""
    studies = {str(path): finished(path) for path in paths}
    last = max(ended for trials in studies.values() for ended, _value in trials)
    print(f"| minutes | {' | '.join(studies)} |")
    print(f"|--:{'|--:' * len(studies)}|")
    for step in range(1, STEPS + 1):
        minutes = last * step / STEPS
        print(f"| {minutes:.1f} | {' | '.join(f'{best(trials, minutes):.2f}' for trials in studies.values())} |")
    wanted = max(value for _ended, value in studies[str(paths[0])])
    for name, trials in studies.items():
        soonest = min((ended for ended, value in trials if value >= wanted), default=None)
        print(f"\n{name}: {wanted:.2f} {f'after {soonest:.1f} minutes' if soonest is not None else 'never'}")


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
