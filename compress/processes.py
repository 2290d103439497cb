"""Several processes, one per GPU, started by `accelerate launch`: one leads, the others help to train.

All run the same pipeline in the same folder. The first one does and writes everything; the others wait for its results,
and take part where a network is trained.
"""

import os
from datetime import timedelta

import torch
from accelerate import PartialState

_PATIENCE = timedelta(days=2)
"""How long the others wait for a stage that only the first works on."""


def process_count() -> int:
    """Return how many processes `accelerate launch` (or torchrun) started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Say whether this process writes the results."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when all processes are here."""
    if process_count() > 1:
        # Without CUDA it has to be told, or there is no barrier between processes on CPUs.
        PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE).wait_for_everyone()
