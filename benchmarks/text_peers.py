"""A run of `tlc compress` on a text classifier beside what other tools make of the same model, in one interleaved run.

    python benchmarks/text_peers.py MODEL DATA RUN TARGET > benchmarks/results/...

MODEL, DATA and TARGET (cpu-x86 or openvino) as for `tlc compress`, RUN its folder. All files run in the target's
runtime, one thread, batch 1, a process each, in turns, on evaluation texts at eight quantiles of length, unpadded
unless said; speed-ups are over the fastest float32 file of the original. Accuracy is that of all evaluation texts
through the same file. The others get the model as plain ONNX, from torch's dynamo exporter, and use their defaults:
ONNX Runtime's transformer optimizer (model_type bert), its dynamic quantisation (INT8 weights) with and without the
optimizer before it, and NNCF's post-training quantisation for transformers on 300 training texts.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nncf
import onnx
import onnxruntime
import openvino
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer

from tlc.calibration.calibration_set import balanced_indices
from tlc.compress.events import silent
from tlc.compress.measure import Timing, latencies, p50_ms, speedup
from tlc.compress.plan import make_plan
from tlc.compress.recipe import read_recipe
from tlc.compress.runner import Runner
from tlc.compress.text_model import TextModel
from tlc.compress.text_work import TextWork
from tlc.export.metadata import read_metadata
from tlc.export.quiet import quiet
from tlc.runtime.health import model_warnings

TIMING = Timing(rounds=60, launches=3, seed=0)
CALIBRATION = 300
PADDED = "shipped by tlc, texts padded to multiples of 32 tokens"
COLUMNS = "| file | size, MB | p50, ms | speed-up, 99 % | correct | accuracy, % | change, points (95 %) |"


def from_nncf(plain: Path, work: TextWork, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what NNCF makes of the float32 file."""
    indices = balanced_indices(work.labels(work.data.fit), CALIBRATION, seed=0)
    feeds = [work.data.fit.feeds([index]) for index in indices]
    static = folder / "nncf.onnx"
    quantized = nncf.quantize(onnx.load(plain), nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER)
    onnx.save(quantized, static)
    yield "original, NNCF static INT8", static


def from_onnxruntime(plain: Path, config: Any, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what ONNX Runtime's tools make of the float32 file."""
    model = onnx.load(plain)
    del model.graph.value_info[:]  # the exporter's shapes stop quantize_dynamic
    bare = folder / "bare.onnx"
    onnx.save(model, bare)
    optimized = folder / "optimized.onnx"
    heads, width = config["num_attention_heads"], config["hidden_size"]
    fused = optimizer.optimize_model(str(bare), model_type="bert", opt_level=0, num_heads=heads, hidden_size=width)
    fused.save_model_to_file(str(optimized))
    yield "original, ONNX Runtime's transformer optimizer", optimized
    dynamic = folder / "dynamic.onnx"
    quantize_dynamic(bare, dynamic, weight_type=QuantType.QInt8)
    yield "original, ONNX Runtime dynamic INT8", dynamic
    both = folder / "both.onnx"
    quantize_dynamic(optimized, both, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
    yield "original, optimizer and dynamic INT8", both


def main(model: Path, data: Path, run: Path, target: str) -> None:
    """Print the table."""
    plan = make_plan(read_recipe(None, {"model.path": model, "data.path": data, "target": target}))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work, runner = plan.start(folder), Runner.here(plan.target, folder)
        assert isinstance(work, TextWork)
        assert isinstance(plan.model, TextModel)
        plain = folder / "plain.onnx"
        with quiet():
            work.export(plan.model, plain)
            files = {"original, plain": plain}
            if target != "openvino":
                files["original, as tlc fuses it"] = run / "original.onnx"
                files |= dict(from_onnxruntime(plain, plan.model.arch.config["config"], folder))
            files |= dict(from_nncf(plain, work, folder))
        files |= {"shipped by tlc": run / "model.onnx", PADDED: run / "model.onnx"}
        shipped, _classes = read_metadata(run / "model.onnx")
        if shipped != work.fed:
            raise SystemExit("The file that shipped has another tokenizer: compare runs without vocabulary:data.")
        feeds, padded = work.timing_feeds(), work.other_feeds()["bucketed"]
        timed = {name: (path, padded if name == PADDED else feeds) for name, path in files.items()}
        measured = latencies(timed, runner, TIMING, silent)
        part = work.data.evaluation
        answers = {name: work.judged(path, runner, part) for name, path in files.items()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
    floats = [name for name in files if "INT8" not in name and name.startswith("original")]
    best = min(floats, key=lambda name: p50_ms(measured[name]))
    versions = f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__}, NNCF {nncf.__version__}"
    print(f"Target {target}: {versions}. Speed-ups are over: {best}.\n")
    print(COLUMNS)
    print("|:--|--:|--:|--:|--:|--:|--:|")
    for name in files:
        gain = speedup(measured[best], measured[name])
        score, change = work.score(answers[name], part), work.change(answers["original, plain"], answers[name], part)
        points = change.change_points
        print(
            f"| {name} | {sizes[name] / 1e6:.1f} | {p50_ms(measured[name]):.3f} "
            f"| {gain.estimate:.2f} [{gain.low:.2f}, {gain.high:.2f}] | {score.correct} of {score.samples} "
            f"| {100 * score.top1:.2f} | {points.estimate:+.2f} [{points.low:+.2f}, {points.high:+.2f}] |"
        )
    for name in files:
        for warning in model_warnings(name, measured[name]):
            print(f"\n{warning.message}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
