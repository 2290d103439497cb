"""An ONNX file, float or with Q/DQ pairs, as a PyTorch module that can be trained and written back into the same file.

What is trained is the file that ships: its quantisers stand where the target's runtime wants them, and stay there. So
there is no export after training that could move or lose them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from tlc.compress.onnx_operators import OPERATORS, Attributes, Operator
from tlc.compress.rounding import Grid, along, unit_of
from tlc.export.grid_rules import HALF_RANGE, integers
from tlc.export.half import constants_as_initializers
from tlc.export.view import WEIGHTED, View, attribute, label
from tlc.runtime.errors import TlcError

_INTEGERS = (np.dtype(np.int8), np.dtype(np.uint8))
_TRAINED = (*WEIGHTED, "Add", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "Mul", "PRelu")
_LARGEST = 127
_STATISTICS = 3
"""From this input on, those of a BatchNormalization are means and variances."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator: what it reads, what it writes, and which tensors nobody reads afterwards."""

    operator: Operator | None
    """None: a pair, of `grid`."""
    attributes: Attributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    grid: int
    done: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Weight:
    """A constant behind a Q/DQ pair, or in front of DequantizeLinear as integers."""

    dequantized: str
    stored: str
    grid: int
    axis: int
    zero_point: NDArray[np.float32] | None
    """() or (C,), where integers are stored; None where the pair rounds float32."""


