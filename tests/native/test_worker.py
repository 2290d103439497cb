"""`tlc-run worker` in the place of Python's: the same requests, the same answers, driven by the same code."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_build import built, ort_library
from numpy.typing import NDArray
from onnx import TensorProto, helper, save

from tlc.runtime.bench_report import Launch, LayerTime
from tlc.runtime.launch import launch
from tlc.runtime.process import Case, Failure, Limits, Worker, WorkerError
from tlc.runtime.target import load_target
from tlc.runtime.worker import write_feeds

REPOSITORY = Path(__file__).resolve().parents[2]
NATIVE = "native_worker"


@pytest.fixture(scope="module", autouse=True)
def tlc_run() -> Any:
    """The built program, by the environment that workers start with; `native_worker` becomes it."""
    program = built()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLC_RUN", str(program))
        patch.setenv("TLC_ORT_LIB", str(ort_library()))
        patch.setenv("PYTHONPATH", str(REPOSITORY / "benchmarks"))
        yield program


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open batch and an open length: y = tokens as floats + x."""
    path = tmp_path_factory.mktemp("model") / "sum.onnx"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "T"]) for name in ("x", "y"))
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "T"])
    nodes = [
        helper.make_node("Cast", ["tokens"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "sum", [x, tokens], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def shape_of(answer: Mapping[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in answer.items()}


@pytest.mark.parametrize("streams", [1, 2])
def test_it_answers_with_the_same_keys_and_types(model: Path, streams: int) -> None:
    answers = []
    for worker in ("tlc.runtime.worker", NATIVE):
        case = Case("m", model, batch=2, sizes={"T": 5}, streams=streams, worker=worker)
        with Worker(case, Limits()) as running:
            warm = running.ask("warm")
            block = running.ask("block", runs=3, lead_in=True)
            ran = running.ask("run_for", seconds=0.05)
            answers.append((running.opened, warm, block, ran))
    python, native = answers
    for there, here in zip(python, native, strict=True):
        assert shape_of(there) == shape_of(here)
    assert native[0]["shapes"] == python[0]["shapes"] == {"x": [2, 5], "tokens": [2, 5]}
    assert native[0]["runtime"] == python[0]["runtime"]
    assert len(native[2]["samples_ns"]) == 3 * streams
    assert all(isinstance(sample, int) and sample > 0 for sample in native[2]["samples_ns"])
    assert native[2]["peak_bytes"] >= native[2]["resident_bytes"] > native[0]["empty_bytes"]
    assert ran["runs"] >= 1
    assert ran["seconds"] == pytest.approx(0.05, rel=0.5)


def test_sizes_that_nobody_gave_are_said(model: Path) -> None:
    for worker in ("tlc.runtime.worker", NATIVE):
        with Worker(Case("m", model, worker=worker), Limits()) as running:
            assert running.opened["assumed"] == ["T"]


def test_whole_shapes_and_real_inputs(model: Path, tmp_path: Path) -> None:
    case = Case("m", model, shapes={"x": (3, 4), "tokens": (3, 4)}, worker=NATIVE)
    with Worker(case, Limits()) as running:
        assert running.opened["shapes"] == {"x": [3, 4], "tokens": [3, 4]}
    feeds: list[dict[str, NDArray[Any]]] = [
        {"x": np.ones((1, length), np.float32), "tokens": np.ones((1, length), np.int64), "unused": np.zeros(1)}
        for length in (2, 7, 3)
    ]
    write_feeds(tmp_path / "feeds.npz", feeds)
    with Worker(Case("m", model, feeds=tmp_path / "feeds.npz", worker=NATIVE), Limits()) as running:
        assert running.opened["shapes"]["x"] == [1, 2]
        assert running.ask("warm")["block"] % 3 == 0


def test_a_launch_takes_turns_between_python_and_it(model: Path) -> None:
    cases = [Case("python", model, sizes={"T": 3}), Case("native", model, sizes={"T": 3}, worker=NATIVE)]
    found = launch(cases, rounds=3, seed=0)
    for one in found.values():
        assert isinstance(one, Launch)
        assert one.rounds == 3
        assert one.setting.shapes["x"] == [1, 3]
        assert 0 < one.memory.loaded_bytes <= one.memory.peak_bytes


def test_layers_are_those_that_python_names(model: Path) -> None:
    answers = []
    for worker in ("tlc.runtime.worker", NATIVE):
        with Worker(Case("m", model, sizes={"T": 100000}, worker=worker), Limits()) as running:
            answers.append([LayerTime.model_validate(layer) for layer in running.ask("profile", runs=20)["layers"]])
    python, native = answers
    assert [(layer.name, layer.kind) for layer in native] == [(layer.name, layer.kind) for layer in python]
    assert len(native) == 2
    assert sum(layer.ratio for layer in native) == pytest.approx(1)
    assert all(layer.ms > 0 for layer in native)


def failure(case: Case, limits: Limits = Limits()) -> Failure:  # noqa: B008 - frozen
    with pytest.raises(WorkerError) as caught:
        Worker(case, limits)
    return caught.value.failure


def test_what_goes_wrong_is_an_answer(model: Path, tmp_path: Path) -> None:
    found = failure(Case("m", tmp_path / "missing.onnx", worker=NATIVE))
    assert found.status == "failed"
    assert "cannot read" in found.problem
    assert found.problem.endswith("Check the path.")
    assert "no input or open dimension B" in failure(Case("m", model, sizes={"B": 3}, worker=NATIVE)).problem
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    assert "cannot load" in failure(Case("m", tmp_path / "broken.onnx", worker=NATIVE)).problem
    (tmp_path / "model.pt").touch()
    assert "neither a bundle nor an ONNX file" in failure(Case("m", tmp_path / "model.pt", worker=NATIVE)).problem
    target = load_target("cpu-x86")
    gpu = failure(Case("m", model, target=target.model_copy(update={"provider": "cuda"}), worker=NATIVE))
    assert "runs ONNX Runtime's provider cuda, and tlc-run has that of the CPU alone" in gpu.problem
    engine = failure(Case("m", model, target=load_target("cuda"), worker=NATIVE))
    assert f"{model} cannot run in tensorrt. Build an engine on the device" in engine.problem


def spoken(program: Path, *lines: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [program, "worker"], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def request_for(path: Path, **changes: Any) -> str:
    first = {"path": str(path), "threads": 1, "streams": 1, "batch": 1, "sizes": {"T": 4}, "shapes": {}, "options": {}}
    return json.dumps({**first, **changes})


def test_requests_that_are_none(tlc_run: Path, model: Path) -> None:
    assert spoken(tlc_run) == []
    assert "JSON" in spoken(tlc_run, "hello")[0]["error"]
    assert spoken(tlc_run, request_for(model, later=1))[0]["error"] == "unknown key 'later' in the request"
    assert spoken(tlc_run, request_for(model, threads=0))[0]["error"] == "threads must be from 1 to 1000000, got 0"
    answers = spoken(tlc_run, request_for(model), '{"do": "dance"}')
    assert answers[1]["error"] == "unknown request 'dance'"
    assert answers[1]["status"] == "failed"


def test_it_gives_up_at_a_limit_of_memory(tlc_run: Path, model: Path) -> None:
    # 64 MB for each input alone.
    answers = spoken(tlc_run, request_for(model, memory_bytes=64 << 20, sizes={"T": 16 << 20}), '{"do": "warm"}')
    assert answers[-1]["status"] == "out_of_memory"
    assert answers[-1]["error"].endswith("the limit is 67 MB")


@pytest.mark.skipif(sys.platform != "linux", reason="it is the kernel that ends the worker")
def test_it_ends_with_its_parent(tlc_run: Path, model: Path) -> None:
    code = (
        "import subprocess, sys, os\n"
        "child = subprocess.Popen([sys.argv[1], 'worker'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdin.write(sys.argv[2].encode() + b'\\n'); child.stdin.flush(); child.stdout.readline()\n"
        "os.set_inheritable(child.stdin.fileno(), True)\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tlc_run, request_for(model)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    pid = int(done.stdout)
    for _ in range(50):
        if not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail(f"worker {pid} still runs")
