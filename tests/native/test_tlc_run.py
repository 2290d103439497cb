"""tlc-run speaks the language of tlc's own reports."""

import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from native_build import built, ort_library
from onnx import TensorProto, helper, save

from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.runtime.bench import latency_of
from tlc.runtime.bench_report import BenchReport
from tlc.runtime.health import model_warnings
from tlc.runtime.target import load_target
from tlc.runtime.worker import write_feeds

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tlc_run() -> Path:
    return built()


def told(tlc_run: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TLC_ORT_LIB"}
    command = [str(tlc_run), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def library() -> Path:
    return ort_library()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Relu of an open batch and width."""
    path = tmp_path_factory.mktemp("model") / "relu.onnx"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 8, "W"]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def report(tlc_run: Path, library: Path, model: Path) -> BenchReport:
    """What `tlc-run bench --json` says of it."""
    words = ("bench", model, "--duration", "0.1s", "--batch", "2", "--json", "--ort-lib", library)
    return BenchReport.model_validate_json(told(tlc_run, *words).stdout)


def test_its_report_is_a_bench_report_of_one_launch(report: BenchReport, model: Path) -> None:
    (one,) = report.models
    assert (one.name, one.path, one.status) == ("relu.onnx", str(model), "ok")
    assert len(one.launches) == 1
    assert one.setting.batch == 2
    assert one.setting.assumed == ["W"]
    assert one.launches[0].setting == one.setting
    assert report.machine["machine"] == os.uname().machine


def test_its_numbers_follow_from_the_samples_as_python_has_them(report: BenchReport) -> None:
    (one,) = report.models
    expected = latency_of(one.launches, None)
    assert one.latency is not None
    assert one.latency.quantiles == expected.quantiles
    for field in ("samples", "mean_ms", "min_ms", "spread_ratio", "throughput_per_s"):
        assert getattr(one.latency, field) == pytest.approx(getattr(expected, field), rel=1e-9), field


def test_its_warnings_are_python_s(report: BenchReport) -> None:
    (one,) = report.models
    own = [warning for warning in report.warnings if warning.model is not None]
    assert own == model_warnings(one.name, one.launches)
    assert "size_assumed" in {warning.code for warning in own}


def test_layers_are_timed_where_asked_for(tlc_run: Path, library: Path, model: Path, tmp_path: Path) -> None:
    words = ("bench", model, "--rounds", "1", "--no-energy", "--profile", "--size", "W=50000", "--ort-lib", library)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path))
        one = BenchReport.model_validate_json(told(tlc_run, *words, "--json").stdout).models[0]
        assert one.layers is not None
        assert [layer.kind for layer in one.layers] == ["Relu"]
        assert one.layers[0].ratio == 1
        assert "100.0 %  Relu" in told(tlc_run, *words).stdout
        assert list(tmp_path.iterdir()) == []
        patch.setenv("TMPDIR", "/nowhere")
        assert "cannot make the folder /nowhere/" in told(tlc_run, *words, status=1).stderr


def test_nothing_is_left_on_the_device(tlc_run: Path, library: Path, model: Path, tmp_path: Path) -> None:
    # ONNX Runtime 1.31 would keep a number of the device, and what it has not yet sent, in the cache folder.
    places = {name: str(tmp_path / name) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        Path(place).mkdir()
    words = ("bench", "--rounds", "1", "--no-energy", "--ort-lib", str(library), str(model))
    subprocess.run([tlc_run, *words], env=places, capture_output=True, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_real_inputs_are_run_in_turns(tlc_run: Path, library: Path, model: Path, tmp_path: Path) -> None:
    feeds = [{"x": np.ones((1, 3, 8, 4 + place), np.float32)} for place in range(3)]
    write_feeds(tmp_path / "inputs.npz", feeds)
    words = ("bench", model, "--inputs", tmp_path / "inputs.npz", "--rounds", "2", "--json", "--no-energy")
    report = BenchReport.model_validate_json(told(tlc_run, *words, "--ort-lib", library).stdout)
    launch = report.models[0].launches[0]
    assert launch.block % 3 == 0
    assert launch.setting.shapes == {"x": [1, 3, 8, 4]}
    assert launch.setting.assumed == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The model with open sizes, packed."""
    path = tmp_path_factory.mktemp("bundle") / "relu.tlc"
    pack(source_of_file(model, load_target("cpu-x86"), fed=None, classes=(), tokenizer=None), path, PackOptions())
    return path


def test_a_bundle_is_measured_by_its_golden_inputs(
    tlc_run: Path, library: Path, bundle: Path, model: Path, tmp_path: Path
) -> None:
    words = ("bench", bundle, "--rounds", "1", "--json", "--no-energy", "--ort-lib", library)
    one = BenchReport.model_validate_json(told(tlc_run, *words).stdout).models[0]
    assert (one.name, one.size_bytes) == ("relu.tlc", model.stat().st_size)
    assert one.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    with np.load(bundle) as members, zipfile.ZipFile(bundle) as archive:
        golden = json.loads(archive.read("manifest.json"))["golden"]["samples"]
        shapes = [list(members[sample["inputs"][0].removesuffix(".npy")].shape) for sample in golden]
    assert one.setting.shapes == {"x": shapes[0]}
    assert one.setting.assumed == []
    assert one.launches[0].block % len(golden) == 0
    given = BenchReport.model_validate_json(told(tlc_run, *words, "--size", "W=9", "--threads", "2").stdout).models[0]
    assert given.setting.shapes == {"x": [1, 3, 8, 9]}
    assert given.setting.threads == 2
    changed = tmp_path / "changed.tlc"
    content = bytearray(bundle.read_bytes())
    content[content.index(model.read_bytes()) + 40] ^= 1
    changed.write_bytes(content)
    done = told(tlc_run, "bench", changed, "--rounds", "1", "--ort-lib", library, status=1)
    assert "model.onnx" in done.stderr
    assert done.stdout == ""


def test_info_says_what_is_there(tlc_run: Path, library: Path) -> None:
    info: dict[str, Any] = json.loads(told(tlc_run, "info", "--json", "--ort-lib", library).stdout)
    ort = info["backends"]["onnxruntime"]
    assert ort == {"version": f"onnxruntime {onnxruntime.__version__}", "problem": ""}
    assert info["machine"] == os.uname().machine
    assert info["environment"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert f"onnxruntime {onnxruntime.__version__}\n" in told(tlc_run, "info", "--ort-lib", library).stdout


def test_info_fails_where_a_library_that_was_named_does_not_load(tlc_run: Path) -> None:
    done = told(tlc_run, "info", "--json", "--ort-lib", "/no/lib.so", status=1)
    assert "cannot load ONNX Runtime: /no/lib.so" in json.loads(done.stdout)["backends"]["onnxruntime"]["problem"]
    assert done.stderr.startswith("error: cannot load ONNX Runtime: /no/lib.so")
    assert "\nhint: " in done.stderr


def test_each_command_explains_itself(tlc_run: Path) -> None:
    whole = told(tlc_run, "--help").stdout
    for command in ("check", "build", "bench", "eval", "serve-once", "worker", "info"):
        assert f"\n  {command} " in whole
        own = told(tlc_run, command, "--help").stdout
        assert own.startswith(f"Usage: tlc-run {command} ")
        assert max(map(len, own.splitlines())) <= 120


def test_a_full_disk_is_an_error(tlc_run: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run([tlc_run, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write the result to stdout")


def test_it_has_the_version_of_the_python_package(tlc_run: Path) -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    version = project.partition('\nversion = "')[2].partition('"')[0]
    assert told(tlc_run, "--version").stdout == f"tlc-run {version}\n"
