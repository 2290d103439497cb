"""Imports point up the layer table only: runtime < calibration < export < compress < cli."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LAYERS = ("runtime", "calibration", "export", "compress", "cli")
MODULES = [path for layer in LAYERS for path in sorted((REPOSITORY / layer).glob("*.py"))]

RUNTIME_MAY_IMPORT = frozenset({"numpy", "onnxruntime", "pydantic", "tomli", "tomllib"})  # tomllib: stdlib from 3.11 on
# What a device installs. A layer that is missing here may import any dependency of the project.
MAY_IMPORT = {"runtime": RUNTIME_MAY_IMPORT, "calibration": RUNTIME_MAY_IMPORT | {"PIL"}}
# Not part of the base install, so only functions may import it.
MAY_IMPORT_LAZILY = {
    "runtime": frozenset({"openvino", "pynvml", "tensorrt"}),
    "calibration": frozenset({"pyarrow", "sklearn", "tokenizers"}),
}


def imported_names(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Yield (dotted name, line, whether inside a function) of every import, wherever it stands."""
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from tlc import compress` names its layer after the import keyword.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        yield from ((name, node.lineno, id(node) in lazy) for name in names)


def violations(source: str, layer: str) -> list[str]:
    """Return a sentence for each import of `source` that a module of `layer` must not have."""
    found = []
    for name, line, lazy in imported_names(ast.parse(source)):
        root, _, rest = name.partition(".")
        if root == "tlc":
            other = rest.partition(".")[0]
            if other not in LAYERS or LAYERS.index(other) > LAYERS.index(layer):
                found.append(f"line {line}: {layer} imports {name}")
        elif root not in sys.stdlib_module_names and layer in MAY_IMPORT:
            allowed = MAY_IMPORT[layer] | (MAY_IMPORT_LAZILY.get(layer, frozenset()) if lazy else frozenset())
            if root not in allowed:
                found.append(f"line {line}: {layer} imports {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_point_up_the_layer_table_only(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), path.parent.name) == []


def test_every_layer_has_modules() -> None:
    assert {path.parent.name for path in MODULES} == set(LAYERS)


def test_layers_are_flat() -> None:
    # A sub-package would be missing from the wheel without an error.
    nested = [path for layer in LAYERS for path in (REPOSITORY / layer).glob("*/**/*.py")]
    assert nested == []


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("runtime", "from tlc.calibration.data import ImageSet"),
        ("calibration", "def f():\n    from tlc.compress.model import Model"),
        ("export", "import tlc.compress.model"),
        ("compress", "from tlc import cli"),
        ("compress", "import importlib\nimportlib.import_module('tlc.cli.main')"),
        ("runtime", "def f():\n    import torch"),
        ("runtime", "from PIL import Image"),
        ("calibration", "import onnx"),
        ("calibration", "from sklearn.metrics import f1_score"),
    ],
)
def test_a_planted_violation_is_found(layer: str, source: str) -> None:
    assert len(violations(source, layer)) == 1


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("runtime", "import json\nimport numpy as np\nfrom tlc.runtime.errors import TlcError"),
        ("calibration", "def f():\n    from sklearn.metrics import f1_score"),
        ("cli", "from tlc.compress.model import Model\nimport torch"),
    ],
)
def test_an_allowed_import_is_not(layer: str, source: str) -> None:
    assert violations(source, layer) == []