class OnnxNetwork(nn.Module):
    """Images (N, C, H, W) -> logits, computed as the ONNX graph says; gradients pass roundings as if there were none.

    Parameters are the weights and biases of the graph's layers, and one for each scale. Zero points, and which tensors
    are rounded, and to how many levels, stay as the file has them; activations whose grids are equal keep equal ones.

    In training mode it computes in whatever precision autocast asks for, rounding in float32; otherwise in float32.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Read the graph.

        Raises:
            TlcError: the graph has an operator that is not known here, a Q/DQ pair with something in between, or more
                than one input.

        """
        super().__init__()
        self._model = constants_as_initializers(model)
        view = View(self._model)
        if len(view.inputs) != 1:
            raise TlcError(
                f"the graph has {len(view.inputs)} inputs: {', '.join(sorted(view.inputs))}; training takes one",
                hint="Set quantize.qat_epochs = 0.",
            )
        (self._input,) = view.inputs
        self._output = self._model.graph.output[0].name
        self.values = nn.ParameterDict()
        self.grids = nn.ModuleList()
        self._keys: dict[str, str] = {}
        self._units: dict[str, str] = {}
        self._fixed: dict[str, str] = {}
        self._shapes: dict[str, Tensor] = {}
        self._grids_of: dict[tuple[bytes, ...], int] = {}
        self._scale_names: dict[str, int] = {}
        self._weights = tuple(self._weights_of(view))
        self._constants(view)
        self._steps = _with_last_uses(self._steps_of(view), self._output)

    def _weights_of(self, view: View) -> list[_Weight]:
        found = []
        for node in view.nodes:
            if node.op_type != "DequantizeLinear" or (stored := view.stored(node)) is None:
                continue
            value = numpy_helper.to_array(view.constants[stored])
            if value.dtype not in (*_INTEGERS, np.dtype(np.float32)):
                raise _unknown(node, f"it reads {value.dtype}")
            axis = attribute(node, "axis", 1)
            scale, zero, kind = _grid_values(view, node)
            as_integers = value.dtype in _INTEGERS
            if as_integers:
                value = (value - along(zero, axis, value.ndim)) * along(scale, axis, value.ndim)
            self._add_parameter(stored, value, unit_of(along(scale, axis, value.ndim) * np.float32(_LARGEST)))
            ends = _ends(kind)
            if kind == np.int8 and not zero.any() and (known := integers(view, node)) is not None:
                # 7 bits stay 7: on CPUs without VNNI, larger integers overflow. Else -128 is not used.
                ends = (-HALF_RANGE, HALF_RANGE) if np.abs(known).max(initial=0) <= HALF_RANGE else (-ends[1], ends[1])
            grid = self._grid(view, node, f"weight {stored}", ends)
            found.append(_Weight(node.output[0], stored, grid, axis, zero if as_integers else None))
        return found

    def _grid(self, view: View, node: onnx.NodeProto, what: str, ends: tuple[int, int]) -> int:
        """Return the index of the pair's grid: one of its own for weights, one for all activations with equal ones."""
        scale, zero, kind = _grid_values(view, node)
        key = (what.encode(), kind.name.encode(), scale.tobytes(), zero.tobytes())
        if key not in self._grids_of:
            self._grids_of[key] = len(self.grids)
            self.grids.append(Grid(scale, ends[0] - zero, ends[1] - zero))
        self._scale_names[node.input[1]] = self._grids_of[key]
        return self._grids_of[key]

    def _constants(self, view: View) -> None:
        """Make the layers' weights parameters, other numbers buffers, and shapes plain tensors."""
        pairs = {name for node in view.quantizers() for name in node.input if name in view.constants}
        trained = {
            name
            for node in view.nodes
            if node.op_type in _TRAINED
            for position, name in enumerate(node.input)
            if node.op_type != "BatchNormalization" or position < _STATISTICS
        }
        units = self._units_of_biases(view)
        for name, tensor in view.constants.items():
            if name in pairs or name in self._keys:
                continue
            value = numpy_helper.to_array(tensor)
            if value.dtype.kind != "f":
                self._shapes[name] = torch.from_numpy(value.copy())
            elif name in trained and value.size > 1:
                self._add_parameter(name, value, units.get(name, np.ones(1, np.float32)))
            else:
                self._fixed[name] = f"fixed_{len(self._fixed)}"
                self.register_buffer(self._fixed[name], torch.from_numpy(value.copy()))

    def _units_of_biases(self, view: View) -> dict[str, NDArray[np.float32]]:
        """Return for each bias of an integer layer the unit of its weights, (C,): both scale with the output."""
        units = {}
        for node in view.nodes:
            dequantizer = view.dequantizer(node.input[1]) if len(node.input) > 2 else None
            if node.op_type in ("Conv", "Gemm") and dequantizer is not None:
                units[node.input[2]] = unit_of(_grid_values(view, dequantizer)[0].reshape(-1) * np.float32(_LARGEST))
        return units

    def _add_parameter(self, name: str, value: NDArray[np.float32], unit: NDArray[np.float32]) -> None:
        """Train `value` in multiples of `unit`: a step then has the same effect in channels that lie far apart."""
        self._keys[name] = key = name.replace(".", "/")
        self._units[name] = f"unit_{len(self._units)}"
        self.register_buffer(self._units[name], torch.tensor(unit))
        self.values[key] = nn.Parameter(torch.tensor((value / unit).astype(np.float32)))

    def _value(self, name: str) -> Tensor:
        parameter: Tensor = self.values[self._keys[name]]
        unit: Tensor = getattr(self, self._units[name])
        return parameter * unit

    def _steps_of(self, view: View) -> list[_Step]:
        steps = []
        constant = {weight.dequantized for weight in self._weights}
        for node in view.nodes:
            if node.op_type == "QuantizeLinear":
                if view.is_constant(node.input[0]):
                    continue
                steps.append(self._rounding(view, node))
            elif node.op_type == "DequantizeLinear":
                quantizer = view.quantizer(node)
                if node.output[0] in constant:
                    continue
                if quantizer is None or not _same_grid(view, quantizer, node):
                    raise _unknown(node, "it is not the second of a pair with one grid")
                self._activation_grid(view, node)  # its scale may have another name
                steps.append(_step(node, OPERATORS["Identity"], node.input[:1]))
            elif node.op_type in OPERATORS and node.domain in ("", "ai.onnx"):
                steps.append(_step(node, OPERATORS[node.op_type], node.input))
            else:
                raise _unknown(node, "it has no gradient here")
        return steps

    def _rounding(self, view: View, node: onnx.NodeProto) -> _Step:
        grid, axis = self._activation_grid(view, node), attribute(node, "axis", 1)
        return _Step(None, {"axis": axis}, (node.input[0],), tuple(node.output), grid, ())

    def _activation_grid(self, view: View, node: onnx.NodeProto) -> int:
        return self._grid(view, node, "activation", _ends(_grid_values(view, node)[2]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W)."""
        if self.training:
            return self._computed(images)
        with torch.autocast(images.device.type, enabled=False):
            return self._computed(images.float())

    def _computed(self, images: Tensor) -> Tensor:
        known: dict[str, Any] = {self._input: images, **self._shapes}
        known |= {name: self._value(name) for name in self._keys}
        known |= {name: getattr(self, key) for name, key in self._fixed.items()}
        for weight in self._weights:
            known[weight.dequantized] = self.grids[weight.grid](known[weight.stored], weight.axis)
        for step in self._steps:
            inputs = [known[name] if name else None for name in step.inputs]
            if step.operator is None:
                written: Any = self.grids[step.grid](inputs[0], step.attributes["axis"])
            else:
                written = step.operator(step.attributes, *inputs)
            if isinstance(written, Tensor):
                known[step.outputs[0]] = written
            else:
                known.update(zip(step.outputs, written, strict=True))
            for name in step.done:
                del known[name]
        logits: Tensor = known[self._output]
        return logits

    @torch.no_grad()
    def to_onnx(self) -> onnx.ModelProto:
        """Return the file with the weights and scales of this module, which is on the CPU; its nodes stay as they were.

        Its outputs are this module's, but for what float32 sums in another order: now and then, a value rounds to the
        neighbouring level.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        stored = {name: self._value(name).contiguous().numpy() for name in self._keys}
        for weight in self._weights:
            grid = self._grid_at(weight.grid)
            # Floats move onto the grid, which the pair behind them then leaves alone.
            rounded = grid(torch.from_numpy(stored[weight.stored]), weight.axis).numpy()
            if weight.zero_point is not None:
                scale = along(grid.scale.numpy(), weight.axis, rounded.ndim)
                rounded = np.rint(rounded / scale) + along(weight.zero_point, weight.axis, rounded.ndim)
            stored[weight.stored] = rounded
        stored |= {name: self._grid_at(index).scale.numpy() for name, index in self._scale_names.items()}
        for tensor in model.graph.initializer:
            if tensor.name in stored:
                kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                value = np.asarray(stored[tensor.name], kind, order="C").reshape(tuple(tensor.dims))
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return model

    def _grid_at(self, index: int) -> Grid:
        grid = self.grids[index]
        assert isinstance(grid, Grid)
        return grid


def _unknown(node: onnx.NodeProto, why: str) -> TlcError:
    return TlcError(
        f"{label(node)} ({node.op_type}) cannot be trained: {why}",
        hint="Set quantize.qat_epochs = 0, or leave that part of the network in float by quantize.ignored.",
    )


def _grid_values(view: View, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32], np.dtype[Any]]:
    """Return scale and zero point, float32 of shape () or (C,), and the integers' type."""
    scale, zero = view.value(node.input[1]), view.value(node.input[2]) if len(node.input) > 2 else None
    if scale is None or scale.dtype != np.float32:
        raise _unknown(node, "its scale is not a float32 constant")
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if kind not in _INTEGERS:
        raise _unknown(node, f"it rounds to {kind}")
    shape = () if scale.size == 1 else (scale.size,)
    levels = np.zeros(shape, np.float32) if zero is None else zero.astype(np.float32).reshape(shape)
    return scale.reshape(shape), levels, kind


def _ends(kind: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(kind)
    return int(info.min), int(info.max)


def _same_grid(view: View, quantizer: onnx.NodeProto, dequantizer: onnx.NodeProto) -> bool:
    ours, theirs = _grid_values(view, quantizer), _grid_values(view, dequantizer)
    return np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1]) and ours[2] == theirs[2]


def _step(node: onnx.NodeProto, operator: Operator, inputs: Any) -> _Step:
    attributes: Mapping[str, Any] = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    outputs = tuple(node.output)
    return _Step(operator, {**attributes, "outputs": len(outputs)}, tuple(inputs), outputs, -1, ())


def _with_last_uses(steps: list[_Step], output: str) -> tuple[_Step, ...]:
    """Return the steps with the tensors that each is the last to read."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last.update(dict.fromkeys(step.inputs, index))
    written = {name for step in steps for name in step.outputs} - {output}
    done: dict[int, list[str]] = {}
    for name, index in last.items():
        if name in written:
            done.setdefault(index, []).append(name)
    return tuple(
        _Step(s.operator, s.attributes, s.inputs, s.outputs, s.grid, tuple(done.get(index, ())))
        for index, s in enumerate(steps)
    )
