"""The p50 that `tlc bench` reports beside what other tools report of the same file.

    OMP_NUM_THREADS=1 python benchmarks/bench_peers.py ASSETS --repeats 15 --table benchmarks/results/bench_peers.md

ASSETS holds `cifar10/` (a ResNet-56) and `movie-sentiment/` (a six-layer BERT); the third model is torchvision's
MobileNetV3-small with random weights. Each is exported by tlc, fixed to 8 images or to a text of 128 tokens, and run on
one thread: in ONNX Runtime by `tlc bench` and by a bare loop in the style of onnxruntime_perf_test (`raw_loop.py`), in
OpenVINO by `tlc bench` and by OpenVINO's own benchmark_app. Every measurement is a process of its own; they take turns,
in random order in every repetition. The ratio is that of the p50 of `tlc bench` over the other's of the same
repetition: median with 99 % bootstrap bounds over repetitions.

benchmark_app reports hundredths of a millisecond, of a clock inside OpenVINO. That of `tlc bench` is around the call
that a program makes, and Python's way into OpenVINO and back takes about 0.1 ms: of 8 images that is little, with
`--images 1` it is seen.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

from tlc.compress.inputs import PreprocessOptions
from tlc.compress.recipe import ModelSection
from tlc.compress.steps import export_to
from tlc.runtime.artifact import write_text
from tlc.runtime.bench_report import Launch
from tlc.runtime.environment import environment
from tlc.runtime.launch import launch
from tlc.runtime.process import Case
from tlc.runtime.statistics import bootstrap_median, nearest_rank
from tlc.runtime.target import load_target

HERE = Path(__file__).parent
TOKENS = 128
TOOLS = ("tlc bench, ONNX Runtime", "bare loop, ONNX Runtime", "tlc bench, OpenVINO", "benchmark_app, OpenVINO")


def exported(assets: Path, folder: Path, images: int) -> dict[str, Path]:
    """Export the three models with fixed shapes; return their files by name."""
    cifar = assets / "cifar10"
    norm = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=10).state_dict(), folder / "mobilenet.pt")
    models = {
        "ResNet-56, 32x32": ModelSection(
            path=cifar / "resnet56-cifar10.pt",
            arch=f"{cifar / 'cifar_resnet.py'}:resnet56",
            preprocess=PreprocessOptions(input=(3, 32, 32), resize="none", **norm),
        ),
        f"BERT of 6 layers, {TOKENS} tokens": ModelSection(path=assets / "movie-sentiment" / "model"),
        "MobileNetV3-small, 224x224": ModelSection(path=folder / "mobilenet.pt", arch="torchvision:mobilenet_v3_small"),
    }
    files = {}
    for number, (name, model) in enumerate(models.items()):
        export_to(model, folder / "open.onnx")
        graph = onnx.load(folder / "open.onnx")
        make_dim_param_fixed(graph.graph, "N", 1 if "BERT" in name else images)
        make_dim_param_fixed(graph.graph, "T", TOKENS)
        files[name] = folder / f"{number}.onnx"
        onnx.save(graph, files[name])
    return files


def by_tlc(path: Path, target: str, seconds: float, seed: int) -> float:
    """Return the p50 in milliseconds as `tlc bench` finds it."""
    case = Case(path.stem, path, target=load_target(target))
    found = launch([case], duration_s=seconds, seed=seed)[case.name]
    if not isinstance(found, Launch):
        raise SystemExit(f"{path}: {found.problem}")
    return nearest_rank(found.samples_ns, 50) / 1e6


def by_loop(path: Path, seconds: float) -> float:
    """Return the p50 in milliseconds of the bare loop."""
    command: list[str | Path] = [sys.executable, HERE / "raw_loop.py", "--seconds", str(seconds), path]
    return nearest_rank(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0], 50) / 1e6


def by_benchmark_app(path: Path, seconds: float) -> float:
    """Return the median in milliseconds that benchmark_app reports."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"-d CPU -hint none -nstreams 1 -nthreads 1 -api sync -infer_precision f32 -t {max(1, round(seconds))}"
        command: list[str | Path] = [
            Path(sys.executable).parent / "benchmark_app",
            "-m",
            path,
            *flags.split(),
            "-report_type",
            "no_counters",
            "-json_stats",
        ]
        subprocess.run([*command, "-report_folder", folder], check=True, capture_output=True)
        found = json.loads((Path(folder) / "benchmark_report.json").read_text())
    return float(found["execution_results"]["latency (ms)"])


def row(name: str, runtime: str, other: str, own_ms: list[float], other_ms: list[float]) -> str:
    """Return one line of the table."""
    ratio, low, high = np.exp(bootstrap_median([np.log(np.divide(own_ms, other_ms))]))
    p50 = f"{np.median(own_ms):.3f} | {other}: {np.median(other_ms):.3f}"
    return f"| {name} | {runtime} | {p50} | {ratio:.4f} [{low:.4f}, {high:.4f}] |"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path)
    parser.add_argument("--images", type=int, default=8, help="at once")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--table", type=Path, help="Markdown file to write; printed in any case")
    options = parser.parse_args()
    rng = random.Random(0)
    lines = ["| model | runtime | p50 of `tlc bench`, ms | the other's, ms | ratio, 99 % |", "|:--|:--|--:|--:|--:|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, path in exported(options.assets, Path(folder), options.images).items():
            found: dict[str, list[float]] = {tool: [] for tool in TOOLS}
            for repeat in range(options.repeats):
                for tool in rng.sample(TOOLS, len(TOOLS)):
                    if tool.startswith("tlc"):
                        target = "openvino" if "OpenVINO" in tool else "cpu-x86"
                        p50_ms = by_tlc(path, target, options.seconds, repeat)
                    elif tool.startswith("bare"):
                        p50_ms = by_loop(path, options.seconds)
                    else:
                        p50_ms = by_benchmark_app(path, options.seconds)
                    found[tool].append(p50_ms)
                print(f"{name}, {repeat + 1} of {options.repeats}", file=sys.stderr, flush=True)
            for own, other in (TOOLS[:2], TOOLS[2:]):
                lines.append(row(name, own.partition(", ")[2], other.partition(",")[0], found[own], found[other]))
    facts = environment()
    versions = ", ".join(f"{tool} {facts['versions'].get(tool)}" for tool in ("onnxruntime", "openvino"))
    machine = f"{facts['usable_cores']} cores of {facts['cpu_model']}, {versions}"
    page = "\n".join(
        (
            "# `tlc bench` beside other tools\n",
            f"Written by `benchmarks/bench_peers.py`, which says how. {options.images} images at once, "
            f"{options.repeats} repetitions of {options.seconds:g} s each. Machine: {machine}.\n",
            *lines,
            "",
        )
    )
    print(page)
    if options.table is not None:
        write_text(options.table, page)


if __name__ == "__main__":
    main()
