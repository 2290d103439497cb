import json
from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner
from tiny_text import FAMILIES, write_tiny
from torch import nn

from tlc.cli.inspect import inspect_command
from tlc.compress.checkpoint import save_model
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.inspect import inspect_model
from tlc.compress.inspection import Inspection
from tlc.compress.load import load_model
from tlc.compress.text_model import load_text_model, save_text_model
from tlc.runtime.errors import TlcError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inspect") / "m.pt"
    torch.save(torchvision.models.squeezenet1_1(num_classes=5).state_dict(), path)
    return path


def test_weights_alone_are_described_with_the_architecture_they_fit(weights: Path) -> None:
    found = inspect_model(weights)
    assert found.arch is None
    assert found.suggested_archs == ("torchvision:squeezenet1_1",)
    assert found.parameters == 725_061
    assert found.next_step == "Pass --arch torchvision:squeezenet1_1."
    assert sum(part.share_ratio for part in found.parts) == pytest.approx(1)


def test_a_known_architecture_is_described_with_input_classes_and_costs(weights: Path) -> None:
    found = inspect_model(weights, arch="torchvision:squeezenet1_1")
    assert (found.num_classes, found.input_shape, found.parameters) == (5, (3, 224, 224), 725_061)
    assert found.macs is not None
    # torchvision states 0.35 GFLOPs (multiply-accumulates) for 1000 classes: 995 outputs of 512 inputs at 13x13 fewer.
    assert found.macs / 1e9 == pytest.approx(0.349 - 995 * 512 * 169 / 1e9, rel=0.02)
    assert found.macs == sum(part.macs or 0 for part in found.parts)
    assert found.operators["Conv2d"] == 26
    assert any(line.startswith("INT8: 26 Conv2d hold 100.0%") for line in found.possibilities)


def test_the_input_can_be_given_where_nobody_said_it(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)), tmp_path / "m.pt")
    unknown = inspect_model(tmp_path / "m.pt")
    assert (unknown.arch, unknown.macs) == ("pickle", None)
    assert "--input CxHxW" in unknown.next_step
    found = inspect_model(tmp_path / "m.pt", options=PreprocessOptions(input=(3, 8, 8)))
    assert (found.num_classes, found.macs, found.preprocess) == (5, 4 * 36 * 27 + 144 * 5, None)
    assert [layer.shape for layer in found.layers] == [(4, 3, 3, 3), (5, 144)]


def test_a_model_that_tlc_saved_is_described(tmp_path: Path, weights: Path) -> None:
    save_model(load_model(weights, arch="torchvision:squeezenet1_1"), tmp_path / "saved")
    found = inspect_model(tmp_path / "saved")
    assert (found.format, found.arch) == ("tlc model", "torchvision:squeezenet1_1")


def test_the_command_prints_tables_or_one_json_object(weights: Path) -> None:
    arguments = [str(weights), "--arch", "torchvision:squeezenet1_1"]
    shown = CliRunner().invoke(inspect_command, arguments)
    assert shown.exit_code == 0
    for text in ("725,061", "3x224x224", "features", "What tlc could do"):
        assert text in shown.output
    printed = CliRunner().invoke(inspect_command, [*arguments, "--json"])
    assert Inspection.model_validate(json.loads(printed.stdout)).parameters == 725_061


# What is true of each published file: (how it is stored, learned parameters, tensors beside counters and statistics).
PUBLISHED = {
    # ResNet-20 of akamaster/pytorch_resnet_cifar10: legacy pickle, nested, DataParallel's prefix.
    "akamaster_resnet20-12fca82f.th": ("PyTorch legacy pickle, state_dict under 'state_dict'", 269_722),
    # ESPNet-C for CamVid, a segmentation network.
    "espnet_p_2_q_8_camvid.pth": ("PyTorch legacy pickle, state_dict", None),
    # MTCNN's R-Net, a face detector's second stage.
    "mtcnn_rnet.pt": ("PyTorch legacy pickle, state_dict", 100_178),
    # RetinaFace on MobileNet 0.25, a face detector.
    "retinaface_mobilenet0.25_Final.pth": ("PyTorch legacy pickle, state_dict", None),
    # Ultra-Light-Fast-Generic-Face-Detector, slim.
    "ultralight_version-slim-320.pth": ("PyTorch legacy pickle, state_dict", None),
}


