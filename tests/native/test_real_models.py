"""tlc-run predicts what Python predicts: 1,000 photographs by a ResNet-56, 1,000 reviews by a BERT of six layers."""

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_build import built, ort_library
from PIL import Image

from tlc.calibration.preprocess import Preprocess
from tlc.calibration.texts import read_texts
from tlc.calibration.tokens import encode
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.compress.text_model import load_text_model
from tlc.export.bundle import PackOptions, pack
from tlc.export.bundle_source import source_of_file
from tlc.export.metadata import write_metadata
from tlc.export.onnx import onnx_from_torch
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.export.transformer import fuse_for_onnxruntime
from tlc.runtime.session import OrtSession
from tlc.runtime.target import load_target

pytestmark = pytest.mark.assets

LIBRARY = ort_library()
SAMPLES = 1000


@pytest.fixture(scope="module")
def tlc_run() -> Path:
    return built()


def evaluated(tlc_run: Path, bundle: Path, data: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the report of `tlc-run eval`, and its predictions, after `tlc-run check` passed."""
    library = ["--ort-lib", str(LIBRARY)]
    subprocess.run([tlc_run, "check", bundle, *library], check=True, capture_output=True)
    command = [str(tlc_run), "eval", str(bundle), "--data", str(data), "--json", "--threads", "1", *library]
    done = subprocess.run(
        [*command, "--predictions", str(folder / "predictions.json")], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout), json.loads((folder / "predictions.json").read_text(encoding="utf-8"))


def test_the_cifar_network(tlc_run: Path, assets: Path, tmp_path: Path) -> None:
    folder = assets / "cifar10"
    fed = Preprocess(size=(32, 32), resize=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    options = PreprocessOptions(input=(3, 32, 32), mean=fed.mean, std=fed.std)
    arch = f"{folder / 'cifar_resnet.py'}:resnet56"
    model = load_model(folder / "resnet56-cifar10.pt", arch=arch, preprocess=options)
    onnx_from_torch(model.module, (3, 32, 32), tmp_path / "plain.onnx", opset=17)
    with zipfile.ZipFile(folder / "images.zip") as archive:
        names = sorted(name for name in archive.namelist() if "val/" in name and name.endswith((".jpg", ".jpeg")))
        chosen = names[:: len(names) // SAMPLES]
        archive.extractall(tmp_path, chosen)
    data = (tmp_path / chosen[0]).parents[1]
    classes = tuple(sorted(path.name for path in data.iterdir()))
    write_metadata(tmp_path / "plain.onnx", tmp_path / "cifar.onnx", fed, classes)
    source = source_of_file(tmp_path / "cifar.onnx", load_target("cpu-x86"), fed=fed, classes=classes, tokenizer=None)
    pack(source, tmp_path / "cifar.tlc", PackOptions())

    report, found = evaluated(tlc_run, tmp_path / "cifar.tlc", data, tmp_path)
    expected = []
    with OrtSession(tmp_path / "cifar.onnx") as session:
        for name in found["names"]:
            with Image.open(data / name) as image:
                expected.append(int(session.run({"input": fed(image)})["logits"].argmax()))

    assert len(expected) == SAMPLES
    assert found["predicted"] == expected
    assert report["top1"] == (np.array(expected) == found["labels"]).mean()
    assert 0.85 < report["top1"] < 0.93  # 0.8928 on all 10,000


@pytest.mark.slow
def test_the_classifier_of_reviews(tlc_run: Path, assets: Path, tmp_path: Path) -> None:
    folder = assets / "movie-sentiment"
    model = load_text_model(folder / "model", max_length=64)
    text_onnx_from_torch(model.module, model.text.inputs, tmp_path / "plain.onnx", opset=18, max_length=64)
    fuse_for_onnxruntime(tmp_path / "plain.onnx", tmp_path / "fused.onnx", max_length=64)
    write_metadata(tmp_path / "fused.onnx", tmp_path / "reviews.onnx", model.text, model.classes)
    source = source_of_file(
        tmp_path / "reviews.onnx",
        load_target("cpu-x86"),
        fed=model.text,
        classes=model.classes,
        tokenizer=folder / "model",
    )
    pack(source, tmp_path / "reviews.tlc", PackOptions())
    splits = read_texts(folder, task="sequence-classification").for_model(2, model.classes)
    tokens = encode(splits.fit.subset(range(SAMPLES)), model.tokenizer, model.text)
    feeds = [tokens.feeds([index]) for index in range(SAMPLES)]
    arrays: dict[str, Any] = {f"{i}/{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
    np.savez(tmp_path / "data.npz", y=tokens.labels, **arrays)

    report, found = evaluated(tlc_run, tmp_path / "reviews.tlc", tmp_path / "data.npz", tmp_path)
    with OrtSession(tmp_path / "reviews.onnx") as session:
        expected = [int(next(iter(session.run(feed).values())).argmax()) for feed in feeds]

    assert found["predicted"] == expected
    assert found["labels"] == tokens.labels.tolist()
    assert report["top1"] > 0.88
