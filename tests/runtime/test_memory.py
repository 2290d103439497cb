import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tlc.runtime import memory
from tlc.runtime.errors import TlcError
from tlc.runtime.memory import main, own_peak_bytes, peak_memory_bytes

_MIB = 1 << 20


def _with_weight(onnx_file: Any, mib: int) -> Path:
    columns = mib * _MIB // 4 // 64
    path: Path = onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Cast", ["ids"], ["z"], to=TensorProto.FLOAT)],
        [("x", TensorProto.FLOAT, ["N", 64]), ("ids", TensorProto.INT64, ["N"])],
        [("y", TensorProto.FLOAT, ["N", columns]), ("z", TensorProto.FLOAT, ["N"])],
        constants={"w": np.ones((64, columns), np.float32)},
    )
    return path


def test_a_larger_model_needs_at_least_its_weights_more(onnx_file: Any) -> None:
    small = peak_memory_bytes(_with_weight(onnx_file, 1))
    large = peak_memory_bytes(_with_weight(onnx_file, 65))
    assert 0 < small < 40 * _MIB
    assert 64 * _MIB <= large - small < 5 * 64 * _MIB


def test_a_large_parent_process_does_not_hide_the_childs_memory(onnx_file: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from tlc.runtime.memory import peak_memory_bytes;"
        "ballast = bytearray(400 << 20);"
        "print(peak_memory_bytes(Path(sys.argv[1])))"
    )
    path = _with_weight(onnx_file, 32)
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) >= 32 * _MIB


def test_the_peak_of_this_process_stays_after_what_it_touched_is_freed() -> None:
    ballast = np.ones(own_peak_bytes() + 32 * _MIB, np.uint8)
    size_bytes = ballast.nbytes
    del ballast
    assert size_bytes <= own_peak_bytes() < 3 * size_bytes


def test_the_childs_error_comes_with_its_message_and_hint(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(TlcError) as caught:
        peak_memory_bytes(tmp_path / "bad.onnx")
    assert "cannot load" in caught.value.message
    assert str(tmp_path / "bad.onnx") in caught.value.message
    assert "cut short" in caught.value.hint


def test_a_killed_child_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(TlcError, match=r"memory of m\.onnx was ended by SIGKILL") as caught:
        peak_memory_bytes(Path("m.onnx"))
    assert "memory ran out" in caught.value.hint


def test_a_crash_of_the_child_shows_what_it_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = subprocess.CompletedProcess([], 1, "", "Traceback: our bug")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: crashed)
    with pytest.raises(RuntimeError, match="status 1:\nTraceback: our bug"):
        peak_memory_bytes(Path("m.onnx"))


def test_files_in_the_working_directory_do_not_stand_in_for_modules(
    onnx_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no safe path")
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    onnx_file()
    assert peak_memory_bytes(Path("model.onnx")) > 0


def test_the_module_prints_one_json_object(onnx_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(onnx_file()), "--threads", "1", "--runs", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"empty_bytes", "peak_bytes"}
    assert main([str(onnx_file()), "--threads", "0"]) == 1
    assert "threads must be at least 1, got 0" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kernel_without_a_peak_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 100 kB\n")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    with pytest.raises(TlcError, match="has no VmHWM"):
        own_peak_bytes()
