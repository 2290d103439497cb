"""How well a latency table tells what students take that it was not fitted to.

    OMP_NUM_THREADS=1 python benchmarks/latency_table.py ASSETS CACHE > benchmarks/results/latency_table.md

ASSETS holds cifar10/ and movie-sentiment/ as in cifar10.sh and movie_sentiment.sh. The other
networks have random weights. CACHE is a folder that keeps what was measured. For each network: a table fitted to a few
measured shapes, then shapes that are not among them, predicted and measured, as INT8 for ONNX Runtime on this CPU.
"range" is what the student's name alone tells, where it leaves open which blocks stay; they went evenly.
"""

import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision import models

from tlc.compress.inputs import PreprocessOptions
from tlc.compress.latency_table import latency_table
from tlc.compress.plan import make_plan
from tlc.compress.recipe import DataSection, ModelSection, Recipe
from tlc.compress.runner import Runner
from tlc.compress.shape_times import measure_shapes

NORMAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
COLUMNS = "| network | student | predicted, ms | measured, ms | error | within the bound | range, ms |"
IMAGES = {"train": 60, "val": 20}
"""Of each class: time does not depend on them."""
VIT = """from torchvision.models import VisionTransformer


def small_vit(num_classes: int = 10) -> VisionTransformer:
    return VisionTransformer(
        image_size=64, patch_size=8, num_layers=6, num_heads=6, hidden_dim=192, mlp_dim=768, num_classes=num_classes
    )
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One network, the widths that its table is for, and the students to check it with."""

    name: str
    model: ModelSection
    data: Path
    widths: tuple[float, ...]
    held_out: tuple[str, ...]


def cases(assets: Path, cache: Path) -> Iterator[Case]:
    """Yield the networks; their files are written to `cache` where there are none."""
    images = _few_images(assets / "cifar10/images.zip", cache / "images")
    resnet, arch = assets / "cifar10/resnet56-cifar10.pt", f"{assets / 'cifar10/cifar_resnet.py'}:resnet56"
    yield Case(
        "ResNet-56",
        ModelSection(path=resnet, arch=arch, preprocess=PreprocessOptions(resize="none", **NORMAL)),
        images,
        (1.0, 2.0),
        (
            *("depth:7,7,7", "depth:2,4,3", "depth:4,1,2", "depth:1,3,6", "depth:5,6,2"),
            *("depth:2,2,2+width:2", "depth:3,1,2+width:2", "depth:4,3,1+width:2"),
        ),
    )
    (cache / "vit.py").write_text(VIT)
    scaled = PreprocessOptions(input=(3, 64, 64), resize=64, **NORMAL)
    yield Case(
        "MobileNetV2, 64x64",
        ModelSection(path=_drawn(cache, "mobilenet_v2"), arch="torchvision:mobilenet_v2", preprocess=scaled),
        images,
        (1.0,),
        ("depth:0.8", "depth:0.4", "depth:0.2"),
    )
    yield Case(
        "ViT, 6 layers of 192, 64x64",
        ModelSection(path=_drawn(cache, "small_vit"), arch=f"{cache / 'vit.py'}:small_vit", preprocess=scaled),
        images,
        (1.0,),
        ("depth:5", "depth:4", "depth:2"),
    )
    yield Case(
        "BERT, 6 layers of 384",
        ModelSection(path=assets / "movie-sentiment/model"),
        assets / "movie-sentiment",
        (1.0,),
        ("depth:2", "depth:2+heads:6", "depth:3+heads:4+intermediate:1024", "depth:4+width:0.35"),
    )


def rows(case: Case, cache: Path) -> Iterator[str]:
    """Yield the rows of one network, its summary last."""
    recipe = Recipe(model=case.model, data=DataSection(path=case.data))
    plan = make_plan(recipe)
    work, runner = plan.start(cache / "data"), Runner.here(plan.target, cache / "engines")
    table = latency_table(work, plan.model, runner, cache=cache, widths=case.widths)
    found = measure_shapes(work, plan.model, case.held_out, runner, cache=cache)
    errors = []
    for spec in case.held_out:
        predicted, whole = table.predict_shape(table.shapes.shape(spec)), table.predict(spec)
        errors.append(predicted.p50_ms / found[spec] - 1)
        within = abs(predicted.p50_ms - found[spec]) <= predicted.bound_ms
        low, high = whole.p50_ms - whole.bound_ms, whole.p50_ms + whole.bound_ms
        open_ = "" if whole == predicted else f"{low:.3f} to {high:.3f}"
        yield (
            f"| {case.name} | {spec} | {predicted.p50_ms:.3f} ± {predicted.bound_ms:.3f} | {found[spec]:.3f} | "
            f"{100 * errors[-1]:+.1f} % | {'yes' if within else 'no'} | {open_} |"
        )
    typical, worst = sorted(map(abs, errors))[len(errors) // 2], max(map(abs, errors))
    made = f"{len(table.measured_ms)} shapes measured for {len(table.terms_ms)} terms"
    error = f"median {100 * typical:.1f} %, at most {100 * worst:.1f} %"
    yield f"| **{case.name}** | {made}, original {table.original_ms:.3f} ms | | | {error} | | |"


def _few_images(archive: Path, folder: Path) -> Path:
    """Extract a few images of each class."""
    counts: Counter[tuple[str, str]] = Counter()
    if not folder.exists():
        with zipfile.ZipFile(archive) as file:
            for name in sorted(file.namelist()):
                parts = Path(name).parts
                if len(parts) < 3 or name.endswith("/"):
                    continue
                part, kind, image = parts[-3:]
                counts[part, kind] += 1
                if counts[part, kind] <= IMAGES.get(part, 0):
                    out = folder / part / kind / image
                    out.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(name) as source, out.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
    return folder


def _drawn(cache: Path, name: str) -> Path:
    """Write random weights for ten classes."""
    path = cache / f"{name}.pt"
    if not path.exists():
        torch.manual_seed(0)
        if name == "small_vit":
            scope: dict[str, Any] = {}
            exec(VIT, scope)
            network = scope[name]()
            torch.nn.init.normal_(network.heads.head.weight, std=0.02)
        else:
            network = models.get_model(name, weights=None, num_classes=10)
        torch.save(network.state_dict(), path)
    return path


if __name__ == "__main__":
    assets, cache = (Path(argument).resolve() for argument in sys.argv[1:])
    cache.mkdir(parents=True, exist_ok=True)
    print(COLUMNS)
    print("|:--|:--|--:|--:|--:|:--|:--|")
    for case in cases(assets, cache):
        for line in rows(case, cache):
            print(line, flush=True)
