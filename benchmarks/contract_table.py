"""What `tlc check` finds in the quantised files of other tools, what `--fix` makes of them, and what that costs.

Real networks on real images (ASSETS is a folder with ants-bees, cifar10 and blood-cells): float ONNX, quantised by ONNX
Runtime, NNCF, PyTorch (torchao) and NVIDIA's ModelOpt; then checked, repaired and compared with the float file. Prints
one Markdown table per target.

    python benchmarks/contract_table.py ASSETS WORK [--modelopt PYTHON] [--target jetson-orin ...]

ModelOpt pins other versions of onnx and onnxruntime: PYTHON is the interpreter of an environment of its own, made with
`uv venv modelopt && uv pip install -p modelopt/bin/python "nvidia-modelopt[onnx]"`.
"""

import argparse
import importlib.util
import io
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.export.contract import check_model
from tlc.export.fidelity import measured_ranges, output_sqnr_db
from tlc.export.repair import repair
from tlc.runtime.target import load_target

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CALIBRATION, EVALUATION = 48, 48
Images = list[NDArray[np.float32]]

MODELOPT = """
import sys, numpy
from modelopt.onnx.quantization import quantize
source, calibration, out = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data={"input": numpy.load(calibration)}, calibration_eps=["cpu"],
         high_precision_dtype="fp32", output_path=out)
"""


class Features(nn.Module):
    """The six feature maps that a detector's backbone gives its heads."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps (N, C, H, W), the largest first."""
        return tuple(self.backbone(x).values())


def squeezenet(assets: Path) -> nn.Module:
    model: nn.Module = torchvision.models.squeezenet1_0(num_classes=2)
    model.load_state_dict(torch.load(assets / "ants-bees" / "squeezenet1_0-ants-bees.pt", weights_only=True))
    return model


