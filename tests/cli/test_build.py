import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorrt_double import forget, install, write_net

from tlc.cli.main import main


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def test_build_prints_what_it_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    onnx, plan = write_net(tmp_path / "int8.onnx", quantized=True), tmp_path / "m.plan"
    command = [
        "build",
        str(onnx),
        "--target",
        "jetson-orin",
        "-o",
        str(plan),
        "--precision",
        "best",
        "--max-shape",
        "x:4x3x8x8",
    ]

    done = CliRunner().invoke(main, [*command, "--min-shape", "x:1x3x8x8"])

    assert done.exit_code == 0, done.output
    assert "TensorRT 10.3.0.0, SM 8.7, int8.onnx in best" in done.stdout
    assert "1 of 1 convolutions and matrix products in int8; 2 copies between formats" in done.stdout
    assert "y: largest difference from ONNX Runtime 0.00e+00" in done.stdout
    assert "building int8.onnx best" in done.stderr
    assert "warning: Accuracy was not checked" in done.stderr
    assert json.loads(plan.with_name("m.plan.json").read_text())["profile"]["x"]["opt"] == [4, 3, 8, 8]


def test_weights_go_back_into_a_stripped_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "10.3.0")
    onnx, stripped, plan = write_net(tmp_path / "m.onnx"), tmp_path / "s.plan", tmp_path / "m.plan"
    command = ["build", str(onnx), "--target", "jetson-orin", "-o"]

    built = CliRunner().invoke(main, [*command, str(stripped), "--strip"])
    done = CliRunner().invoke(main, [*command, str(plan), "--into", str(stripped)])

    assert built.exit_code == 0, built.output
    assert "warning: Not run: the weights are stripped" in built.stderr
    assert done.exit_code == 0, done.output
    assert "putting the weights of m.onnx into s.plan" in done.stderr
    assert "y: largest difference from ONNX Runtime 0.00e+00" in done.stdout
    assert json.loads(plan.with_name("m.plan.json").read_text())["stripped"] is False


def test_without_tensorrt_build_fails_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "")
    onnx = write_net(tmp_path / "m.onnx")

    done = CliRunner().invoke(main, ["build", str(onnx), "--target", "jetson-orin", "-o", str(tmp_path / "m.plan")])

    assert done.exit_code == 1
    assert "no working TensorRT" in done.stderr
    assert "--system-site-packages" in done.stderr


@pytest.mark.parametrize("shape", ["x", "x:1x0", ":1x3", "x:1xN"])
def test_a_shape_that_is_none_is_a_usage_error(tmp_path: Path, shape: str) -> None:
    done = CliRunner().invoke(main, ["build", "m.onnx", "--target", "cuda", "-o", "m.plan", "--max-shape", shape])

    assert done.exit_code == 2
    assert "is not like images:1x3x224x224" in done.stderr
