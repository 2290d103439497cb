"""The examples in docstrings are true.

pytest's own --doctest-modules would import a second copy of each module under its folder's name.
"""

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LAYERS = ("runtime", "calibration", "export", "compress", "cli")
MODULES = [
    f"tlc.{layer}.{path.stem}"
    for layer in LAYERS
    for path in sorted((REPOSITORY / layer).glob("*.py"))
    if not path.stem.startswith("__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
