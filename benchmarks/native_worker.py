"""`tlc-run worker` in the place of a Python worker: `python -m native_worker` becomes the program that TLC_RUN names.

A `tlc.runtime.process.Case` with this as its worker is run by tlc-run, in turns with others that Python runs.
"""

import os

if __name__ == "__main__":
    os.execv(os.environ["TLC_RUN"], ["tlc-run", "worker"])
