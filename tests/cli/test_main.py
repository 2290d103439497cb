"""What a user sees when something is wrong: two lines, no traceback, the right exit status, nothing half-written."""

import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import tiny
from tlc.cli.main import main
from tlc.compress import run
from tlc.compress.plan import Plan

OPTIONS = ["--input", "1x8x8", "--mean", "0.5", "--std", "0.25"]


def tlc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(Path(tiny.__file__).read_text())
    torch.save(tiny.seeded_net().state_dict(), tmp_path / "model.pt")
    tiny.write_bars(tmp_path / "bars.npz", 120)
    return tmp_path


def compress(inputs: Path, *more: object, model: object = None, data: object = None) -> Result:
    model, data = model or inputs / "model.pt", data or inputs / "bars.npz"
    arch = ["--arch", f"{inputs / 'net.py'}:tiny_net"]
    return tlc("compress", model, *arch, "--data", data, *OPTIONS, "--out", inputs / "out", "--quiet", *more)


def assert_refused(result: Result, inputs: Path, status: int, *sentences: str) -> None:
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("error: ") or "Error: " in result.stderr
    assert "Traceback" not in result.output
    for sentence in sentences:
        assert sentence in result.stderr
    assert not (inputs / "out").exists()


def test_not_a_torch_file(inputs: Path) -> None:
    (inputs / "notes.pt").write_text("dear diary")

    assert_refused(compress(inputs, model=inputs / "notes.pt"), inputs, 1, "notes.pt", "hint: ")


