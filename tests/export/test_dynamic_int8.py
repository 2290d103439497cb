from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tiny_text_onnx import (
    MAX_LENGTH,
    PLAIN,
    OwnAttention,
    ort_logits,
    signal_to_noise_db,
    tiny_fused,
    tiny_onnx,
    token_batch,
)

from tlc.calibration.texts import read_texts
from tlc.calibration.tokens import encode, gather
from tlc.compress.text_model import load_text_model
from tlc.export.dynamic_int8 import dynamic_int8
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.export.transformer import fuse_for_onnxruntime
from tlc.runtime.errors import TlcError


def ops(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def constants(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_a_bert_is_quantised_whole_but_for_its_classifier(tmp_path: Path) -> None:
    source = tiny_fused("bert")[1]
    record = dynamic_int8(source, tmp_path / "int8.onnx", max_length=MAX_LENGTH)
    count = ops(tmp_path / "int8.onnx")
    assert (record.matmuls, record.attentions, record.embeddings, record.weight_bits) == (9, 1, True, 8)
    assert (count["DynamicQuantizeMatMul"], count["QAttention"], count["DynamicQuantizeLinear"]) == (9, 1, 1)
    assert (count["MatMul"], count["Add"], count["Attention"], count["Gemm"]) == (0, 0, 0, 1)
    floats = {
        name: array.shape for name, array in constants(tmp_path / "int8.onnx").items() if array.dtype == np.float32
    }
    assert max(np.prod(shape) for name, shape in floats.items() if "position" not in name) <= 100  # scales of 100 words


def test_weights_are_symmetric_per_channel_and_embeddings_per_row(tmp_path: Path) -> None:
    source = tiny_fused("bert")[1]
    dynamic_int8(source, tmp_path / "int8.onnx", max_length=MAX_LENGTH)
    before, after = constants(source), constants(tmp_path / "int8.onnx")
    table = next(name for name, array in before.items() if array.shape == (100, 32))
    assert after[f"{table}/int8"].dtype == np.int8
    rows = after[f"{table}/int8"] * after[f"{table}/scale"]
    step = np.abs(before[table]).max(1, keepdims=True) / 127
    assert (np.abs(rows - before[table]) <= step * 0.5001).all()
    packed = "attention/qkv"
    assert after[f"{packed}/scale"].shape == (96,)
    columns = after[f"{packed}/int8"] * after[f"{packed}/scale"]
    assert (np.abs(columns - before[packed]) <= np.abs(before[packed]).max(0) / 127 * 0.5001).all()


def test_seven_bits_are_seven_bits(tmp_path: Path) -> None:
    source = tiny_fused("bert")[1]
    record = dynamic_int8(source, tmp_path / "int8.onnx", max_length=MAX_LENGTH, reduced_range=True)
    assert record.weight_bits == 7
    integers = {name: array for name, array in constants(tmp_path / "int8.onnx").items() if array.dtype == np.int8}
    weights = [array for name, array in integers.items() if "embedding" not in name]
    assert max(int(np.abs(array).max()) for array in weights) == 63


def test_matmul_mode_leaves_the_table_of_tokens(tmp_path: Path) -> None:
    source = tiny_fused("bert")[1]
    record = dynamic_int8(source, tmp_path / "int8.onnx", max_length=MAX_LENGTH, mode="matmul")
    assert not record.embeddings
    assert (100, 32) in {
        array.shape for array in constants(tmp_path / "int8.onnx").values() if array.dtype == np.float32
    }


def test_the_plain_file_can_be_quantised_too(tmp_path: Path) -> None:
    plain = tiny_onnx("bert").path
    record = dynamic_int8(plain, tmp_path / "int8.onnx", max_length=MAX_LENGTH)
    assert (record.matmuls, record.attentions) == (13, 0)
    feeds = token_batch(64, 20)
    assert signal_to_noise_db(ort_logits(tmp_path / "int8.onnx", feeds), ort_logits(plain, feeds)) > 20


def test_attention_narrower_than_its_input_is_quantised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OwnAttention(8**-0.5).eval()
    plain = text_onnx_from_torch(module, PLAIN, tmp_path / "m.onnx", opset=18, max_length=MAX_LENGTH).path
    fuse_for_onnxruntime(plain, tmp_path / "fused.onnx", max_length=MAX_LENGTH)
    record = dynamic_int8(tmp_path / "fused.onnx", tmp_path / "int8.onnx", max_length=MAX_LENGTH)
    assert (record.matmuls, record.attentions) == (1, 1)  # the head has too few outputs
    feeds = token_batch(1, 20)
    assert signal_to_noise_db(ort_logits(tmp_path / "int8.onnx", feeds), ort_logits(plain, feeds)) > 20


def test_weights_of_zero_stay_zero(tmp_path: Path) -> None:
    plain = tiny_onnx("bert").path
    model = onnx.load(plain)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tuple(tensor.dims) == (32, 64):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((32, 64), np.float32), tensor.name))
    onnx.save(model, tmp_path / "zero.onnx")
    dynamic_int8(tmp_path / "zero.onnx", tmp_path / "int8.onnx", max_length=MAX_LENGTH)
    assert np.isfinite(ort_logits(tmp_path / "int8.onnx", token_batch(2, 9))).all()


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_fused("bert")[1]
    for name in ("a.onnx", "b.onnx"):
        dynamic_int8(source, tmp_path / name, max_length=MAX_LENGTH)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_file_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    source = tiny_fused("bert")[1]
    dynamic_int8(source, tmp_path / "int8.onnx", max_length=MAX_LENGTH, mode="matmul")
    with pytest.raises(TlcError, match="has no products with float32 weights to quantise"):
        dynamic_int8(tmp_path / "int8.onnx", tmp_path / "out.onnx", max_length=MAX_LENGTH)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.assets
@pytest.mark.slow
def test_the_real_classifier_answers_alike_fused_and_in_int8(tmp_path: Path, assets: Path) -> None:
    model = load_text_model(assets / "movie-sentiment" / "model", max_length=64)
    texts = read_texts(assets / "movie-sentiment", task="sequence-classification").for_model(2, model.classes)
    tokens = encode(texts.evaluation.subset(range(300)), model.tokenizer, model.text)
    paths = [tmp_path / name for name in ("plain.onnx", "fused.onnx", "int8.onnx")]
    text_onnx_from_torch(model.module, model.text.inputs, paths[0], opset=18, max_length=64)
    assert fuse_for_onnxruntime(paths[0], paths[1], max_length=64).attention == 6
    dynamic_int8(paths[1], paths[2], max_length=64)
    plain, fused, int8 = (gather(partial(ort_logits, path), tokens) for path in paths)
    np.testing.assert_allclose(fused, plain, atol=1e-4)
    assert (int8.argmax(1) == plain.argmax(1)).mean() >= 0.97
    assert paths[2].stat().st_size < 0.26 * paths[1].stat().st_size
