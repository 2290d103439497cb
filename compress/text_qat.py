"""Training with the rounding of INT8 in it, as ONNX Runtime's dynamic quantisation rounds a text model."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tlc.calibration.tokens import Tokens
from tlc.compress.distill import LossSettings
from tlc.compress.events import Emit
from tlc.compress.text_distill import distill_text
from tlc.compress.text_model import TextModel
from tlc.compress.train import Fitted, TrainSettings

LEARNING_RATE = 3e-5

_SMALLEST_SCALE = 1e-12


class DynamicInt8Linear(nn.Linear):
    """A linear layer that rounds as MatMulInteger behind DynamicQuantizeLinear does; gradients pass as if it did not.

    The input of a text is rounded to 256 levels between its smallest and its largest value, zero being one of them
    (ONNX operator DynamicQuantizeLinear, version 11): each text by its own range, as on a device that answers one at a
    time. Weights are rounded symmetrically per output channel. Inputs (N, channels) stay as they are: they become a
    Gemm, which ONNX Runtime's dynamic quantisation leaves in float.
    """

    weight_bits = 8

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (N, T, out) for (N, T, in), or plain (N, out) for (N, in)."""
        if inputs.ndim < 3:
            return super().forward(inputs)
        return F.linear(rounded_uint8(inputs.float()), rounded_int8(self.weight, self.weight_bits), self.bias)


def rounded_uint8(values: Tensor) -> Tensor:
    """Return (N, ...) as it comes back from asymmetric uint8, one scale and zero point for each of the N."""
    rows = values.detach().flatten(1)
    low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
    shape = (-1, *(1 for _ in values.shape[1:]))
    scale = ((high - low) / 255).clamp_min(_SMALLEST_SCALE)
    zero = (-low / scale).round().clamp(0, 255).reshape(shape)
    scale = scale.reshape(shape)
    steps = ((values.detach() / scale).round() + zero).clamp(0, 255)
    return _straight_through(values, (steps - zero) * scale)


def rounded_int8(weight: Tensor, bits: int = 8) -> Tensor:
    """Return a weight (out, in) as it comes back from symmetric integers of `bits`, one scale for each output.

    Eight bits reach from -127 to 127, seven from -64 to 64 (ONNX Runtime's `reduce_range`).
    """
    largest = 127 if bits == 8 else 2 ** (bits - 1)
    scale = (weight.detach().abs().amax(1, keepdim=True) / largest).clamp_min(_SMALLEST_SCALE)
    return _straight_through(weight, (weight.detach() / scale).round() * scale)


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `values` (Bengio, Léonard, Courville 2013, arXiv 1308.3432)."""
    return values + (rounded - values).detach()


def fake_quantized(module: nn.Module, *, weight_bits: int = 8) -> nn.Module:
    """Return a copy whose linear layers are `DynamicInt8Linear`, by the same names and with the same weights."""

    def make(layer: nn.Linear) -> nn.Linear:
        made = DynamicInt8Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight_bits = weight_bits
        return made

    return _with_linears(module, nn.Linear, make)


def stripped(module: nn.Module) -> nn.Module:
    """Return a copy with plain linear layers in place of `DynamicInt8Linear`, the weights as they are."""

    def make(layer: nn.Linear) -> nn.Linear:
        return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")

    return _with_linears(module, DynamicInt8Linear, make)


def _with_linears(module: nn.Module, kind: type[nn.Linear], make: Any) -> nn.Module:
    copied = copy.deepcopy(module)
    for name, layer in list(copied.named_modules()):
        if type(layer) is kind:
            made = make(layer)
            made.weight, made.bias = layer.weight, layer.bias
            copied.set_submodule(name, made.train(layer.training))
    return copied


def qat_text(
    teacher: TextModel,
    student: TextModel,
    train: Tokens,
    holdout: Tokens,
    loss: LossSettings,
    training: TrainSettings,
    *,
    epochs: int,
    weight_bits: int = 8,
    unlabeled: Tokens | None = None,
    layer_map: Sequence[int],
    seed: int,
    folder: Path,
    logits_folder: Path,
    emit: Emit,
    what: str = "qat",
) -> tuple[TextModel, Fitted]:
    """Distil `student`, rounded as dynamic INT8 rounds it, for a few epochs; return it with float weights.

    Of `training` all but the epochs and the learning rate counts, which is `LEARNING_RATE`: the student has been
    trained already. Its scores are those of the rounded network. Else as `distill_text`.
    """
    trained, fitted = distill_text(
        teacher,
        replace(student, module=fake_quantized(student.module, weight_bits=weight_bits)),
        train,
        holdout,
        loss,
        training.model_copy(update={"epochs": epochs, "learning_rate": LEARNING_RATE}),
        unlabeled=unlabeled,
        layer_map=layer_map,
        seed=seed,
        folder=folder,
        logits_folder=logits_folder,
        emit=emit,
        what=what,
    )
    return replace(trained, module=stripped(trained.module)), fitted
