"""trtexec's options by release, and building with a program that behaves like it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorrt_double import forget, install, write_net

from tlc.export.engine import BuildOptions, build_engine
from tlc.export.engine_request import BuildRequest
from tlc.export.trtexec import build_command, find_trtexec, measure_command, trtexec_version
from tlc.runtime.errors import TlcError
from tlc.runtime.plan import ProfileShapes
from tlc.runtime.target import load_target

PROGRAM = Path("/usr/src/tensorrt/bin/trtexec")
# Options of each release, as far as tlc uses any: sampleOptions.cpp of NVIDIA/TensorRT at these tags.
SINCE_8_2 = {
    "--onnx", "--saveEngine", "--loadEngine", "--profilingVerbosity", "--minShapes", "--optShapes", "--maxShapes",
    "--shapes", "--timingCacheFile", "--refit", "--useDLACore", "--allowGPUFallback", "--warmUp", "--iterations",
    "--avgRuns", "--exportTimes", "--exportProfile", "--exportLayerInfo",
}  # fmt: skip
MEASURING = {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun"}
SINCE_8_6 = {"--memPoolSize", "--skipInference", "--builderOptimizationLevel", "--maxAuxStreams", "--versionCompatible",
             "--hardwareCompatibilityLevel"}  # fmt: skip
KNOWN = {
    (8, 2): SINCE_8_2 | MEASURING | {"--workspace", "--buildOnly", "--fp16", "--int8"},
    (8, 5): SINCE_8_2 | MEASURING | {"--workspace", "--memPoolSize", "--buildOnly", "--fp16", "--int8"},
    (10, 3): SINCE_8_2 | MEASURING | SINCE_8_6 | {"--fp16", "--int8", "--stronglyTyped", "--stripWeights"},
    (11, 1): SINCE_8_2 | SINCE_8_6 | {"--stronglyTyped", "--stripWeights"},
}
SHAPES = {"x": ProfileShapes(min=[1, 3, 8, 8], opt=[2, 3, 8, 8], max=[4, 3, 8, 8])}


def request(**changes: Any) -> BuildRequest:
    facts: dict[str, Any] = {
        "onnx": "m.onnx", "plan": "m.plan", "precision": "best", "strongly_typed": False, "shapes": SHAPES,
        "pools_bytes": {"WORKSPACE": 256 << 20, "TACTIC_DRAM": 1 << 30}, "timing_cache": "t.cache", "refit": True,
    }  # fmt: skip
    return BuildRequest(**{**facts, **changes})


def options(command: list[str]) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in command[1:])


@pytest.mark.parametrize("release", KNOWN)
def test_only_options_of_the_release_are_used(release: tuple[int, int], tmp_path: Path) -> None:
    typed = release >= (11,)
    full = {
        "builder_level": 2,
        "aux_streams": 0,
        "version_compatible": True,
        "hardware_compatible": True,
        "strip": True,
    }
    wanted = request(strongly_typed=typed, dla_core=0, **(full if release >= (8, 6) else {}))

    used = options(build_command(PROGRAM, release, wanted)) | options(
        measure_command(PROGRAM, release, tmp_path, tmp_path, SHAPES)
    )

    assert set(used) <= KNOWN[release]
    assert used["--maxShapes"] == "x:4x3x8x8"
    assert used["--shapes"] == "x:2x3x8x8"


def test_options_that_changed() -> None:
    assert options(build_command(PROGRAM, (8, 2, 1), request()))["--workspace"] == "256"
    assert options(build_command(PROGRAM, (8, 5, 2), request()))["--memPoolSize"] == "workspace:256"
    assert "--buildOnly" in build_command(PROGRAM, (8, 5, 2), request())
    assert "--skipInference" in build_command(PROGRAM, (8, 6, 1), request())
    assert {"--fp16", "--int8"} <= set(build_command(PROGRAM, (10, 3, 0), request()))
    typed = build_command(PROGRAM, (10, 13, 3), request(strongly_typed=True))
    assert "--stronglyTyped" in typed
    assert "--int8" not in typed
    # A model without open dimensions refuses shapes.
    assert not any("Shapes" in part for part in build_command(PROGRAM, (10, 3, 0), request(shapes={})))


FAKE = """#!{python}
import json, sys
given = dict(part.partition("=")[::2] for part in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec")
if "--onnx" in given:
    if "{mode}" == "fail":
        print("[E] Error[10]: Could not find any implementation for node conv.")
        sys.exit(1)
    open(given["--saveEngine"], "wb").write(b"ftrt" + bytes(20) + bytes([10, 3, 0, 26]) + b"engine")
if "--loadEngine" in given:
    if "{mode}" == "builds only":
        sys.exit(1)
    inputs = [{{"Format/Datatype": "Row major Int8 format"}}]
    layer = {{"Name": "conv", "LayerType": "CaskConvolution", "Inputs": inputs}}
    json.dump([{{"computeMs": 0.5}}, {{"computeMs": 0.7}}, {{"computeMs": 0.6}}], open(given["--exportTimes"], "w"))
    json.dump([{{"count": 3}}, {{"name": "conv", "averageMs": 0.25}}], open(given["--exportProfile"], "w"))
    json.dump({{"Layers": [layer], "Bindings": ["x", "y"]}}, open(given["--exportLayerInfo"], "w"))
"""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def program(folder: Path, mode: str = "works") -> Path:
    path = folder / "trtexec"
    path.write_text(FAKE.format(python=sys.executable, mode=mode))
    path.chmod(0o755)
    return path


def test_an_engine_is_built_and_measured_without_the_python_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "")
    monkeypatch.setenv("PATH", str(program(tmp_path).parent), prepend=":")
    onnx = write_net(tmp_path / "model.onnx", quantized=True)

    record = build_engine(onnx, tmp_path / "m.plan", load_target("jetson-orin"), BuildOptions(precision="best"))

    assert (record.builder, record.tensorrt, record.gpu_ms) == ("trtexec", "10.3.0.26", 0.6)
    assert record.layers is not None
    assert record.layers.weighted_int8 == 1
    assert record.inputs[0].shape == [-1, 3, 8, 8]
    assert record.comparison == []
    assert any("Outputs and accuracy were not checked" in warning for warning in record.warnings)


def test_an_engine_that_did_not_run_is_not_called_the_fastest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "")
    options = BuildOptions(precision="best", trtexec=program(tmp_path, "builds only"))
    onnx = write_net(tmp_path / "model.onnx", quantized=True)

    record = build_engine(onnx, tmp_path / "m.plan", load_target("jetson-orin"), options)

    assert record.gpu_ms is None
    assert [row.verdict for row in record.candidates] == ["chosen: the first, none has a time"]
    assert any("trtexec could not run the engine" in warning for warning in record.warnings)


def test_what_trtexec_says_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "")
    options = BuildOptions(trtexec=program(tmp_path, "fail"), workspace_bytes=1 << 28)

    with pytest.raises(TlcError, match=r"trtexec failed with status 1: .*Could not find any implementation") as caught:
        build_engine(write_net(tmp_path / "m.onnx"), tmp_path / "m.plan", load_target("jetson-orin"), options)
    assert "raise --workspace" in caught.value.hint


def test_where_it_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_trtexec() in (None, PROGRAM)
    assert find_trtexec(program(tmp_path)) == tmp_path / "trtexec"
    with pytest.raises(TlcError, match="no trtexec at nowhere"):
        find_trtexec(Path("nowhere"))


def test_its_version_is_in_its_banner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert trtexec_version(program(tmp_path)) == "10.3.0"
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    with pytest.raises(TlcError, match="does not show its version"):
        trtexec_version(silent)
