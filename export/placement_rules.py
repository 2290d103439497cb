"""Rules about where Q/DQ pairs stand: what TensorRT fuses, and which layers gain from INT8.

TensorRT fuses a convolution with the activation and the residual addition behind it, and runs what stands between
DequantizeLinear and QuantizeLinear in integers. Placement and limits are those of NVIDIA's ModelOpt 0.47
(modelopt/onnx/quantization: int8.py, graph_utils.py, op_types.py) and, for residual additions and pooling, of the
ResNet-18 engines among the examples of trt-engine-explorer (tag v10.3.0, A100, batch 32: FP16 0.862 ms, INT8 without
quantised skip branches 0.883 ms, with them 0.546 ms, with a quantised pooling input 0.500 ms).
"""

from collections.abc import Iterator

import onnx

from tlc.export.view import ACTIVATIONS, MOVING, WEIGHTED, View, attribute, label
from tlc.export.violation import Violation, broken
from tlc.runtime.target import TensorRT

FEWEST_CHANNELS = 16
"""Of input and output, below which a layer gains nothing from INT8."""

INTEGER_READERS = frozenset(
    {
        *("Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool"),
        *("Mul", "ReduceMean", "Relu", "Resize", "Sub"),
    }
)
"""Operators beside the weighted ones that run on integers, or pass them on. onnx-tensorrt makes GlobalAveragePool a
reduction (globalPoolingHelper), so ReduceMean, which torch writes for it, is the same layer."""


def before_activation(view: View, _device: TensorRT) -> Iterator[Violation]:
    """No pair between a layer, or an addition, and the activation behind it."""
    for _, dequantizer in view.pairs():
        if readers := activations_behind(view, dequantizer):
            yield broken(
                dequantizer, "pair-before-activation", "slow",
                f"it rounds between a layer and its {readers[0].op_type}, which can then not be fused",
                f"Round behind the {readers[-1].op_type}.",
            )  # fmt: skip


