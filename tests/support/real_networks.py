"""Trained networks of the shared assets."""

import importlib.util
from pathlib import Path

import torch
from torch import nn


def resnet56(assets: Path) -> nn.Module:
    """Return the ResNet-56 that was trained on CIFAR-10."""
    spec = importlib.util.spec_from_file_location("cifar_resnet", assets / "cifar10/cifar_resnet.py")
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    network: nn.Module = source.resnet56().eval()
    network.load_state_dict(torch.load(assets / "cifar10/resnet56-cifar10.pt", weights_only=True))
    return network
