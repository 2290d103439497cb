"""What can be taken out of an image classifier: channels that go together, heads, blocks with a path around them."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from tlc.calibration.cache import Pixels, prepare
from tlc.compress.coupling import Coupling, Cut, Graph, couplings
from tlc.compress.heads import prunable_attention, remove_heads
from tlc.compress.image_train import in_batches
from tlc.compress.image_work import ImageWork
from tlc.compress.importance import Ranked, ranking
from tlc.compress.model import Model
from tlc.compress.module_session import fast_arithmetic
from tlc.compress.prune import reestimate_batchnorm
from tlc.compress.student import block_groups, remove_blocks
from tlc.compress.surgery import Part, Surgery, units_to_remove
from tlc.compress.work import some
from tlc.runtime.tensor import BATCH_NAME, INPUT_NAME, TensorSpec

_BATCHNORM_SAMPLES = 512


class ImageSurgery(Surgery):
    """Channels go by the L2 norm of all their coupled weights; batch norms are re-estimated on training images."""

    def __init__(self, work: ImageWork, model: Model) -> None:
        self._fit = work.data.fit
        self._groups = block_groups(model)
        self.inputs = (TensorSpec(INPUT_NAME, (BATCH_NAME, *model.preprocess.input_shape), "float32"),)
        super().__init__(work, model, [name for group in self._groups for name in group.members])
        self._removable = {name for group in self._groups for name in group.removable}
        self._example = torch.zeros(2, *model.preprocess.input_shape)
        found = couplings(model.module, self._example), prunable_attention(model.module, self._example)
        ranked = ranking(model.module, self._example, [*found[0], *found[1]], "magnitude")
        self._ranked = {entry.name: entry for entry in ranked}
        picked = some(len(self._fit), _BATCHNORM_SAMPLES)
        clean = torch.from_numpy(self._fit.batch(picked)).contiguous(memory_format=torch.channels_last)
        self._clean = in_batches(clean)

    def one_sample(self) -> tuple[Tensor, ...]:
        """Return the first training image."""
        return (torch.from_numpy(self._fit.batch([0])),)

    def judged(self, limit: int) -> Pixels:
        """Return images of the judging part, decoded again."""
        part = self.work.data.judge
        return prepare(part.images.subset(some(len(part), limit)), part.preprocess)

    def coupled(self, part: Part) -> tuple[str, ...]:
        """Return what it makes: couplings by their roots, heads by their attention; of a block what stays inside it."""
        return tuple(
            name
            for name, entry in self._ranked.items()
            if (part.name in _makers(entry) if part.kind == "layer" else _within(part, entry))
        )

    def producers(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Return every layer that loses output channels, batch norms left out."""
        going = {name for group in groups for name in _makers(self._ranked[group])}
        return tuple(part.name for part in self.parts if part.kind == "layer" and part.name in going)

    def narrowed(self, groups: Sequence[str], share: float) -> tuple[Model, float]:
        """Return the network without the channels and heads of the lowest norms."""
        module = copy.deepcopy(self.network.module)
        cuts, gone, whole = [], 0, 0
        for group in groups:
            entry = self._ranked[group]
            units = entry.size // entry.unit
            count = units_to_remove(units, share)
            going = torch.argsort(entry.scores, stable=True)[:count].sort().values.tolist()
            if isinstance(entry.source, Coupling):
                every = (unit + repeat * units for repeat in range(entry.unit) for unit in going)
                cuts.append(Cut(group, tuple(every)))
            else:
                remove_heads(module, entry.source, going)
            gone, whole = gone + count, whole + units
        Graph(module, self._example).remove(cuts)
        for parameter in module.parameters():
            parameter.grad = None
        return self._settled(self.network.after(f"narrowed: {', '.join(groups)}", module)), gone / whole

    def removable(self, part: Part) -> bool:
        """Return whether the input also passes around the block."""
        return part.name in self._removable

    def without(self, part: Part) -> Model:
        """Return the network without the block."""
        return self._settled(remove_blocks(self.network, [part.name]))

    def untreated(self) -> Model:
        """Return the network with batch norms re-estimated."""
        return self._settled(self.network.after("nothing removed", copy.deepcopy(self.network.module)))

    def _settled(self, model: Model) -> Model:
        """Give the batch norms, in place, the statistics of what flows now: the old ones are of another network."""
        module = model.module.to(memory_format=torch.channels_last)
        with fast_arithmetic():
            reestimate_batchnorm(module, self._clean)
        module.to(memory_format=torch.contiguous_format)
        return model


def _makers(entry: Ranked) -> tuple[str, ...]:
    """Return the layers whose outputs the channels or heads are."""
    source = entry.source
    if isinstance(source, Coupling):
        return source.producers
    return tuple(f"{source.name}.{name}" for name in source.inputs)


def _within(block: Part, entry: Ranked) -> bool:
    return all(name.startswith(f"{block.name}.") for name in _makers(entry))
