"""ONNX files of `bar_net.Bars`: no training, and a drop exactly where one is wanted."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tiny
from tlc.export.metadata import write_metadata

CLASSES = ("flat", "upright")
SHY = 1.3
"""A bias towards `flat` that clear images outweigh, and foggy ones do not."""


def write_net(
    path: Path, *, bias: float = 0.0, classes: tuple[str, ...] = CLASSES, batch: int | str = "N", more: bool = False
) -> Path:
    """Write the classifier; `bias` is that of `flat`, outputs come in the order of `classes`.

    With `more`, its features are an output too, `rows` (N, 8).
    """
    sides = ["column", "row"] if classes == CLASSES[::-1] else ["row", "column"]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["across"], axes=[1, 3], keepdims=0),
        helper.make_node("ReduceMean", ["input"], ["down"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMax", ["across"], ["row"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["down"], ["column"], axes=[1], keepdims=1),
        helper.make_node("Concat", sides, ["raw"], axis=1),
        helper.make_node("Add", ["raw", "bias"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])]
    if more:
        nodes.append(helper.make_node("Identity", ["across"], ["rows"]))
        outputs.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, [batch, 8]))
    values = np.array([bias if name == "flat" else 0 for name in classes], np.float32)
    graph = helper.make_graph(
        nodes,
        "bars",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 8, 8])],
        outputs,
        [numpy_helper.from_array(values, "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    write_metadata(path, path, tiny.PREPROCESS, classes)
    return path


def write_fog(clear: Path, path: Path) -> Path:
    """Write the images of `clear` as fog leaves them: half the contrast."""
    arrays = dict(np.load(clear))
    np.savez(path, **{**arrays, "x": (arrays["x"] // 2 + 100).astype(np.uint8)})
    return path
