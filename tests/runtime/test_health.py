import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import fake_nvml
from trees import tree

from tlc.runtime import nvml
from tlc.runtime.bench_report import Launch, Memory, Setting
from tlc.runtime.environment import environment
from tlc.runtime.health import Snapshot, machine_warnings, model_warnings, snapshot

_TICK = os.sysconf("SC_CLK_TCK")
_QUIET = Snapshot(
    time_s=100,
    clocks_khz={"policy0": 2_000_000},
    throttle_counts={"cpu0": 3},
    quota_stops=5,
    gpu_slowdowns=(),
    temperatures_c={"tj 0": 50},
    trips_c={"tj 0": 95},
    load=0.1,
    busy_s=1000,
    steal_s=10,
    total_s=4000,
    pressure_s=7,
)
_LATER = replace(_QUIET, time_s=110, busy_s=1010, total_s=4040)
"""Ten seconds of four cores, of which one worked."""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    nvml.open_nvml.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    yield
    nvml.open_nvml.cache_clear()


def _found(after: Snapshot, own_cpu_s: float = 10, **facts: Any) -> list[tuple[str, str]]:
    warnings = machine_warnings(_QUIET, after, own_cpu_s=own_cpu_s, environment=facts)
    assert all(warning.model is None for warning in warnings)
    return [(warning.code, warning.message) for warning in warnings]


def _policy(governor: str, low: int = 800_000, high: int = 3_000_000) -> dict[str, Any]:
    return {"governor": governor, "min_khz": low, "max_khz": high, "cores": [0], "current_khz": [low]}


def test_a_snapshot_reads_the_usable_cores_and_their_counters(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = tree(
        tmp_path,
        {
            "proc/stat": "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 10 20 800 50 3 2 15 90 9\ncpu1 1 1 1 1 1 1 1 1 0 0",
            "proc/loadavg": "0.50 0.40 0.30 1/100 1234",
            "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=9",
            f"{cpu}/cpufreq/policy0/scaling_cur_freq": 1_800_000,
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": 4,
            f"{cpu}/cpu0/thermal_throttle/package_throttle_count": 6,
            f"{cpu}/cpu1/thermal_throttle/package_throttle_count": 6,
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": 61500,
            "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
            "sys/class/thermal/thermal_zone0/trip_point_0_temp": 95000,
            "sys/class/thermal/thermal_zone0/trip_point_1_type": "critical",
            "sys/class/thermal/thermal_zone0/trip_point_1_temp": 90000,
            "sys/class/thermal/thermal_zone0/trip_point_2_type": "passive",
            "sys/class/thermal/thermal_zone0/trip_point_2_temp": 0,
            "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 2\nthrottled_usec 8",
        },
    )
    found = snapshot(root, cores=[0])
    assert found == Snapshot(
        time_s=found.time_s,
        clocks_khz={"policy0": 1_800_000},
        throttle_counts={"cpu0": 4, "package 0": 6},
        quota_stops=2,
        gpu_slowdowns=(),
        temperatures_c={"x86_pkg_temp 0": 61.5},
        trips_c={"x86_pkg_temp 0": 95},
        load=0.5,
        busy_s=135 / _TICK,
        steal_s=15 / _TICK,
        total_s=1000 / _TICK,
        pressure_s=2.5,
    )


def test_a_system_that_tells_nothing_gives_an_empty_snapshot_and_no_warning(tmp_path: Path) -> None:
    found = snapshot(tmp_path)
    assert found == Snapshot(found.time_s, {}, {}, None, (), {}, {}, None, None, None, None, None)
    assert machine_warnings(found, found, own_cpu_s=1, environment=environment(root=tmp_path)) == []


def test_a_measurement_that_had_the_machine_to_itself_has_no_warning() -> None:
    assert _found(_LATER, cpu_policies=[_policy("performance")]) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_this_machine_counts_the_work_of_this_process() -> None:
    before, start_s, end_s = snapshot(), time.process_time(), time.monotonic() + 0.2
    while time.monotonic() < end_s:
        pass
    after, own_s = snapshot(), time.process_time() - start_s
    assert before.busy_s is not None
    assert after.busy_s is not None
    assert after.busy_s - before.busy_s >= own_s - 0.05
    assert after.time_s > before.time_s


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"throttle_counts": {"cpu0": 5, "package 0": 0}}, "its counter of cpu0 rose by 2."),
        ({"temperatures_c": {"tj 0": 97.4}}, "tj 0 is at 97 °C (limit 95)."),
        ({"gpu_slowdowns": ("GPU 0: power cap",)}, "its driver names GPU 0: power cap."),
        ({"clocks_khz": {"policy0": 1_700_000}}, "its clock fell from 2000 to 1700 MHz (limit 10 %)."),
    ],
)
def test_a_machine_that_slowed_itself_down_says_why(change: dict[str, Any], cause: str) -> None:
    ((code, message),) = _found(replace(_LATER, **change), cpu_policies=[_policy("performance")])
    assert code == "throttled"
    assert message.startswith(f"The machine slowed itself down: {cause} Cool it")


