"""Run `tlc-run bench` on real files: bench_check.py TLC_RUN. Exit status 77 says that this Python lacks packages."""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SKIPPED = 77

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper
except ImportError as error:
    print(f"SKIPPED: {sys.executable} has no {error.name}; set TLC_PYTHON to a Python with onnx and onnxruntime")
    sys.exit(SKIPPED)

BATCH = "N"


def save_model(path: Path, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> None:
    """Write y = x @ w + x for x of `shape`, whose last dimension is 64, cast to float first."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], [i % 7 / 7 for i in range(64 * 64)])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Add", ["m", "f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Bench:
    """tlc-run with this Python's onnxruntime, in a folder of its own."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder
        (self.library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Return the finished process; its environment is `environment` and nothing else."""
        command = [str(self.program), *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def json(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON of a run that must succeed."""
        done = self.run("bench", *arguments, "--json", "--no-energy", "--ort-lib", str(self.library))
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def shapes(self, *arguments: str) -> dict[str, list[int]]:
        """Return the inputs' shapes of a short run."""
        shapes: dict[str, list[int]] = self.json(*arguments, "--rounds", "1")["models"][0]["setting"]["shapes"]
        return shapes

    def error(self, status: int, *arguments: str, **environment: str) -> str:
        """Return stderr of a run that must fail with `status` and say nothing on stdout."""
        done = self.run("bench", *arguments, **environment)
        assert done.returncode == status, (done.returncode, done.stderr)
        assert done.stdout == ""
        assert done.stderr.startswith("error: "), done.stderr
        assert "\nhint: " in done.stderr, done.stderr
        return done.stderr


def check_json(bench: Bench) -> None:
    """A dynamic batch becomes 1; every sample is there; percentiles are nearest-rank."""
    save_model(bench.folder / "tiny.onnx", [BATCH, 64])
    report = bench.json("tiny.onnx", "--rounds", "5", "--threads", "2")
    assert (report["kind"], report["schema_version"]) == ("bench", 1)
    (model,) = report["models"]
    assert model["size_bytes"] == (bench.folder / "tiny.onnx").stat().st_size
    assert model["sha256"] == hashlib.sha256((bench.folder / "tiny.onnx").read_bytes()).hexdigest()
    assert model["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    (launch,) = model["launches"]
    assert launch["setting"] == {"batch": 1, "threads": 2, "streams": 1, "shapes": {"x": [1, 64]}, "assumed": []}
    assert len(launch["samples_ns"]) == 5 * launch["block"]
    assert min(launch["samples_ns"]) > 0
    assert launch["warmup_runs"] >= 40 or not launch["warmup_stable"]
    ordered = sorted(launch["samples_ns"])
    latency = model["latency"]
    assert latency["samples"] == len(ordered)
    for quantile in latency["quantiles"]:
        place = -(-quantile["percentile"] * len(ordered) // 100)
        assert quantile["ms"] == ordered[place - 1] / 1e6
    assert latency["min_ms"] == ordered[0] / 1e6
    assert abs(latency["mean_ms"] - sum(ordered) / len(ordered) / 1e6) < 1e-9
    assert launch["memory"]["peak_bytes"] > 0


def check_types_and_shapes(bench: Bench) -> None:
    """Every input type really runs, and --shape, --batch and --size reach the model."""
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL"):
        save_model(bench.folder / "typed.onnx", [BATCH, 64], getattr(TensorProto, name))
        assert bench.shapes("typed.onnx", "--shape", "x=5x64") == {"x": [5, 64]}
    assert bench.shapes("typed.onnx", "--batch", "3") == {"x": [3, 64]}
    save_model(bench.folder / "open.onnx", [BATCH, "T", 64])
    assert bench.shapes("open.onnx", "--size", "T=7") == {"x": [1, 7, 64]}


def check_text(bench: Bench) -> None:
    """Without --json a person reads a table; TLC_ORT_LIB names the library as --ort-lib does."""
    done = bench.run("bench", "tiny.onnx", "--rounds", "1", "--streams", "2", TLC_ORT_LIB=str(bench.library))
    assert done.returncode == 0, done.stderr
    assert f"onnxruntime {onnxruntime.__version__}, threads: 1, streams: 2" in done.stdout
    assert "x 1x64" in done.stdout
    assert "too few" not in done.stderr


def check_errors(bench: Bench) -> None:
    """Whatever a user can get wrong ends in one sentence and the next step."""
    library = ("--ort-lib", str(bench.library))
    (bench.folder / "text.onnx").write_text("not a model\n")
    (bench.folder / "empty.onnx").write_bytes(b"")
    (bench.folder / "model.pt").write_bytes(b"")
    save_model(bench.folder / "words.onnx", [BATCH, 64], TensorProto.STRING)
    (bench.folder / "cut.onnx").write_bytes((bench.folder / "tiny.onnx").read_bytes()[:-1000])

    assert "cannot read missing.onnx" in bench.error(1, "missing.onnx", *library)
    assert "model.pt is neither a bundle nor an ONNX file nor an engine" in bench.error(1, "model.pt", *library)
    for broken in ("text.onnx", "empty.onnx", "cut.onnx"):
        assert f"cannot load {broken}: " in bench.error(1, broken, *library)
    assert "element type 8" in bench.error(1, "words.onnx", *library)
    assert "cannot have shape 1x65" in bench.error(1, "tiny.onnx", "--shape", "x=1x65", *library)
    assert f"dimension y: it takes x float32 [{BATCH}, 64]" in bench.error(
        1, "tiny.onnx", "--shape", "y=1x64", *library
    )
    assert "cannot load ONNX Runtime: /no/lib.so" in bench.error(1, "tiny.onnx", "--ort-lib", "/no/lib.so")
    assert "cannot load ONNX Runtime: /no/env.so" in bench.error(1, "tiny.onnx", TLC_ORT_LIB="/no/env.so")
    assert "cannot run in tensorrt" in bench.error(1, "tiny.onnx", "--backend", "tensorrt")
    assert "must be a whole number from 1 to 1024, got '0'" in bench.error(2, "tiny.onnx", "--threads", "0")


def main() -> None:
    """Run every check with the program that the command line names."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(sys.argv[1]).resolve(), Path(folder))
        for check in (check_json, check_types_and_shapes, check_text, check_errors):
            check(bench)
            print(f"passed: {check.__name__}")


if __name__ == "__main__":
    main()
