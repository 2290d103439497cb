"""tlc-run builds and runs engines with doubles of CUDA and of four generations of TensorRT.

No GPU and no TensorRT is needed: `tests/native/double` stands in for both, and each network "runs" as y = relu(x). What
is tested is tlc-run's side: which calls it makes with which settings, and what it does when they fail.
"""

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import rewritten, write_bundle
from native_build import built
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tlc.calibration.preprocess import Preprocess
from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.export.engine_limits import pool_limits, timing_cache_path
from tlc.runtime.cuda import Device
from tlc.runtime.gpu import EngineHost
from tlc.runtime.plan import EngineRecord, ProfileShapes, plan_version, read_record
from tlc.runtime.target import load_target

GIB = 1 << 30
TARGETS = {"8.2": "jetson-nano", "8.6": "jetson-xavier", "10.3": "jetson-orin", "11.1": "cuda-trt11"}
"""A target for each generation; Xavier's is 8.5."""
SHAPES = {"x": ProfileShapes(min=[1, 3, 8, 8], opt=[2, 3, 8, 8], max=[4, 3, 8, 8])}


@dataclass(frozen=True)
class Native:
    """A tlc-run compiled for one release, and where it runs."""

    release: str
    folder: Path
    bundle: Path
    env: dict[str, str]

    def run(
        self, *arguments: object, program: str = "tlc-run", cuda: str = "", tensorrt: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the release; `cuda` and `tensorrt` are how the doubles behave."""
        env = {**self.env, "TLC_DOUBLE_CUDA": cuda, "TLC_DOUBLE_TENSORRT": tensorrt}
        command = [str(self.folder / program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)

    def build(self, *options: object, **behaviour: str) -> EngineRecord:
        """Build the bundle's engine, and return its record as Python reads it."""
        done = self.run("build", self.bundle, *options, **behaviour)
        assert done.returncode == 0, done.stderr
        return read_record(self.plan)

    def error(self, *arguments: object, **behaviour: str) -> str:
        """Run what has to fail, and return what it says."""
        done = self.run(*arguments, **behaviour)
        assert done.returncode == 1, (done.returncode, done.stderr)
        assert "hint: " in done.stderr
        return done.stderr

    @property
    def plan(self) -> Path:
        """Beside the bundle."""
        return self.bundle.with_suffix(".plan")

    @property
    def said(self) -> str:
        """What the builder was asked for, which the double writes into its plans."""
        return self.plan.read_bytes()[28:].decode()

    @property
    def is_named(self) -> bool:
        """Whether tensors have names and not indices."""
        return self.release != "8.2"


def native_folder() -> Path:
    """Where tlc-run and the doubles of TensorRT are."""
    return built("tests/native/double").parents[2]


def relu(path: Path, batch: int | str = "N") -> Path:
    """Write an ONNX file of one Relu."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 8, 8]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def relu_bundle(folder: Path, release: str, **options: Any) -> Path:
    """A bundle of it for a target of that release."""
    path = folder / "relu.tlc"
    model = relu(folder / "relu.onnx", **({"batch": 2} if not options.get("shapes") else {}))
    pack(source_of_file(model, load_target(TARGETS[release]), fed=None, classes=()), path, PackOptions(**options))
    return path


def make_device(tmp_path: Path, release: str, **options: Any) -> Native:
    """The tlc-run of a release, with its own cache, that tells leaks of GPU memory."""
    doubles = native_folder() / "tests" / "native" / "double"
    major = release.partition(".")[0]
    env = {
        **os.environ,
        "TLC_CUDART": str(doubles / "libcudart.so"),
        "TLC_TENSORRT_LIB": str(doubles / release / f"libnvinfer.so.{major}"),
        "TLC_DOUBLE_LEAKS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    bundle = relu_bundle(tmp_path, release, **(options or {"shapes": SHAPES}))
    return Native(release, doubles / release, bundle, env)


@pytest.fixture(params=list(TARGETS))
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Native:
    """Each generation, with an open batch of 1 to 4."""
    return make_device(tmp_path, request.param)


@pytest.fixture
def orin(tmp_path: Path) -> Native:
    """10.3 alone."""
    return make_device(tmp_path, "10.3")


def test_the_record_is_the_engine_s_as_python_reads_it(device: Native) -> None:
    record = device.build()
    assert (record.builder, record.sm, record.gpu) == ("tlc-run", "8.7", "Double GPU")
    assert record.plan_bytes == device.plan.stat().st_size
    assert (record.target, record.onnx, record.precision) == (TARGETS[device.release], "model.onnx", "fp32")
    assert record.strongly_typed == (device.release == "11.1")
    assert [(t.name, t.shape, t.dtype) for t in (*record.inputs, *record.outputs)] == [
        ("x", [-1, 3, 8, 8], "float32"),
        ("y", [-1, 3, 8, 8], "float32"),
    ]
    assert record.profile == SHAPES
    assert record.device_memory_bytes == 4096
    assert record.attempts == []
    assert "Weights [name=w] have subnormal values" in record.warnings
    header = plan_version(device.plan)
    assert header == (f"{device.release}.0.7" if device.release in ("10.3", "11.1") else None)
    assert record.tensorrt == (header or f"{device.release}.0")


def test_the_builder_is_asked_as_the_release_wants_it(device: Native) -> None:
    record = device.build()
    # Explicit batch is a flag before 10; strong typing is implied by 11.
    assert device.said.startswith("network 1\n" if device.release in ("8.2", "8.6") else "network 0\n")
    assert "config verbosity 2\n" in device.said
    assert f"config workspace {record.pools_bytes['WORKSPACE']}\n" in device.said
    assert "aux_streams" not in device.said
    for which in ("1", "2", "4"):
        assert f"profile x {which} 3 8 8\n" in device.said


@pytest.mark.parametrize(
    ("release", "precision", "asked", "recorded"),
    [
        ("8.2", "fp16", ["fp16"], "fp16"),
        ("8.6", "int8", ["fp16", "int8"], "best"),
        ("10.3", "fp16", ["fp16"], "fp16"),
        ("10.3", "int8", ["fp16", "int8"], "best"),
        ("11.1", "int8", [], "int8"),
    ],
)
def test_precisions_are_flags_only_where_the_file_does_not_hold_them(
    tmp_path: Path, release: str, precision: str, asked: list[str], recorded: str
) -> None:
    device = make_device(tmp_path, release)
    rewritten(device.bundle, {}, manifest=lambda manifest: manifest.update(precision=precision))
    assert device.build().precision == recorded
    flags = [line.split()[1] for line in device.said.splitlines() if line.startswith("config ")]
    assert [flag for flag in flags if flag in ("fp16", "int8")] == asked


def test_closed_shapes_need_no_profile(tmp_path: Path) -> None:
    device = make_device(tmp_path, "10.3", workspace_bytes=GIB // 4, builder_level=1)
    record = device.build()
    assert "profile x" not in device.said
    assert record.profile["x"] == ProfileShapes(min=[2, 3, 8, 8], opt=[2, 3, 8, 8], max=[2, 3, 8, 8])
    assert (record.pools_bytes["WORKSPACE"], record.builder_level) == (GIB // 4, 1)
    assert "config level 1\n" in device.said


def probe(device: Native, tmp_path: Path, batches: list[int], *, contexts: int = 1, **behaviour: str) -> str:
    """Run the engine on noise of these batches, hold the outputs against relu, and return stderr."""
    rng = np.random.default_rng(0)
    feeds: dict[Path, NDArray[np.float32]] = {}
    for number, batch in enumerate(batches):
        folder = tmp_path / f"feed{number}"
        folder.mkdir(exist_ok=True)
        feeds[folder] = rng.standard_normal((batch, 3, 8, 8)).astype(np.float32)
        np.save(folder / "0.npy", feeds[folder])
    arguments = ["tensorrt", "", "path", device.plan, contexts, *feeds]
    done = device.run(*arguments, program="backend_probe", **behaviour)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runtime"] == f"tensorrt {device.release}.0 on Double GPU"
    for folder, feed in feeds.items():
        np.testing.assert_array_equal(np.load(folder / "out0.npy"), np.maximum(feed, 0), strict=True)
    return done.stderr


def test_inference_follows_the_shapes_and_gives_all_memory_back(device: Native, tmp_path: Path) -> None:
    device.build()
    assert probe(device, tmp_path, [1, 4, 4, 2, 1]) == ""


def test_without_a_cuda_graph_it_runs_too_and_says_so(device: Native, tmp_path: Path) -> None:
    device.build()
    error = probe(device, tmp_path, [1, 2], cuda="no-capture")
    assert error.count("no CUDA graph, every kernel is launched on its own: CUDA: cudaStreamBeginCapture") == 1


def test_streams_share_an_engine_where_the_release_lets_them(device: Native, tmp_path: Path) -> None:
    device.build()
    if device.release in ("10.3", "11.1"):
        assert probe(device, tmp_path, [1, 2, 3], contexts=4) == ""
    else:
        error = device.error("tensorrt", "", "path", device.plan, 2, program="backend_probe")
        assert "runs an engine with open dimensions in one context only" in error


def test_check_takes_the_engine_beside_the_bundle(device: Native) -> None:
    device.build()
    done = device.run("check", device.bundle)
    assert done.returncode == 0, (done.stdout, done.stderr)
    device.plan.unlink()
    assert f"cannot read {device.plan}" in device.error("check", device.bundle)


@pytest.mark.parametrize(("how", "says"), [("kill", "was ended by SIGKILL while trying kernels"), ("memory", "Tactic")])
def test_too_little_memory_is_tried_again_with_less(device: Native, how: str, says: str) -> None:
    rewritten(device.bundle, {}, manifest=lambda manifest: manifest["build"].update(workspace_bytes=GIB))
    record = device.build(tensorrt=f"{how}-above:300")
    assert record.pools_bytes["WORKSPACE"] == GIB // 4
    assert [words.partition(":")[0] for words in record.attempts] == [
        "WORKSPACE 1024 MiB",
        "WORKSPACE 512 MiB" + ("" if device.release == "8.2" else ", level 2"),
    ]
    assert all(says in words for words in record.attempts)
    # Builder levels and extra streams are known from 8.6 on.
    assert ("config level 2\nconfig" in device.said) == (device.release != "8.2")
    assert ("config aux_streams 0\n" in device.said) == (device.release != "8.2")
    assert record.builder_level == (None if device.release == "8.2" else 2)


def test_a_layer_without_kernel_is_tried_again_with_more(orin: Native) -> None:
    record = orin.build(tensorrt="kernel-below:2048")
    assert record.pools_bytes == {"WORKSPACE": 4 * GIB}
    assert record.attempts == [
        "WORKSPACE 1024 MiB: TensorRT 10.3.0 cannot build model.onnx: Could not find any implementation for node conv1."
    ]


def test_what_never_fits_names_the_pool_and_every_try(orin: Native) -> None:
    error = orin.error("build", orin.bundle, tensorrt="kill-above:0")
    assert error.count("building model.onnx with ") == 4
    assert "tried before: WORKSPACE 1024 MiB: " in error
    assert "the system kills what takes the last memory (WORKSPACE 128 MiB, level 2)" in error
    assert "hint: Give it less with --workspace" in error
    assert not orin.plan.exists()
    assert list(orin.bundle.parent.glob("*.part")) == []


def test_a_workspace_that_was_asked_for_is_kept(orin: Native) -> None:
    error = orin.error("build", orin.bundle, "--workspace", 572, tensorrt="memory-above:300")
    assert error.count("building model.onnx with ") == 1
    assert "Memory ran out (WORKSPACE 572 MiB): stop what else uses the GPU" in error


def test_a_crash_of_the_builder_is_an_answer(orin: Native) -> None:
    error = orin.error("build", orin.bundle, tensorrt="crash")
    assert "was ended by signal 11 (Segmentation fault) while trying kernels: TensorRT itself crashed" in error


def test_the_parser_s_words_name_the_node(device: Native) -> None:
    error = device.error("build", device.bundle, tensorrt="no-node")
    node = "mystery_3" if device.release in ("10.3", "11.1") else "3"
    assert f"cannot read model.onnx: node {node}: Unsupported operator Mystery" in error


def test_shapes_that_the_bundle_lacks_are_asked_for(orin: Native) -> None:
    rewritten(orin.bundle, {}, manifest=lambda manifest: manifest["build"].update(profile={}))
    error = orin.error("build", orin.bundle)
    assert "input x of model.onnx is [?x3x8x8], and the bundle's build.profile has no shapes for it" in error


def test_pools_are_python_s(device: Native) -> None:
    for cuda, is_integrated in (("", False), ("integrated", True)):
        record = device.build(cuda=cuda)
        gpu = Device("Double GPU", "8.7", is_integrated, 4 * GIB, 8 * GIB)
        host = EngineHost(f"{device.release}.0", "", True, gpu, "", None, "")
        trt = load_target(TARGETS[device.release]).tensorrt
        assert trt is not None
        expected = pool_limits(trt.workspace_bytes, host)
        assert list(record.pools_bytes) == list(expected)
        assert ("TACTIC_DRAM" in expected) == (is_integrated and device.release != "8.2")
        # What is available changes from one moment to the next.
        for name, size_bytes in expected.items():
            assert record.pools_bytes[name] == pytest.approx(size_bytes, rel=0.2)


def test_timings_are_kept_in_the_file_of_tlc_build(orin: Native) -> None:
    assert orin.build().timing_cache_hit is False
    gpu = Device("Double GPU", "8.7", False, 0, 0)
    path = timing_cache_path(EngineHost("10.3.0", "", True, gpu, "", None, ""), orin.env)
    assert path.read_text() == "timings\n"
    assert orin.build().timing_cache_hit is True
    path.write_text("of another device")
    assert orin.build().timing_cache_hit is False
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")
    assert any("timings are not kept for the next build" in words for words in orin.build().warnings)


@pytest.mark.parametrize(
    ("cuda", "says"), [("no-gpu", "no CUDA-capable device is detected"), ("old-driver", "CUDA driver version is ins")]
)
def test_without_a_gpu_tensorrt_is_not_touched(device: Native, cuda: str, says: str) -> None:
    device.build()
    env_error = device.error("build", device.bundle, cuda=cuda)
    assert f"error: no NVIDIA GPU: CUDA: cudaGetDeviceCount: {says}" in env_error
    assert "Check the driver with nvidia-smi" in env_error
    assert says in device.error("check", device.bundle, cuda=cuda)


def test_another_major_version_is_refused_before_it_is_called(device: Native) -> None:
    error = device.error("build", device.bundle, tensorrt="other-version")
    assert f"this tlc-run was compiled for TensorRT {device.release} and later of the same major version" in error
    assert "libnvinfer.so" in error
    assert "is 9.9.0" in error
    assert "hint: Build tlc-run on this machine" in error


def test_a_target_of_another_release_is_refused(orin: Native) -> None:
    rewritten(orin.bundle, {}, manifest=lambda manifest: manifest["target"]["tensorrt"].update(version="8.5"))
    assert "is for TensorRT 8.5, and this machine has 10.3.0" in orin.error("build", orin.bundle)
    rewritten(orin.bundle, {}, manifest=lambda manifest: manifest["target"]["tensorrt"].update(version="10.7"))
    assert "is for TensorRT 10.7, and this machine has 10.3.0" in orin.error("build", orin.bundle)


def test_an_older_release_and_another_gpu_are_warnings(tmp_path: Path) -> None:
    device = make_device(tmp_path, "8.6")
    rewritten(device.bundle, {}, manifest=lambda manifest: manifest["target"]["tensorrt"].update(sm=["7.2"]))
    first, second, *_ = device.build().warnings
    assert first == "Built by TensorRT 8.6.0; target jetson-xavier is described for 8.5."
    assert second == "Built on SM 8.7 (Double GPU): it does not run on jetson-xavier, which has SM 7.2."


def changed_record(device: Native, **changes: object) -> None:
    place = device.plan.with_name(device.plan.name + ".json")
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sm": "7.2", "gpu": "Xavier"}, "was built for SM 7.2 (Xavier), this GPU is SM 8.7 (Double GPU)"),
        ({"tensorrt": "10.3.0.26"}, "was built by TensorRT 10.3.0.7, its sidecar says 10.3.0.26"),
        ({"stripped": True}, "was built with --strip: it has no weights"),
        ({"plan_sha256": "0" * 64}, "is not the plan that its sidecar describes: SHA-256 "),
        ({"sm": 8}, "is not an engine's record: sm "),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_reason(orin: Native, changes: dict[str, Any], says: str) -> None:
    orin.build()
    changed_record(orin, **changes)
    assert says in orin.error("check", orin.bundle)


def test_a_hardware_compatible_plan_runs_on_another_gpu(orin: Native, tmp_path: Path) -> None:
    orin.build()
    changed_record(orin, sm="8.6", hardware_compatible=True)
    probe(orin, tmp_path, [1])


def test_a_plan_of_another_release_is_refused(orin: Native) -> None:
    orin.build()
    content = bytearray(orin.plan.read_bytes())
    content[25] = 7
    orin.plan.write_bytes(content)
    changed_record(orin, plan_sha256=hashlib.sha256(content).hexdigest(), tensorrt="10.7.0.7")
    error = orin.error("check", orin.bundle)
    assert "was built by TensorRT 10.7.0.7, this machine has 10.3.0: a plan runs on the release that built it" in error


def test_a_plan_without_sidecar_and_a_file_that_is_none_are_refused(orin: Native) -> None:
    orin.build()
    orin.plan.with_name(orin.plan.name + ".json").unlink()
    assert "has no sidecar" in orin.error("check", orin.bundle)
    orin.plan.write_bytes(b"ONNX" * 10)
    assert 'is not a TensorRT plan: it has 40 bytes and begins with "ONNX"' in orin.error("check", orin.bundle)


def test_a_refused_inference_names_shapes(orin: Native) -> None:
    orin.build()
    assert "failed on x [" in orin.error("check", orin.bundle, tensorrt="no-enqueue")


def test_shapes_outside_the_profile_are_refused(orin: Native, tmp_path: Path) -> None:
    orin.build()
    np.save(tmp_path / "0.npy", np.zeros((5, 3, 8, 8), np.float32))
    error = orin.error("tensorrt", "", "path", orin.plan, 1, tmp_path, program="backend_probe")
    assert "input x takes shapes from [1x3x8x8] to [4x3x8x8], got [5x3x8x8]" in error


def test_json_is_the_record(orin: Native, tmp_path: Path) -> None:
    done = orin.run("build", orin.bundle, "--out", tmp_path / "new" / "folder", "--json")
    assert done.returncode == 0
    written = (tmp_path / "new" / "folder" / "relu.plan.json").read_text()
    assert written == done.stdout
    assert EngineRecord.model_validate_json(done.stdout).builder == "tlc-run"


def test_the_record_keeps_what_feeds_the_model(tmp_path: Path) -> None:
    device = make_device(tmp_path, "10.3")
    bundle = write_bundle(device.bundle, target="jetson-orin")
    record = device.build()
    manifest = json.loads(device.run("build", bundle, "--json").stdout)
    assert record.preprocess is not None
    assert record.preprocess == manifest["preprocess"]
    Preprocess.model_validate_json(record.preprocess)
    assert record.classes == manifest["classes"]
    assert len(record.classes) > 1


def test_other_runtimes_have_nothing_to_build(orin: Native, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "cpu.tlc")
    done = orin.run("build", bundle)
    assert (done.returncode, done.stdout) == (0, "cpu runs in onnxruntime: nothing is to be built\n")


def test_a_tlc_run_without_tensorrt_says_so(orin: Native) -> None:
    program = native_folder() / "tlc-run"
    done = subprocess.run([program, "build", orin.bundle], capture_output=True, text=True, check=False, env=orin.env)
    if "this tlc-run was compiled without TensorRT's headers" not in done.stderr:
        pytest.skip(f"{program} has TensorRT's headers")
    assert done.returncode == 1
