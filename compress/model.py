"""The value that flows through the PyTorch stages."""

from dataclasses import dataclass, replace

from torch import nn

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import Architecture


@dataclass(frozen=True, slots=True)
class Model:
    """A network with what is needed to build it again, to feed it, and to say how it came to be."""

    module: nn.Module
    """Float32, on the CPU, in eval mode; (N, C, H, W) float32 -> logits (N, num_classes) float32."""
    arch: Architecture
    preprocess: Preprocess
    num_classes: int
    classes: tuple[str, ...] = ()
    """Class names in the order of the logits; empty when nobody said."""
    history: tuple[str, ...] = ()
    """One line per stage that made it, oldest first."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.preprocess.input_shape

    def after(self, step: str, module: nn.Module) -> "Model":
        """Return the successor that `step` made."""
        return replace(self, module=module, history=(*self.history, step))