def test_a_truncated_file(inputs: Path) -> None:
    whole = (inputs / "model.pt").read_bytes()
    (inputs / "half.pt").write_bytes(whole[: len(whole) // 2])

    assert_refused(compress(inputs, model=inputs / "half.pt"), inputs, 1, "half.pt", "truncated")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_runs_code_is_named_and_not_run(inputs: Path) -> None:
    (inputs / "evil.pt").write_bytes(pickle.dumps({"weight": Evil(str(inputs / "ran"))}))

    assert_refused(compress(inputs, model=inputs / "evil.pt"), inputs, 1, "system")
    assert not (inputs / "ran").exists()


def test_weights_that_do_not_fit_the_architecture_show_the_first_differing_keys(inputs: Path) -> None:
    state = tiny.seeded_net().state_dict()
    state["stem.weight"] = torch.zeros(8, 1, 5, 5)
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, inputs / "other.pt")

    assert_refused(compress(inputs, model=inputs / "other.pt"), inputs, 1, "stem.weight", "extra.weight")


def test_weights_that_are_not_numbers(inputs: Path) -> None:
    state = tiny.seeded_net().state_dict()
    state["head.bias"][0] = float("nan")
    torch.save(state, inputs / "nan.pt")

    assert_refused(compress(inputs, model=inputs / "nan.pt"), inputs, 1, "head.bias")


def test_an_unknown_target_lists_the_known_ones(inputs: Path) -> None:
    assert_refused(compress(inputs, "--target", "toaster"), inputs, 2, "toaster", "cpu-x86")


def test_a_ratio_out_of_its_range(inputs: Path) -> None:
    assert_refused(compress(inputs, "--prune", "1.5"), inputs, 2, "1.5", "0<=x<1")


def test_a_student_that_cannot_be_built(inputs: Path) -> None:
    assert_refused(compress(inputs, "--student", "depth:9"), inputs, 2, "9")
    assert_refused(compress(inputs, "--student", "thin"), inputs, 2, "thin")


def test_an_unknown_setting_suggests_the_nearest(inputs: Path) -> None:
    assert_refused(compress(inputs, "--set", "train.epoch=3"), inputs, 2, "unknown setting train.epoch", "epochs")


def test_a_missing_data_folder(inputs: Path) -> None:
    assert_refused(compress(inputs, data=inputs / "nowhere"), inputs, 1, "nowhere")


def test_too_few_calibration_images(inputs: Path) -> None:
    tiny.write_bars(inputs / "few.npz", 18)

    assert_refused(compress(inputs, data=inputs / "few.npz"), inputs, 1, "too few calibration samples")


def photos(folder: Path) -> Path:
    for split, count in (("train", 12), ("val", 4)):
        for name in ("ants", "bees"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng([number, len(split), len(name), ord(name[0])]).integers(
                    0, 255, (8, 8), np.uint8
                )
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_an_unreadable_image_is_named_and_can_be_skipped(inputs: Path) -> None:
    data = photos(inputs / "photos")
    (data / "train" / "ants" / "0.png").write_bytes(b"not a picture")

    refused = compress(inputs, "--channels", "gray", data=data)

    assert_refused(refused, inputs, 1, "train/ants/0.png", "--skip-bad")
    assert compress(inputs, "--channels", "gray", "--skip-bad", "--dry-run", data=data).exit_code == 0


def test_an_empty_class(inputs: Path) -> None:
    data = photos(inputs / "photos")
    for file in (data / "train" / "bees").iterdir():
        file.unlink()

    assert_refused(compress(inputs, "--channels", "gray", data=data), inputs, 1, "bees")


def test_a_missing_class_folder(inputs: Path) -> None:
    data = photos(inputs / "photos")
    for file in (data / "val" / "bees").iterdir():
        file.unlink()
    (data / "val" / "bees").rmdir()

    assert_refused(compress(inputs, "--channels", "gray", data=data), inputs, 1, "bees")


def test_an_image_in_both_splits(inputs: Path) -> None:
    data = photos(inputs / "photos")
    (data / "val" / "ants" / "same.png").write_bytes((data / "train" / "ants" / "3.png").read_bytes())

    assert_refused(compress(inputs, "--channels", "gray", data=data), inputs, 1, "also in train", "same.png")


def test_an_archive_that_climbs_out_of_its_folder(inputs: Path) -> None:
    with zipfile.ZipFile(inputs / "bad.zip", "w") as archive:
        archive.writestr("../../evil/a.png", b"")

    assert_refused(compress(inputs, data=inputs / "bad.zip"), inputs, 1, "evil/a.png")


def test_no_space_on_the_disk(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    free = shutil._ntuple_diskusage(10**9, 10**9 - 100, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)

    assert_refused(compress(inputs), inputs, 1, "100", "hint: ")


def test_the_folder_of_another_run(inputs: Path) -> None:
    identity = {"model": "0" * 64, "data": "0" * 64}
    with run.open_run(inputs / "out", identity, resume=False, emit=lambda _event: None):
        pass

    result = compress(inputs, "--resume")

    assert result.exit_code == 1
    assert "holds the run of another model" in result.stderr


def test_ctrl_c_says_how_to_go_on(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plan, "start", interrupted)

    result = compress(inputs)

    assert result.exit_code == 1
    assert "--resume" in result.stderr


def test_a_real_interrupt_ends_a_real_process_with_the_two_lines(inputs: Path) -> None:
    arch = f"{inputs / 'net.py'}:tiny_net"
    command = [sys.executable, "-m", "tlc.cli", "compress", "model.pt", "--arch", arch, "--data", "bars.npz", *OPTIONS]
    # Tests that were started in the background inherit a SIGINT that is ignored.
    process = subprocess.Popen(
        [*command, "--student", "depth:0.5", "--epochs", "100000"],
        cwd=inputs,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("student"):
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 1
    assert "error: Interrupted." in errors
    assert "Traceback" not in errors


def test_dry_run_prints_the_plan_and_writes_nothing(inputs: Path) -> None:
    result = compress(inputs, "--student", "depth:0.5", "--dry-run")

    assert result.exit_code == 0
    assert "student depth:0.5, 10 epochs, at most" in result.stdout
    assert not (inputs / "out").exists()


def test_init_does_not_overwrite(inputs: Path) -> None:
    (inputs / "tlc.toml").write_text("mine")

    result = tlc("init", inputs / "tlc.toml")

    assert result.exit_code == 1
    assert (inputs / "tlc.toml").read_text() == "mine"
