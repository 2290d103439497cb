"""Float32 ONNX -> float16 inside, float32 at the boundary."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from tlc.export.quiet import quiet
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError

_LARGEST = float(np.finfo(np.float16).max)


def fp16_from_float(path: Path, out: Path) -> None:
    """Write `path` with weights and arithmetic in float16; inputs and outputs stay float32.

    Raises:
        TlcError: a weight lies beyond 65,504, the largest float16.

    """
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
            if not largest <= _LARGEST:
                raise TlcError(
                    f"{path.name} cannot be float16: {tensor.name} holds {largest:.6g}, the limit is {_LARGEST:.6g}",
                    hint="Leave the float16 file out.",
                )
    with quiet():
        half: onnx.ModelProto = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=_transposes_of_products(model)
        )
        OnnxModel(half).topological_sort()  # the converter appends its casts at the end
    half.graph.ClearField("value_info")
    onnx.checker.check_model(half, full_check=True)
    write_bytes(out, half.SerializeToString(deterministic=True))


def _transposes_of_products(model: onnx.ModelProto) -> list[str]:
    """Names of the Transpose nodes that a MatMul reads; they stay in float32.

    On a CPU, ONNX Runtime puts a Cast between such a float16 Transpose and its MatMul, and its MatmulTransposeFusion
    then crashes the process (1.31, ViT-B/16: segmentation fault while the session is made).
    """
    factors = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    return [node.name for node in model.graph.node if node.op_type == "Transpose" and node.output[0] in factors]
