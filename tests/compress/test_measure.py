"""`tlc.compress.measure`: what it says of a session that was disturbed."""

from pathlib import Path

import numpy as np
from launches import drawn_launch

from tlc.compress.measure import unsteady
from tlc.runtime.process import Case


def test_a_disturbed_session_is_said_once_with_the_names_of_all_it_concerns() -> None:
    case = Case("any", Path("any.onnx"))
    steady = drawn_launch(case, np.random.default_rng(0), rounds=40, latency_ms=1.0)
    slow = [10**6] * steady.block + [17 * 10**5] * (len(steady.samples_ns) - steady.block)
    busy = steady.model_copy(update={"samples_ns": slow})

    first, others = unsteady({"original": [steady], "int8": [busy], "student": [steady, busy], "fp16": [busy]})

    assert first.startswith("The machine was busy: runs of int8 (p50 1.700 ms) mostly took 1.7 times as long as the ")
    assert others == "Nor were the times of these steady: student, fp16."
    assert unsteady({"original": [busy]}) == [first.replace("int8", "original")]
    assert unsteady({"original": [steady]}) == []
