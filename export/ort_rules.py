"""Rules for Q/DQ graphs on ONNX Runtime's CPU provider and on OpenVINO. Seen in its optimised graphs."""

from collections.abc import Callable, Iterator

from onnx import TensorProto

from tlc.export.qdq import float_convolution_outputs
from tlc.export.view import View
from tlc.export.violation import Violation, broken
from tlc.runtime.target import Target


def _activation_type(view: View, target: Target) -> Iterator[Violation]:
    """Activations have the type behind which the CPU's kernels are fused."""
    wanted = TensorProto.UINT8 if target.contract == "ort-u8s8" else TensorProto.INT8
    for quantizer, _ in view.pairs():
        kind = view.grid_type(quantizer)
        if kind in (TensorProto.UINT8, TensorProto.INT8) and kind != wanted:
            yield broken(
                quantizer, "activation-type", "slow",
                f"it rounds to {TensorProto.DataType.Name(kind).lower()}; on {target.name} ONNX Runtime fuses layers "
                f"behind {TensorProto.DataType.Name(wanted).lower()}",
                "Move type and zero point by 128.",
            )  # fmt: skip


def _per_channel(view: View, _target: Target) -> Iterator[Violation]:
    """Activations have one scale."""
    for quantizer, _ in view.pairs():
        scale = view.value(quantizer.input[1])
        if scale is not None and scale.size > 1:
            yield broken(
                quantizer, "per-channel-activation", "refused",
                f"it rounds an activation with {scale.size} scales; ONNX Runtime 1.31 fuses a convolution behind it "
                "with its rounded output, and then fails to run it (input zero point must be a scalar)",
                "Use one scale: the largest.",
            )  # fmt: skip


def _float_convolutions(view: View, _target: Target) -> Iterator[Violation]:
    """A convolution with quantised inputs has a quantised output, else it is dequantised in every run."""
    for name in float_convolution_outputs(view.model):
        node = view.producer(name)
        if node is not None:
            yield broken(
                node, "float-convolution-output", "slow",
                "its output is not rounded, so that ONNX Runtime dequantises its inputs and convolves in float",
                "Put a Q/DQ pair on its output.",
            )  # fmt: skip


RULES: dict[str, tuple[Callable[[View, Target], Iterator[Violation]], ...]] = {
    "ort-u8s8": (_activation_type, _per_channel, _float_convolutions),
    "ort-s8s8": (_activation_type, _per_channel, _float_convolutions),
    "openvino": (),
}
"""Rules by contract."""
