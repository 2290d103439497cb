import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tlc.runtime import memory
from tlc.runtime.errors import TlcError
from tlc.runtime.launch import peak_memory_bytes
from tlc.runtime.memory import own_peak_bytes, resident_bytes
from tlc.runtime.process import Case

_MIB = 1 << 20


def _with_weight(onnx_file: Any, mib: int) -> Case:
    columns = mib * _MIB // 4 // 64
    path: Path = onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Cast", ["ids"], ["z"], to=TensorProto.FLOAT)],
        [("x", TensorProto.FLOAT, ["N", 64]), ("ids", TensorProto.INT64, ["N"])],
        [("y", TensorProto.FLOAT, ["N", columns]), ("z", TensorProto.FLOAT, ["N"])],
        constants={"w": np.ones((64, columns), np.float32)},
    )
    return Case("model", path)


def test_a_larger_model_needs_at_least_its_weights_more(onnx_file: Any) -> None:
    small = peak_memory_bytes(_with_weight(onnx_file, 1))
    large = peak_memory_bytes(_with_weight(onnx_file, 65))
    assert 0 < small < 40 * _MIB
    assert 64 * _MIB <= large - small < 5 * 64 * _MIB


def test_a_large_parent_process_does_not_hide_the_childs_memory(onnx_file: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from tlc.runtime.launch import peak_memory_bytes;"
        "from tlc.runtime.process import Case;"
        "ballast = bytearray(400 << 20);"
        "print(peak_memory_bytes(Case('model', Path(sys.argv[1]))))"
    )
    path = _with_weight(onnx_file, 32).path
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) >= 32 * _MIB


def test_the_peak_of_this_process_stays_after_what_it_touched_is_freed() -> None:
    ballast = np.ones(own_peak_bytes() + 32 * _MIB, np.uint8)
    size_bytes = ballast.nbytes
    held_bytes = resident_bytes()
    del ballast
    assert size_bytes <= own_peak_bytes() < 3 * size_bytes
    assert resident_bytes() < held_bytes - size_bytes // 2


def test_the_childs_error_comes_with_its_message_and_hint(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(TlcError) as caught:
        peak_memory_bytes(Case("bad", tmp_path / "bad.onnx"))
    assert "cannot load" in caught.value.message
    assert str(tmp_path / "bad.onnx") in caught.value.message
    assert "cut short" in caught.value.message


def test_files_in_the_working_directory_do_not_stand_in_for_modules(
    onnx_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no safe path")
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    onnx_file()
    assert peak_memory_bytes(Case("model", Path("model.onnx"))) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kernel_without_a_peak_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 100 kB\n")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert resident_bytes() == 100 * 1024
    with pytest.raises(TlcError, match="has no VmHWM"):
        own_peak_bytes()
