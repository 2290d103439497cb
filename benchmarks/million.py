"""A million inferences in one process of tlc-run, and through the C API in four threads: does the memory grow?

    python benchmarks/million.py build/native --table FILE

The model is one multiplication, so that what is counted is the runtime's own: whatever is lost per run shows. Below it,
where they are named, the same programs in a build with sanitizers (cmake -DTLC_SANITIZE=address,undefined, or thread)
and under Valgrind: they must end without a report.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

ORT = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
SUPPRESSIONS = Path(__file__).resolve().parents[1] / "tests" / "native" / "valgrind.supp"


def save_model(path: Path) -> Path:
    """Write y = flatten(x) @ w for x of (1, 3, 8, 8)."""
    weight = np.random.default_rng(1).normal(0, 0.1, (192, 10)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "linear", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def in_worker(program: Path, model: Path, runs: int) -> list[int]:
    """Return the resident memory after each tenth of `runs` in `tlc-run worker`, in KiB."""
    settings: dict[str, Any] = {"target": None, "threads": 1, "streams": 1, "batch": 1, "sizes": {}, "shapes": {}}
    request = {"path": str(model), **settings, "feeds": None, "options": {}, "memory_bytes": None}
    command = [str(program), "worker", "--ort-lib", str(ORT)]
    found = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        questions, answers = worker.stdin, worker.stdout

        def ask(value: Mapping[str, object]) -> None:
            questions.write(json.dumps(value) + "\n")
            questions.flush()
            answer = json.loads(answers.readline())
            if "error" in answer:
                raise SystemExit(answer["error"])

        ask(request)
        block_runs = max(1, min(10_000, runs // 10))
        for _ in range(10):
            for _ in range(runs // 10 // block_runs):
                ask({"do": "block", "runs": block_runs, "lead_in": False})
            found.append(resident_kib(worker.pid))
        questions.close()
    return found


def in_threads(program: Path, model: Path, runs: int) -> list[int]:
    """Return the same of a program in C with four threads; its outputs must all be those of the first run."""
    command = [str(program), str(model), "4", str(runs), str(ORT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return list(json.loads(done.stdout)["resident_kib"])


def judged(name: str, command: list[str], environment: dict[str, str]) -> str:
    """Return a row of what a sanitizer or Valgrind said of a run: its exit status, and its last line if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode == 0:
        return f"| {name} | nothing found |"
    sys.stderr.write(done.stderr)
    return f"| {name} | exit status {done.returncode} |"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="where tlc-run and tlc_capi_threads are")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--address", type=Path, help="build folder with TLC_SANITIZE=address,undefined")
    parser.add_argument("--thread", type=Path, help="build folder with TLC_SANITIZE=thread")
    parser.add_argument("--valgrind", action="store_true", help="run under Valgrind, too")
    parser.add_argument("--bundle", type=Path, help="bundle for `tlc-run check` under the first")
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "linear.onnx")
        lines = [
            "# A million inferences in one process",
            "",
            f"`python benchmarks/million.py BUILD`, ONNX Runtime {onnxruntime.__version__}. Resident memory, KiB,",
            f"after each tenth of {options.runs:,} runs.",
            "",
            "| program | " + " | ".join(f"{tenth}0 %" for tenth in range(1, 11)) + " | 20 % to 100 %, bytes a run |",
            "|---|" + "--:|" * 11,
        ]
        rows = {
            "`tlc-run worker`": in_worker(options.build / "tlc-run", model, options.runs),
            "C API, 4 threads": in_threads(options.build / "tlc_capi_threads", model, options.runs),
        }
        for name, found in rows.items():
            per_run = (found[-1] - found[1]) * 1024 / (0.8 * options.runs)
            lines.append(f"| {name} | " + " | ".join(f"{kib:,}" for kib in found) + f" | {per_run:.3f} |")
        lines += ["", "| what watched | verdict |", "|---|---|"]
        threads = [str(model), "4", "2000", str(ORT)]
        check = [] if options.bundle is None else ["check", str(options.bundle), "--ort-lib", str(ORT)]
        if options.address is not None:
            asan = {"ASAN_OPTIONS": "detect_leaks=1"}
            lines.append(judged("ASan, UBSan: C API", [str(options.address / "tlc_capi_threads"), *threads], asan))
            if check:
                lines.append(judged("ASan, UBSan: `tlc-run check`", [str(options.address / "tlc-run"), *check], asan))
        if options.thread is not None:
            lines.append(judged("TSan: C API", [str(options.thread / "tlc_capi_threads"), *threads], {}))
        if options.valgrind:
            watched = ["valgrind", "--quiet", "--error-exitcode=9", f"--suppressions={SUPPRESSIONS}"]
            watched += ["--leak-check=full", "--errors-for-leak-kinds=definite"]
            few = [str(model), "4", "40", str(ORT)]
            lines.append(judged("Valgrind: C API", [*watched, str(options.build / "tlc_capi_threads"), *few], {}))
    options.table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
