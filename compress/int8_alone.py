"""INT8 of chosen layers alone: the files that say what it costs in answers, and what it gains in time.

Which node of an ONNX file is which layer of the network is told by the name of its weights, and where folding gave them
another, by their values.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from tlc.compress.layer_noise import QuantizedLayers
from tlc.compress.quantize import QuantizeSettings, quantize_onnx, worth_quantizing
from tlc.compress.surgery import Surgery
from tlc.export.dynamic_int8 import dynamic_int8, gains
from tlc.export.fp16 import name_nodes
from tlc.export.half import constants_as_initializers
from tlc.export.view import ACTIVATIONS, WEIGHTED, View
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError
from tlc.runtime.target import Target

_CALIBRATION_SAMPLES = 64
_FEWEST_SAMPLES = 16
"""Enough for a file whose time alone counts."""
_DYNAMIC = (*WEIGHTED, "Attention")


class Int8Alone(ABC):
    """Writes the network with only some layers in INT8, as `target` runs INT8."""

    def __init__(self, nodes: Mapping[str, tuple[str, ...]], model: onnx.ModelProto) -> None:
        self._nodes, self._view = dict(nodes), View(model)

    def together(self, layers: Sequence[str]) -> tuple[str, ...]:
        """Return the layers that INT8 of `layers` reaches: those of a node go together; () where it reaches none."""
        own = {node for layer in layers for node in self._nodes.get(layer, ())}
        return tuple(layer for layer, nodes in self._nodes.items() if own & set(nodes))

    def place(self, layers: Sequence[str]) -> tuple[object, ...]:
        """Return what stands around the layers in the graph: it decides what is fused, and so the time."""
        found = []
        for node in self._view.nodes:
            if any(node.name in self._nodes.get(layer, ()) for layer in layers):
                before = [producer.op_type if (producer := self._view.producer(name)) else "" for name in node.input]
                after = sorted(reader.op_type for name in node.output for reader in self._view.readers(name))
                found.append((node.op_type, tuple(before), tuple(after)))
        return tuple(found)

    @abstractmethod
    def write(self, layers: Sequence[str], path: Path) -> None:
        """Write the file whose answers are judged."""

    @abstractmethod
    def write_timed(self, layers: Sequence[str], path: Path) -> None:
        """Write the file that is timed: of the same graph as what would ship."""

    def _of(self, layers: Sequence[str]) -> set[str]:
        return {node for layer in layers for node in self._nodes.get(layer, ())}


def int8_alone(surgery: Surgery, float_onnx: Path, deployed: Path, target: Target, folder: Path) -> Int8Alone:
    """Return the writer for the target: dynamic INT8 for texts in ONNX Runtime, else static.

    `float_onnx` is the network in ONNX's own operators, `deployed` in those of the runtime. Raises TlcError where the
    target has no INT8 arithmetic, no layer gains from it, or the graph cannot be quantised.
    """
    require_int8(target)
    if not worth_quantizing(float_onnx, target):
        raise TlcError(f"no layer gains from INT8 on {target.name}", hint="Leave the treatment int8 out.")
    if surgery.work.noun == "texts" and target.contract.startswith("ort"):
        return _Dynamic(surgery, deployed, target)
    return _Static(surgery, float_onnx, target, folder)


def require_int8(target: Target) -> None:
    """Raise TlcError where the target has no INT8 arithmetic."""
    if "int8" not in target.precisions:
        raise TlcError(f"{target.name} has no INT8 arithmetic", hint="Leave the treatment int8 out.")


class _Static(Int8Alone):
    """INT8 weights and inputs with ranges of a calibration, as `quantize_onnx` writes them."""

    def __init__(self, surgery: Surgery, float_onnx: Path, target: Target, folder: Path) -> None:
        self._float_onnx, self._target, self._surgery = float_onnx, target, surgery
        self._settings: QuantizeSettings = surgery.work.recipe.quantize
        self._model = onnx.load(float_onnx)
        name_nodes(self._model)
        around = folder / "around.onnx"
        count = min(self._settings.samples, len(surgery.work.data.fit), _CALIBRATION_SAMPLES)
        quantize_onnx(
            float_onnx,
            folder / "int8.onnx",
            surgery.work.calibration(float_onnx, count),
            count=count,
            target=target,
            settings=self._settings,
            around=around,
        )
        self._quantized = QuantizedLayers(onnx.load(around))
        super().__init__(_only(match_layers(self._model, surgery), self._quantized.holds), self._model)

    def write(self, layers: Sequence[str], path: Path) -> None:
        """Write the float network with the layers' inputs and weights rounded; what they give stays in float."""
        write_bytes(path, self._quantized.alone(self._model, self._of(layers)).SerializeToString())

    def write_timed(self, layers: Sequence[str], path: Path) -> None:
        """Write what quantisation makes of the network when it leaves all other layers out."""
        # Additions, pooling and the like would be quantised as well; activations go with the layer before them.
        kept = self._of(layers)
        others = [n.name for n in self._model.graph.node if n.name not in kept and n.op_type not in ACTIVATIONS]
        quantize_onnx(
            self._float_onnx,
            path,
            self._surgery.work.calibration(self._float_onnx, _FEWEST_SAMPLES),
            count=_FEWEST_SAMPLES,
            target=self._target,
            settings=self._settings.model_copy(update={"bias_correction": "off", "ignored": ()}),
            ignored=others,
        )


