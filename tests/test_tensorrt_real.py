"""NVIDIA's own modules without a GPU: opt-in, see tests/support/real_tensorrt.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_tensorrt import TABLES
from real_tensorrt import python310, stand_ins, unpacked
from tensorrt_double import write_net
from tensorrt_names import OBJECTS, REPOSITORY, problems

pytestmark = pytest.mark.tensorrt

_ASK = """
import json, re, sys
import tensorrt_bindings as trt
def parameters(doc):
    lists = []
    for text in re.findall(r"^(?:\\d+\\. )?\\w+\\((.*)\\) ->", doc or "", re.M):
        depth, names, word = 0, [], ""
        for letter in text + ",":
            depth += letter in "[(" ; depth -= letter in "])"
            if letter == "," and depth == 0:
                name = word.split(":")[0].strip()
                if name and name != "self":
                    names.append(name + ("=" if "=" in word else ""))
                word = ""
            else:
                word += letter
        lists.append(names)
    return lists
wanted = json.loads(sys.argv[1])
print(json.dumps({
    "module": [n for n in wanted["module"] if hasattr(trt, n)],
    "classes": {c: {m: parameters(getattr(getattr(trt, c), m).__doc__) if callable(getattr(getattr(trt, c), m)) else []
                    for m in dir(getattr(trt, c))} for c in wanted["classes"]},
    "enums": {e: list(eval("trt." + e).__members__) for e in wanted["enums"]},
}))
"""


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "11.4.0.106"])
def test_calls_fit_the_signatures_of_the_real_bindings(version: str, tmp_path: Path) -> None:
    package = unpacked(version) / "tensorrt_bindings"
    libraries = stand_ins(package, tmp_path / "stubs")
    table = TABLES[version]
    wanted = {"module": table["module"], "classes": list(table["classes"]), "enums": list(table["enums"])}
    env = {**os.environ, "PYTHONPATH": str(package.parent), "LD_LIBRARY_PATH": str(libraries)}

    done = subprocess.run(
        [sys.executable, "-c", _ASK, json.dumps(wanted)], env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    real = json.loads(done.stdout)
    assert real["classes"]["Builder"]["build_serialized_network"][0] == ["network", "config"]
    for path in OBJECTS:
        # One release alone, so a name that it lacks has to stand behind a guard as well.
        found = problems(path, (REPOSITORY / path).read_text(encoding="utf-8"), {version: real})
        assert [text for text in found if "no release's" not in text] == [], path
    for kind, attributes in table["classes"].items():
        assert set(attributes) <= set(real["classes"][kind]), kind


def tlc_8(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python 3.10 with the real TensorRT 8.5.3.1, and tlc from this checkout."""
    package = unpacked("8.5.3.1") / "tensorrt"
    libraries = stand_ins(package, tmp_path / "stubs")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package.parent), str(REPOSITORY / "tests" / ".pkg")]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(libraries), str(package)]),
    }
    return subprocess.run([python310(), *arguments], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)


def test_the_real_library_is_there_and_has_no_gpu(tmp_path: Path) -> None:
    done = tlc_8(tmp_path, "-m", "tlc.runtime.gpu")

    known = json.loads(done.stdout.splitlines()[-1])
    assert (known["tensorrt"], known["can_build"]) == ("8.5.3.1", True)
    if known["gpu"] is not None:
        pytest.skip(f"this machine has a GPU: {known['gpu']['name']}")


def test_build_ends_with_a_message(tmp_path: Path) -> None:
    write_net(tmp_path / "model.onnx")

    done = tlc_8(tmp_path, "-m", "tlc.cli", "build", "model.onnx", "--target", "jetson-xavier", "-o", "model.plan")

    print(
        f"$ tlc build model.onnx --target jetson-xavier -o model.plan\n{done.stdout}{done.stderr}exit {done.returncode}"
    )
    assert done.returncode == 1, done
    assert re.match(r"error: TensorRT 8\.5\.3\.1 is here but no NVIDIA GPU: ", done.stderr)
    assert "hint: Run this on the device" in done.stderr
    assert not (tmp_path / "model.plan").exists()


def test_a_session_ends_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"ftrt" + bytes(64))
    code = """
import sys
from pathlib import Path
from tlc.runtime.errors import TlcError
from tlc.runtime.tensorrt import TensorRTSession
try:
    TensorRTSession(Path("model.plan"))
except TlcError as error:
    sys.exit(str(error))
"""

    done = tlc_8(tmp_path, "-c", code)

    print(f"$ TensorRTSession(Path('model.plan'))\n{done.stdout}{done.stderr}exit {done.returncode}")
    assert done.returncode == 1, done
    assert "TensorRT 8.5.3.1 is here but no NVIDIA GPU" in done.stderr


def test_the_builder_that_is_reached_anyway_ends_without_a_crash(tmp_path: Path) -> None:
    """What the check keeps from users: the library itself, without a GPU."""
    done = tlc_8(tmp_path, "-c", "import tensorrt as trt; trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))")

    print(f"$ tensorrt.Builder(…) without the check\n{done.stderr.splitlines()[-1]}\nexit {done.returncode}")
    assert done.returncode != 0
