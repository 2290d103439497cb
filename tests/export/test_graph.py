from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn
from torchvision import models

from tlc.export.graph import graph_stats
from tlc.export.onnx import onnx_from_torch
from tlc.runtime.tensor import TensorSpec


def saved(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str], **weights: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("name", "gmacs"), [("resnet18", 1.814), pytest.param("mobilenet_v2", 0.301, marks=pytest.mark.slow)]
)
def test_macs_agree_with_those_that_torchvision_publishes(tmp_path: Path, name: str, gmacs: float) -> None:
    onnx_from_torch(models.get_model(name), (3, 224, 224), tmp_path / "m.onnx", opset=18)
    assert graph_stats(tmp_path / "m.onnx").macs / 1e9 == pytest.approx(gmacs, abs=0.001)


def test_parameters_are_those_of_the_module(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    onnx_from_torch(module, (3, 8, 8), tmp_path / "m.onnx", opset=18)
    stats = graph_stats(tmp_path / "m.onnx")
    assert stats.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert stats.ops["Conv"] == 1
    assert stats.inputs == (TensorSpec("input", ("N", 3, 8, 8), "float32"),)
    assert stats.outputs == (TensorSpec("logits", ("N", 4), "float32"),)


def test_grouped_strided_convolution(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, strides=[2, 2])
    path = saved(tmp_path / "m.onnx", [node], ["N", 8, 9, 9], w=ones(12, 2, 3, 3))
    assert graph_stats(path).macs == 12 * 4 * 4 * (2 * 3 * 3)


def test_transposed_convolution_spreads_each_input_value(tmp_path: Path) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    path = saved(tmp_path / "m.onnx", [node], ["N", 4, 5, 5], w=ones(4, 6, 2, 2))
    assert graph_stats(path).macs == 4 * 5 * 5 * (6 * 2 * 2)


def test_products_of_two_activations_count(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    assert graph_stats(saved(tmp_path / "m.onnx", nodes, ["N", 7, 5])).macs == 7 * 7 * 5


def test_int8_weights_count_and_their_scales_do_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    constants = {"q": np.ones((6, 3, 1, 1), np.int8), "s": ones(6), "z": np.zeros(6, np.int8)}
    stats = graph_stats(saved(tmp_path / "m.onnx", nodes, ["N", 3, 4, 4], **constants))
    assert (stats.parameters, stats.macs) == (18, 4 * 4 * 6 * 3)


def test_reshapes_that_compute_with_the_batch_are_no_obstacle(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 5)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            count = image.shape[0]
            windows = image.reshape(count * 4, 4, 12)
            return torch.as_tensor(self.inner(windows)).reshape(count, 16, 5).mean(1)

    onnx_from_torch(Windows(), (3, 8, 8), tmp_path / "m.onnx", opset=18)
    assert graph_stats(tmp_path / "m.onnx").macs == 16 * 12 * 5
