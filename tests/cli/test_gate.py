"""`tlc gate`: what it prints and writes, its exit status, and its settings from a file."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from launches import FakeLaunch
from onnx import TensorProto, helper, numpy_helper

import tiny
from tlc.cli.gate import gate_command
from tlc.export.metadata import write_metadata
from tlc.export.onnx import onnx_from_torch
from tlc.runtime import bench as bench_module
from tlc.runtime import gate as gate_module
from tlc.runtime.gate_report import GateReport
from tlc.runtime.process import Failure
from tlc.runtime.statistics import ratio_interval

FAST = ("--rounds", "10", "--launches", "1", "--quiet")


def tlc_gate(*arguments: object) -> Result:
    return CliRunner().invoke(gate_command, [str(argument) for argument in arguments])


def message(result: Result) -> str:
    """What the command group would print."""
    return result.output if isinstance(result.exception, SystemExit) else str(result.exception)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLC_HISTORY", "")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def models(tmp_path: Path) -> None:
    """small.onnx, and large.onnx with ten times its layers."""
    rng = np.random.default_rng(0)
    for name, layers in (("small", 10), ("large", 100)):
        weights = numpy_helper.from_array((rng.normal(size=(64, 64)) / 8).astype(np.float32), "w")
        nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(layers)]
        ends = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["N", 64]) for tensor in ("x0", f"x{layers}")]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
            tmp_path / f"{name}.onnx",
        )


@pytest.fixture
def fake(models: None, monkeypatch: pytest.MonkeyPatch) -> FakeLaunch:
    """Draw the samples instead of measuring: large is 1.5 times as slow as small."""
    return faked({"small": 1.0, "large": 1.5}, monkeypatch)


def faked(latencies_ms: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> FakeLaunch:
    launch = FakeLaunch(latencies_ms)
    monkeypatch.setattr(gate_module, "gate", partial(gate_module.gate, launch=launch))
    monkeypatch.setattr(gate_module, "machine_warnings", lambda *_args, **_options: [])
    monkeypatch.setattr(bench_module, "ratio_interval", partial(ratio_interval, resamples=200))  # fewer, for speed
    return launch


@pytest.mark.usefixtures("models")
def test_a_real_slowdown_fails_with_everything_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "steps.md"))
    (tmp_path / "steps.md").write_text("An earlier step.\n")
    files = ("--junit", "junit.xml", "--comment", "comment.md", "--code-quality", "quality.json", "-o", "gate.json")

    result = tlc_gate("large.onnx", "--baseline", "small.onnx", "--max-slowdown", "5%", *FAST, *files)

    assert result.exit_code == 3, message(result)
    assert result.stdout.startswith("FAIL: large.onnx against small.onnx\n")
    assert "::error title=tlc gate%3A max-slowdown::Latency changed by +" in result.stderr
    report = GateReport.model_validate_json((tmp_path / "gate.json").read_bytes())
    assert (report.verdict, [model.name for model in report.bench.models]) == ("fail", ["small.onnx", "large.onnx"])
    assert ET.parse(tmp_path / "junit.xml").getroot().get("failures") == "1"
    assert (tmp_path / "comment.md").read_text().startswith("<!-- tlc gate -->\n### ❌ Gate: fail\n")
    assert (tmp_path / "steps.md").read_text().startswith("An earlier step.\n### ❌ Gate: fail\n")
    assert json.loads((tmp_path / "quality.json").read_text())[0]["location"]["path"] == "large.onnx"


@pytest.mark.usefixtures("models")
def test_a_file_that_does_not_load_fails_and_a_baseline_that_does_not_is_inconclusive(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    limits = ("--max-slowdown", "5%", *FAST)

    candidate = tlc_gate("broken.onnx", "--baseline", "small.onnx", *limits)
    baseline = tlc_gate("small.onnx", "--baseline", "broken.onnx", *limits)

    assert candidate.exit_code == 3, message(candidate)
    assert "candidate-runs: broken.onnx: failed." in candidate.stdout
    assert baseline.exit_code == 4, message(baseline)
    assert "baseline-runs: broken.onnx: failed." in baseline.stdout


def test_json_is_the_report_and_nothing_else(fake: FakeLaunch) -> None:
    result = tlc_gate("small.onnx", "--baseline", "small.onnx", "--max-slowdown", "5%", "--json")

    assert result.exit_code == 0, message(result)
    report = GateReport.model_validate_json(result.stdout)
    assert (report.verdict, report.candidate, report.baseline) == ("pass", "small.onnx", "small.onnx (baseline)")
    assert {call["rounds"] for call in fake.calls} == {14}


def test_a_crash_of_the_candidate_is_exit_status_3(fake: FakeLaunch) -> None:
    fake.failures = {"large": Failure("crashed", "SIGSEGV.")}

    result = tlc_gate("large.onnx", "--p50-under", "1s")

    assert result.exit_code == 3
    assert "candidate-runs: large.onnx: crashed. SIGSEGV." in result.stdout


def test_what_is_open_is_exit_status_4(fake: FakeLaunch) -> None:
    result = tlc_gate("small.onnx", "--p50-under", "1ms", *FAST)

    assert result.exit_code == 4, message(result)
    assert result.stdout.startswith("INCONCLUSIVE: small.onnx\n")


def test_a_stored_report_is_compared_with(fake: FakeLaunch) -> None:
    first = tlc_gate("small.onnx", "--p50-under", "1s", "-o", "baseline.json")

    same = tlc_gate("small.onnx", "--baseline", "baseline.json", "--max-slowdown", "5%")
    slower = tlc_gate("large.onnx", "--baseline", "baseline.json", "--max-slowdown", "5%")

    assert [result.exit_code for result in (first, same, slower)] == [0, 0, 3], message(slower)
    assert slower.stdout.startswith("FAIL: large.onnx against small.onnx of baseline.json\n")


def test_limits_stand_in_tlc_toml_and_options_override_them(fake: FakeLaunch, tmp_path: Path) -> None:
    (tmp_path / "tlc.toml").write_text(
        'target = "cpu-x86"\n[gate]\nbaseline = "small.onnx"\nmax_slowdown = "5%"\nlaunches = 2\nself_check = true\n'
    )

    from_file = tlc_gate("large.onnx", "--json")
    looser = tlc_gate("large.onnx", "--max-slowdown", "80%")

    assert (from_file.exit_code, looser.exit_code) == (3, 0), message(from_file)
    report = json.loads(from_file.stdout)
    assert [check["name"] for check in report["checks"]] == ["self-check", "max-slowdown"]
    assert len(report["bench"]["models"][0]["launches"]) == 2


def test_paths_in_a_file_count_from_its_folder(fake: FakeLaunch, tmp_path: Path) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "gate.toml").write_text('[gate]\nbaseline = "../small.onnx"\nmax_slowdown = "5%"\n')

    result = tlc_gate("small.onnx", "--config", "ci/gate.toml")

    assert result.exit_code == 0, message(result)
    assert fake.calls[0]["names"] == ["ci/../small.onnx", "small.onnx"]


def test_a_file_without_the_table_changes_nothing_unless_it_was_named(fake: FakeLaunch, tmp_path: Path) -> None:
    (tmp_path / "tlc.toml").write_text('target = "cpu-x86"\n')

    assert tlc_gate("small.onnx", "--p50-under", "1s").exit_code == 0
    named = tlc_gate("small.onnx", "--p50-under", "1s", "--config", "tlc.toml")
    assert "tlc.toml has no table [gate]" in message(named)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[gate]\nmax_slowdon = "5%"\nfoo = 1', "tlc.toml sets foo, max_slowdon in [gate]"),
        ("[gate]\njson = true", "sets json in [gate]"),
        ("[gate", "tlc.toml is not valid TOML"),
        ("gate = 3", "tlc.toml: gate is 3, not a table"),
        ("[gate]\nmax_slowdown = 5", "'5' has no unit. Add one of %: 5%."),
        ('[gate]\nlaunches = "many"', "Invalid value for '--launches'"),
    ],
)
def test_a_setting_that_is_none_is_refused_by_name(fake: FakeLaunch, tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "tlc.toml").write_text(text)

    result = tlc_gate("small.onnx")

    assert getattr(result.exception, "exit_code", result.exit_code) == 2
    assert problem in message(result)
    assert fake.calls == []


@pytest.mark.parametrize(
    ("arguments", "problem", "status"),
    [
        (("small.onnx",), "There is no limit", 2),
        (("small.onnx", "--max-slowdown", "5%"), "There is no baseline", 2),
        (("small.onnx", "--p50-under", "8"), "'8' has no unit. Add one of us, µs, ms, s: 8ms.", 2),
        (("small.onnx", "--max-size", "5MB", "--data", "photos"), "no limit on accuracy", 2),
        (("small.onnx", "--max-size", "5MB", "--junit", "no/junit.xml"), "there is no folder no to write junit.xml", 2),
        (("small.onnx", "--max-size", "5MB", "--size", "T"), "--size 'T' has no name and length", 2),
        (("small.onnx", "--baseline", "small.onnx", "--max-drop", "1"), "needs data to evaluate on", 2),
        (("small.onnx", "--max-drop", "1", "--data", "small.onnx"), "There is no baseline", 2),
        (("gone.onnx", "--max-size", "5MB"), "no model at gone.onnx", 1),
        (("small.onnx", "--baseline", "gone.onnx", "--max-slowdown", "5%"), "no model at gone.onnx", 1),
        (("small.onnx", "--baseline", "gone.json", "--max-slowdown", "5%"), "cannot read the report gone.json", 1),
        (("small.onnx", "--baseline", "small.onnx", "--max-drop", "1", "--data", "gone"), "no data at gone", 1),
    ],
)
def test_what_cannot_be_decided_is_an_error_before_anything_is_measured(
    fake: FakeLaunch, arguments: tuple[str, ...], problem: str, status: int
) -> None:
    result = tlc_gate(*arguments)

    assert problem in message(result)
    assert getattr(result.exception, "exit_code", result.exit_code) == status
    assert fake.calls == []


def test_a_limit_on_accuracy_without_the_extra_says_what_to_install(
    fake: FakeLaunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tlc.compress.gate_accuracy", None)

    result = tlc_gate("small.onnx", "--baseline", "small.onnx", "--max-drop", "1", "--data", ".")

    assert "pip install 'tlc[compress]'" in message(result)
    assert fake.calls == []


def test_a_summary_that_cannot_be_written_is_an_error_after_the_verdict(fake: FakeLaunch, tmp_path: Path) -> None:
    result = tlc_gate("small.onnx", "--p50-under", "1s", "--summary", tmp_path)

    assert result.exit_code == 1
    assert f"cannot write the summary {tmp_path}: " in message(result)
    assert result.stdout.startswith("PASS: small.onnx\n")


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bars.npz, good.onnx, which tells bars apart, and bad.onnx, which says the same of all."""
    import torch

    folder = tmp_path_factory.mktemp("bars")
    bars = np.load(tiny.write_bars(folder / "bars.npz", count=1500))
    inputs = torch.from_numpy((bars["x"][:64].reshape(64, 1, 8, 8).astype(np.float32) / 255 - 0.5) / 0.25)
    labels = torch.from_numpy(bars["y"][:64].astype(np.int64))
    net = tiny.seeded_net().train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    _export(net, folder / "good.onnx")
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([1.0, 0.0]))
    _export(net, folder / "bad.onnx")
    return folder


