from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OnnxFile = Callable[..., Path]


def _tensors(*values: tuple[str, int, Sequence[int | str | None] | None]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in values]


@pytest.fixture
def onnx_file(tmp_path: Path) -> OnnxFile:
    """Write a graph of given nodes, inputs and outputs as (name, dtype, shape), with constants as numpy arrays."""

    def write(
        nodes: Sequence[NodeProto] = (helper.make_node("Relu", ["x"], ["y"]),),
        inputs: Sequence[tuple[str, int, Sequence[int | str | None] | None]] = (("x", TensorProto.FLOAT, ["N", 3]),),
        outputs: Sequence[tuple[str, int, Sequence[int | str | None] | None]] = (("y", TensorProto.FLOAT, ["N", 3]),),
        *,
        constants: dict[str, NDArray[Any]] | None = None,
        opset: int = 18,
    ) -> Path:
        initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
        graph = helper.make_graph(nodes, "g", _tensors(*inputs), _tensors(*outputs), initializers)
        domains = {"": opset, **{node.domain: 1 for node in nodes if node.domain}}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        path = tmp_path / "model.onnx"
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
        return path

    return write
