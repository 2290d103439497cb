"""Float32 ONNX file of a text encoder -> INT8 weights, with activations quantised as they come (dynamically).

The operators are ONNX Runtime's own, those to which it fuses what `onnxruntime.quantization.quantize_dynamic` writes:
DynamicQuantizeMatMul and QAttention (docs/ContribOperators.md there). They are written directly because that function
leaves biases outside where ONNX Runtime does not find them, takes one scale for a whole table of embeddings, and fails
on files with operators whose types ONNX cannot infer. Measured on ONNX Runtime 1.31 (x86 with AVX-512 VNNI, one thread,
batch 1, 22 tokens, width 384): attention with QAttention 58 us, with DynamicQuantizeMatMul and MultiHeadAttention
77 us; MatMulNBits with 8 or 4 bits takes about twice as long over the whole network.

Weights: w = scale * q per output channel, q in -127..127 (or -63..63), symmetric. Activations: uint8 per tensor, over
the range of the tensor at hand and 0 (ONNX DynamicQuantizeLinear).
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from pydantic import BaseModel, ConfigDict

from tlc.export.edit import Editor
from tlc.export.half import constants_as_initializers
from tlc.export.match import MICROSOFT, constant_value, declare_microsoft
from tlc.export.token_probes import differences, require_word_table
from tlc.export.view import View, attribute
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError

Mode = Literal["all", "matmul"]
_FEWEST_OUTPUTS = 16
"""A layer with fewer, a classifier, stays in float32: it costs nothing, and its rounding is the logits'."""