def resnet56(assets: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("cifar_resnet", assets / "cifar10" / "cifar_resnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.resnet56()
    model.load_state_dict(torch.load(assets / "cifar10" / "resnet56-cifar10.pt", weights_only=True))
    return model


def ssdlite_backbone(assets: Path) -> nn.Module:
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    model.load_state_dict(torch.load(assets / "blood-cells" / "ssdlite320-blood-cells.pt", weights_only=True))
    return Features(model.backbone)


NETWORKS: dict[str, tuple[Callable[[Path], nn.Module], str, str, Preprocess]] = {
    "SqueezeNet": (squeezenet, "ants-bees/images.zip", "val", Preprocess(size=(224, 224), resize=256, **IMAGENET)),
    "ResNet-56": (resnet56, "cifar10/images.zip", "val", Preprocess(size=(32, 32), resize=None, **IMAGENET)),
    "SSDLite backbone": (
        ssdlite_backbone,
        "blood-cells/images-voc.zip",
        "",
        Preprocess(size=(320, 320), resize=(320, 320), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
}


def images(archive: Path, split: str, preprocess: Preprocess) -> tuple[Images, Images]:
    """Return calibration and evaluation images, evenly spread over train and over `split`, or over all."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith((".jpg", ".png")))
        parts = [[name for name in names if name.startswith("train/")], [n for n in names if n.startswith(f"{split}/")]]
        if not split:
            parts = [names[::2], names[1::2]]

        def read(part: list[str], count: int) -> Images:
            chosen = np.linspace(0, len(part) - 1, count).astype(int)
            return [preprocess(Image.open(io.BytesIO(opened.read(part[index])))) for index in chosen]

        return read(parts[0], CALIBRATION), read(parts[1], EVALUATION)


def write_float(model: nn.Module, sample: NDArray[np.float32], path: Path) -> None:
    program = torch.onnx.export(
        model.eval(), (torch.from_numpy(sample),), dynamo=True, opset_version=18, input_names=["input"]
    )
    assert program is not None
    program.save(path, external_data=False)


def by_onnxruntime(source: Path, out: Path, data: Images, **options: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(data)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._left, None)
            return None if image is None else {"input": image}

    quantize_static(source, out, Reader(), **options)


def by_onnxruntime_symmetric(source: Path, out: Path, data: Images) -> None:
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    by_onnxruntime(source, out, data, per_channel=True, extra_options=symmetric)


def by_nncf(source: Path, out: Path, data: Images, preset: str = "performance") -> None:
    import nncf

    quantized = nncf.quantize(
        onnx.load(source),
        nncf.Dataset(data, lambda image: {"input": image}),
        preset=nncf.QuantizationPreset(preset),
        subset_size=len(data),
    )
    onnx.save(quantized, out)


def by_nncf_mixed(source: Path, out: Path, data: Images) -> None:
    by_nncf(source, out, data, preset="mixed")


def by_torch(model: nn.Module, out: Path, data: Images) -> None:
    """Quantise as PyTorch 2 does (uint8 activations, int8 weights per channel), and export."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    sample = torch.from_numpy(data[0])
    program = torch.export.export(model.eval(), (sample,)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program, quantizer)
    with torch.no_grad():
        for image in data:
            prepared(torch.from_numpy(image))
    exported = torch.onnx.export(
        convert_pt2e(prepared), (sample,), dynamo=True, opset_version=18, input_names=["input"]
    )
    assert exported is not None
    exported.save(out, external_data=False)


def by_modelopt(python: str, source: Path, out: Path, data: Images) -> None:
    calibration = out.with_suffix(".npy")
    np.save(calibration, np.concatenate(data))
    subprocess.run([python, "-c", MODELOPT, source, calibration, out], check=True, capture_output=True)


def foreign_files(model: nn.Module, source: Path, data: Images, modelopt: str | None) -> Iterator[tuple[str, Path]]:
    """Yield (tool, file) for each tool that quantised the network."""
    tools: dict[str, Callable[[Path], None]] = {
        "ONNX Runtime, defaults": lambda out: by_onnxruntime(source, out, data),
        "ONNX Runtime, symmetric": lambda out: by_onnxruntime_symmetric(source, out, data),
        "NNCF, defaults": lambda out: by_nncf(source, out, data),
        "NNCF, mixed": lambda out: by_nncf_mixed(source, out, data),
        "torch": lambda out: by_torch(model, out, data),
    }
    if modelopt is not None:
        tools["ModelOpt"] = lambda out: by_modelopt(modelopt, source, out, data)
    for tool, make in tools.items():
        out = source.with_name(f"{source.stem}-{tool.lower().replace(', ', '-').replace(' ', '-')}.onnx")
        if not out.exists():
            make(out)
        yield tool, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--modelopt", help="Python that has nvidia-modelopt[onnx]")
    parser.add_argument("--target", action="append")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {target: [] for target in arguments.target or ["jetson-orin", "jetson-xavier"]}
    for name, (build, archive, split, preprocess) in NETWORKS.items():
        data, evaluation = images(arguments.assets / archive, split, preprocess)
        model = build(arguments.assets)
        source = arguments.work / f"{name.lower().replace(' ', '-')}.onnx"
        if not source.exists():
            write_float(model, data[0], source)
        exact = onnx.load(source)
        for tool, path in foreign_files(model, source, data, arguments.modelopt):
            foreign = onnx.load(path)
            for target in rows:
                rows[target].append(row(f"{name}, {tool}", exact, foreign, target, data, evaluation))
                print(rows[target][-1], file=sys.stderr)
    for target, lines in rows.items():
        print(f"\n{target}\n\n| file | violations before | after | SNR before, dB | SNR after, dB | change, dB |")
        print("|---|---|---|---|---|---|\n" + "\n".join(lines))


def row(
    name: str, exact: onnx.ModelProto, foreign: onnx.ModelProto, target: str, data: Images, evaluation: Images
) -> str:
    device = load_target(target)
    found = Counter(violation.rule for violation in check_model(foreign, device))
    repaired = repair(foreign, device)
    if repaired.unknown_ranges:
        feeds = [{"input": image} for image in data]
        repaired = repair(foreign, device, measured_ranges(repaired.model, repaired.unknown_ranges, feeds))
    before, after = output_sqnr_db(exact, [foreign, repaired.model], [{"input": image} for image in evaluation])
    # The output that loses most; a classifier has one.
    output = min(before, key=lambda key: after[key] - before[key])
    rules = ", ".join(f"{count} {rule}" for rule, count in found.items()) or "none"
    return (
        f"| {name} | {rules} | {len(repaired.left)} | {before[output]:.1f} | {after[output]:.1f} "
        f"| {after[output] - before[output]:+.1f} |"
    )


if __name__ == "__main__":
    main()