def activations_behind(view: View, dequantizer: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the readers of a rounded tensor that would be fused into what writes it, if it were not rounded."""
    source = view.rounded(dequantizer.output[0])
    writer = None if source is None else view.producer(source)
    if source is None or writer is None:
        return []
    readers = view.readers(dequantizer.output[0])
    if view.layer_behind(source) is not None or _is_sum(view, writer):
        gates = [reader for reader in readers if reader.op_type in ACTIVATIONS]
        return gates + [reader for reader in readers if _is_swish(view, reader, dequantizer.output[0])]
    if writer.op_type in ("Sigmoid", "HardSigmoid"):
        return [reader for reader in readers if _is_swish(view, reader, _unrounded(view, writer.input[0]))]
    return []


def before_addition(view: View, _device: TensorRT) -> Iterator[Violation]:
    """A convolution's output is not rounded on its way into a residual addition of rounded tensors."""
    for node in view.nodes:
        if (branch := rounded_branch(view, node)) is not None:
            yield broken(
                node, "rounded-residual-branch", "slow",
                f"{label(branch)} rounds the output of a convolution before the addition, which can then not be fused",
                "Add the convolution's output as it is; round the other branch only.",
            )  # fmt: skip


def rounded_branch(view: View, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the DequantizeLinear in front of an Add that should go: that of the branch which ends in a convolution.

    Where both do, it is the one whose tensor nothing else reads, else the second.
    """
    if node.op_type != "Add":
        return None
    both = [view.dequantizer(name) for name in node.input]
    if None in both or both[0] is both[1]:
        return None
    sources = [view.rounded(name) for name in node.input]
    ends = [
        index
        for index, source in enumerate(sources)
        if source is not None and (layer := view.layer_behind(source)) is not None and view.is_quantised(layer)
    ]
    if not ends:
        return None
    alone = [index for index in ends if _readers_of_source(view, sources[index]) == 1]
    return both[(alone or ends)[-1]]


def skip_branches(view: View, _device: TensorRT) -> Iterator[Violation]:
    """The skip branch of a residual addition is rounded where the other one ends in a quantised convolution."""
    for node in view.nodes:
        if skip_branch(view, node) is not None:
            yield broken(
                node, "float-skip-branch", "slow",
                "it adds a float tensor to the output of an INT8 convolution, which then writes float",
                "Put a Q/DQ pair on the skip branch.",
            )  # fmt: skip


def skip_branch(view: View, node: onnx.NodeProto) -> str | None:
    """Return the input of a residual Add that should be rounded: the skip branch; None where nothing is missing."""
    if node.op_type != "Add" or any(view.dequantizer(name) or view.is_constant(name) for name in node.input):
        return None
    ends = [
        index
        for index, name in enumerate(node.input)
        if (layer := view.layer_behind(name)) is not None
        and layer.op_type in ("Conv", "ConvTranspose")
        and view.is_quantised(layer)
        # Only what nothing else reads can be fused with the addition: ConvNeXt adds to a convolution's output what was
        # computed from it.
        and len(view.readers(name)) == 1
    ]
    return str(node.input[1 - ends[0]]) if ends else None


def pooling(view: View, _device: TensorRT) -> Iterator[Violation]:
    """What is pooled is rounded where it comes out of INT8 layers."""
    for node in view.nodes:
        if float_pool(view, node):
            yield broken(
                node, "float-pooling-input", "slow",
                "it pools a float tensor that INT8 layers made, so that these write float and a reformat follows",
                "Put a Q/DQ pair on its input.",
            )  # fmt: skip


def float_pool(view: View, node: onnx.NodeProto) -> bool:
    """Whether a pooling operator reads float values of INT8 layers. A quantiser may also stand behind a MaxPool."""
    if node.op_type not in ("AveragePool", "GlobalAveragePool", "MaxPool") or view.dequantizer(node.input[0]):
        return False
    readers = view.readers(node.output[0])
    if node.op_type == "MaxPool" and readers and all(reader.op_type == "QuantizeLinear" for reader in readers):
        return False
    return _from_integers(view, node.input[0])


def concatenations(view: View, _device: TensorRT) -> Iterator[Violation]:
    """What is concatenated in INT8 has one scale."""
    for node in view.nodes:
        if node.op_type != "Concat" or not any(view.dequantizer(name) for name in node.input):
            continue
        scales = concatenated_scales(view, node)
        if None in scales or len(set(scales)) > 1:
            known = sorted({f"{scale:.4g}" for scale in scales if scale is not None})
            partly = ", and not all are rounded" if None in scales else ""
            yield broken(
                node, "concat-scales", "slow",
                f"its inputs have the scales {', '.join(known)}{partly}: each is converted before it is copied",
                "Give all inputs the largest scale.",
            )  # fmt: skip


def concatenated_scales(view: View, node: onnx.NodeProto) -> list[float | None]:
    """Return the scale of each input of a Concat; None for one that is not rounded, or not by one known scale."""
    found: list[float | None] = []
    for name in node.input:
        dequantizer = view.dequantizer(name)
        scale = None if dequantizer is None else view.value(dequantizer.input[1])
        found.append(float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else None)
    return found


def small_layers(view: View, _device: TensorRT) -> Iterator[Violation]:
    """Layers with few channels, and products with a vector, stay in float."""
    for node in view.nodes:
        if view.is_quantised(node) and (reason := too_small(view, node)) is not None:
            yield broken(
                node, "small-layer", "slow", f"it is in INT8, and {reason}: that gains less than conversions cost",
                "Leave the layer in FP16.",
            )  # fmt: skip


def too_small(view: View, node: onnx.NodeProto) -> str | None:
    """Return why a weighted operator gains nothing from INT8, as ModelOpt decides; None where it may gain."""
    if node.op_type in ("Gemm", "MatMul"):
        return _small_product(view, node)
    weight = view.weight(node)
    shape = None if weight is None else view.shape(weight)
    if shape is None or None in shape or node.op_type == "ConvTranspose":
        return None
    outputs, inputs, kernel = int(shape[0] or 0), int(shape[1] or 0), shape[2:]
    if min(outputs, inputs) >= FEWEST_CHANNELS:
        return None
    if attribute(node, "group", 1) > 1:
        if outputs % 8 == 0 and all(size is not None and size >= 3 for size in kernel):
            return None
        return f"it is a grouped convolution of {outputs} channels with a {_times(kernel)} kernel"
    first = view.behind(view.rounded(node.input[0]) or node.input[0]) in view.inputs
    multiple = outputs % 8 == 0 or inputs % 8 == 0
    if multiple and (first or max(outputs, inputs) >= FEWEST_CHANNELS) and len(set(kernel)) == 1:
        return None
    return f"it has {inputs} input and {outputs} output channels"


def _small_product(view: View, node: onnx.NodeProto) -> str | None:
    out, right = view.shape(node.output[0]), view.shape(node.input[1])
    stored = view.weight(node)
    if right is None and stored is not None and view.behind(node.input[1]) == node.input[1]:
        right = view.shape(stored)
    if right is not None and len(right) >= 2:
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        depth, width = (right[-1], right[-2]) if transposed else (right[-2], right[-1])
        small = [size for size in (depth, width) if size is not None and size < FEWEST_CHANNELS]
        if small:
            return f"its weights are {depth} x {width}"
    if out is None:
        return None
    vector = 1 in out[-2:] if stored is None else len(out) < 3 and 1 in out
    return "one of its factors is a vector" if vector else None


def shared_pairs(view: View, _device: TensorRT) -> Iterator[Violation]:
    """Each layer has a pair of its own (microsoft/onnxruntime#9720)."""
    for _, dequantizer in view.pairs():
        layers = [reader for reader in view.readers(dequantizer.output[0]) if reader.op_type in WEIGHTED]
        if len(layers) > 1:
            yield broken(
                dequantizer, "shared-pair", "slow",
                f"{len(layers)} layers read it: {', '.join(label(layer) for layer in layers)}",
                "Give each layer a pair of its own.",
            )  # fmt: skip


def unread_pairs(view: View, _device: TensorRT) -> Iterator[Violation]:
    """A pair serves an operator that runs on integers."""
    for _, dequantizer in view.pairs():
        if not serves_integers(view, dequantizer.output[0]):
            yield broken(
                dequantizer, "pair-without-reader", "slow",
                "nothing that reads it runs in INT8, so that it only rounds",
                "Remove the pair.",
            )  # fmt: skip


def serves_integers(view: View, name: str) -> bool:
    """Whether an operator that reads the tensor, perhaps moved, runs on integers."""
    for reader in view.readers(name):
        if reader.op_type in INTEGER_READERS or view.is_quantised(reader):
            return True
        if reader.op_type in (*MOVING, "Cast") and any(serves_integers(view, moved) for moved in reader.output):
            return True
        if reader.op_type == "QuantizeLinear" and _serves_behind(view, reader):
            return True
    return False


def _serves_behind(view: View, quantizer: onnx.NodeProto) -> bool:
    return any(
        serves_integers(view, reader.output[0])
        for reader in view.readers(quantizer.output[0])
        if reader.op_type == "DequantizeLinear"
    )


def _from_integers(view: View, name: str) -> bool:
    """Whether INT8 layers made the tensor, perhaps through activations, additions and products."""
    node = view.producer(name)
    if node is None:
        return False
    if node.op_type in WEIGHTED:
        return view.is_quantised(node)
    if node.op_type in (*ACTIVATIONS, *MOVING, "Add", "BatchNormalization", "Mul", "MaxPool"):
        return any(_from_integers(view, source) for source in node.input)
    return False


def _readers_of_source(view: View, name: str | None) -> int:
    """Count the readers of an unrounded tensor, those of its pairs in place of the quantisers."""
    count = 0
    for reader in view.readers(name or ""):
        if reader.op_type != "QuantizeLinear":
            count += 1
            continue
        for dequantizer in view.readers(reader.output[0]):
            count += len(view.readers(dequantizer.output[0]))
    return count


def _is_sum(view: View, node: onnx.NodeProto) -> bool:
    return node.op_type == "Add" and not any(view.is_constant(name) for name in node.input)


def _is_swish(view: View, node: onnx.NodeProto, name: str) -> bool:
    """Whether `node` multiplies the tensor, rounded or not, with its own sigmoid."""
    if node.op_type != "Mul" or len(node.input) != 2:
        return False
    factors = [_unrounded(view, factor) for factor in node.input]
    gates = [view.producer(factor) for factor in factors]
    return any(
        gate is not None
        and gate.op_type in ("Sigmoid", "HardSigmoid")
        and _unrounded(view, gate.input[0]) == _unrounded(view, other) == _unrounded(view, name)
        for gate, other in zip(gates, reversed(factors), strict=True)
    )


def _unrounded(view: View, name: str) -> str:
    return view.rounded(name) or name


def _times(sizes: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes)
