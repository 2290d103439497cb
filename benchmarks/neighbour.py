"""A neighbour that disturbs: multiplies matrices on one core, rests, and so on, for random times up to half a second.

    OMP_NUM_THREADS=1 python benchmarks/neighbour.py

Prints `ready` when it begins. Ends with the process that started it.
"""

import os
import random
import time

import numpy as np


def main() -> None:
    rng = random.Random(os.getpid())
    matrix = np.ones((512, 512), np.float32)
    parent = os.getppid()
    print("ready", flush=True)
    while os.getppid() == parent:
        end = time.monotonic() + rng.uniform(0.05, 0.5)
        while time.monotonic() < end:
            matrix @ matrix
        time.sleep(rng.uniform(0.05, 0.5))


if __name__ == "__main__":
    main()
