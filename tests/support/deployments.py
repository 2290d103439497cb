"""A bundle of a few bytes, and a double of tlc-run that does in a shell what a test asks of it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from benches import bench_of

from tlc.runtime.bundle_manifest import MANIFEST, Manifest
from tlc.runtime.stored_zip import write_stored_zip
from tlc.runtime.target import load_target

SOURCE = Path(__file__).with_name("fake_tlc_run.c")

BACKENDS = {
    "onnxruntime": {"version": "onnxruntime 1.31.1", "problem": ""},
    "tensorrt": {"version": "tensorrt 10.3.0.30", "problem": ""},
}

# Each command appends a line to ~/calls; ~/hold-NAME makes it wait, ~/fail-NAME, a shell script, makes it fail.
_DOUBLE = r"""#!/bin/sh
cd "$HOME" || exit 1
echo "$*" >>calls
name=$1
echo "$name: working" >&2
while [ -e "hold-$name" ]; do sleep 0.05; done
if [ -e "fail-$name" ]; then . "./fail-$name"; fi
if [ "$name" = build ]; then
  out=$(dirname "$2")
  echo engine >"$out/tiny.plan"
  echo '{"plan": 1}' >"$out/tiny.plan.json"
fi
cat "answer-$name.json"
"""


def answers(**changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the double answers to each command."""
    return {
        "info": {"tlc_version": "0.1.0", "backends": BACKENDS, "machine": "x86_64"},
        "build": {"plan": "tiny.plan", "attempts": []},
        "check": {"ok": True},
        "eval": {"samples": 4, "top1": 0.75},
        "bench": json.loads(bench_of().model_dump_json()),
        **changed,
    }


def write_double(home: Path, **changed: Mapping[str, Any]) -> None:
    """Make `home` that of a device where the double runs."""
    script = home / "fake-tlc-run"
    script.write_text(_DOUBLE)
    script.chmod(0o755)
    for name, answer in answers(**changed).items():
        (home / f"answer-{name}.json").write_text(json.dumps(answer))


def compiled_double(folder: Path) -> Path:
    """Return the program that is sent; skips the test, and says why, where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a double of tlc-run with: apt-get install gcc")
    program = folder / "tlc-run"
    subprocess.run([compiler, "-o", str(program), str(SOURCE)], check=True)
    return program


def calls(home: Path) -> list[str]:
    """Return the commands that the double was called with, in order."""
    path = home / "calls"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def write_bundle(path: Path, *, target: str = "cpu-x86") -> Path:
    """Write a bundle that reads and verifies; its model is no model, for nothing here runs it."""
    members = {"golden/0/x.npy": b"in", "golden/0/y.npy": b"out", "model.onnx": b"not a model" * 100}
    manifest = {
        "format": "tlc-bundle",
        "version": 1,
        "name": "tiny",
        "created_with": "tlc 0.1.0",
        "target": load_target(target).model_dump(mode="json"),
        "precision": "fp32",
        "model": "model.onnx",
        "reference": None,
        "inputs": [{"name": "x", "shape": [1, 4], "dtype": "float32"}],
        "outputs": [{"name": "y", "shape": [1, 2], "dtype": "float32"}],
        "fed": None,
        "classes": [],
        "tokenizer": None,
        "build": {"profile": {}, "workspace_bytes": None, "builder_level": None},
        "limits": {},
        "golden": {
            "source": "noise",
            "min_snr_db": 50.0,
            "samples": [{"image": None, "inputs": ["golden/0/x.npy"], "outputs": ["golden/0/y.npy"]}],
        },
        "licence": None,
        "lineage": {},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in members.items()
        },
    }
    content = Manifest.model_validate_json(json.dumps(manifest)).json_bytes()
    write_stored_zip(path, {MANIFEST: content, **members})
    return path
