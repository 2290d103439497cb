from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_text import TASKS
from tiny_text_onnx import MAX_LENGTH, PLAIN, TYPED, OwnAttention, assert_same, ort_logits, tiny_onnx, token_batch
from torch import Tensor, nn

from tlc.export.first_token import run_on_first_token
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.export.transformer import FusionRecord, fuse_for_onnxruntime
from tlc.runtime.errors import TlcError


def fused(source: Path, out: Path) -> tuple[FusionRecord, Counter[str]]:
    record = fuse_for_onnxruntime(source, out, max_length=MAX_LENGTH)
    return record, Counter(node.op_type for node in onnx.load(out).graph.node)


@pytest.mark.parametrize("task", TASKS[1:])
def test_heads_that_read_every_token_run_on_every_token(tmp_path: Path, task: str) -> None:
    source, out = tiny_onnx("bert", task, TYPED).path, tmp_path / "fused.onnx"
    record, ops = fused(source, out)
    assert_same(source, out, TYPED, per_token=True)
    assert not record.first_token
    assert ops["Attention"] == 2


def test_a_fused_bert_has_no_operator_more_than_it_needs(tmp_path: Path) -> None:
    record, ops = fused(tiny_onnx("bert").path, tmp_path / "fused.onnx")
    assert (record.attention, record.gelu, record.normalisation, record.embeddings) == (2, 2, 4, 2)
    # Embeddings: words, positions, sum; mask; all of one layer; the other for its first token; pooler and classifier.
    assert ops == {
        "Gather": 2, "Shape": 1, "Slice": 2, "Sum": 7, "LayerNormalization": 5, "Cast": 1, "Attention": 1, "Add": 4,
        "MatMul": 8, "Gelu": 2, "Split": 1, "MultiHeadAttention": 1, "Gemm": 2, "Tanh": 1,
    }  # fmt: skip


def test_onnxruntime_does_not_make_slower_operators_of_it(tmp_path: Path) -> None:
    import onnxruntime as ort

    out = tmp_path / "fused.onnx"
    fused(tiny_onnx("bert").path, out)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    ops = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert not ops & {"SkipLayerNormalization", "BiasGelu"}


def test_the_layers_of_albert_share_their_packed_weights(tmp_path: Path) -> None:
    out = tmp_path / "fused.onnx"
    fused(tiny_onnx("albert", TASKS[1]).path, out)
    nodes = [node for node in onnx.load(out).graph.node if node.op_type == "Attention"]
    assert len({node.input[1] for node in nodes}) == 1


def test_positions_beyond_the_length_are_cut(tmp_path: Path) -> None:
    source, out = tiny_onnx("distilbert").path, tmp_path / "fused.onnx"
    fuse_for_onnxruntime(source, out, max_length=16)
    shapes = {tuple(tensor.dims) for tensor in onnx.load(out).graph.initializer}
    assert (16, 32) in shapes
    assert (MAX_LENGTH, 32) not in shapes
    feeds = token_batch(2, 16)
    np.testing.assert_allclose(ort_logits(out, feeds), ort_logits(source, feeds), atol=2e-5)


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        fused(tiny_onnx("bert").path, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("factor", [8**-0.5, 1.0])
def test_scales_and_widths_of_attention_are_kept(tmp_path: Path, factor: float, first: bool) -> None:
    torch.manual_seed(0)
    module = OwnAttention(factor, first=first).eval()
    source = text_onnx_from_torch(module, PLAIN, tmp_path / "m.onnx", opset=18, max_length=MAX_LENGTH).path
    record, _ = fused(source, tmp_path / "fused.onnx")
    assert (record.attention, record.first_token) == (1, first)
    feeds = token_batch(3, 20)
    counted = slice(None) if first else feeds["attention_mask"] == 1
    expected = ort_logits(source, feeds)
    np.testing.assert_allclose(ort_logits(tmp_path / "fused.onnx", feeds)[counted], expected[counted], atol=2e-5)


class Factorised(nn.Module):
    """Embeddings of tokens through a product, plus those of positions and of a constant type."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.project = nn.Embedding(100, 8), nn.Linear(8, 32, bias=False)
        self.positions, self.types = nn.Embedding(64, 32), nn.Embedding(2, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 3)
        self.register_buffer("order", torch.arange(64)[None])
        self.order: Tensor

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.project(self.words(input_ids)) + self.types(torch.zeros_like(input_ids))
        x = self.norm(x + self.positions(self.order[:, : input_ids.shape[1]]))
        logits: Tensor = self.head((x * attention_mask[..., None]).sum(1))
        return logits


def test_factorised_embeddings_are_added_up_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = text_onnx_from_torch(Factorised().eval(), PLAIN, tmp_path / "m.onnx", opset=18, max_length=32).path
    record = fuse_for_onnxruntime(source, tmp_path / "fused.onnx", max_length=32)
    assert record.embeddings == 2
    feeds = token_batch(3, 20)
    np.testing.assert_allclose(ort_logits(tmp_path / "fused.onnx", feeds), ort_logits(source, feeds), atol=5e-5)


def test_a_file_that_is_no_text_encoder_is_refused(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["logits"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    with pytest.raises(TlcError, match="looks its first input up in no table"):
        fuse_for_onnxruntime(tmp_path / "m.onnx", tmp_path / "out.onnx", max_length=8)
    assert not (tmp_path / "out.onnx").exists()


def test_other_logits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(editor: object) -> bool:
        moved = run_on_first_token(editor)  # type: ignore[arg-type]
        bias = next(tensor for tensor in editor.graph.initializer if "classifier.bias" in tensor.name)  # type: ignore[attr-defined]
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
        return moved

    monkeypatch.setattr("tlc.export.transformer.run_on_first_token", wrong)
    with pytest.raises(TlcError, match="gives other logits when fused for ONNX Runtime: largest error 1 at batch 1"):
        fuse_for_onnxruntime(tiny_onnx("bert").path, tmp_path / "out.onnx", max_length=MAX_LENGTH)
    assert not (tmp_path / "out.onnx").exists()
