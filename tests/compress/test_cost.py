import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from tlc.compress.cost import macs, parameters


def test_a_convolution_costs_its_kernel_at_every_output_pixel() -> None:
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    assert macs(conv, torch.zeros(5, 3, 16, 16)) == 8 * 8 * 8 * 3 * 3 * 3


def test_shared_weights_are_counted_once_and_statistics_are_not() -> None:
    linear = nn.Linear(4, 4, bias=False)
    assert parameters(nn.Sequential(linear, nn.BatchNorm1d(4), linear)) == 16 + 8


def test_counting_leaves_mode_and_batch_statistics_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    macs(net, torch.ones(1, 3, 8, 8))
    assert net.training
    assert int(net[1].num_batches_tracked) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "shufflenet_v2_x1_0", "vit_b_16", "swin_t"])
def test_macs_are_those_that_torchvision_publishes(name: str) -> None:
    published = get_model_weights(name).DEFAULT.meta
    module = get_model(name, weights=None).eval()
    assert macs(module, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(published["_ops"], abs=5e-4)
    assert parameters(module) == published["num_params"]
