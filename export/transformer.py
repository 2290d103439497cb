"""A text encoder's ONNX file -> the same network in the operators that ONNX Runtime's CPU kernels run fastest.

What is written was measured on ONNX Runtime 1.31 (x86 with AVX-512, one thread, batch 1, 22 tokens, width 384), and is
not what `onnxruntime.transformers.optimizer` writes: that one finds no attention in the graphs of torch's exporter, and
two of its operators are slower than what they replace.

- com.microsoft Attention with queries, keys and values in one matrix and the mask as (N, T) integers: 138 us, against
  163 us for MatMul, Transpose, Softmax and 166 us for MultiHeadAttention.
- Sum and LayerNormalization: 10 us. Add and LayerNormalization become SkipLayerNormalization when the session is made,
  whose kernel takes 43 us; Sum means the same and is left alone.
- Gelu: 19 us, against 33 us for Div, Erf, Add, Mul, Mul, and 30 us for BiasGelu, which ONNX Runtime makes of Add and
  Gelu. (All at (1, 22, 1536).)
- Embeddings that do not depend on the tokens are added up beforehand, and positions cut out instead of looked up.
- Where a classifier reads the first token alone, the last layer runs on that one; only its keys and values need all.
"""

import math
from pathlib import Path

import onnx
from pydantic import BaseModel, ConfigDict

from tlc.export.edit import Editor
from tlc.export.first_token import run_on_first_token
from tlc.export.fuse_attention import fuse_attention
from tlc.export.fuse_embeddings import add_up_embeddings
from tlc.export.half import constants_as_initializers
from tlc.export.match import MICROSOFT, declare_microsoft, number, only_reader, scaled
from tlc.export.token_probes import differences, require_word_table
from tlc.export.view import View
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError


class FusionRecord(BaseModel):
    """What `fuse_for_onnxruntime` changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    attention: int
    """Attentions that became one operator."""
    gelu: int
    """GELUs that became one operator."""
    normalisation: int
    """Additions in front of a LayerNormalization that are safe from SkipLayerNormalization."""
    embeddings: int
    """Embeddings that were added up beforehand, or are cut out instead of looked up."""
    first_token: bool
    """Whether the last layer runs on the first token alone."""
    max_abs_error: float
    """Largest |fused - plain| over the logits of seeded tokens at several batch sizes and lengths, with padding."""


def fuse_for_onnxruntime(source: Path, out: Path, *, max_length: int) -> FusionRecord:
    """Write the text encoder `source`, as `text_onnx_from_torch` made it, in ONNX Runtime's fastest operators.

    Inputs, outputs and what the network calculates stay the same; what has no fused form stays as it is. The file is
    written only after it gave the logits of `source` on seeded random tokens.

    Args:
        source: an ONNX file with int64 (N, T) inputs, opset 18 or newer.
        out: the file to write; only ONNX Runtime reads it.
        max_length: the largest T; longer position tables are cut there.

    Raises:
        TlcError: the graph does not look its tokens up in a table, or the fused file gives other logits.

    """
    model = constants_as_initializers(onnx.load(source))
    words, vocabulary = require_word_table(model, source.name)
    declare_microsoft(model)
    editor = Editor(model)
    first_token = run_on_first_token(editor)
    embeddings = add_up_embeddings(editor, words, max_length)
    gelu = _fuse_gelu(editor)
    attention = fuse_attention(editor)
    normalisation = _keep_sums(editor)
    content = model.SerializeToString(deterministic=True)
    error = 0.0
    for found in differences(source.read_bytes(), content, max_length=max_length, vocabulary=vocabulary):
        if not found.largest <= found.limit:
            raise TlcError(
                f"{source.name} gives other logits when fused for ONNX Runtime: largest error {found.largest:.3g} at "
                f"batch {found.size[0]}, length {found.size[1]}, limit {found.limit:.3g}",
                hint="Use the file as it is.",
            )
        error = max(error, found.largest)
    write_bytes(out, content)
    return FusionRecord(
        attention=attention,
        gelu=gelu,
        normalisation=normalisation,
        embeddings=embeddings,
        first_token=first_token,
        max_abs_error=error,
    )


def _fuse_gelu(editor: Editor) -> int:
    """Replace x * (0.5 * (1 + erf(x / sqrt 2))) by Gelu."""
    view, count = editor.view, 0
    for erf in view.nodes:
        if erf.op_type != "Erf" or (division := view.producer(erf.input[0])) is None:
            continue
        x, factor = scaled(view, division)
        plus = only_reader(view, erf.output[0], "Add")
        half = None if plus is None else only_reader(view, plus.output[0], "Mul")
        product = None if half is None else only_reader(view, half.output[0], "Mul")
        if plus is None or half is None or product is None or not math.isclose(factor, 0.5**0.5, rel_tol=1e-5):
            continue
        if _other(view, plus, erf.output[0]) == 1 and _other(view, half, plus.output[0]) == 0.5 and x in product.input:
            editor.node("Gelu", [x], product.output[0], domain=MICROSOFT)
            product.output[0] = editor.unused(f"{product.output[0]}_unread")
            count += 1
    editor.refresh()
    return count


def _keep_sums(editor: Editor) -> int:
    """Write additions as Sum where ONNX Runtime would fuse an Add with what follows into a slower operator."""
    view, count = editor.view, 0
    for node in view.nodes:
        readers = {reader.op_type for reader in view.readers(node.output[0])} if node.op_type == "Add" else set()
        if "LayerNormalization" in readers or readers == {"Gelu"}:
            node.op_type = "Sum"
            count += "LayerNormalization" in readers
    return count


def _other(view: View, node: onnx.NodeProto, name: str) -> float | None:
    """Return the number that stands beside `name` among the two inputs."""
    return next((number(view, part) for part in node.input if part != name), None)
