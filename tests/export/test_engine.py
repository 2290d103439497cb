"""Building over stand-ins for TensorRT and CUDA: what happens above the library's boundary, in real children."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tensorrt_double import ORIN, PC, TARGETS, XAVIER, forget, install, write_net

from tlc.export.engine import BuildOptions, build_engine, refit_engine
from tlc.export.engine_evaluate import compared
from tlc.export.engine_limits import larger, pool_limits, smaller, timing_cache_path
from tlc.export.engine_options import candidates, profile_shapes
from tlc.export.engine_process import ChildError, cause_of, run_child
from tlc.export.onnx_facts import read_onnx_facts
from tlc.runtime.cuda import Device
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.gpu import EngineHost
from tlc.runtime.plan import EngineRecord, ProfileShapes, read_record
from tlc.runtime.target import load_target
from tlc.runtime.tensorrt import TensorRTSession

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def build(folder: Path, version: str, onnx: Path, **options: Any) -> EngineRecord:
    target = load_target(TARGETS[version][0])
    return build_engine(onnx, folder / "model.plan", target, BuildOptions(rounds=1, samples=2, **options))


@pytest.mark.parametrize(
    ("version", "precision", "typed"),
    [("8.5.3.1", "best", False), ("10.3.0", "best", False), ("11.1.0.106", "int8", True)],
)
def test_a_quantized_file_becomes_an_engine_that_proves_int8(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, precision: str, typed: bool
) -> None:
    install(monkeypatch, tmp_path, version, TARGETS[version][1])
    onnx = write_net(tmp_path / "model.onnx", quantized=True)

    record = build(tmp_path, version, onnx, **({} if typed else {"precision": precision}))

    assert read_record(tmp_path / "model.plan") == record
    assert (record.precision, record.strongly_typed, record.builder) == (precision, typed, "python")
    assert record.tensorrt.startswith(version.removesuffix(".106"))
    assert record.onnx_sha256 == read_onnx_facts(onnx).sha256
    assert record.layers is not None
    assert (record.layers.weighted, record.layers.weighted_int8, record.layers.reformats) == (1, 1, 2)
    assert [row.name for row in record.comparison] == ["y"]
    assert record.comparison[0].max_abs == 0
    assert record.classes == ["a", "b", "c", "d"]
    assert record.profile == {"x": ProfileShapes(min=[1, 3, 8, 8], opt=[1, 3, 8, 8], max=[1, 3, 8, 8])}
    assert any("Accuracy was not checked" in warning for warning in record.warnings)


def test_auto_builds_what_is_allowed_and_keeps_the_fastest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    onnx, int8 = write_net(tmp_path / "model.onnx"), write_net(tmp_path / "int8.onnx", quantized=True)

    record = build(tmp_path, "10.3.0", onnx, alternatives=(int8,))

    rows = {(row.onnx, row.precision): row for row in record.candidates}
    assert set(rows) == {("model.onnx", "fp16"), ("int8.onnx", "int8"), ("int8.onnx", "best")}
    fastest = min(record.candidates, key=lambda row: row.latency_ms or 0)
    assert (record.onnx, record.precision) == (fastest.onnx, fastest.precision)
    assert fastest.verdict == "chosen: the fastest"
    assert sum(row.verdict == "slower" for row in record.candidates) == 2


def test_timings_are_kept_by_release_gpu_and_sm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    onnx = write_net(tmp_path / "model.onnx")

    assert build(tmp_path, "10.3.0", onnx).timing_cache_hit is False
    assert build(tmp_path, "10.3.0", onnx).timing_cache_hit is True
    assert [path.name for path in (tmp_path / "cache/tlc/timing").iterdir()] == ["10.3.0_Orin_sm8.7.cache"]
    assert build(tmp_path, "10.3.0", onnx, timing_cache="off").timing_cache_hit is None


def test_a_builder_that_is_killed_is_tried_with_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    monkeypatch.setenv("TLC_FAKE_FAILURE", "kill_above:512")

    record = build(tmp_path, "10.3.0", write_net(tmp_path / "model.onnx"))

    assert record.pools_bytes["WORKSPACE"] == 512 * MIB
    assert record.builder_level == 2
    assert "was ended by SIGKILL while trying kernels" in record.attempts[0]
    assert "WORKSPACE 1024 MiB" in record.attempts[0]


def test_a_workspace_that_was_asked_for_is_not_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    monkeypatch.setenv("TLC_FAKE_FAILURE", "kill_above:1")

    with pytest.raises(TlcError, match=r"SIGKILL .*WORKSPACE 256 MiB") as caught:
        build(tmp_path, "10.3.0", write_net(tmp_path / "model.onnx"), workspace_bytes=256 * MIB)
    assert "--workspace" in caught.value.hint


def test_a_layer_without_kernel_is_tried_with_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    monkeypatch.setenv("TLC_FAKE_FAILURE", "no_kernel:2048")

    record = build(tmp_path, "10.3.0", write_net(tmp_path / "model.onnx"))

    assert record.pools_bytes["WORKSPACE"] == 4096 * MIB
    assert "Could not find any implementation" in record.attempts[0]


@pytest.mark.parametrize(
    ("failure", "message", "hint"),
    [
        ("segv", "was ended by SIGSEGV while trying kernels: TensorRT itself crashed", "tlc check"),
        ("unreadable", "cannot read .*model.onnx: node relu: No importer registered for op: Relu", "tlc check"),
        ("stuck", "took more than 8 s and was stopped", "--timeout"),
    ],
)
def test_how_builders_fail_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: str, message: str, hint: str
) -> None:
    install(monkeypatch, tmp_path, "8.5.3.1", XAVIER)
    monkeypatch.setenv("TLC_FAKE_FAILURE", failure)

    with pytest.raises(TlcError, match=message) as caught:
        build(tmp_path, "8.5.3.1", write_net(tmp_path / "model.onnx"), timeout_s=8 if failure == "stuck" else 600)
    assert hint in caught.value.hint
    assert not (tmp_path / "model.plan").exists()


@pytest.mark.parametrize(
    ("version", "target", "gpu", "message"),
    [
        ("10.3.0", "jetson-xavier", ORIN, r"for TensorRT 8\.5, and this machine has 10\.3\.0"),
        ("8.5.3.1", "jetson-orin", ORIN, r"for TensorRT 10\.3, and this machine has 8\.5\.3\.1"),
        ("", "jetson-orin", ORIN, "no working TensorRT for .*no TensorRT in this test"),
    ],
)
def test_the_wrong_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, target: str, gpu: str, message: str
) -> None:
    install(monkeypatch, tmp_path, version, gpu)

    with pytest.raises(TlcError, match=message):
        build_engine(write_net(tmp_path / "m.onnx"), tmp_path / "m.plan", load_target(target), BuildOptions())


def test_a_machine_without_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    monkeypatch.setenv("TLC_FAKE_NO_GPU", "1")

    with pytest.raises(TlcError, match=r"TensorRT 10\.3\.0 is here but no NVIDIA GPU"):
        build(tmp_path, "10.3.0", write_net(tmp_path / "model.onnx"))


def test_another_gpu_and_a_later_release_are_warnings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.7.0", PC)
    onnx = write_net(tmp_path / "model.onnx")

    record = build_engine(onnx, tmp_path / "m.plan", load_target("jetson-orin"), BuildOptions(rounds=1, samples=1))

    assert record.warnings[0] == "Built by TensorRT 10.7.0; target jetson-orin is described for 10.3."
    assert record.warnings[1].startswith("Built on SM 8.9 (RTX 4090): it does not run on jetson-orin")


def test_the_dla_takes_a_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")

    record = build(tmp_path, "10.3.0", write_net(tmp_path / "model.onnx"), dla_core=1)

    assert (record.dla_core, record.dla_layer_ratio, record.precision) == (1, 0.25, "fp16")


def test_stripped_engines_are_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")

    record = build(tmp_path, "10.3.0", write_net(tmp_path / "model.onnx"), strip=True)

    assert record.stripped
    assert record.gpu_ms is None
    assert any("weights are stripped" in warning for warning in record.warnings)


def scaled(source: Path, out: Path, factor: float, name: str = "w") -> Path:
    """Write the net of `source` with other weights, of another name if asked."""
    model = onnx.load(source)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(factor * numpy_helper.to_array(weight), name))
    for node in model.graph.node:
        node.input[:] = [name if value == "w" else value for value in node.input]
    onnx.save(model, out)
    return out


def run(plan: Path) -> Any:
    with TensorRTSession(plan) as session:
        return session.run({"x": np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)})["y"]


def put(model: Path, plan: Path, version: str, **options: Any) -> EngineRecord:
    target = load_target(TARGETS[version][0])
    return refit_engine(model, plan, plan.with_name("full.plan"), target, BuildOptions(rounds=1, samples=2, **options))


@pytest.mark.parametrize("version", ["10.3.0", "11.1.0.106"])
def test_a_stripped_plan_gets_its_weights_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    install(monkeypatch, tmp_path, version, TARGETS[version][1])
    model, plan = write_net(tmp_path / "model.onnx"), tmp_path / "model.plan"
    build(tmp_path, version, model)
    expected = run(plan)
    stripped = build(tmp_path, version, model, strip=True)
    with pytest.raises(TlcError, match=r"was built with --strip: it has no weights") as caught:
        run(plan)
    assert f"--into {plan} -o model.plan" in caught.value.hint

    record = put(model, plan, version)

    np.testing.assert_array_equal(run(tmp_path / "full.plan"), expected)
    assert np.abs(expected).min() > 0
    assert read_record(tmp_path / "full.plan") == record
    assert (record.stripped, record.refittable) == (False, False)
    assert record.plan_sha256 != stripped.plan_sha256
    assert record.plan_bytes == (tmp_path / "full.plan").stat().st_size
    assert record.gpu_ms is not None
    assert record.layers is not None
    assert record.comparison[0].max_abs == 0
    assert [row.verdict for row in record.candidates] == ["chosen: the fastest"]
    assert not any("stripped" in warning for warning in record.warnings)
    assert sum("Accuracy was not checked" in warning for warning in record.warnings) == 1


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("version", ["10.3.0", "11.1.0.106"])
def test_a_refittable_plan_takes_other_weights_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, strip: bool
) -> None:
    install(monkeypatch, tmp_path, version, TARGETS[version][1])
    model, plan, full = write_net(tmp_path / "model.onnx"), tmp_path / "model.plan", tmp_path / "full.plan"
    build(tmp_path, version, model, strip=strip, refit=True)

    put(model, plan, version)
    before = run(full)
    record = put(scaled(model, tmp_path / "other.onnx", 3.0), full, version)

    np.testing.assert_allclose(run(full), 3 * before, rtol=1e-5)
    assert (record.onnx, record.refittable) == ("other.onnx", True)
    assert record.comparison[0].max_abs == 0
    assert sum("Accuracy was not checked" in warning for warning in record.warnings) == 1
    with pytest.raises(TlcError, match=r"renamed.onnx lacks weights of .*full.plan, 1 in all: w\n") as caught:
        put(scaled(model, tmp_path / "renamed.onnx", 1.0, "v"), full, version)
    assert "of the same network" in caught.value.hint
    assert read_record(full) == record


def test_weights_that_a_plan_does_not_take_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    model, plan = write_net(tmp_path / "model.onnx"), tmp_path / "model.plan"
    other = scaled(model, tmp_path / "other.onnx", 2.0)

    build(tmp_path, "10.3.0", model)
    with pytest.raises(UsageError, match=r"built with neither --strip nor --refit"):
        put(model, plan, "10.3.0")
    build(tmp_path, "10.3.0", model, strip=True)
    with pytest.raises(UsageError, match=r"takes back the weights of model.onnx .* and .*other.onnx is another file"):
        put(other, plan, "10.3.0")
    with pytest.raises(UsageError, match=r"--target cuda, and .* was built for jetson-orin"):
        put(model, plan, "10.13.3.9")
    with pytest.raises(UsageError, match="--precision, --also would change that"):
        put(model, plan, "10.3.0", precision="fp16", alternatives=(other,))
    monkeypatch.setenv("TLC_FAKE_FAILURE", "unreadable")
    with pytest.raises(TlcError, match=r"cannot read .*model.onnx: node relu: No importer registered for op: Relu"):
        put(model, plan, "10.3.0")
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(TlcError, match=r"is not the plan that model.plan.json describes"):
        put(model, plan, "10.3.0")
    assert not (tmp_path / "full.plan").exists()


def test_a_release_that_cannot_put_weights_in_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "8.5.3.1", XAVIER)
    model = write_net(tmp_path / "model.onnx")
    build(tmp_path, "8.5.3.1", model, refit=True)

    with pytest.raises(TlcError, match=r"TensorRT 8\.5\.3\.1 has no OnnxParserRefitter: .* from 10\.0 on") as caught:
        put(model, tmp_path / "model.plan", "8.5.3.1")
    assert "leave --into out" in caught.value.hint


def test_compatible_builds_set_their_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    onnx = write_net(tmp_path / "model.onnx")

    record = build(tmp_path, "10.3.0", onnx, version_compatible=True, hardware_compatible=True, refit=True)

    flags = json.loads((tmp_path / "model.plan").read_bytes()[28:])["flags"]
    assert flags == ["FP16", "REFIT", "VERSION_COMPATIBLE"]
    assert record.version_compatible
    assert record.hardware_compatible


@pytest.mark.parametrize(
    ("target", "quantized", "options", "message"),
    [
        ("cpu-x86", False, {}, "target cpu-x86 runs onnxruntime: it has no engines"),
        ("jetson-nano", False, {"precision": "int8"}, "target jetson-nano has no int8; it has fp32, fp16"),
        ("jetson-nano", True, {}, "is quantised, and target jetson-nano has no int8"),
        ("cuda", False, {"precision": "fp16"}, "--precision fp16 has no effect on TensorRT 10.13"),
        ("jetson-orin", False, {"precision": "best"}, "--precision best needs a quantised file"),
        ("jetson-orin", True, {"precision": "fp16"}, "which has Q/DQ nodes: they always run in int8"),
        ("jetson-orin-nano", False, {"dla_core": 0}, "--dla 0, and target jetson-orin-nano has no DLA cores"),
        ("jetson-orin", True, {"dla_core": 0}, "knows calibration tables only"),
        ("jetson-xavier", False, {"version_compatible": True}, "--version-compatible needs TensorRT 8.6"),
        ("jetson-xavier", False, {"builder_level": 1}, "--level needs TensorRT 8.6"),
        ("jetson-orin", False, {"shapes": {"z": ProfileShapes(min=[1], opt=[1], max=[1])}}, "has no input z; it has x"),
        (
            "jetson-orin", False,
            {"shapes": {"x": ProfileShapes(min=[1, 3, 9, 8], opt=[1, 3, 8, 8], max=[1, 3, 8, 8])}},
            r"--min-shape x:1x3x9x8 does not fit input x \[N, 3, 8, 8\]",
        ),
        (
            "jetson-orin", False,
            {"shapes": {"x": ProfileShapes(min=[2, 3, 8, 8], opt=[1, 3, 8, 8], max=[4, 3, 8, 8])}},
            "are not in ascending order",
        ),
    ],
)  # fmt: skip
def test_contradictions_are_refused_before_anything_starts(
    tmp_path: Path, target: str, quantized: bool, options: dict[str, Any], message: str
) -> None:
    onnx = write_net(tmp_path / "model.onnx", quantized=quantized)

    with pytest.raises(UsageError, match=message) as caught:
        build_engine(onnx, tmp_path / "m.plan", load_target(target), BuildOptions(**options))
    assert caught.value.hint


def test_data_needs_recorded_preprocessing(tmp_path: Path) -> None:
    path = write_net(tmp_path / "model.onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)

    with pytest.raises(UsageError, match="does not record its preprocessing and classes"):
        build_engine(path, tmp_path / "m.plan", load_target("jetson-orin"), BuildOptions(data=tmp_path))


def test_facts_are_read_without_the_onnx_package(tmp_path: Path) -> None:
    facts = read_onnx_facts(write_net(tmp_path / "m.onnx", quantized=True, half=True))

    assert facts.op_types == {"QuantizeLinear": 2, "DequantizeLinear": 2, "Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1}  # fmt: skip # noqa: E501
    assert facts.node_names[-1] == "flat"
    assert facts.is_quantized
    assert facts.has_float16
    assert facts.classes == ("a", "b", "c", "d")
    assert not read_onnx_facts(write_net(tmp_path / "f.onnx")).has_float16


@pytest.mark.parametrize(
    ("target", "quantized", "half", "expected"),
    [
        ("jetson-orin", False, False, ["fp16"]),
        ("jetson-orin", True, False, ["int8", "best"]),
        ("cuda", False, False, ["fp32"]),
        ("cuda", False, True, ["fp16"]),
        ("cuda-trt11", True, True, ["int8"]),
    ],
)
def test_what_auto_builds(tmp_path: Path, target: str, quantized: bool, half: bool, expected: list[str]) -> None:
    facts = read_onnx_facts(write_net(tmp_path / "m.onnx", quantized=quantized, half=half))

    assert [precision for _, precision in candidates([facts], load_target(target), BuildOptions())] == expected


def test_an_open_batch_gets_the_size_asked_for(tmp_path: Path) -> None:
    facts = read_onnx_facts(write_net(tmp_path / "m.onnx"))
    fixed = read_onnx_facts(write_net(tmp_path / "f.onnx", batch=2))

    assert profile_shapes(facts, BuildOptions(batch=4))["x"].opt == [4, 3, 8, 8]
    assert profile_shapes(fixed, BuildOptions())["x"].max == [2, 3, 8, 8]
    with pytest.raises(UsageError, match=r"--batch 4, and .* fixes the batch of x at 2"):
        profile_shapes(fixed, BuildOptions(batch=4))


def meminfo(root: Path, available_mib: int) -> Path:
    (root / "proc").mkdir()
    (root / "proc" / "meminfo").write_text(f"MemTotal: 8000000 kB\nMemAvailable: {available_mib * 1024} kB\n")
    return root


def test_limits_follow_what_is_free(tmp_path: Path) -> None:
    root = meminfo(tmp_path, 2048)
    jetson = EngineHost("10.3.0", "", True, Device("Orin", "8.7", True, 1, 1), "", "12.6", "MODE_15W")
    card = EngineHost("10.3.0", "", True, Device("RTX", "8.9", False, 600 * MIB, 1), "", "12.6", "")
    old = EngineHost("8.5.2", "", True, jetson.gpu, "", "11.4", "")

    assert pool_limits(1 << 30, jetson, root=root) == {"WORKSPACE": 512 * MIB, "TACTIC_DRAM": 1024 * MIB}
    assert pool_limits(1 << 30, card, root=root) == {"WORKSPACE": 300 * MIB}
    assert pool_limits(1 << 30, old, root=root) == {"WORKSPACE": 512 * MIB}
    assert pool_limits(1 << 30, jetson, workspace_bytes=64 * MIB, root=root)["WORKSPACE"] == 64 * MIB
    assert smaller({"WORKSPACE": 64 * MIB}) is None
    assert smaller({"WORKSPACE": 100 * MIB}) == {"WORKSPACE": 64 * MIB}
    assert larger({"WORKSPACE": 100 * MIB}, 300 * MIB) is None
    name = timing_cache_path(jetson, {"XDG_CACHE_HOME": "/c"})
    assert name == Path("/c/tlc/timing/10.3.0_Orin_sm8.7_MODE-15W.cache")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[E] Could not find any implementation for node {ForeignNode[a...b]}", "no_kernel"),
        ("Tactic Device request: 4229MB Available: 2658MB", "memory"),
        ("Requested amount of GPU memory (1024 bytes) could not be allocated: out of memory", "memory"),
        ("Network has dynamic or shape inputs", "other"),
    ],
)
def test_causes(text: str, cause: str) -> None:
    assert cause_of(text) == cause


def test_a_failing_child_gives_its_errors_not_its_log() -> None:
    command = ["sh", "-c", "echo '[I] fine'; echo '[E] Error[4]: no'; exit 3"]

    with pytest.raises(ChildError, match=r"trtexec failed with status 3: \[E\] Error\[4\]: no\nhint"):
        run_child(command, what="trtexec", limits="", timeout_s=60)
    with pytest.raises(ChildError, match="cannot run /nowhere"):
        run_child(["/nowhere"], what="trtexec", limits="", timeout_s=60)


def test_comparison_of_one_output() -> None:
    expected, found = np.array([3.0, 4.0]), np.array([3.0, 4.5])

    row = compared("y", expected, found, samples=1)

    assert row.max_abs == 0.5
    assert row.sqnr_db == pytest.approx(20.0)  # 25 over 0.25
    assert row.cosine == pytest.approx(27 / (5 * np.hypot(3, 4.5)))
    assert compared("y", expected, expected, samples=1).sqnr_db == 400
    with pytest.raises(TlcError, match="output y has 1 of 2 values that are infinite"):
        compared("y", expected, np.array([1.0, np.inf]), samples=1)
