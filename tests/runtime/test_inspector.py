"""Both forms of the engine inspector's JSON, written by hand after NVIDIA's documents."""

import json

import pytest

from tlc.runtime.errors import TlcError
from tlc.runtime.inspector import read_layers, read_profile, read_times, summarize

LAYERS = (
    ("QuantizeLinear_0", "Reformat", ["fp32"], ["int8"], None),
    ("w + QuantizeLinear_1 + Conv_2 + Relu_3", "CaskConvolution", ["int8", "int8"], ["int8"], "int8"),
    ("Conv_4", "CaskConvolution", ["fp16"], ["fp16"], "fp16"),
    ("MaxPool_5", "CaskPooling", ["fp16"], ["fp16"], "fp16"),
    ("Softmax_6", "CudaSoftMax", ["int8"], ["fp32"], "fp32"),
    ("Reformatting CopyNode for Input Tensor 0 to Gemm_7", "NoOp", ["fp32"], ["fp32"], None),
    ("Gemm_7", "gemm", ["fp32", "fp32"], ["fp32"], "fp32"),
)
OLD = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
}
NEW = {
    "int8": ("Int8", "kCHW32"),
    "fp16": ("Half", "kHWC8"),
    "fp32": ("Float", "Row major linear FP32 format (kLINEAR)"),
}


def old(names: list[str]) -> list[dict[str, object]]:
    return [{"Name": "t", "Location": "Device", "Dimensions": [1, 8], "Format/Datatype": OLD[name]} for name in names]


def new(names: list[str]) -> list[dict[str, object]]:
    return [{"Name": "t", "Dimensions": [1, 8], "DataType": NEW[name][0], "Format": NEW[name][1]} for name in names]


def text(generation: str) -> str:
    tensors = old if generation == "10" else new
    layers = [
        {"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs), "TacticName": "k"}
        for name, kind, inputs, outputs, _ in LAYERS
    ]
    if generation == "10":
        return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})
    return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": "x", "IOMode": "Input"}, {"Name": "y"}]})


@pytest.mark.parametrize("generation", ["10", "11"])
def test_precision_of_each_layer(generation: str) -> None:
    found = {layer.name: layer for layer in read_layers(text(generation))}

    for name, _, _, _, precision in LAYERS:
        if precision is not None:
            assert found[name].precision == precision, name
    assert [layer.name for layer in found.values() if layer.is_reformat] == ["QuantizeLinear_0"]
    assert [layer.name for layer in found.values() if layer.is_idle] == [LAYERS[5][0]]
    assert found["Gemm_7"].tactic == "k"


@pytest.mark.parametrize("generation", ["10", "11"])
def test_the_summary_is_the_proof_that_int8_ran(generation: str) -> None:
    times = {name: 1.0 for name, *_ in LAYERS} | {LAYERS[1][0]: 4.0}

    summary = summarize(read_layers(text(generation)), times)

    assert summary.layers_by_precision == {"fp16": 2, "fp32": 2, "int8": 1}
    assert (summary.weighted, summary.weighted_int8, summary.reformats, summary.fused) == (3, 1, 1, 1)
    assert summary.time_ratio_by_precision == {"fp16": 0.2, "fp32": 0.2, "int8": 0.4}
    assert summary.reformat_time_ratio == 0.1
    assert summary.slowest[0] == "w + QuantizeLinear_1 + Conv_2 + Relu_3: int8, 4.0000 ms"


def test_without_a_profile_there_are_no_shares() -> None:
    summary = summarize(read_layers(text("10")))

    assert summary.time_ratio_by_precision is None
    assert summary.slowest == []


def test_a_layer_on_the_dla_is_counted() -> None:
    layer = {"Name": "{ForeignNode[Conv_0...Relu_1]}", "LayerType": "DLA", "Inputs": old(["fp16"]), "Outputs": []}

    assert summarize(read_layers(json.dumps({"Layers": [layer]}))).on_dla == 1


def test_uint8_is_not_int8() -> None:
    layer = {
        "Name": "c",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Format/Datatype": "Row major linear UInt8 format"}],
    }

    assert read_layers(json.dumps({"Layers": [layer]}))[0].precision == "uint8"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Layers": ["Conv_0", "Conv_1"]}', "knows only the names of 2 layers"),
        ("{", "is not JSON"),
        ('{"layers": []}', "has no list of layers"),
    ],
)
def test_what_cannot_be_told_is_an_error(content: str, message: str) -> None:
    with pytest.raises(TlcError, match=message):
        read_layers(content)


def test_profile_and_times_of_trtexec() -> None:
    profile = '[{"count": 100}, {"name": "a", "timeMs": 50, "averageMs": 0.5, "medianMs": 0.4, "percentage": 100}]'

    assert read_profile(profile) == {"a": 0.5}
    assert read_times('[{"h2dMs": 1, "computeMs": 0.25}, {"h2dMs": 1, "computeMs": 0.5}]') == [0.25, 0.5]
