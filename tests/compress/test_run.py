"""The run's folder: memoised stages, partial work, one owner at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tlc.compress.events import StageStarted, silent
from tlc.compress.run import open_run
from tlc.runtime.errors import TlcError

IDENTITY = {"model": "a" * 64, "data": "b" * 64}


def _counting(calls: list[str], text: str = "made") -> Any:
    def make(folder: Path) -> dict[str, Any]:
        calls.append(text)
        (folder / "file.txt").write_text(text)
        return {"said": text}

    return make


def test_a_stage_is_made_once_and_reused_with_the_same_inputs(tmp_path: Path) -> None:
    calls: list[str] = []
    events: list[object] = []
    for resume in (False, True):
        with open_run(tmp_path / "out", IDENTITY, resume=resume, emit=events.append) as run:
            stage = run.stage("prune", {"ratio": 0.5}, _counting(calls))

    assert calls == ["made"]
    assert stage.reused
    assert stage.found == {"said": "made"}
    assert (stage.path / "file.txt").read_text() == "made"
    assert events == [StageStarted("prune"), StageStarted("prune", reused=True)]


def test_a_changed_input_makes_the_stage_again_and_keeps_the_old_result(tmp_path: Path) -> None:
    calls: list[str] = []
    with open_run(tmp_path / "out", IDENTITY, resume=False, emit=silent) as run:
        one = run.stage("prune", {"ratio": 0.5}, _counting(calls))
        other = run.stage("prune", {"ratio": 0.6}, _counting(calls))
        again = run.stage("prune", {"ratio": 0.5}, _counting(calls))

    assert len(calls) == 2
    assert one.path == again.path != other.path


def test_a_result_that_was_tampered_with_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    with open_run(tmp_path / "out", IDENTITY, resume=False, emit=silent) as run:
        stage = run.stage("prune", {}, _counting(calls))
        (stage.path / "file.txt").write_text("other")
        again = run.stage("prune", {}, _counting(calls))

    assert len(calls) == 2
    assert (again.path / "file.txt").read_text() == "made"


@pytest.mark.parametrize("resumable", [True, False])
def test_only_a_resumable_stage_finds_what_it_wrote_before_it_died(tmp_path: Path, resumable: bool) -> None:
    def dies(folder: Path) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        raise RuntimeError

    found: list[bool] = []

    def lives(folder: Path) -> dict[str, Any]:
        found.append((folder / "half.txt").exists())
        return {}

    with open_run(tmp_path / "out", IDENTITY, resume=False, emit=silent) as run:
        with pytest.raises(RuntimeError):
            run.stage("train", {}, dies, resumable=resumable)
        run.stage("train", {}, lives, resumable=resumable)

    assert found == [resumable]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")

    with (
        pytest.raises(TlcError, match="is not empty and was not made by tlc"),
        open_run(tmp_path, IDENTITY, resume=False, emit=silent),
    ):
        pass

    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_of_another_model_is_refused_by_name_of_what_differs(tmp_path: Path) -> None:
    with open_run(tmp_path / "out", IDENTITY, resume=False, emit=silent):
        pass

    with (
        pytest.raises(TlcError, match=r"holds the run of another model: aaaa.*, not cccc"),
        open_run(tmp_path / "out", {**IDENTITY, "model": "c" * 64}, resume=True, emit=silent),
    ):
        pass


def test_an_existing_run_wants_resume(tmp_path: Path) -> None:
    with open_run(tmp_path / "out", IDENTITY, resume=False, emit=silent):
        pass

    with (
        pytest.raises(TlcError, match="already holds a run") as error,
        open_run(tmp_path / "out", IDENTITY, resume=False, emit=silent),
    ):
        pass
    assert "--resume" in error.value.hint


def test_a_second_process_is_refused_with_the_first_ones_number(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from tlc.compress.run import open_run\n"
        "from tlc.compress.events import silent\n"
        "with open_run(Path(sys.argv[1]), json.loads(sys.argv[2]), resume=True, emit=silent): pass"
    )
    with open_run(tmp_path / "out", IDENTITY, resume=False, emit=silent):
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out"), json.dumps(IDENTITY)],
            capture_output=True,
            text=True,
            check=False,
        )

    assert second.returncode != 0
    assert f"Another tlc (process {os.getpid()}) is running in" in second.stderr


def test_a_file_as_out_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("")

    with pytest.raises(TlcError, match="is a file"), open_run(file, IDENTITY, resume=False, emit=silent):
        pass


def test_a_run_that_died_while_it_opened_its_folder_can_start_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123")
    (tmp_path / ".tlc-run.json.0a1b.tmp").write_text("{")

    with open_run(tmp_path, IDENTITY, resume=False, emit=silent):
        pass

    assert not (tmp_path / ".tlc-run.json.0a1b.tmp").exists()
