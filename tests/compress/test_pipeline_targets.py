"""The whole path for devices whose runtime is elsewhere, and in TensorRT by way of its stand-in."""

from pathlib import Path

import onnx
import pytest
import tensorrt_double
import torch

import tiny
from tlc.compress import runner
from tlc.compress.estimate import plan_lines
from tlc.compress.pipeline import compress
from tlc.compress.plan import make_plan
from tlc.compress.recipe import Recipe, read_model, read_recipe
from tlc.compress.steps import evaluate_files
from tlc.export.contract import check_model
from tlc.runtime.capability import missing
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.report import Report
from tlc.runtime.target import load_target

BUILDERS = """

def narrow(num_classes=2):
    return TinyNet(num_classes, width=4)


def dilated(num_classes=2):
    net = wide_net(num_classes)
    net.stem = nn.Sequential(net.stem, nn.MaxPool2d(2, 1, 1, dilation=2))
    return net
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    text = Path(tiny.__file__).read_text()
    (folder / "net.py").write_text(text + BUILDERS)
    tiny.write_bars(folder / "bars.npz", 400)
    torch.manual_seed(0)
    torch.save(tiny.wide_net().state_dict(), folder / "model.pt")
    dilated = tiny.wide_net()
    dilated.stem = torch.nn.Sequential(dilated.stem, torch.nn.MaxPool2d(2, 1, 1, dilation=2))  # type: ignore[assignment]
    torch.save(dilated.state_dict(), folder / "dilated.pt")
    return folder


def recipe(inputs: Path, target: str, **changes: object) -> Recipe:
    return read_recipe(
        None,
        {
            "model.path": inputs / "model.pt",
            "model.arch": f"{inputs / 'net.py'}:wide_net",
            "model.preprocess.input": (1, 8, 8),
            "model.preprocess.mean": (0.5,),
            "model.preprocess.std": (0.25,),
            "data.path": inputs / "bars.npz",
            "distill.student": "none",
            "prune.ratio": 0.0,
            "quantize.samples": 32,
            "measure.rounds": 10,
            "measure.launches": 1,
            "budget.max_drop_points": 100,
            "target": target,
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


@pytest.mark.parametrize(
    ("target", "ships", "weights"),
    [
        ("jetson-nano", "fp16", {onnx.TensorProto.FLOAT16}),
        ("jetson-xavier", "int8", {onnx.TensorProto.FLOAT}),
        ("jetson-orin", "int8", {onnx.TensorProto.INT8}),
        ("cuda", "int8", {onnx.TensorProto.INT8}),
    ],
)
def test_a_run_for_tensorrt_ends_in_files_that_it_takes_and_claims_no_latency(
    inputs: Path, tmp_path: Path, target: str, ships: str, weights: set[int]
) -> None:
    if missing(load_target(target)) is None:
        pytest.skip(f"{target}'s runtime is on this machine")

    report = compress(recipe(inputs, target), tmp_path)

    assert report.chosen == ships
    assert (report.data.calibration_samples > 0) is (ships == "int8")
    for row in report.measurements:
        assert row.latency is None
        assert row.peak_memory_bytes is None
        assert row.layers is None
        assert check_model(onnx.load(tmp_path / row.file), load_target(target)) == []
    model = onnx.load(tmp_path / "model.onnx")
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4} == weights
    assert f"tlc build model.onnx --target {target}" in report.not_measured
    assert report.runtime.startswith("onnxruntime ")
    assert "multiply-accumulates" in report.verdict
    assert report.warnings == []


def test_the_plan_says_what_is_left_out_for_a_target(inputs: Path) -> None:
    lines = "\n".join(plan_lines(make_plan(recipe(inputs, "jetson-nano"))))

    assert "quantize   no: jetson-nano has no INT8 arithmetic." in lines
    assert "; no latency: " in lines


def test_a_limit_that_cannot_be_held_here_is_refused_before_anything_is_read(inputs: Path) -> None:
    limits = {"budget__max_latency_ms": 5, "budget__max_memory_bytes": 10**8, "data__path": inputs / "absent.npz"}

    with pytest.raises(
        TlcError, match=r"budget\.max_latency_ms, budget\.max_memory_bytes: latency and .* jetson-nano"
    ) as caught:
        make_plan(recipe(inputs, "jetson-nano", **limits))

    assert "tlc gate --device" in caught.value.hint


def test_a_network_too_small_for_int8_on_a_gpu_ships_as_float16(inputs: Path, tmp_path: Path) -> None:
    torch.save(tiny.TinyNet(width=4).state_dict(), tmp_path / "narrow.pt")
    narrow = {"model__path": tmp_path / "narrow.pt", "model__arch": f"{inputs / 'net.py'}:narrow"}

    report = compress(recipe(inputs, "jetson-orin", **narrow), tmp_path / "out")

    assert report.chosen == "fp16"
    stage = next(stage for stage in report.stages if stage.name.startswith("quantize"))
    assert (stage.status, stage.reason) == ("skipped", "No layer gains from INT8 on jetson-orin.")


def test_what_tensorrt_does_not_take_is_refused_before_anything_is_trained(inputs: Path, tmp_path: Path) -> None:
    dilated = {"model__path": inputs / "dilated.pt", "model__arch": f"{inputs / 'net.py'}:dilated"}

    with pytest.raises(TlcError) as caught:
        compress(recipe(inputs, "jetson-orin", **dilated, distill__student="depth:0.34"), tmp_path / "out")

    assert caught.value.message.startswith("jetson-orin does not take this network, in 1 places; first ")
    assert "MaxPool has dilations other than 1" in caught.value.message
    assert "tlc check " in caught.value.hint
    assert not list((tmp_path / "out" / "stages").glob("student*"))


def test_a_setting_that_the_target_cannot_do_is_refused_by_the_plan(inputs: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(recipe(inputs, "jetson-orin", quantize__preset="mixed"))

    assert "quantize.preset = 'mixed' needs zero points other than 0" in caught.value.message


def test_openvino_measures_every_file_and_shows_that_int8_ran(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")

    report = compress(recipe(inputs, "openvino"), tmp_path)

    assert report.not_measured == ""
    assert report.runtime.startswith("openvino 20")
    rows = {row.name: row for row in report.measurements}
    assert all(row.latency is not None and len(row.latency.samples_ms) >= 80 for row in rows.values())
    assert rows["int8"].layers is not None
    assert rows["original"].layers is not None
    assert set(rows["int8"].layers.layers) <= {"i8", "u8", "f32"}
    assert set(rows["int8"].layers.layers) & {"i8", "u8"}
    assert set(rows["original"].layers.layers) == {"f32"}


@pytest.mark.parametrize("version", [pytest.param("10.3.0", marks=pytest.mark.slow), "10.13.3.9"])
def test_where_tensorrt_is_here_every_file_is_built_and_measured_in_it(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """The stand-in computes through ONNX Runtime; what it proves is the way from the pipeline to the library."""
    target, gpu = tensorrt_double.TARGETS[version]
    tensorrt_double.install(monkeypatch, tmp_path, version, gpu)
    monkeypatch.setattr(runner, "missing", lambda _: None)
    monkeypatch.setattr(runner.Runner, "runtime", property(lambda _: f"tensorrt {version}"))
    try:
        report = compress(recipe(inputs, target), tmp_path / "out")
        built = sorted((tmp_path / "out" / "cache" / "engines").glob("*.plan"))
        here = runner.Runner.here(load_target(target), tmp_path / "out" / "cache" / "engines")
        plan = here.deployed(tmp_path / "out" / "int8.onnx")
        model = read_model({"path": plan})
        (row,) = evaluate_files([recipe(inputs, target).model_copy(update={"model": model})])
    finally:
        tensorrt_double.forget()

    _all_measured(report)
    assert plan in built
    assert row.accuracy.samples == report.data.evaluation_samples


def _all_measured(report: Report) -> None:
    assert [row.name for row in report.measurements] == ["original", "fp16", "int8"]
    for row in report.measurements:
        assert row.latency is not None
        assert row.layers is not None
        assert row.peak_memory_bytes is not None
    int8 = report.measurements[-1].layers
    assert int8 is not None
    assert int8.layers["int8"] >= 1
