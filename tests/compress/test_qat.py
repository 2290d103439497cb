"""Training image networks for INT8: it helps where rounding hurts, and is done where the budget asks for it."""

import copy
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import tiny
from tlc.calibration.cache import Pixels
from tlc.compress import image_int8
from tlc.compress.arch import parse_arch
from tlc.compress.distill import LossSettings
from tlc.compress.events import silent
from tlc.compress.image_int8 import Int8Images
from tlc.compress.image_train import ImageSamples, evaluate
from tlc.compress.model import Model
from tlc.compress.objective import Supervised
from tlc.compress.onnx_network import OnnxNetwork
from tlc.compress.qat import qat
from tlc.compress.quantize import QuantizeSettings, quantize_onnx
from tlc.compress.recipe import read_recipe
from tlc.compress.train import TrainSettings, fit
from tlc.compress.work import Data
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.errors import TlcError
from tlc.runtime.target import load_target
from tlc.runtime.tensor import Feeds

TARGET = load_target("cpu-x86", flags=frozenset({"sse2", "avx512_vnni"}))
COUNT = 16


class Uneven(nn.Module):
    """A depthwise convolution whose channels lie 64-fold apart, which one scale for all of them cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x).relu()).relu()
        logits: Tensor = self.head(self.pointwise(x).relu().amax((2, 3)))
        return logits


class Samples:
    """The training images one by one, again and again."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __iter__(self) -> Iterator[Feeds]:
        return ({"input": self.pixels.batch([index])} for index in range(len(self.pixels)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pixels, Pixels]:
    return tiny.bars(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(data: tuple[Pixels, Pixels], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Trained, then rescaled: the same function, in channels that lie far apart."""
    torch.manual_seed(0)
    settings = TrainSettings(epochs=8, batch_size=8, learning_rate=0.05, precision="fp32")
    samples = (ImageSamples(data[0]), ImageSamples(data[1]))
    folder = tmp_path_factory.mktemp("training")
    module = fit(Uneven(), *samples, settings, Supervised(), seed=0, views=8, folder=folder, emit=silent).network
    with torch.no_grad():
        factors = torch.logspace(-6, 0, 8, base=2)
        module.stem.weight.mul_(factors[:, None, None, None])  # type: ignore[operator,union-attr]
        module.stem.bias.mul_(factors)  # type: ignore[operator,union-attr]
        module.depthwise.weight.div_(factors[:, None, None, None])  # type: ignore[operator,union-attr]
    path = tmp_path_factory.mktemp("arch") / "net.py"
    path.write_text("def net(num_classes): ...\n")
    return Model(module, parse_arch(f"{path}:net"), tiny.PREPROCESS, 2, ("flat", "upright"))


@pytest.fixture(scope="module")
def around(model: Model, data: tuple[Pixels, Pixels], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The INT8 file of the model, beside the float one."""
    folder = tmp_path_factory.mktemp("int8")
    onnx_from_torch(model.module, (1, 8, 8), folder / "float.onnx", opset=18)
    quantize_onnx(
        folder / "float.onnx",
        folder / "int8.onnx",
        Samples(data[0]),
        count=COUNT,
        target=TARGET,
        settings=QuantizeSettings(),
        around=folder / "around.onnx",
    )
    return folder / "around.onnx"


def trained(
    model: Model, around: Path, data: tuple[Pixels, Pixels], folder: Path, epochs: int = 12
) -> tuple[onnx.ModelProto, tuple[float, ...]]:
    folder.mkdir()
    found, fitted = qat(
        model,
        onnx.load(around),
        *data,
        LossSettings(),
        TrainSettings(batch_size=8, precision="fp32", freeze=("stem.*",)),
        epochs=epochs,
        learning_rate=0.01,  # of 20 steps an epoch
        seed=0,
        folder=folder,
        logits_folder=folder,
        emit=silent,
    )
    return found, fitted.scores


def test_training_brings_the_file_nearer_to_the_float_network(
    model: Model, around: Path, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    state = copy.deepcopy(model.module.state_dict())

    found, scores = trained(model, around, data, tmp_path / "first")
    again, _ = trained(model, around, data, tmp_path / "second")

    wanted = evaluate(model.module, data[1], bf16=False).softmax(1)

    def distance(file: onnx.ModelProto) -> float:
        rounded = evaluate(OnnxNetwork(file), data[1], bf16=False).softmax(1)
        return float((rounded - wanted).abs().mean())

    assert distance(found) < 0.85 * distance(onnx.load(around))
    assert len(scores) == 12
    assert found.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert all(torch.equal(state[name], value) for name, value in model.module.state_dict().items())


def int8_images(
    model: Model | None, around: Path, data: tuple[Pixels, Pixels], drops: list[float], **settings: object
) -> Int8Images:
    """Return what makes INT8 files whose drops, in points, are given in the order in which they are asked for."""
    recipe = read_recipe(
        None,
        {
            "model.path": "model.pt",
            "data.path": "bars.npz",
            "train.batch_size": 8,
            "train.precision": "fp32",
            "quantize.max_exclusions": 1,
            **settings,
        },
    )
    parts = Data(data[0], data[1], data[1], data[1], around.parent)
    source = around.with_name("float.onnx")
    asked = iter(drops)
    return Int8Images(source, model, recipe, TARGET, parts, Samples(data[0]), COUNT, lambda _: next(asked), silent)


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_int8, "FEWEST_SAMPLES", 8)
    monkeypatch.setattr(image_int8, "QAT_EPOCHS", 1)


@pytest.mark.usefixtures("few_are_enough")
def test_a_missed_budget_gets_a_trained_file_beside_the_others(
    model: Model, around: Path, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    files, found, summary = int8_images(model, around, data, [3.0, 2.0, 0.5]).files(tmp_path)

    assert [file.suffix for file in files] == ["-mixed", "", "-qat"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.onnx", "full.onnx", "qat.onnx"]
    assert found["qat"]["drop_points"] == 0.5
    assert len(found["qat"]["scores"]) == 1
    assert summary.endswith("over the budget of 1; -0.50 points trained for INT8, epoch 1 of 1.")
    assert files[2].path.read_bytes() != files[1].path.read_bytes()


def test_a_budget_that_is_met_trains_nothing(
    model: Model, around: Path, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    files, found, _ = int8_images(model, around, data, [0.9]).files(tmp_path)
    assert [file.suffix for file in files] == [""]
    assert "qat" not in found


def test_epochs_that_are_asked_for_are_run_though_the_budget_is_met(
    model: Model, around: Path, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    asked = {"quantize.qat_epochs": 2}
    files, found, _ = int8_images(model, around, data, [0.9, 0.3], **asked).files(tmp_path)
    assert [file.suffix for file in files] == ["", "-qat"]
    assert len(found["qat"]["scores"]) == 2


@pytest.mark.parametrize(
    ("known", "settings"), [(False, {}), (True, {"quantize.qat_epochs": 0})], ids=["no network", "0 epochs"]
)
def test_nothing_is_trained_without_a_network_or_with_0_epochs(
    model: Model, around: Path, data: tuple[Pixels, Pixels], tmp_path: Path, known: bool, settings: dict[str, object]
) -> None:
    work = int8_images(model if known else None, around, data, [3.0, 2.0], **settings)
    assert "qat" not in work.files(tmp_path)[1]


def test_too_few_images_to_train_are_said_to_be(
    model: Model, around: Path, data: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    files, _, summary = int8_images(model, around, data, [3.0, 2.0]).files(tmp_path)
    assert [file.suffix for file in files] == ["-mixed", ""]
    assert f"; {len(data[0])} images, too few to train for INT8: the limit is 500." in summary


@pytest.mark.usefixtures("few_are_enough")
@pytest.mark.parametrize(
    ("drops", "met", "ships_trained"),
    [([3.0, 2.0, 0.5], True, True), ([3.0, 0.8, 0.9], True, True), ([3.0, 0.8, 1.9], True, False)],
    ids=["only training meets it", "layers in float meet it too", "only layers in float meet it"],
)
def test_one_file_is_the_trained_one_where_that_meets_the_budget(
    model: Model,
    around: Path,
    data: tuple[Pixels, Pixels],
    tmp_path: Path,
    drops: list[float],
    met: bool,
    ships_trained: bool,
) -> None:
    outcome = int8_images(model, around, data, drops).one_file(tmp_path / "out.onnx")

    names = [tensor.name for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer]
    everything = [tensor.name for tensor in onnx.load(around).graph.initializer]
    assert outcome.met is met
    assert (names == everything) is ships_trained  # else a layer in float has no grid
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.usefixtures("few_are_enough")
def test_what_cannot_be_trained_is_an_error_only_where_it_was_asked_for(
    model: Model, around: Path, data: tuple[Pixels, Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TlcError("last (Hardmax) cannot be trained", hint="Leave it out.")

    monkeypatch.setattr(image_int8, "qat", refuse)

    files, _, summary = int8_images(model, around, data, [3.0, 2.0]).files(tmp_path)
    assert [file.suffix for file in files] == ["-mixed", ""]
    assert summary.endswith("; not trained for INT8: last (Hardmax) cannot be trained.")
    with pytest.raises(TlcError, match=r"last \(Hardmax\) cannot be trained"):
        int8_images(model, around, data, [3.0, 2.0], **{"quantize.qat_epochs": 1}).files(tmp_path)