def test_a_clock_that_falls_when_cores_rest_is_no_throttling() -> None:
    slower = replace(_LATER, clocks_khz={"policy0": 800_000})
    assert [code for code, _ in _found(slower, cpu_policies=[_policy("schedutil")])] == ["clocks_not_locked"]
    idle = replace(slower, busy_s=1001)
    assert _found(idle, own_cpu_s=1, cpu_policies=[_policy("performance")]) == []


def test_a_gpu_that_was_slowed_is_throttled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = fake_nvml(violation_ns={0: 0, 1: 10}, reasons=0x01)  # idle, which slows nothing
    monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml.open_nvml.cache_clear()
    before = snapshot(tmp_path)
    library.gpu.violation_ns = {0: 0, 1: 900}
    library.gpu.reasons = 0x44
    (warning,) = machine_warnings(before, snapshot(tmp_path), own_cpu_s=0, environment={})
    assert "its counter of GPU 0 heat (ns) rose by 890" in warning.message
    assert "its driver names GPU 0: power cap" in warning.message
    assert "its driver names GPU 0: thermal slowdown by hardware" in warning.message
    library.gpu.violation_ns = library.gpu.reasons = None
    assert snapshot(tmp_path).throttle_counts == {}


def test_a_used_up_quota_is_throttled() -> None:
    ((code, message),) = _found(replace(_LATER, quota_stops=9), cpu_quota="100000 100000")
    assert code == "throttled"
    assert "quota (100000 100000: microseconds in a period) stopped it in 4 periods (limit 0). Raise the" in message


def test_other_work_is_a_noisy_neighbour() -> None:
    ((code, message),) = _found(replace(_LATER, busy_s=1018, pressure_s=10))
    assert code == "noisy_neighbour"
    assert message == (
        "Other work took 20 % of the usable cores' time (limit 5 %), and tasks waited for a core in 30 % of it. "
        "Stop it and measure again."
    )
    assert _found(replace(_LATER, busy_s=1011.9)) == []  # below 5 % of 40 s


def test_time_that_a_host_gave_away_is_a_noisy_neighbour() -> None:
    ((code, message),) = _found(replace(_LATER, steal_s=10.5))
    assert code == "noisy_neighbour"
    assert message.startswith("The host gave 4.8 % of the CPU time that this virtual machine wanted to")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"clocks_locked": False, "board": "NVIDIA Jetson Orin Nano"},
            "The clocks of this Jetson are free to",
        ),
        (
            {"clocks_locked": False, "cpu_policies": [_policy("powersave"), _policy("schedutil", 500_000)]},
            "The governor (powersave, schedutil) moves the cores' clocks between 500 and 3000 MHz. For repeatable",
        ),
        (
            {"cpu_policies": [{**_policy("ondemand"), "min_khz": None}]},
            "The governor (ondemand) moves the cores'",
        ),
    ],
)
def test_clocks_that_move_are_said_with_the_next_step(facts: dict[str, Any], message: str) -> None:
    ((code, found),) = _found(_LATER, **facts)
    assert code == "clocks_not_locked"
    assert found.startswith(message)


