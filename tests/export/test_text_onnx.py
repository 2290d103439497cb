from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_text_onnx import PLAIN, TYPED, ort_logits, tiny_module, token_batch, torch_logits
from torch import Tensor, nn

from tlc.export.opset import opset_of
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.runtime.errors import TlcError


def ops(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_inputs_and_output_are_those_promised(tmp_path: Path) -> None:
    path = text_onnx_from_torch(tiny_module("bert"), TYPED, tmp_path / "m.onnx", opset=17, max_length=48).path
    model = onnx.load(path)
    kinds = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    shapes = {
        name: (kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim])
        for name, kind in kinds.items()
    }
    tokens = (onnx.TensorProto.INT64, ["N", "T"])
    assert shapes == {**dict.fromkeys(TYPED, tokens), "logits": (onnx.TensorProto.FLOAT, ["N", 2])}
    assert opset_of(model) == 17


@pytest.mark.parametrize("opset", [13, 16])
def test_older_opsets_are_written(tmp_path: Path, opset: int) -> None:
    module = tiny_module("distilbert")
    path = text_onnx_from_torch(module, PLAIN, tmp_path / "m.onnx", opset=opset, max_length=48).path
    feeds = token_batch(3, 9)
    np.testing.assert_allclose(ort_logits(path, feeds), torch_logits(module, feeds), atol=2e-5)
    assert opset_of(onnx.load(path)) == opset


def test_the_same_module_gives_the_same_bytes_and_keeps_its_attention(tmp_path: Path) -> None:
    module = tiny_module("bert")
    config = config_of(module)
    before = config._attn_implementation
    paths = [
        text_onnx_from_torch(module, PLAIN, tmp_path / name, opset=18, max_length=32).path for name in ("a.onnx", "b")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert config._attn_implementation == before


def test_the_mask_is_a_bias_that_float16_can_hold(tmp_path: Path) -> None:
    path = text_onnx_from_torch(tiny_module("bert"), PLAIN, tmp_path / "m.onnx", opset=18, max_length=32).path
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    assert min(array.min() for array in constants if array.dtype == np.float32) == -10_000


def config_of(module: nn.Module) -> Any:
    return vars(module.get_submodule("model"))["config"]


class FixedLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        means: Tensor = self.table(input_ids).reshape(-1, 8, 4).mean(1)
        return means * attention_mask[:, :1]


class NoTable(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (input_ids * attention_mask).to(torch.float32)


def test_a_network_that_fixes_the_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="FixedLength does not run on 1 texts of 7 tokens"):
        text_onnx_from_torch(FixedLength(), PLAIN, tmp_path / "m.onnx", opset=18, max_length=32)
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_table_of_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="NoTable looks its tokens up in no table"):
        text_onnx_from_torch(NoTable(), PLAIN, tmp_path / "m.onnx", opset=18, max_length=32)


def test_an_unknown_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="no input pixel_values"):
        text_onnx_from_torch(tiny_module("bert"), ("pixel_values",), tmp_path / "m.onnx", opset=18, max_length=32)


def test_an_opset_before_13_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="opset 12 is too old"):
        text_onnx_from_torch(tiny_module("bert"), PLAIN, tmp_path / "m.onnx", opset=12, max_length=32)