@pytest.mark.assets
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_open_and_are_not_taken_for_something_else(assets: Path, name: str) -> None:
    kind, learned = PUBLISHED[name]
    path = assets / "checkpoint-formats" / name
    found = inspect_model(path)
    assert found.format == kind
    assert learned is None or found.parameters == learned
    # None of them is a torchvision classifier: nothing is suggested, and the message says so.
    assert found.suggested_archs == ()
    assert any("its keys fit no image classifier of torchvision" in note for note in found.notes)
    assert found.next_step == "Pass --arch FILE.py:FUNCTION, the function that builds this network."
    with pytest.raises(TlcError, match="does not fit --arch torchvision:mobilenet_v2"):
        inspect_model(path, arch="torchvision:mobilenet_v2")


@pytest.mark.assets
def test_every_published_file_has_its_row(assets: Path) -> None:
    files = {path.name for path in (assets / "checkpoint-formats").iterdir() if not path.name.startswith("LICENSE")}
    assert files == set(PUBLISHED)


@pytest.mark.assets
def test_the_ants_and_bees_network_is_recognised(assets: Path) -> None:
    path = assets / "ants-bees" / "squeezenet1_0-ants-bees.pt"
    assert inspect_model(path).suggested_archs == ("torchvision:squeezenet1_0",)
    assert inspect_model(path, arch="torchvision:squeezenet1_0").num_classes == 2


@pytest.mark.assets
def test_the_cifar_network_shows_the_blocks_that_can_go(assets: Path) -> None:
    folder = assets / "cifar10"
    arch = f"{folder / 'cifar_resnet.py'}:resnet56"
    found = inspect_model(folder / "resnet56-cifar10.pt", arch=arch, options=PreprocessOptions(input=(3, 32, 32)))
    assert (found.num_classes, found.parameters) == (10, 855_578)
    assert found.possibilities[0].startswith("depth: 25 blocks can be left out")


@pytest.mark.assets
def test_a_real_text_model_is_described(assets: Path) -> None:
    found = inspect_model(assets / "movie-sentiment" / "model")
    assert (found.task, found.max_length, found.classes) == ("sequence-classification", 512, ("negative", "positive"))
    assert found.parameters == 22_713_986
    # Of 128 tokens: six layers of four 384 x 384 and two 384 x 1536 products and of two products of attention, then
    # the pooler and the head on the first token.
    layer = 128 * (4 * 384 * 384 + 2 * 384 * 1536) + 2 * 128 * 128 * 384
    assert found.macs == 6 * layer + 384 * 384 + 384 * 2
    assert found.possibilities[1].startswith("width: 12 heads and 1,536 intermediate channels")
    assert found.possibilities[2].startswith("vocabulary: the embeddings of 30,522 tokens hold 51.6%")
    assert [part.name.rpartition(".")[2] for part in found.parts] == ["embeddings", "encoder", "pooler", "classifier"]
    assert found.next_step.endswith("--data TEXTS.csv")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_model_of_each_family_is_described(tmp_path: Path, family: str) -> None:
    folder = write_tiny(tmp_path / "model", family)
    found = inspect_model(folder)
    assert (found.task, found.max_length, found.num_classes) == ("sequence-classification", 64, 2)
    assert found.format == "Hugging Face folder, safetensors"
    assert "4 heads and 64 intermediate channels" in found.possibilities[1]
    assert sum(part.share_ratio for part in found.parts) == pytest.approx(1)
    save_text_model(load_text_model(folder), tmp_path / "saved")
    again = inspect_model(tmp_path / "saved")
    assert again.format == "tlc model"
    assert (again.layers, again.macs) == (found.layers, found.macs)


def test_a_text_model_without_its_tokenizer_is_described_with_what_is_missing(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    found = inspect_model(folder)
    assert found.num_classes == 2
    assert "holds no tokenizer.json" in found.notes[-1]
    assert "--tokenizer" in found.next_step
    done = CliRunner().invoke(inspect_command, [str(folder)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "texts of at most 64 tokens, for sequence classification" in " ".join(done.output.split())