def test_clocks_that_stand_still_are_not_warned_of() -> None:
    assert (
        _found(_LATER, clocks_locked=True, board="NVIDIA Jetson Orin Nano", cpu_policies=[_policy("schedutil")]) == []
    )
    assert _found(_LATER, clocks_locked=False, cpu_policies=[_policy("schedutil", 10, 10)]) == []


def _launch(samples_ns: Sequence[int] = (1_000_000,) * 480, **changes: Any) -> Launch:
    memory = Memory(
        loaded_bytes=10, run_bytes=10, peak_bytes=20, growth_bytes_per_run=changes.pop("growth", 0.0), device_bytes=None
    )
    facts: dict[str, Any] = {
        "runtime": "onnxruntime 1.31.1",
        "setting": Setting(batch=1, threads=1, streams=1, shapes={"x": [1, 3]}),
        "load_ms": 5,
        "first_ms": 3,
        "warmup_runs": 200,
        "warmup_stable": True,
        "block": 8,
        "samples_ns": list(samples_ns),
        "wall_ns": sum(samples_ns),
        "cpu_ratio": 1,
        "overhead_ns": 100,
        "memory": memory,
    }
    return Launch(**(facts | changes))


def _said(*launches: Launch) -> list[tuple[str, str]]:
    found = model_warnings("small.onnx", launches)
    assert all(warning.model == "small.onnx" for warning in found)
    return [(warning.code, warning.message) for warning in found]


def test_a_steady_model_has_no_warning() -> None:
    assert _said(_launch(), _launch()) == []
    assert _said() == []


def test_a_slow_first_run_is_said_where_every_launch_has_it() -> None:
    ((code, message),) = _said(_launch(first_ms=90), _launch(first_ms=60))
    assert code == "first_run_slow"
    assert message.startswith("The first run of small.onnx took 60.0 ms, 60 times its p50 of 1.000 ms (limit 5). Run")
    assert _said(_launch(first_ms=90), _launch(first_ms=3)) == []
    assert _said(_launch(first_ms=19)) == []  # nobody waits for 19 ms once


def test_percentiles_that_lack_samples_are_named_with_what_they_need() -> None:
    ((code, message),) = _said(_launch((1_000_000,) * 40), _launch((1_000_000,) * 40))
    assert code == "too_few_samples"
    assert message.startswith(
        "small.onnx has 80 samples; to be bounded with 99 % confidence, p95 needs 90, p99 needs 459."
    )
    assert _said(_launch((1_000_000,) * 456), _launch((1_000_000,) * 8)) == []


def test_runs_far_above_the_fastest_are_unstable() -> None:
    busy = [1_000_000] * 8 + [1_700_000] * 472
    ((code, message),) = _said(_launch(), _launch(busy))
    assert code == "unstable"
    assert "runs of small.onnx (p50 1.000 ms) mostly took 1.7 times as long as the fastest" in message
    assert "(limit 1.5)" in message


def test_inputs_of_different_lengths_are_not_unstable() -> None:
    assert _said(_launch([1_000_000, 4_000_000] * 240, block=2)) == []


def test_a_warm_up_that_never_settled_is_unstable() -> None:
    ((code, message),) = _said(_launch(warmup_stable=False), _launch(warmup_stable=False))
    assert code == "unstable"
    assert "had not settled after 200 runs of warm-up" in message
    assert _said(_launch(warmup_stable=False), _launch()) == []


def test_memory_that_grows_with_every_run_is_said_and_noise_is_not() -> None:
    ((code, message),) = _said(_launch(growth=50_000), _launch(growth=10_000))
    assert code == "memory_grows"
    assert message.startswith(
        "The memory of small.onnx grew by 10.0 kB with each of 480 runs, 4.8 MB in all (limit 1.0 MB)."
    )
    assert _said(_launch(growth=50_000), _launch(growth=1_000)) == []
    assert _said(_launch(growth=-50_000)) == []
