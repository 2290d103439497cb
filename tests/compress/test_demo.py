"""The demo is what it says: real images, the main path, the same inputs every time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tlc.compress.demo import _digits_npz
from tlc.runtime.artifact import sha256_file


def test_the_digits_are_all_of_scikit_learns_and_split_by_class() -> None:
    import io

    data = np.load(io.BytesIO(_digits_npz()))

    assert len(data["x_train"]) + len(data["x_val"]) == 1797
    assert data["x_train"].shape[1:] == (8, 8)
    assert set(np.bincount(data["y_val"])) <= {43, 44, 45, 46, 47}


def test_the_demo_ends_with_a_smaller_file_within_its_budget(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlc.cli", "demo", "--out", str(tmp_path / "demo"), "--json", "--quiet"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["name"]: row for row in report["measurements"]}
    assert rows["original"]["accuracy"]["top1"] > 0.97
    assert report["budget_met"]
    assert rows["int8"]["size_bytes"] < rows["original"]["size_bytes"] / 2
    assert rows[report["chosen"]]["sha256"] == sha256_file(tmp_path / "demo" / "model.onnx")
    assert {stage["name"] for stage in report["stages"]} >= {"distill", "prune"}
