"""A stand-in for `tlc.runtime.worker` whose blocks are bare calls of ONNX Runtime, for bench_overhead.py.

Answers what `tlc.runtime.launch` asks, with a loop and a session of its own: what tlc's worker and session add to a run
is the difference between the two.
"""

import gc
import json
import sys
import time
from typing import Any

from raw_loop import BLOCK, Feeds, opened

NOTHING = {"resident_bytes": 0, "peak_bytes": 0}


def block(session: Any, feeds: Feeds, runs: int) -> list[int]:
    """Return the latencies of so many runs in nanoseconds."""
    samples_ns = []
    gc.disable()
    for _ in range(runs):
        start = time.perf_counter_ns()
        session.run(None, feeds)
        samples_ns.append(time.perf_counter_ns() - start)
    gc.enable()
    return samples_ns


def main() -> None:
    request = json.loads(sys.stdin.readline())
    start = time.perf_counter_ns()
    session, feeds = opened(request["path"])
    load_ns = time.perf_counter_ns() - start
    facts = {"empty_bytes": 0, "empty_peak_bytes": 0, "loaded_bytes": 0, "overhead_ns": 0, "runtime": "bare loop"}
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    print(json.dumps({"load_ns": load_ns, "first_ns": load_ns, "shapes": shapes, "assumed": [], **facts}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "warm":
            runs = len(block(session, feeds, 300))
            answer: dict[str, Any] = {"runs": runs, "stable": True, "block": BLOCK, "lead_in": True}
        else:
            session.run(None, feeds)
            cpu_ns, start = time.process_time_ns(), time.perf_counter_ns()
            samples_ns = block(session, feeds, asked["runs"])
            wall_ns = time.perf_counter_ns() - start
            answer = {
                "samples_ns": samples_ns,
                "wall_ns": wall_ns,
                "cpu_ns": time.process_time_ns() - cpu_ns,
                **NOTHING,
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
