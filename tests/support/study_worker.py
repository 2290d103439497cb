"""A worker of a study whose trials sleep."""

import time
from multiprocessing.connection import Connection

import optuna

from tlc.compress import study
from tlc.compress.space import Choice, Space

SPACE = Space((Choice("depth.layer1", "depth", (1, 2, 3), 3), Choice("width", "width", (0.5, 1.0), 1.0)))


def work(url: str, seed: int, trial_s: float, trials: int, begun: Connection) -> None:
    """Try `trials` shapes of the study "killed" for `trial_s` seconds each; send their numbers into `begun`."""
    study._HEARTBEAT_S, study._GRACE_S = 1, 3

    def tried(trial: optuna.Trial) -> float:
        value = sum(trial.suggest_int(choice.name, 0, len(choice.values) - 1) for choice in SPACE.choices)
        begun.send(trial.number)
        time.sleep(trial_s)
        return value

    opened = study.open_study(url, "killed", space=SPACE, sampler="random", seed=seed, about="x")
    opened.optimize(tried, n_trials=trials)
