"""What is measured depends on the machine; what is asked of it and how failures are told does not."""

import runpy
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlc.runtime import peak
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.peak import WEIGHT_SHAPE, array_bytes, cache_bytes, measure_peaks

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MIB = 2**20


def machine(root: Path, caches: dict[str, tuple[int, str, str]], available_kib: int = 64 * 2**20) -> Path:
    """Write index folders `cpu0/cache/index3` with (level, size, cores that share it)."""
    for folder, texts in caches.items():
        index = root / "sys/devices/system/cpu" / folder
        index.mkdir(parents=True)
        for name, text in zip(("level", "size", "shared_cpu_list"), texts, strict=True):
            (index / name).write_text(f"{text}\n")
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {available_kib} kB\nMemAvailable: {available_kib} kB\n")
    return root


def test_all_peaks_come_from_a_process_of_its_own() -> None:
    peaks = measure_peaks(1, seconds=0.01)

    assert peaks.threads == 1
    assert min(peaks.fp32_per_s, peaks.int8_per_s, peaks.bytes_per_s) > 1e6


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_the_graphs_are_those_of_the_script(name: str) -> None:
    script = runpy.run_path(str(REPOSITORY / "benchmarks/peak_graphs.py"))

    assert files("tlc.runtime").joinpath(f"peak_{name}.onnx").read_bytes() == script["peak_graph"](name)


@pytest.mark.parametrize(("name", "left", "right"), [("fp32", "float32", "float32"), ("int8", "uint8", "int8")])
def test_what_is_timed_is_the_product(name: str, left: str, right: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, WEIGHT_SHAPE).astype(right)
    x = rng.integers(0, 4, (3, WEIGHT_SHAPE[0])).astype(left)

    (y,) = peak._session(name, 1, weight).run(None, {"x": x})

    np.testing.assert_array_equal(y, x.astype(np.int64) @ weight.astype(np.int64))


def test_operations_are_two_for_each_product_in_the_shortest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_times_s", lambda run, seconds: iter([0.5, 0.25, 4.0]))

    length, columns = WEIGHT_SHAPE
    assert peak.products_per_s("int8", 1, seconds=1) == 2 * max(peak.ROWS) * length * columns / 0.25


def test_a_copy_counts_what_it_reads_and_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_times_s", lambda run, seconds: iter([0.5]))

    # Two threads with two arrays of 1 MiB each: reading passes over half of them.
    assert peak.memory_bytes_per_s(2, 4 * MIB, seconds=1) == 4 * MIB / 0.5


def test_at_least_five_runs_are_timed() -> None:
    calls: list[int] = []

    assert len(list(peak._times_s(lambda: calls.append(1), 0))) == len(calls) == 5


def test_last_level_caches_count_once_however_many_cores_share_them(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "cpu0/cache/index0": (1, "32K", "0"),
            "cpu0/cache/index3": (3, "16384K", "0-1"),
            "cpu1/cache/index3": (3, "16384K", "0-1"),
            "cpu2/cache/index3": (3, "32768K", "2"),
        },
    )

    assert cache_bytes(root) == 48 * MIB


@pytest.mark.parametrize(
    ("cache_mib", "available_mib", "expected_mib"),
    [(100, 16384, 400), (4, 16384, 256), (300, 2048, 512)],
    ids=["four times the cache", "no less than 256 MiB", "no more than a quarter of the memory"],
)
def test_arrays_lie_beyond_the_caches(tmp_path: Path, cache_mib: int, available_mib: int, expected_mib: int) -> None:
    caches: Any = {"cpu0/cache/index3": (3, f"{cache_mib * 1024}K", "0")}

    assert array_bytes(machine(tmp_path, caches, available_mib * 1024)) == expected_mib * MIB


def test_a_system_that_tells_nothing_gets_the_least(tmp_path: Path) -> None:
    assert cache_bytes(tmp_path) == 0
    assert array_bytes(tmp_path) == 256 * MIB


def test_no_thread_is_a_wrong_option() -> None:
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        measure_peaks(0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "machine's peaks was ended by SIGKILL"),
        ("raise ImportError('no such library')", "failed with status 1: ImportError: no such library"),
    ],
)
def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **options: run([sys.executable, "-c", code], **options))

    with pytest.raises(TlcError, match=message) as caught:
        measure_peaks(1)
    assert "memory ran out" in caught.value.hint


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)

    with pytest.raises(TlcError, match="took more than 300 s"):
        measure_peaks(1)
