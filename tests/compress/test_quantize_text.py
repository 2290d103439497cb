"""Static INT8 and float16 files of text encoders: every target's kind, every family."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_text
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from tiny_text_onnx import MAX_LENGTH, PLAIN, ort_logits, tiny_module, token_batch

from tlc.calibration.metrics import sqnr_db
from tlc.calibration.token_set import TextInput
from tlc.compress.layer_noise import layer_noise
from tlc.compress.quantize import QuantizeSettings, quantize_onnx
from tlc.compress.smooth import smooth
from tlc.export.contract import check_model
from tlc.export.fp16 import fp16_from_float
from tlc.export.metadata import write_metadata
from tlc.export.text_onnx import text_onnx_from_torch
from tlc.export.view import View
from tlc.runtime.openvino import OpenVinoSession
from tlc.runtime.target import Target, load_target

VNNI = frozenset({"sse2", "avx512_vnni"})
X86, OPENVINO, ORIN, THOR = "cpu-x86", "openvino", "jetson-orin", "jetson-thor"
SAMPLES = [token_batch(1, length, seed=length) for length in range(5, 45)]
OTHERS = [token_batch(1, length, seed=100 + length) for length in (6, 30, 13, 22)]
FED = TextInput(
    task="sequence-classification", max_length=MAX_LENGTH, inputs=PLAIN, pad_id=0, tokenizer_sha256="0" * 64
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@cache
def exported(folder: Path, family: str, opset: int, task: str = "sequence-classification") -> Path:
    """Export a tiny network whose batch size and length are open, and record how it is fed."""
    path = folder / f"{family}-{opset}-{task}.onnx"
    text_onnx_from_torch(tiny_module(family, task), PLAIN, path, opset=opset, max_length=MAX_LENGTH)
    return path


def target_of(name: str) -> Target:
    return load_target(name, flags=VNNI)


@cache
def quantized(folder: Path, family: str, name: str, task: str = "sequence-classification") -> Path:
    target, out = target_of(name), folder / f"{family}-{name}-{task}-int8.onnx"
    source = exported(folder, family, target.opset, task)
    quantize_onnx(source, out, SAMPLES, count=len(SAMPLES), target=target, settings=QuantizeSettings())
    write_metadata(out, out, FED, ())
    return out


def noise_db(path: Path, family: str, task: str = "sequence-classification") -> float:
    """Signal-to-noise ratio against torch, dB, on texts that calibration did not see."""
    module = tiny_module(family, task)
    with torch.inference_mode():
        truth = [module(*(torch.from_numpy(feeds[name]) for name in PLAIN)).numpy().ravel() for feeds in OTHERS]
    return sqnr_db(np.concatenate(truth), np.concatenate([ort_logits(path, feeds).ravel() for feeds in OTHERS]))


def weights(path: Path) -> list[NDArray[np.generic]]:
    return [value for tensor in onnx.load(path).graph.initializer if (value := numpy_helper.to_array(tensor)).ndim == 2]


@pytest.mark.parametrize("target", [X86, OPENVINO, ORIN, THOR])
def test_the_file_is_what_the_target_takes_and_answers_as_the_network(folder: Path, target: str) -> None:
    path = quantized(folder, "bert", target)
    model = onnx.load(path)
    assert check_model(model, target_of(target)) == []
    assert noise_db(path, "bert") > 15
    view = View(model)
    products = [node for node in view.nodes if node.op_type == "MatMul"]
    with_weights = [node for node in products if view.weight(node) is not None]
    assert all(view.is_quantised(node) for node in with_weights)
    inside_attention = [node for node in products if view.weight(node) is None]
    assert len(inside_attention) == 4
    assert not any(view.is_quantised(node) for node in inside_attention)


def test_batches_of_padded_texts_give_what_each_text_gives_alone(folder: Path) -> None:
    path = quantized(folder, "bert", X86)
    batch = token_batch(3, 20)
    alone = []
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        alone.append(ort_logits(path, {name: values[row : row + 1, :length] for name, values in batch.items()}))
    np.testing.assert_allclose(ort_logits(path, batch), np.concatenate(alone), atol=2e-2)


def test_onnx_runtime_runs_integer_products_and_dequantises_no_table(folder: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(quantized(folder, "bert", X86)), options, providers=["CPUExecutionProvider"])
    model = onnx.load(folder / "optimised.onnx")
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["MatMulIntegerToFloat"] == 12  # two layers: query, key, value, output, two of the feed-forward part
    constants = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    dequantised = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert not any(constants.get(name, ()) == [100, 32] for name in dequantised)
    tables = {value.shape[0]: value.dtype for value in weights(quantized(folder, "bert", X86)) if value.shape[1] == 32}
    assert str(tables[100]) == "int8"


def test_openvino_runs_integer_products(folder: Path) -> None:
    path = quantized(folder, "bert", OPENVINO)
    with OpenVinoSession(path) as session:
        precisions = session.product_precisions
        found = np.concatenate([session.run(feeds)["logits"].ravel() for feeds in OTHERS])
    assert set(precisions) <= {"i8", "u8"}
    expected = np.concatenate([ort_logits(exported(folder, "bert", 18), feeds).ravel() for feeds in OTHERS])
    assert sqnr_db(expected, found) > 15


def test_openvino_calls_the_output_as_the_file_does(folder: Path) -> None:
    path = exported(folder, "bert", 18, "question-answering")  # ends in a Concat, which OpenVINO merges with its source
    with OpenVinoSession(path) as session:
        assert [spec.name for spec in session.outputs] == ["logits"]
        found = session.run(OTHERS[0])["logits"]
    np.testing.assert_allclose(found, ort_logits(path, OTHERS[0]), atol=1e-3)


@pytest.mark.parametrize("opset", [13, 18])
def test_float16_keeps_the_answers_and_halves_the_weights(folder: Path, tmp_path: Path, opset: int) -> None:
    record = fp16_from_float(exported(folder, "bert", opset), tmp_path / "h.onnx", samples=SAMPLES)
    assert {node.reason for node in record.kept} <= {"runtime", "squares"}
    assert record.samples == len(SAMPLES)
    assert {str(value.dtype) for value in weights(tmp_path / "h.onnx") if value.size > 64} == {"float16"}
    assert noise_db(tmp_path / "h.onnx", "bert") > 45


def test_layers_are_ranked_by_the_answers_for_every_token(folder: Path) -> None:
    task = "token-classification"
    ranking = layer_noise(exported(folder, "bert", 17, task), quantized(folder, "bert", ORIN, task), SAMPLES[:4])
    assert len(ranking) == 12
    assert all(layer.divergence > 0 for layer in ranking)


def with_outliers(folder: Path, path: Path) -> onnx.ModelProto:
    """Make some channels of what the layers read 30 times as large, and their weights as much smaller."""
    model = onnx.load(exported(folder, "bert", 17))
    view = View(model)
    norms = {node.output[0]: node for node in view.nodes if node.op_type == "LayerNormalization"}
    gain = np.ones(32, np.float32)
    gain[[3, 17]] = 30
    for name in norms:
        scaled = f"{name}/scaled"
        position = next(i for i, node in enumerate(model.graph.node) if name in node.output)
        readers = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[0] == name]
        for node in readers:
            (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / gain[:, None], weight.name))
            node.input[0] = scaled
        model.graph.initializer.append(numpy_helper.from_array(gain, f"{name}/gain"))
        extra = onnx.helper.make_node("Mul", [name, f"{name}/gain"], [scaled], name=scaled)
        model.graph.node.insert(position + 1, extra)
    onnx.save(model, path)
    return model


def test_channels_far_larger_than_others_are_smoothed_for_tensorrt(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_outliers(folder, tmp_path / "m.onnx")
    before = [ort_logits(tmp_path / "m.onnx", feeds) for feeds in OTHERS]
    assert smooth(model, SAMPLES) == 8  # in two layers: what query, key and value read, and three more
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "smooth.onnx")
    after = [ort_logits(tmp_path / "smooth.onnx", feeds) for feeds in OTHERS]
    np.testing.assert_allclose(np.concatenate(after), np.concatenate(before), atol=1e-4)
    settings = QuantizeSettings()
    noises = []
    for used in (smooth, lambda _model, _samples: 0):
        monkeypatch.setattr("tlc.compress.quantize.smooth", used)
        out = tmp_path / "q.onnx"
        quantize_onnx(tmp_path / "m.onnx", out, SAMPLES, count=40, target=target_of(ORIN), settings=settings)
        assert [broken.rule for broken in check_model(onnx.load(out), target_of(ORIN))] == 2 * ["dynamic-shape"]
        noises.append(noise_db(out, "bert"))
    assert noises[0] > noises[1] + 5


def test_layers_with_shared_weights_are_not_smoothed(folder: Path) -> None:
    model = onnx.load(exported(folder, "albert", 17))
    weights = {tensor.name for tensor in model.graph.initializer}

    def shared() -> dict[str, int]:
        read = Counter(node.input[1] for node in model.graph.node if node.op_type == "MatMul")
        return {name: count for name, count in read.items() if name in weights and count > 1}

    before = shared()
    assert set(before.values()) == {2}
    smooth(model, SAMPLES[:4])
    assert shared() == before


def test_a_smoothed_layer_is_ranked_with_its_smoothed_input(folder: Path) -> None:
    ranking = layer_noise(exported(folder, "bert", 18), quantized(folder, "bert", X86), SAMPLES[:4])
    assert len(ranking) >= 12
    assert max(layer.divergence for layer in ranking) < 0.05


@pytest.mark.slow  # exports every family, once per opset
@pytest.mark.parametrize("target", [X86, OPENVINO, ORIN])
@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_every_family(folder: Path, tmp_path: Path, family: str, target: str) -> None:
    path = quantized(folder, family, target)
    assert check_model(onnx.load(path), target_of(target)) == []
    assert noise_db(path, family) > 10  # 32 random channels: trained networks keep 25 dB and more
    fp16_from_float(exported(folder, family, target_of(target).opset), tmp_path / "h.onnx", samples=SAMPLES)
    assert noise_db(tmp_path / "h.onnx", family) > 40
