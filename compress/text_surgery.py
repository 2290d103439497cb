"""What can be taken out of a text encoder: heads and inner channels of a layer, and whole layers."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tlc.calibration.tokens import Tokens
from tlc.compress.student import drop_blocks
from tlc.compress.surgery import Part, Surgery, units_to_remove
from tlc.compress.text_layers import encoder_of, transformer_layers
from tlc.compress.text_model import TextModel
from tlc.compress.text_units import UnitKind, Units, keep_units, second_moments, units_of
from tlc.compress.text_work import TextWork
from tlc.compress.work import some
from tlc.runtime.errors import TlcError
from tlc.runtime.tensor import BATCH_NAME, LENGTH_NAME, TensorSpec

_MOMENT_SAMPLES = 256
_BATCH = 32
_KINDS: tuple[UnitKind, ...] = ("heads", "intermediate")


class TextSurgery(Surgery):
    """Units go as in pruning: those that the others stand in for best, see `tlc.compress.text_units`."""

    def __init__(self, work: TextWork, model: TextModel) -> None:
        self._fit = work.data.fit
        self.inputs = tuple(TensorSpec(name, (BATCH_NAME, LENGTH_NAME), "int64") for name in model.text.inputs)
        self._layers = tuple(dict.fromkeys(transformer_layers(model.module)))
        self._shared = encoder_of(model.module).kind == "albert"  # one layer that runs many times
        super().__init__(work, model, self._layers)
        self._units: dict[str, Units] = {}
        for kind in _KINDS:
            try:
                found = units_of(model.module, kind)
            except TlcError:  # heads that are mixed with each other
                continue
            self._units |= {f"{units.layer}:{kind}": units for units in found if units.count > 1}
        few = self._fit.subset(some(len(self._fit), _MOMENT_SAMPLES))
        batches = [
            {name: torch.from_numpy(values) for name, values in few.feeds(indices).items()}
            for indices in few.batches(_BATCH)
        ]
        moments = second_moments(model.module, list(self._units.values()), batches)
        self._moments = dict(zip(self._units, moments, strict=True))

    def one_sample(self) -> tuple[Tensor, ...]:
        """Return a training text of the median length."""
        middle = int(np.argsort(self._fit.lengths, kind="stable")[len(self._fit) // 2])
        return tuple(torch.from_numpy(values) for values in self._fit.feeds([middle]).values())

    def judged(self, limit: int) -> Tokens:
        """Return texts of the judging part."""
        part: Tokens = self.work.data.judge
        return part.subset(some(len(part), limit))

    def coupled(self, part: Part) -> tuple[str, ...]:
        """Return the heads and inner channels that the layer makes, or those of a transformer layer."""
        if part.kind == "block":
            return tuple(key for key, units in self._units.items() if units.layer == part.name)
        return tuple(key for key in self._units if part.name in self.producers([key]))

    def producers(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Return the linear layers whose outputs are the units."""
        going = {name.rpartition(".")[0] for key in groups for name, _copies in self._units[key].makers}
        return tuple(part.name for part in self.parts if part.kind == "layer" and part.name in going)

    def narrowed(self, groups: Sequence[str], share: float) -> tuple[TextModel, float]:
        """Return the model with the readers' weights changed to make up for what is gone."""
        module = copy.deepcopy(self.network.module)
        ratios = []
        for key in groups:
            units = self._units[key]
            count = units_to_remove(units.count, share)
            keep_units(module, units, self._moments[key], units.count - count)
            ratios.append(count / units.count)
        model: TextModel = self.network.after(f"narrowed: {', '.join(groups)}", module)
        return model, float(np.mean(ratios))

    def costs(self, network: TextModel) -> list[tuple[str, tuple[object, ...]]]:
        """Return costs that tell the last layer from others: of that one, one token may be all that is computed."""
        last = f"{transformer_layers(network.module)[-1]}."
        return [(name, (*cost, name.startswith(last))) for name, cost in super().costs(network)]

    def removable(self, part: Part) -> bool:
        """Return whether it is one layer of several."""
        return part.name in self._layers and len(self._layers) > 1 and not self._shared

    def without(self, part: Part) -> TextModel:
        """Return the model without the layer."""
        module = copy.deepcopy(self.network.module)
        drop_blocks(module, [part.name])
        model: TextModel = self.network.after(f"left out: {part.name}", module)
        return model
