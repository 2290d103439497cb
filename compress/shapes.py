"""The shapes of a network's students, of images or of texts."""

from collections.abc import Sequence

from tlc.compress.image_shapes import ImageShapes
from tlc.compress.plan import Network
from tlc.compress.shape import Shapes
from tlc.compress.text_model import TextModel
from tlc.compress.text_shapes import TextShapes
from tlc.compress.work import AnyWork


def shapes_of(work: AnyWork, model: Network, widths: Sequence[float] = (1.0,)) -> Shapes:
    """Return the shapes of a model's students; of images, `widths` are the shares of channels that a table is for."""
    return TextShapes(work, model) if isinstance(model, TextModel) else ImageShapes(work, model, widths)
