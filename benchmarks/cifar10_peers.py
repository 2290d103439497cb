"""A run of `benchmarks/cifar10_search.sh` beside the INT8 files that other tools make of the same network.

    python benchmarks/cifar10_peers.py ASSETS RUN... --modelopt PYTHON

ASSETS is as for `cifar10.sh`, each RUN a folder that `tlc compress` wrote for that network. All files run in ONNX
Runtime, one thread, batch 1, a process each, in turns; speed-ups are over the plain float32 file. The others get that
file, 300 training images, and their defaults: NNCF's post-training quantisation, ONNX Runtime's static quantisation
(Q/DQ, after its own preprocessing; also per channel), and NVIDIA's ModelOpt.

ModelOpt pins other versions of onnx and onnxruntime: PYTHON is the interpreter of an environment of its own, made with
`uv venv modelopt && uv pip install -p modelopt/bin/python "nvidia-modelopt[onnx]"`.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nncf
import numpy as np
import onnx
import onnxruntime
from contract_table import MODELOPT
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from tlc.calibration.calibration_set import balanced_indices
from tlc.compress.events import silent
from tlc.compress.measure import Timing, latencies, p50_ms, speedup
from tlc.compress.plan import make_plan
from tlc.compress.recipe import read_recipe
from tlc.compress.runner import Runner
from tlc.export.quiet import quiet
from tlc.runtime.health import model_warnings

IMAGES = 64
TIMING = Timing(rounds=60, launches=3, seed=0)
CALIBRATION = 300
PLAIN = "original, FP32"
COLUMNS = "| file | size, kB | p50, ms | speed-up, 99 % | accuracy, % | change, points (95 %) |"

Images = NDArray[np.float32]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """One image after the other."""

    def __init__(self, images: Images) -> None:
        self.left = iter(images)

    def get_next(self) -> dict[str, Images] | None:
        """Return the next one."""
        image = next(self.left, None)
        return None if image is None else {"input": image[None]}


def others(plain: Path, images: Images, folder: Path, modelopt: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield what other tools make of the float32 file."""
    ptq = folder / "nncf.onnx"
    onnx.save(nncf.quantize(onnx.load(plain), nncf.Dataset([{"input": image[None]} for image in images])), ptq)
    yield "NNCF PTQ", ptq
    ready = folder / "ready.onnx"
    quant_pre_process(plain, ready)
    for per_channel in (False, True):
        static = folder / f"static-{per_channel}.onnx"
        quantize_static(ready, static, Reader(images), per_channel=per_channel)
        yield f"ONNX Runtime static{', per channel' if per_channel else ''}", static
    if modelopt is not None:
        calibration, out = folder / "calibration.npy", folder / "modelopt.onnx"
        np.save(calibration, images)
        subprocess.run([modelopt, "-c", MODELOPT, plain, calibration, out], check=True, capture_output=True)
        yield "ModelOpt INT8", out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("assets", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--modelopt", type=Path)
    given = parser.parse_args()
    assets = given.assets / "cifar10"
    settings = {
        "model.path": assets / "resnet56-cifar10.pt",
        "model.arch": f"{assets / 'cifar_resnet.py'}:resnet56",
        "model.preprocess": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "resize": "none"},
        "data.path": assets / "images.zip",
    }
    plan = make_plan(read_recipe(None, settings))
    with tempfile.TemporaryDirectory() as scratch:
        work, runner = plan.start(Path(scratch)), Runner.here(plan.target, Path(scratch))
        plain = Path(scratch) / "plain.onnx"
        fit, part = work.data.fit, work.data.evaluation
        images = fit.batch(balanced_indices(work.labels(fit), CALIBRATION, seed=0))
        with quiet():
            work.export(plan.model, plain)
            files = {PLAIN: plain, **dict(others(plain, images, Path(scratch), given.modelopt))}
        files |= {f"tlc: {run.name}": run / "model.onnx" for run in given.runs}
        feeds = [{"input": part.batch([index])} for index in range(IMAGES)]
        measured = latencies({name: (path, feeds) for name, path in files.items()}, runner, TIMING, silent)
        answers = {name: work.judged(path, runner, part) for name, path in files.items()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
    print(f"ONNX Runtime {onnxruntime.__version__}, NNCF {nncf.__version__}.\n")
    print(COLUMNS)
    print("|:--|--:|--:|--:|--:|--:|")
    for name in files:
        gain = speedup(measured[PLAIN], measured[name])
        score, change = work.score(answers[name], part), work.change(answers[PLAIN], answers[name], part)
        points = change.change_points
        print(
            f"| {name} | {sizes[name] / 1e3:.0f} | {p50_ms(measured[name]):.3f} "
            f"| {gain.estimate:.2f} [{gain.low:.2f}, {gain.high:.2f}] "
            f"| {100 * score.top1:.2f} | {points.estimate:+.2f} [{points.low:+.2f}, {points.high:+.2f}] |"
        )
    ours = [name for name in files if name.startswith("tlc: ")]
    best = min((name for name in files if name not in (PLAIN, *ours)), key=lambda name: p50_ms(measured[name]))
    for name in ours:
        gain = speedup(measured[best], measured[name])
        print(f"\n{name} over {best}: {gain.estimate:.2f} [{gain.low:.2f}, {gain.high:.2f}]")
    for name in files:
        for warning in model_warnings(name, measured[name]):
            print(f"\n{warning.message}")


if __name__ == "__main__":
    main()
