"""`tlc check`: what it prints, its exit status, and that a repair proves itself on images."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from graphs import Net, residual, two_convolutions

import tiny
from tlc.cli.main import main
from tlc.export.metadata import write_metadata
from tlc.export.onnx import onnx_from_torch


def tlc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    net = Net()
    onnx.save(net.model(net.conv(net.pair(net.op("Relu", "x"), zero_point=np.uint8(0)))), tmp_path / "int8.onnx")
    return tmp_path / "int8.onnx"


def test_a_clean_file(tmp_path: Path) -> None:
    onnx.save(two_convolutions(), tmp_path / "int8.onnx")

    result = tlc("check", tmp_path / "int8.onnx", "--target", "jetson-orin")

    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'int8.onnx'}: clean for jetson-orin\n"


def test_violations_are_listed_by_rule_with_node_reason_and_fix(broken: Path) -> None:
    result = tlc("check", broken, "--target", "jetson-orin")

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"{broken}: 2 violations for jetson-orin (2 refused)"
    assert "uint8-zero-point (refused), 2" in lines
    assert any(line.startswith("  quantizelinear1 (QuantizeLinear): its integers are uint8") for line in lines)
    assert "  fix: Use int8: the scale times 255/127 where the zero point is 0." in lines


def test_json(broken: Path) -> None:
    result = tlc("check", broken, "--target", "jetson-orin", "--json")

    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["file"], found["target"], found["fix"]) == (str(broken), "jetson-orin", None)
    assert [violation["rule"] for violation in found["violations"]] == ["uint8-zero-point"] * 2
    assert set(found["violations"][0]) == {"node", "op_type", "rule", "severity", "why", "fix", "repairable"}


def test_a_repair_is_checked_and_compared_on_noise_without_data(broken: Path) -> None:
    out = broken.with_name("fixed.onnx")

    result = tlc("check", broken, "--target", "jetson-orin", "--fix", "-o", out)

    assert result.exit_code == 0, result.output
    assert f"{out}: clean for jetson-orin" in result.stdout
    assert "against the source, on 32 inputs of normal noise" in result.stdout
    assert tlc("check", out, "--target", "jetson-orin").exit_code == 0
    again = broken.with_name("again.onnx")
    tlc("check", broken, "--target", "jetson-orin", "--fix", "-o", again)
    assert again.read_bytes() == out.read_bytes()


def test_what_a_repair_leaves_is_a_failure(tmp_path: Path) -> None:
    net = Net()
    pooled = net.op("GlobalAveragePool", net.op("Relu", net.conv(net.pair("x"))))
    onnx.save(net.model(pooled), tmp_path / "int8.onnx")

    result = tlc("check", tmp_path / "int8.onnx", "--target", "jetson-orin", "--fix", "-o", tmp_path / "out.onnx")

    assert result.exit_code == 1
    assert "float-pooling-input (slow), 1" in result.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_a_repair_is_scored_on_images(tmp_path: Path, as_json: bool) -> None:
    tiny.write_bars(tmp_path / "bars.npz")
    exact, source, out = (tmp_path / name for name in ("float.onnx", "int8.onnx", "out.onnx"))
    onnx_from_torch(tiny.seeded_net(), (1, 8, 8), exact, opset=17)
    write_metadata(exact, exact, tiny.PREPROCESS, ("flat", "upright"))
    _quantise(exact, source)

    options = ["--reference", exact, "--data", tmp_path / "bars.npz", *(["--json"] if as_json else [])]
    result = tlc("check", source, "--target", "jetson-orin", "--fix", "-o", out, *options)

    assert result.exit_code == 0, result.output
    if not as_json:
        assert "Signal to noise against the float file, on 24 evaluation images" in result.stdout
        assert f"{out}: top-1 " in result.stdout
        return
    fix = json.loads(result.stdout)["fix"]
    (noise,) = fix["noise"]
    assert noise["repaired_db"] > noise["source_db"] - 4
    assert [Path(row["file"]).name for row in fix["scores"]] == ["float.onnx", "int8.onnx", "out.onnx"]
    assert fix["scores"][1]["change"] is None
    assert fix["left"] == []


def _quantise(source: Path, out: Path) -> None:
    """As ONNX Runtime does, on noise."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.left = iter(rng.standard_normal((16, 1, 1, 8, 8), dtype=np.float32))

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"input": image}

    quantize_static(source, out, Reader())


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nothing.onnx", "--target", "jetson-orin"], 1, "no model file at nothing.onnx"),
        (["FILE", "--target", "jetson-moon"], 2, "unknown target 'jetson-moon'; known: cpu-x86, "),
        (["TEXT", "--target", "jetson-orin"], 1, "is not an ONNX file"),
        (["FILE", "--target", "jetson-orin", "--fix"], 2, "--fix needs a file to write"),
        (["FILE", "--target", "jetson-orin", "-o", "out.onnx"], 2, "-o, --reference and --data belong to --fix"),
        (["FILE", "--target", "jetson-orin", "--fix", "-o", "FILE"], 2, "would overwrite the file that is read"),
        (["FILE", "--target", "jetson-orin", "--fix", "-o", "o.onnx", "--data", "none"], 1, "none"),
        (["FILE", "--target", "jetson-orin", "--fix", "-o", "o.onnx", "--reference", "TEXT"], 1, "is not an ONNX file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, sentence: str
) -> None:
    onnx.save(residual(), tmp_path / "int8.onnx")
    (tmp_path / "notes.onnx").write_text("dear diary")
    monkeypatch.chdir(tmp_path)
    named = {"FILE": "int8.onnx", "TEXT": "notes.onnx"}

    result = tlc("check", *(named.get(argument, argument) for argument in arguments))

    assert result.exit_code == status, result.output
    assert sentence in result.stderr
    assert "hint: " in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "notes.onnx"]
