"""Small Q/DQ graphs, built line by line."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16
ZERO = np.int8(0)


class Net:
    """A graph that grows by one operator per call; every method returns the name of the tensor it made.

    The input is "x", float32 (N, CHANNELS, 8, 8). By default pairs are int8 with zero point 0, and weights int8 with a
    scale per output channel: nothing that TensorRT 10 objects to.
    """

    def __init__(self, shape: tuple[int | str, ...] = ("N", CHANNELS, 8, 8)) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.rng = np.random.default_rng(0)

    def constant(self, value: Any, name: str = "c") -> str:
        name = f"{name}{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return name

    def pair(self, source: str, scale: Any = 0.02, zero_point: Any = ZERO, **attributes: Any) -> str:
        """Q and DQ; `zero_point=None` leaves it out."""
        grid = [self.constant(np.asarray(scale, np.float32), "s")]
        if zero_point is not None:
            grid.append(self.constant(zero_point, "z"))
        integers = self.op("QuantizeLinear", source, *grid, **attributes)
        return self.op("DequantizeLinear", integers, *grid, **attributes)

    def weights(self, *shape: int, axis: int | None = 0, largest: int = 127, **attributes: Any) -> str:
        """DQ of int8 integers, one scale per index of `axis`; None: one scale."""
        values = self.rng.integers(-largest, largest + 1, shape).astype(np.int8)
        values.flat[0] = largest
        count = () if axis is None else (shape[axis],)
        if axis is not None:
            attributes = {"axis": axis} | attributes
        attributes = {key: value for key, value in attributes.items() if value is not None}
        scale = self.constant(np.full(count, 0.005 * 127 / largest, np.float32), "ws")
        zero_point = self.constant(np.zeros(count, np.int8), "wz")
        return self.op("DequantizeLinear", self.constant(values, "w"), scale, zero_point, **attributes)

    def conv(self, source: str, weights: str | None = None, *bias: str, **attributes: Any) -> str:
        weights = weights or self.weights(CHANNELS, CHANNELS, 3, 3)
        return self.op("Conv", source, weights, *bias, **({"pads": [1, 1, 1, 1]} | attributes))

    def model(self, *outputs: str, opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model)
        for value, known in zip(model.graph.output, inferred.graph.output, strict=True):
            value.CopyFrom(known)
        return model


def two_convolutions() -> onnx.ModelProto:
    """Pair, convolution, Relu, pair, convolution: clean for TensorRT 10."""
    net = Net()
    hidden = net.op("Relu", net.conv(net.pair("x")))
    return net.model(net.conv(net.pair(hidden)))


def residual(*, skip: bool = True, branch: bool = False) -> onnx.ModelProto:
    """X + conv(relu(conv(x))), then Relu, pair, convolution; pairs on the skip and on the convolution's branch."""
    net = Net()
    stem = net.op("Relu", "x")
    inner = net.conv(net.pair(net.op("Relu", net.conv(net.pair(stem)))))
    total = net.op("Add", net.pair(inner) if branch else inner, net.pair(stem) if skip else stem)
    return net.model(net.conv(net.pair(net.op("Relu", total))))