class DynamicInt8Record(BaseModel):
    """What `dynamic_int8` quantised."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    matmuls: int
    """Products with weights."""
    attentions: int
    """Attention operators, of which queries, keys and values are one product."""
    embeddings: bool
    """Whether the table of tokens is INT8, with a scale per row."""
    weight_bits: int
    """8, or 7 where the sums of two products of 8 bits would saturate."""
    max_abs_error: float
    """Largest |INT8 - float32| over the logits of seeded tokens at several batch sizes and lengths."""


def dynamic_int8(
    source: Path,
    out: Path,
    *,
    max_length: int,
    mode: Mode = "all",
    reduced_range: bool = False,
    only: Collection[str] | None = None,
) -> DynamicInt8Record:
    """Write a float32 text encoder with INT8 weights and dynamically quantised activations.

    The fastest file is that of `tlc.export.transformer.fuse_for_onnxruntime`, quantised; quantising the plain file
    works too. What has no weights (the products inside attention, normalisation, GELU) stays in float32.

    Args:
        source: a float32 ONNX file with int64 (N, T) inputs.
        out: the file to write; only ONNX Runtime reads it.
        max_length: the largest T.
        mode: "all", or "matmul", which leaves the table of tokens in float32.
        reduced_range: 7 bits for weights, for CPUs without VNNI.
        only: weights (names of initialisers) to quantise, to see what each does; None: all.

    Raises:
        TlcError: there is nothing to quantise, or the file does not run.

    """
    model = constants_as_initializers(onnx.load(source))
    words, vocabulary = require_word_table(model, source.name)
    declare_microsoft(model)
    writer = _Writer(Editor(model), largest=63 if reduced_range else 127)
    nodes = [node for node in writer.view.nodes if only is None or set(node.input[1:2]) & set(only)]
    matmuls = sum(writer.matmul(node) for node in nodes if node.op_type in ("MatMul", "Gemm"))
    attentions = sum(writer.attention(node) for node in nodes if node.op_type == "Attention")
    if not matmuls + attentions:
        raise TlcError(
            f"{source.name} has no products with float32 weights to quantise", hint="Give the float32 ONNX file."
        )
    if mode == "all":
        writer.embeddings(words)
    writer.editor.refresh()
    content = model.SerializeToString(deterministic=True)
    found = list(differences(source.read_bytes(), content, max_length=max_length, vocabulary=vocabulary))
    error = max(difference.largest for difference in found)
    if not np.isfinite(error):
        raise TlcError(
            f"{source.name} gives no finite logits with dynamically quantised weights",
            hint="Use the float32 file, or quantise it statically.",
        )
    write_bytes(out, content)
    return DynamicInt8Record(
        matmuls=matmuls,
        attentions=attentions,
        embeddings=mode == "all",
        weight_bits=7 if reduced_range else 8,
        max_abs_error=error,
    )


def gains(view: View, node: onnx.NodeProto) -> bool:
    """Whether `dynamic_int8` quantises the node: com.microsoft Attention, and products with weights of many outputs."""
    if node.op_type not in ("MatMul", "Gemm"):
        return node.op_type == "Attention"
    weight = view.value(node.input[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or view.is_constant(node.input[0]):
        return False
    outputs: int = weight.shape[0 if attribute(node, "transB", 0) else 1]
    return outputs >= _FEWEST_OUTPUTS and _is_plain(node)


class _Writer:
    """Puts quantised operators into a graph; each constant is quantised once."""

    def __init__(self, editor: Editor, largest: int) -> None:
        self.editor = editor
        self.view: View = editor.view
        self._largest = largest
        self._quantised: dict[tuple[str, bool], tuple[str, str]] = {}

    def matmul(self, node: onnx.NodeProto) -> bool:
        """Replace x W [+ b] by one operator; False where the weights are no constant or too few."""
        if not gains(self.view, node):
            return False
        transposed = bool(attribute(node, "transB", 0))
        bias, output = (node.input[2] if len(node.input) > 2 else ""), node.output[0]
        adder = None if bias else self._bias_after(node)
        if adder is not None:
            bias = next(name for name in adder.input if name != node.output[0])
            output, adder.output[0] = adder.output[0], self.editor.unused(f"{adder.output[0]}_unread")
        integers, scale = self._weights(node.input[1], transposed=transposed)
        inputs = [node.input[0], integers, scale, *(["", bias] if bias else [])]
        node.output[0] = self.editor.unused(f"{node.output[0]}_unread")
        self.editor.node("DynamicQuantizeMatMul", inputs, output, domain=MICROSOFT)
        return True

    def _bias_after(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the addition of a bias that is the only reader of the product."""
        readers = self.view.readers(node.output[0])
        if len(readers) != 1 or readers[0].op_type not in ("Add", "Sum") or len(readers[0].input) != 2:
            return None
        if node.output[0] in self.view.outputs or node.op_type != "MatMul":
            return None
        (other,) = [name for name in readers[0].input if name != node.output[0]] or [""]
        value = self.view.value(other)
        width = self.view.value(node.input[1])
        return readers[0] if value is not None and width is not None and value.shape == width.shape[1:] else None

    def attention(self, node: onnx.NodeProto) -> bool:
        """Replace com.microsoft Attention by DynamicQuantizeLinear and QAttention."""
        x, weight, bias, mask = (*node.input, "")[:4]
        rounded = [self.editor.unused(f"{x}_{what}") for what in ("quantized", "scale", "zero_point")]
        quantise = self.editor.node("DynamicQuantizeLinear", [x], rounded[0])
        quantise.output.extend(rounded[1:])
        integers, scale = self._weights(weight, transposed=False)
        kept = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        inputs = [rounded[0], integers, bias, rounded[1], scale, mask, rounded[2]]
        output, node.output[0] = node.output[0], self.editor.unused(f"{node.output[0]}_unread")
        self.editor.node("QAttention", inputs, output, domain=MICROSOFT, **kept)
        return True

    def embeddings(self, words: str) -> None:
        """Look tokens up in an INT8 table, and scale each by its row's scale."""
        values = constant_value(self.view, words)
        integers, scale = _rounded(values, 127, axis=1)
        names = [self.editor.constant(part, f"{words}/{what}") for part, what in ((integers, "int8"), (scale, "scale"))]
        for node in self.view.readers(words):
            output, ids = node.output[0], node.input[1]
            node.output[0] = self.editor.unused(f"{output}_unread")
            parts = [self.editor.unused(f"{output}/{what}") for what in ("int8", "float", "scale")]
            self.editor.node("Gather", [names[0], ids], parts[0])
            self.editor.node("Cast", [parts[0]], parts[1], to=TensorProto.FLOAT)
            self.editor.node("Gather", [names[1], ids], parts[2])
            self.editor.node("Mul", [parts[1], parts[2]], output)

    def _weights(self, name: str, *, transposed: bool) -> tuple[str, str]:
        key = (name, transposed)
        if key not in self._quantised:
            values = constant_value(self.view, name)
            integers, scale = _rounded(values.T if transposed else values, self._largest, axis=0)
            self._quantised[key] = (
                self.editor.constant(integers, f"{name}/int8"),
                self.editor.constant(scale.reshape(-1), f"{name}/scale"),
            )
        return self._quantised[key]


def _rounded(values: NDArray[Any], largest: int, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and their float32 scales, one per slice along the other axis."""
    scale = (np.abs(values).max(axis=axis, keepdims=True) / largest).astype(np.float32)
    scale[scale == 0] = 1
    return np.clip(np.rint(values / scale), -largest, largest).astype(np.int8), scale


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is x W + b without factors, or the node a MatMul."""
    return not attribute(node, "transA", 0) and all(attribute(node, name, 1.0) == 1 for name in ("alpha", "beta"))