def _export(net: tiny.TinyNet, path: Path) -> None:
    onnx_from_torch(net.eval(), (1, 8, 8), path, opset=18)
    write_metadata(path, path, tiny.PREPROCESS, ("flat", "upright"))


@pytest.fixture
def classifiers(classified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(classified)
    faked({"good": 1.0, "bad": 1.0, "other": 1.0}, monkeypatch)


@pytest.mark.usefixtures("classifiers")
def test_a_loss_of_accuracy_fails_overall_and_in_the_class_that_has_it() -> None:
    limits: tuple[Any, ...] = ("--baseline", "good.onnx", "--max-drop", 5, "--per-class-drop", 10, "--data", "bars.npz")

    same, worse = tlc_gate("good.onnx", *limits, "--json"), tlc_gate("bad.onnx", *limits, "--json")

    assert (same.exit_code, worse.exit_code) == (0, 3), message(same) + message(worse)
    found = {check["name"]: check["verdict"] for check in json.loads(worse.stdout)["checks"]}
    assert found == {"max-drop": "fail", "per-class-drop flat": "pass", "per-class-drop upright": "fail"}


@pytest.mark.usefixtures("classifiers")
def test_too_few_samples_never_pass() -> None:
    result = tlc_gate("good.onnx", "--baseline", "good.onnx", "--max-drop", 0.1, "--data", "bars.npz")

    assert result.exit_code == 4, message(result)
    assert "It takes 5407 samples to show that a drop is not larger." in result.stdout


@pytest.mark.usefixtures("classifiers")
def test_models_of_other_classes_are_not_compared(classified: Path) -> None:
    write_metadata(classified / "good.onnx", classified / "other.onnx", tiny.PREPROCESS, ("flat", "steep"))

    result = tlc_gate("other.onnx", "--baseline", "good.onnx", "--max-drop", 5, "--data", "bars.npz")

    assert result.exit_code == 1
    assert "steep" in message(result)