class _Dynamic(Int8Alone):
    """INT8 weights, and inputs quantised as they come, in the operators that the runtime has for them."""

    def __init__(self, surgery: Surgery, deployed: Path, target: Target) -> None:
        self._deployed, self._target = deployed, target
        self._max_length: int = surgery.work.fed.max_length
        model = constants_as_initializers(onnx.load(deployed))
        name_nodes(model)
        view = View(model)
        self._weights = {node.name: node.input[1] for node in view.nodes if gains(view, node)}
        super().__init__(_only(match_layers(model, surgery), self._weights.__contains__), model)

    def write(self, layers: Sequence[str], path: Path) -> None:
        """Write the file that ships, but for the other layers."""
        dynamic_int8(
            self._deployed,
            path,
            max_length=self._max_length,
            mode="matmul",
            reduced_range=self._target.weights_reduced_range,
            only={self._weights[name] for name in self._of(layers)},
        )

    def write_timed(self, layers: Sequence[str], path: Path) -> None:
        """Write the same file."""
        self.write(layers, path)


def _only(nodes: Mapping[str, tuple[str, ...]], wanted: Callable[[str], bool]) -> dict[str, tuple[str, ...]]:
    """Return the layers with the nodes that are wanted, where there are any."""
    return {layer: own for layer, names in nodes.items() if (own := tuple(filter(wanted, names)))}


def match_layers(model: onnx.ModelProto, surgery: Surgery) -> dict[str, tuple[str, ...]]:
    """Return for each layer of the network the nodes that compute it, by name; layers that are not found are absent.

    A node may compute several layers (queries, keys and values), and shared layers are several nodes.
    """
    view = View(model)
    candidates = [
        (node.name, str(weight), value)
        for node in view.nodes
        if node.op_type in _DYNAMIC and len(node.input) > 1
        if (weight := view.weight(node)) is not None and (value := view.value(weight)) is not None and value.ndim > 1
    ]
    found: dict[str, tuple[str, ...]] = {}
    for part in surgery.parts:
        if part.kind == "layer":
            layer = surgery.network.module.get_submodule(part.name)
            named = tuple(name for name, weight, _value in candidates if weight == f"{part.name}.weight")
            nodes = named or tuple(name for name, _weight, value in candidates if _holds(value, layer))
            if nodes:
                found[part.name] = nodes
    return found


def _holds(value: NDArray[np.generic], layer: nn.Module) -> bool:
    """Return whether a node's weights are the layer's: (inputs, outputs), perhaps beside those of others."""
    weight = layer.get_parameter("weight").detach().numpy()
    if value.ndim != 2 or weight.ndim != 2:
        return value.shape == weight.shape and bool(np.array_equal(value, weight))
    if np.array_equal(value, weight):
        return True
    outputs, inputs = weight.shape
    if value.shape[0] != inputs or value.shape[1] % outputs:
        return False
    return any(np.array_equal(value[:, at : at + outputs], weight.T) for at in range(0, value.shape[1], outputs))
