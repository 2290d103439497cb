"""The last linear layer: found where it is, refused where there is none, replaced for another task."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from tiny_text import write_reviews, write_tiny
from torch import nn

import tiny
from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.data import read_data
from tlc.calibration.texts import read_texts
from tlc.calibration.tokens import encode
from tlc.compress.features import LastLayer, features_of, first_inputs, last_layer, with_classes
from tlc.compress.text_model import load_text_model
from tlc.runtime.errors import TlcError


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    splits = read_data(tiny.write_bars(tmp_path_factory.mktemp("bars") / "bars.npz"))
    return prepare(splits.holdout, tiny.PREPROCESS)


def images(size: int = 64) -> list[torch.Tensor]:
    return [torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("build", "name", "width"),
    [
        (torchvision.models.resnet18, "fc", 512),
        (torchvision.models.mobilenet_v3_small, "classifier.3", 1024),
        (torchvision.models.squeezenet1_1, "classifier.1", 512),
    ],
)
def test_it_is_found_in_networks_that_end_differently(build: Callable[..., nn.Module], name: str, width: int) -> None:
    assert last_layer(build(num_classes=7).eval(), images()) == LastLayer(name, width)


def test_features_are_what_it_reads(pixels: Pixels) -> None:
    net = tiny.seeded_net()
    layer = last_layer(net, first_inputs(pixels))

    features = features_of(net, layer, pixels)

    assert layer == LastLayer("head", 8)
    with torch.inference_mode():
        logits = net(torch.from_numpy(pixels.batch(range(len(pixels)))))
        again = net.head(torch.from_numpy(features))
    assert features.shape == (len(pixels), 8)
    np.testing.assert_allclose(again.numpy(), logits.numpy(), atol=1e-5)


def test_features_at_many_places_are_averaged(pixels: Pixels) -> None:
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layer = last_layer(net.eval(), first_inputs(pixels))

    features = features_of(net, layer, pixels)

    with torch.inference_mode():
        wanted = net[0](torch.from_numpy(pixels.batch(range(len(pixels))))).mean((2, 3))
    assert layer == LastLayer("1", 5)
    np.testing.assert_allclose(features, wanted.numpy(), atol=1e-5)


def test_texts_keep_their_order_whatever_their_length(tmp_path: Path) -> None:
    model = load_text_model(write_tiny(tmp_path / "model"))
    splits = read_texts(write_reviews(tmp_path / "reviews.csv"), task="sequence-classification")
    tokens = encode(splits.fit, model.tokenizer, model.text)
    layer = last_layer(model.module, first_inputs(tokens))

    features = features_of(model.module, layer, tokens)

    assert layer.name == "model.classifier"
    alone = [features_of(model.module, layer, tokens.subset([place])) for place in range(len(tokens))]
    np.testing.assert_allclose(features, np.concatenate(alone), atol=1e-4)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 6)
        self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.body(x.flatten(1))
        return torch.as_tensor(self.one(read) + self.two(read)) / 2


class NoLayer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((1, 2)).amax(1, keepdim=True), x.mean((1, 3)).amax(1, keepdim=True)], 1)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (TwoHeads(), "do not all pass through its last layer, two"),
        (NoLayer(), "no linear layer and no convolution"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Unflatten(1, (2, 3)), nn.AvgPool1d(3), nn.Flatten()),
            "6 out",
        ),
    ],
)
def test_a_network_without_one_is_refused(net: nn.Module, said: str, pixels: Pixels) -> None:
    with pytest.raises(TlcError, match=said):
        last_layer(net.eval(), first_inputs(pixels))


def test_another_task_gets_its_own_and_the_rest_stays(pixels: Pixels) -> None:
    net = tiny.seeded_net()
    inputs = first_inputs(pixels)

    changed = with_classes(net, last_layer(net, inputs), 5, inputs)

    assert changed(*inputs).shape == (2, 5)
    assert net(*inputs).shape == (2, 2)
    kept = net.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in changed.state_dict().items() if "head" not in name)


class Counting(tiny.TinyNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).view(-1, 2)


def test_a_network_that_counts_on_the_old_number_is_refused(pixels: Pixels) -> None:
    net, inputs = Counting().eval(), first_inputs(pixels)

    with pytest.raises(TlcError, match="with 4 classes in its last layer, head, it gives"):
        with_classes(net, last_layer(net, inputs), 4, inputs)
