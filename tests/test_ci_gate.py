"""The action and the template for CI do what their runners would do with them: their scripts run here."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from tlc.cli.gate import gate_command

REPOSITORY = Path(__file__).resolve().parent.parent
ACTION = REPOSITORY / ".github" / "actions" / "latency-gate" / "action.yml"
TEMPLATE = REPOSITORY / ".gitlab" / "latency-gate.yml"
BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail")
"""As the runner starts `shell: bash`."""
QUICK = {"rounds": "10", "launches": "1"}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A working directory with model.onnx of 16,384 bytes of weights."""
    weights = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


def run_script(script: str, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "HOME": str(folder), "TLC_HISTORY": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*BASH, "-c", script], cwd=folder, env={**own, **env}, capture_output=True, text=True, check=False
    )


def stand_in(job: Path, program: str, script: str) -> None:
    """Put a shell script where the job finds `program`."""
    path = job / "bin" / program
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class Action:
    """The composite action with some inputs, in a job's folder."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        self.action: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        assert set(given) <= set(self.action["inputs"])
        self.inputs = {
            name: given.get(name, str(spec.get("default", ""))) for name, spec in self.action["inputs"].items()
        }
        self.folder = folder

    def expanded(self, text: str) -> str:
        values = {f"inputs.{name}": value for name, value in self.inputs.items()}
        values["github.action_path"] = str(ACTION.parent)
        return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: values[found[1]], text)

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run one step as the runner would."""
        (step,) = [step for step in self.action["runs"]["steps"] if step["name"] == name]
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # a value in the script itself would be run
        env = {key: self.expanded(value) for key, value in step["env"].items()}
        github = {"GITHUB_ACTIONS": "true", "GITHUB_SHA": "c0ffee"}
        github["GITHUB_OUTPUT"] = str(self.folder / "outputs")
        github["GITHUB_STEP_SUMMARY"] = str(self.folder / "summary.md")
        return run_script(step["run"], self.folder, {**github, **env})

    def outputs(self) -> list[str]:
        return (self.folder / "outputs").read_text().splitlines()


def test_the_action_passes_a_model_within_its_limits(job: Path) -> None:
    action = Action(job, candidate="model.onnx", max_size="1MB", p50_under="10s", **QUICK)

    done = action.run("Latency gate")

    assert done.returncode == 0, done.stderr
    assert action.outputs() == ["verdict=pass", "status=0"]
    written = {path.name for path in (job / "latency-gate").iterdir()}
    assert written == {"gate.json", "junit.xml", "comment.md", "code-quality.json"}
    assert (job / "summary.md").read_text().startswith("### ✅ Gate: pass\n")
    report = json.loads((job / "latency-gate" / "gate.json").read_text())
    assert [check["name"] for check in report["checks"]] == ["p50-under", "max-size"]


@pytest.mark.parametrize(("status", "verdict"), [(3, "fail"), (4, "inconclusive"), (1, "")])
def test_the_action_ends_with_the_status_of_the_gate_and_says_its_verdict(job: Path, status: int, verdict: str) -> None:
    stand_in(job, "tlc", f"exit {status}")
    action = Action(job, candidate="model.onnx")

    done = action.run("Latency gate")

    assert done.returncode == status, done.stderr
    assert action.outputs() == [f"verdict={verdict}", f"status={status}"]


def test_an_error_is_no_verdict_and_leaves_no_result_of_an_earlier_step(job: Path) -> None:
    (job / "latency-gate").mkdir()
    (job / "latency-gate" / "gate.json").write_text("an earlier one")
    action = Action(job, candidate="model.onnx")

    done = action.run("Latency gate")

    assert done.returncode == 2
    assert action.outputs() == ["verdict=", "status=2"]
    assert list((job / "latency-gate").iterdir()) == []


def test_every_input_reaches_the_command_as_one_argument_and_none_is_run(job: Path) -> None:
    stand_in(job, "tlc", 'printf "%s\\n" "$@" > arguments')
    odd = '$(touch run) `touch run` "; touch run; * x'
    known = {str(option) for param in gate_command.params for option in param.opts}
    other = {"candidate", "options", "extras", "install", "output", "upload", "self-check", "any-machine"}
    names = [name for name in Action(job).inputs if name not in other]

    given = {name.replace("-", "_"): f"{odd} {name}" for name in names}
    done = Action(
        job, candidate=f"-{odd}", self_check="true", options="--size\nT=8\n\n--quiet", any_machine="false", **given
    ).run("Latency gate")

    assert done.returncode == 0, done.stderr
    arguments = (job / "arguments").read_text().splitlines()
    assert arguments[0] == "gate"
    assert arguments[-2:] == ["--", f"-{odd}"]
    assert {f"--{name}={odd} {name}" for name in names} <= set(arguments)
    assert arguments[-6:-2] == ["--self-check", "--size", "T=8", "--quiet"]
    assert {argument.split("=")[0] for argument in arguments if argument.startswith("--")} - {"--"} <= known
    assert not (job / "run").exists()


@pytest.mark.parametrize(("extras", "suffix"), [("", ""), ("compress", "[compress]")])
def test_the_action_installs_tlc_of_its_own_checkout(job: Path, extras: str, suffix: str) -> None:
    stand_in(job, "python", 'printf "%s\\n" "$@" > installed')

    done = Action(job, candidate="model.onnx", extras=extras).run("Install tlc")

    assert done.returncode == 0, done.stderr
    *command, source = (job / "installed").read_text().splitlines()
    assert command == ["-m", "pip", "install"]
    assert source.endswith(suffix)
    assert Path(source.removesuffix(suffix)).resolve() == REPOSITORY


def test_the_action_uploads_its_results_whatever_the_verdict(job: Path) -> None:
    step = Action(job).action["runs"]["steps"][-1]

    assert step["if"] == "${{ always() && inputs.upload != '' }}"
    assert step["uses"].startswith("actions/upload-artifact@")
    assert step["with"]["path"] == "${{ inputs.output }}"


def run_template(job: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the lines of the template's script as GitLab's runner does: in one shell, until one fails."""
    template = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))[".tlc-latency-gate"]
    assert set(variables) <= set(template["variables"])
    assert "python" in template["image"]
    return run_script(
        "\n".join(template["script"]), job, {**template["variables"], **variables, "CI_COMMIT_SHA": "c0ffee"}
    )


def test_the_template_runs_the_gate_and_writes_what_gitlab_reads(job: Path) -> None:
    options = "--max-size 1kB --rounds 10 --launches 1"

    done = run_template(job, TLC_CANDIDATE="model.onnx", TLC_OPTIONS=options)

    assert done.returncode == 3, done.stderr
    template = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))[".tlc-latency-gate"]
    reports = [path.replace("$TLC_OUTPUT", "latency-gate") for path in template["artifacts"]["reports"].values()]
    assert sorted(reports) == ["latency-gate/code-quality.json", "latency-gate/junit.xml"]
    assert all((job / path).stat().st_size > 0 for path in reports)
    assert template["artifacts"]["when"] == "always"
