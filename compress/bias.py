"""Bias correction: what rounding adds to each channel's mean output is taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2, with
means from calibration samples (appendix D, "empirical bias correction").
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tlc.runtime.tensor import Samples

Shifts = dict[str, NDArray[np.float64]]


def correct_biases(model: onnx.ModelProto, quantized: onnx.ModelProto, samples: Samples) -> None:
    """Correct the biases of `quantized` in place, each layer by what rounding does to it alone.

    Every layer reads what the float network computes, so one pass over the samples is enough.

    Args:
        model: the float network.
        quantized: the same network with Q/DQ pairs in front of its layers, the nodes' names kept.
        samples: of the calibration.

    """
    layers = _layers(quantized)
    if not layers:
        return
    beside = onnx.ModelProto()
    beside.CopyFrom(model)
    beside.graph.initializer.extend(_missing_constants(beside, quantized))
    known = {node.name: node for node in model.graph.node}
    writers = {name: node for node in quantized.graph.node for name in node.output}
    for layer in layers:
        rounded = onnx.NodeProto()
        rounded.CopyFrom(layer)
        rounded.name, rounded.output[0] = f"{layer.name}/rounded", f"{layer.name}/rounded"
        pairs = [writers[name] for name in layer.input[:2]]
        beside.graph.node.extend(node for pair in pairs for node in (writers[pair.input[0]], pair))
        beside.graph.node.append(rounded)
        beside.graph.node.append(
            helper.make_node("Sub", [known[layer.name].output[0], rounded.output[0]], [f"{layer.name}/lost"])
        )
    lost = {layer.name: f"{layer.name}/lost" for layer in layers}
    _add_to_biases(quantized, _channel_means(beside, lost, layers, samples))


def correct_biases_in_order(model: onnx.ModelProto, quantized: onnx.ModelProto, samples: Samples) -> None:
    """Correct the biases of `quantized` in place, from the first layer to the last.

    Each layer reads what the quantised and so far corrected network computes: one pass over the samples per layer.

    Args:
        model: as for `correct_biases`, like the other arguments.
        quantized: as there.
        samples: as there, iterable again and again.

    """
    layers = _layers(quantized)
    outputs = {layer.name: layer.output[0] for layer in layers}
    wanted = _channel_means(model, outputs, layers, samples)
    for layer in layers:
        found = _channel_means(quantized, {layer.name: layer.output[0]}, [layer], samples)
        _add_to_biases(quantized, {name: wanted[name] - mean for name, mean in found.items()})


def _layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the layers with quantised weights that have a bias to correct, or can get one."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [
        node
        for node in model.graph.node
        if set(node.input[:2]) <= dequantized
        and (node.op_type in ("Conv", "ConvTranspose", "Gemm") or _bias_of_product(model, node) is not None)
    ]


def _bias_of_product(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the Add of a vector that alone reads a MatMul."""
    readers = [reader for reader in model.graph.node if node.op_type == "MatMul" and node.output[0] in reader.input]
    vectors = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
    is_bias = len(readers) == 1 and readers[0].op_type == "Add" and not vectors.isdisjoint(readers[0].input)
    return readers[0] if is_bias else None


def _missing_constants(model: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    known = {tensor.name for tensor in model.graph.initializer}
    return (tensor for tensor in quantized.graph.initializer if tensor.name not in known)


def _channel_means(
    model: onnx.ModelProto, tensors: dict[str, str], layers: Sequence[onnx.NodeProto], samples: Samples
) -> Shifts:
    """Return the mean of each layer's tensor per channel, (channels,) each, over samples and positions."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = []
    for layer in layers:
        name = tensors[layer.name]
        if layer.op_type in ("Conv", "ConvTranspose"):
            probe.graph.node.append(helper.make_node("GlobalAveragePool", [name], [f"{name}/mean"]))
            name = f"{name}/mean"
        names.append(name)
    _keep_only(probe, names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order: the same result everywhere
    options.log_severity_level = 3
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums: Shifts = {}
    count = 0
    for sample in samples:
        values = session.run(names, dict(sample))
        for layer, value in zip(layers, values, strict=True):
            channels = value.shape[1 if layer.op_type in ("Conv", "ConvTranspose") else -1]
            mean = value.reshape(-1, channels).mean(0, dtype=np.float64)
            sums[layer.name] = sums.get(layer.name, 0) + mean
        count += 1
    return {name: total / count for name, total in sums.items()}


def _keep_only(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make the tensors the outputs and remove the nodes that they do not depend on."""
    needed = set(names)
    kept = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _add_to_biases(model: onnx.ModelProto, shifts: Shifts) -> None:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in shifts:
            continue
        adder = _bias_of_product(model, node)
        owner = adder or node
        position = 2 if adder is None else next(i for i, name in enumerate(adder.input) if name in constants)
        if len(owner.input) == position:
            owner.input.append("")
        old = constants.get(owner.input[position])
        bias = 0 if old is None else numpy_helper.to_array(old)
        owner.input[position] = f"{node.name}_corrected_bias"
        corrected = numpy_helper.from_array((bias + shifts[node.name]).astype(np.float32), owner.input[position])
        model.graph.initializer.append(corrected)
    read = {name for node in model.graph.node for name in node.input}
    kept = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in read}  # the corrected, if twice
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept.values())
