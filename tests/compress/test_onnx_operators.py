"""ONNX's operators in PyTorch compute what ONNX Runtime computes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tlc.compress.onnx_network import OnnxNetwork
from tlc.compress.onnx_operators import OPERATORS
from tlc.runtime.errors import TlcError

OPSET = 20
RNG = np.random.default_rng(0)


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape, dtype=np.float32)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


Case = tuple[str, tuple[int, ...], list[NDArray[Any]], Mapping[str, Any]]

CASES: list[Case] = [
    ("Abs", (2, 3), [], {}),
    ("Add", (2, 3), [floats(3)], {}),
    ("AveragePool", (2, 3, 7, 7), [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    (
        *("AveragePool", (2, 3, 7, 7), []),
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1},
    ),
    ("AveragePool", (2, 3, 7, 7), [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("BatchNormalization", (2, 3, 5, 5), [floats(3), floats(3), floats(3), floats(3) ** 2], {}),
    ("Cast", (2, 3), [], {"to": TensorProto.FLOAT}),
    ("Clip", (2, 3), [np.array(-0.5, np.float32), np.array(0.25, np.float32)], {}),
    ("Concat", (2, 3), [floats(2, 4)], {"axis": 1}),
    ("Conv", (2, 4, 6, 6), [floats(8, 2, 3, 3), floats(8)], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", (2, 4, 6, 6), [floats(4, 1, 3, 3)], {"group": 4, "pads": [0, 0, 1, 1], "dilations": [1, 1]}),
    ("Div", (2, 3), [floats(3)], {}),
    ("Elu", (2, 3), [], {"alpha": 0.7}),
    ("Equal", (2, 3), [floats(3)], {}),
    ("Erf", (2, 3), [], {}),
    ("Exp", (2, 3), [], {}),
    ("Expand", (2, 1, 3), [integers(2, 4, 1)], {}),
    ("Flatten", (2, 3, 4), [], {"axis": 2}),
    ("Gather", (2, 5, 3), [integers(1, -1, 0)], {"axis": 1}),
    ("Gather", (2, 5, 3), [np.array(2, np.int64)], {"axis": 1}),
    ("Gelu", (2, 3), [], {"approximate": "tanh"}),
    ("Gemm", (2, 3), [floats(4, 3), floats(4)], {"transB": 1}),
    ("Gemm", (2, 3), [floats(2, 4), floats(3, 4)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("GlobalAveragePool", (2, 3, 5, 5), [], {}),
    ("GlobalMaxPool", (2, 3, 5, 5), [], {}),
    ("HardSigmoid", (2, 3), [], {"alpha": 1 / 6}),
    ("HardSwish", (2, 3), [], {}),
    ("Identity", (2, 3), [], {}),
    ("LayerNormalization", (2, 4, 6), [floats(6), floats(6)], {"axis": -1, "epsilon": 1e-6}),
    ("LeakyRelu", (2, 3), [], {"alpha": 0.2}),
    ("MatMul", (2, 4, 3), [floats(3, 5)], {}),
    ("Max", (2, 3), [floats(3)], {}),
    ("MaxPool", (2, 3, 7, 7), [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", (2, 3, 6, 6), [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("Min", (2, 3), [floats(3)], {}),
    ("Mul", (2, 3), [floats(2, 1)], {}),
    ("Neg", (2, 3), [], {}),
    ("PRelu", (2, 3, 4, 4), [floats(3, 1, 1)], {}),
    ("Pad", (2, 3, 4, 4), [integers(0, 0, 1, 2, 0, 0, 0, 1), np.array(0.5, np.float32)], {}),
    ("Pad", (2, 3, 4, 4), [integers(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}),
    ("Pow", (2, 3), [np.array(2, np.float32)], {}),
    ("Reciprocal", (2, 3), [], {}),
    ("ReduceL2", (2, 3, 4), [integers(1)], {}),
    ("ReduceMax", (2, 3, 4), [integers(1, 2)], {"keepdims": 0}),
    ("ReduceMean", (2, 3, 4), [integers(-1)], {}),
    ("ReduceMean", (2, 3, 4), [], {}),
    ("ReduceSum", (2, 3, 4), [], {"noop_with_empty_axes": 1}),
    ("Relu", (2, 3), [], {}),
    ("Reshape", (2, 3, 4), [integers(0, -1, 2)], {}),
    ("Sigmoid", (2, 3), [], {}),
    ("Slice", (2, 8, 3), [integers(1, -2), integers(7, 9), integers(1, 2), integers(2, 1)], {}),
    ("Softmax", (2, 3, 4), [], {"axis": 1}),
    ("Split", (2, 6), [integers(2, 4)], {"axis": 1}),
    ("Split", (2, 6), [], {"axis": 1, "num_outputs": 2}),
    ("Sqrt", (2, 3), [], {}),
    ("Squeeze", (2, 1, 3, 1), [integers(1, 3)], {}),
    ("Sub", (2, 3), [floats(3)], {}),
    ("Tanh", (2, 3), [], {}),
    ("Transpose", (2, 3, 4), [], {"perm": [2, 0, 1]}),
    ("Unsqueeze", (2, 3), [integers(0, -1)], {}),
]
ELSEWHERE = {"Shape", "Where", "Log", "Range"}
"""In graphs of their own below."""


def graph(nodes: list[onnx.NodeProto], constants: Mapping[str, NDArray[Any]], rank: int) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)
    y = helper.make_empty_tensor_value_info("y")
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "one", [x], [y], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def by_onnx_runtime(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def by_torch(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[Any]:
    with torch.no_grad():
        found: NDArray[Any] = OnnxNetwork(model).eval()(torch.from_numpy(x)).numpy()
    return found


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)])
def test_an_operator_computes_what_onnx_runtime_does(case: Case) -> None:
    name, shape, more, attributes = case
    constants = {f"c{position}": value for position, value in enumerate(more)}
    outputs = ["y", "z"] if name == "Split" else ["y"]
    model = graph([helper.make_node(name, ["x", *constants], outputs, **attributes)], constants, len(shape))
    x = np.abs(floats(*shape)) if name in ("Sqrt", "Pow") else floats(*shape)

    expected, found = by_onnx_runtime(model, x), by_torch(model, x)

    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_operator_is_compared() -> None:
    assert {case[0] for case in CASES} | ELSEWHERE == set(OPERATORS)


def test_shapes_are_computed_from_the_batch() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "rest"], ["wanted"], axis=0),
        helper.make_node("Abs", ["x"], ["positive"]),
        helper.make_node("Log", ["positive"], ["log"]),
        helper.make_node("Where", ["mask", "log", "x"], ["chosen"]),
        helper.make_node("Range", ["zero", "four", "one"], ["columns"]),
        helper.make_node("Gather", ["chosen", "columns"], ["all"], axis=2),
        helper.make_node("Reshape", ["all", "wanted"], ["y"]),
    ]
    numbers = {name: np.array(value, np.int64) for name, value in (("zero", 0), ("four", 4), ("one", 1))}
    constants = {"rest": integers(3, -1), "mask": np.array([True, False, True, True]), **numbers}
    model = graph(nodes, constants, 3)
    for batch in (1, 5):
        x = floats(batch, 6, 4)
        np.testing.assert_allclose(by_torch(model, x), by_onnx_runtime(model, x), rtol=1e-5)


@pytest.mark.parametrize(
    ("node", "constants", "what"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER"), {"w": floats(2, 3, 3, 3)}, "auto_pad"),
        (helper.make_node("Pad", ["x", "w"], ["y"], mode="edge"), {"w": integers(*[0] * 8)}, "Pad of mode edge"),
        (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16), {}, "Cast to ONNX's type 10"),
    ],
)
def test_what_is_not_translated_is_refused_by_name(
    node: onnx.NodeProto, constants: dict[str, NDArray[Any]], what: str
) -> None:
    with pytest.raises(TlcError, match=what) as refusal:
        by_torch(graph([node], constants, 4), floats(2, 3, 5, 5))
    assert refusal.value.hint == "Set quantize.qat_epochs = 0."


def test_an_unknown_operator_is_refused_before_anything_runs() -> None:
    model = graph([helper.make_node("Hardmax", ["x"], ["y"], name="last")], {}, 2)
    with pytest.raises(TlcError, match=r"last \(Hardmax\) cannot be trained: it has no gradient here"):
        OnnxNetwork(model)
