"""What `make native` builds and the library that it opens, for the tests of tlc-run."""

import os
from pathlib import Path

import onnxruntime
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def built(name: str = "tlc-run") -> Path:
    """Return a built file in build/native, or beside the tlc-run that TLC_RUN names; skip the test without it."""
    folder = Path(os.environ.get("TLC_RUN") or REPOSITORY / "build" / "native" / "tlc-run").resolve().parent
    if not (folder / name).exists():
        assert not os.environ.get("TLC_REQUIRE_NATIVE"), f"{folder / name} is not built"
        pytest.skip(f"{folder / name} is not built: run `make native`")
    return folder / name


def ort_library() -> Path:
    """Return the library of the installed onnxruntime package."""
    (found,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*")
    return found
