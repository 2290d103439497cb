"""The real tlc-run deployed to a real OpenSSH server: with ONNX Runtime, and with the double of TensorRT."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import write_bundle
from deployments import compiled_double
from native_build import built, ort_library
from onnx import TensorProto, helper
from PIL import Image
from sshd import HOST, Sshd, running

from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.runtime import deploy_visit
from tlc.runtime.bundle import unpacked
from tlc.runtime.deploy import deploy
from tlc.runtime.deploy_order import Order
from tlc.runtime.deploy_report import DeviceReport
from tlc.runtime.device_data import packed
from tlc.runtime.device_facts import facts
from tlc.runtime.plan import EngineRecord
from tlc.runtime.remote import Remote
from tlc.runtime.target import load_target

RELEASE = "10.3"


@pytest.fixture(scope="module")
def tlc_run() -> Path:
    return built()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with running(tmp_path / "sshd") as one:
        yield one


def relu_bundle(folder: Path) -> Path:
    """What the double of TensorRT computes: y = relu(x)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 8, 8]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = folder / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), model)
    path = folder / "relu.tlc"
    pack(source_of_file(model, load_target("jetson-orin"), fed=None, classes=()), path, PackOptions())
    return path


def deployed(server: Sshd, order: Order, said: list[str]) -> DeviceReport:
    connect = partial(Remote, config=server.config)
    return deploy(
        HOST, order, say=said.append, cancelled=threading.Event(), connect=connect, pauses_s=(0.1, 0.2, 0.5, 1)
    )


def test_a_bundle_is_proved_scored_and_measured_through_a_connection_that_drops(
    tlc_run: Path, server: Sshd, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bars.tlc")
    rng = np.random.default_rng(0)
    for name in ("flat", "upright"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 256, (11, 13), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    said: list[str] = []
    dropped: list[int] = []

    def drop() -> None:
        while not any(line.startswith("bench: ") for line in said):
            time.sleep(0.02)
        time.sleep(0.5)
        dropped.append(server.drop())

    threading.Thread(target=drop, daemon=True).start()
    with packed(tmp_path / "photos") as data:
        order = Order(bundle, tmp_path / "out", runner=tlc_run, library=ort_library(), data=data, duration_s=2)
        report = deployed(server, order, said)

    assert report.status == "ok", report.problem
    assert dropped
    assert dropped[0] > 0
    assert any("trying again" in note for note in report.notes)
    assert [(step.name, step.reused) for step in report.steps] == [("check", False), ("eval", False), ("bench", False)]
    check, evaluation, bench = (step.result for step in report.steps)
    assert check["passed"]
    assert len(check["golden"]) == 4
    assert evaluation["samples"] == 10
    assert bench["models"][0]["status"] == "ok"
    assert report.bench is not None
    assert report.bench.models[0].name == "bars"
    assert report.bench.models[0].size_bytes == unpacked(bundle).stat().st_size


def test_an_engine_is_built_on_the_device_and_what_it_computes_is_checked(
    tlc_run: Path, server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles = built("tests/native/double")
    script = server.home / "fake-tlc-run"  # the device has its libraries where only its environment says
    script.write_text(
        f"#!/bin/sh\nexport TLC_CUDART={doubles}/libcudart.so TLC_TENSORRT_LIB={doubles}/{RELEASE}/libnvinfer.so.10\n"
        f'exec {doubles}/{RELEASE}/tlc-run "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(
        deploy_visit, "facts", lambda *words: facts(*words).model_copy(update={"tensorrt": f"{RELEASE}.0"})
    )
    order = Order(relu_bundle(tmp_path), tmp_path / "out", runner=compiled_double(tmp_path), duration_s=0.2)

    first, second = (deployed(server, order, []) for _ in range(2))

    assert first.status == "ok", first.problem
    assert [step.name for step in first.steps] == ["build", "check", "bench"]
    assert [report.steps[0].reused for report in (first, second)] == [False, True]
    record = EngineRecord.model_validate_json((Path(first.folder) / "relu.plan.json").read_text())
    assert record.target == "jetson-orin"
    assert first.bench is not None
    assert first.bench.models[0].runtime.startswith("tensorrt")
