"""Run `tlc-run bench` on real files: bench_check.py TLC_RUN. Exit status 77 says that this Python lacks packages."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

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

    def json(self, *arguments: str) -> dict[str, object]:
        """Return the JSON of a run that must succeed."""
        done = self.run("bench", *arguments, "--json", "--ort-lib", str(self.library))
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", done.stderr
        report: dict[str, object] = json.loads(done.stdout)
        return report

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
    report = bench.json("tiny.onnx", "--runs", "50", "--threads", "2")
    assert report["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 64]}]
    assert report["size_bytes"] == (bench.folder / "tiny.onnx").stat().st_size
    assert report["runtime_version"] == onnxruntime.__version__
    assert (report["threads"], report["input"], report["runs"]) == (2, "random", 50)
    assert isinstance(report["warmup_runs"], int)
    assert report["warmup_runs"] >= 20
    latency = report["latency"]
    assert isinstance(latency, dict)
    samples = latency["samples_ms"]
    assert len(samples) == 50
    assert min(samples) > 0
    ordered = sorted(samples)
    assert (latency["p50_ms"], latency["p90_ms"], latency["p99_ms"]) == (ordered[24], ordered[44], ordered[49])
    assert latency["min_ms"] == ordered[0]
    assert abs(latency["mean_ms"] - sum(samples) / 50) < 1e-9
    if sys.platform == "linux":
        assert isinstance(report["peak_memory_bytes"], int)
        assert report["peak_memory_bytes"] > 0


def check_types_and_shapes(bench: Bench) -> None:
    """Every input type that can be made up really runs, and --shape reaches the model."""
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL"):
        save_model(bench.folder / "typed.onnx", [BATCH, 64], getattr(TensorProto, name))
        report = bench.json("typed.onnx", "--runs", "3", "--warmup", "0", "--shape", "x:5x64")
        assert report["inputs"] == [{"name": "x", "dtype": _numpy_name(name), "shape": [5, 64]}], report["inputs"]


def _numpy_name(onnx_name: str) -> str:
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(onnx_name, onnx_name.lower())


def check_text(bench: Bench) -> None:
    """Without --json a person reads a table; TLC_ORT_LIB names the library as --ort-lib does."""
    done = bench.run("bench", "tiny.onnx", "--runs", "3", "--warmup", "1", TLC_ORT_LIB=str(bench.library))
    assert done.returncode == 0, done.stderr
    assert f"ONNX Runtime {onnxruntime.__version__}" in done.stdout
    assert "x float32 [1, 64], random (seed 0)" in done.stdout


def check_errors(bench: Bench) -> None:
    """Whatever a user can get wrong ends in one sentence and the next step."""
    library = ("--ort-lib", str(bench.library))
    (bench.folder / "text.onnx").write_text("not a model\n")
    (bench.folder / "empty.onnx").write_bytes(b"")
    save_model(bench.folder / "image.onnx", [BATCH, 3, "H", 64])
    save_model(bench.folder / "words.onnx", [BATCH, 64], TensorProto.STRING)
    (bench.folder / "cut.onnx").write_bytes((bench.folder / "tiny.onnx").read_bytes()[:-1000])

    assert "cannot read missing.onnx: No such file" in bench.error(1, "missing.onnx", *library)
    assert "is not a file" in bench.error(1, ".", *library)
    for broken in ("text.onnx", "empty.onnx", "cut.onnx"):
        assert f"cannot load {broken}: " in bench.error(1, broken, *library)
    assert "dynamic dimensions besides the batch: ?x3x?x64" in bench.error(1, "image.onnx", *library)
    assert "element type 8" in bench.error(1, "words.onnx", *library)
    assert "does not fit the model's ?x64" in bench.error(1, "tiny.onnx", "--shape", "x:1x65", *library)
    assert "Name one of its inputs: x." in bench.error(1, "tiny.onnx", "--shape", "y:1x64", *library)
    assert "cannot load ONNX Runtime: /no/lib.so" in bench.error(1, "tiny.onnx", "--ort-lib", "/no/lib.so")
    assert "cannot load ONNX Runtime: /no/env.so" in bench.error(1, "tiny.onnx", TLC_ORT_LIB="/no/env.so")
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
