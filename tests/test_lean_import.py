"""Help costs nothing, and a device needs no training framework."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FRAMEWORKS = {
    "accelerate",
    "jinja2",
    "matplotlib",
    "nncf",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxslim",
    "openvino",
    "PIL",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "tokenizers",
    "torch",
    "torch_pruning",
    "torchvision",
    "transformers",
}
NOT_ON_A_DEVICE = FRAMEWORKS - {"numpy", "onnxruntime", "PIL"}

_HELP = """
import sys
from tlc.cli.main import main
sys.argv = ["tlc", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""


def _imported_by(code: str, *arguments: str) -> set[str]:
    """Run `code` in a fresh interpreter and return the top-level names of the modules that it left imported."""
    report = "\nimport json, sys\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]), file=sys.stderr)"
    command = [sys.executable, "-c", code + report, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_framework(option: str) -> None:
    assert _imported_by(_HELP, option) & FRAMEWORKS == set()


@pytest.mark.parametrize("layer", ["runtime", "calibration"])
def test_what_a_device_imports_needs_no_training_framework(layer: str) -> None:
    modules = [path.stem for path in sorted((REPOSITORY / layer).glob("*.py")) if path.stem != "__init__"]
    code = "\n".join(f"import tlc.{layer}.{module}" for module in modules)
    assert _imported_by(code) & NOT_ON_A_DEVICE == set()


def test_building_engines_on_a_device_needs_no_training_framework() -> None:
    code = "import tlc.export.engine, tlc.export.engine_worker, tlc.cli.build, tlc.cli.doctor, tlc.runtime.capability"
    assert _imported_by(code) & NOT_ON_A_DEVICE == set()


def test_an_imported_framework_is_seen() -> None:
    assert _imported_by("import numpy") & FRAMEWORKS == {"numpy"}
