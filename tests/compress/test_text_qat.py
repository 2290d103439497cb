"""Training under INT8's rounding: it rounds as ONNX Runtime does, passes gradients, and leaves plain layers behind."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_text
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from tlc.calibration.texts import read_texts
from tlc.calibration.tokens import Tokens, encode
from tlc.compress.distill import LossSettings
from tlc.compress.events import silent
from tlc.compress.text_model import TextModel, load_text_model
from tlc.compress.text_qat import DynamicInt8Linear, fake_quantized, qat_text, rounded_int8, stripped
from tlc.compress.text_train import evaluate_texts
from tlc.compress.train import TrainSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return load_text_model(tiny_text.write_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(model: TextModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokens, Tokens]:
    path = tiny_text.write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", 120)
    splits = read_texts(path, task="sequence-classification")
    fit, holdout = (encode(part, model.tokenizer, model.text) for part in (splits.fit, splits.holdout))
    return fit, holdout


@pytest.mark.parametrize("bits", [8, 7])
def test_a_layer_rounds_as_onnx_runtimes_dynamic_quantisation_does(tmp_path: Path, bits: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 24)
    plain.weight.data *= torch.linspace(0.1, 9, 24)[:, None]
    layer = fake_quantized(nn.Sequential(plain), weight_bits=bits)
    matmul = onnx.helper.make_node("MatMul", ["x", "weight"], ["product"])
    add = onnx.helper.make_node("Add", ["product", "bias"], ["y"])
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", "T", width])
        for name, width in (("x", 48), ("y", 24))
    )
    weights = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(plain.weight.detach().numpy().T), "weight"),
        onnx.numpy_helper.from_array(plain.bias.detach().numpy(), "bias"),
    ]
    graph = onnx.helper.make_graph([matmul, add], "linear", [x], [y], weights)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        per_channel=True,
        reduce_range=bits == 7,
        weight_type=QuantType.QInt8,
    )
    session = ort.InferenceSession(tmp_path / "int8.onnx")
    texts = torch.randn(3, 9, 48) * torch.tensor([0.1, 1.0, 30.0])[:, None, None] + 0.3

    rounded = layer(texts).detach().numpy()

    exact = plain(texts).detach().numpy()
    for text, ours, wanted in zip(texts.numpy(), rounded, exact, strict=True):
        (theirs,) = session.run(None, {"x": text[None]})
        assert np.abs(ours - theirs[0]).max() < 0.01 * np.abs(ours - wanted).max()


def test_a_gemm_stays_in_float() -> None:
    layer = nn.Linear(8, 4)
    pooled = torch.randn(3, 8)

    assert torch.equal(fake_quantized(nn.Sequential(layer))(pooled), layer(pooled))


def test_zeros_and_one_sided_values_survive() -> None:
    layer = fake_quantized(nn.Sequential(nn.Linear(8, 4, bias=False)))
    next(layer.parameters()).data.zero_()

    assert torch.equal(layer(torch.zeros(1, 2, 8)), torch.zeros(1, 2, 4))
    assert torch.equal(rounded_int8(torch.tensor([[2.0, -1.0, 0.0]])).sign(), torch.tensor([[1.0, -1.0, 0.0]]))
    assert torch.isfinite(layer(torch.full((1, 2, 8), 5.0))).all()


def test_gradients_pass_as_if_nothing_was_rounded() -> None:
    plain = nn.Linear(8, 4)
    rounded = fake_quantized(nn.Sequential(plain))
    texts = torch.randn(2, 3, 8, requires_grad=True)

    rounded(texts).sum().backward()

    (weight,) = (p.grad for name, p in rounded.named_parameters() if name.endswith("weight"))
    assert weight is not None
    assert torch.allclose(weight, texts.detach().sum((0, 1)).expand(4, 8), atol=0.05)
    assert texts.grad is not None
    assert torch.allclose(texts.grad, plain.weight.detach().sum(0).expand(2, 3, 8), atol=0.05)


@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_every_family_runs_rounded_and_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    model = load_text_model(tiny_text.write_tiny(tmp_path, family))
    ids = torch.randint(10, 60, (2, 12))
    inputs = (ids, torch.ones_like(ids))

    rounded = fake_quantized(model.module)
    again = stripped(rounded)

    with torch.no_grad():
        plain = model.module(*inputs)
        assert any(isinstance(layer, DynamicInt8Linear) for layer in rounded.modules())
        assert not torch.equal(rounded(*inputs), plain)
        assert torch.allclose(rounded(*inputs), plain, atol=0.3 * float(plain.abs().max()))
        assert torch.equal(again(*inputs), plain)
    assert [type(layer) for layer in again.modules()] == [type(layer) for layer in model.module.modules()]
    assert list(again.state_dict()) == list(model.module.state_dict())


def test_training_brings_the_rounded_network_nearer_to_the_teacher(
    model: TextModel, data: tuple[Tokens, Tokens], tmp_path: Path
) -> None:
    wanted = evaluate_texts(model.module, data[0], bf16=False).softmax(1)
    state = copy.deepcopy(model.module.state_dict())
    training = TrainSettings(batch_size=8, precision="fp32")

    trained, fitted = qat_text(
        model,
        model,
        *data,
        LossSettings(),
        training,
        epochs=3,
        weight_bits=7,
        layer_map=(0, 1),
        seed=0,
        folder=tmp_path,
        logits_folder=tmp_path / "logits",
        emit=silent,
    )

    def distance(module: nn.Module) -> float:
        rounded = evaluate_texts(fake_quantized(module, weight_bits=7), data[0], bf16=False)
        return float((rounded.softmax(1) - wanted).abs().mean())

    assert distance(trained.module) < distance(model.module)
    assert not any(isinstance(layer, DynamicInt8Linear) for layer in trained.module.modules())
    assert len(fitted.scores) == 3
    assert trained.history[-1].startswith("qat: 3 epochs")
    assert all(torch.equal(state[name], value) for name, value in model.module.state_dict().items())
