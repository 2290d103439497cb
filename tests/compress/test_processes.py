"""Several processes, as `accelerate launch` starts them on GPUs, make one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny


@pytest.mark.slow
def test_two_processes_train_together_and_end_with_one_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(Path(tiny.__file__).read_text())
    torch.save(tiny.seeded_net().state_dict(), tmp_path / "model.pt")
    tiny.write_bars(tmp_path / "bars.npz", 400)
    # On CPUs `accelerate launch` starts one process whatever it is told; what it calls for GPUs starts two.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--log-dir", "log"]
    launch += ["--redirects", "1:3", "-m", "tlc.cli"]
    options = ["--arch", "net.py:tiny_net", "--data", "bars.npz", "--input", "1x8x8", "--mean", "0.5", "--std", "0.25"]
    settings = ["--student", "depth:0.34", "--epochs", "2", "--set", "train.batch_size=32", "--max-drop", "100"]

    done = subprocess.run(
        [*launch, "compress", "model.pt", *options, *settings, "--set", "measure.rounds=10", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Ships:") == 1
    (followed,) = (tmp_path / "log").rglob("1/stdout.log")  # the second process was there, and left the talking alone
    assert "Ships:" not in followed.read_text()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["name"] for row in report["measurements"]][-1] == "int8"
    assert not list((tmp_path / "out" / "partial").iterdir())
