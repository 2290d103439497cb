"""Golden samples: inputs that a device is given, with the outputs that the file has by its definition."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlc.calibration.data import read_data
from tlc.calibration.preprocess import Preprocess
from tlc.calibration.text_rows import Columns
from tlc.calibration.texts import read_texts
from tlc.calibration.token_set import TextInput
from tlc.calibration.tokens import encode, load_tokenizer
from tlc.export.bundle_source import Source
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.session import sample_feeds
from tlc.runtime.tensor import TensorSpec

_SIDES = ((1.3, 1.7), (1.9, 1.2), (0.8, 0.6), (1.0, 1.0), (2.6, 2.5), (1.0, 3.1))
"""(height, width) of noise pictures against the input's: both orientations, smaller, equal, and with a large crop."""
_GRID = 6
"""Patches along each side of a noise picture."""
_LENGTHS = (5, 12, 32, 77)
"""Tokens of noise texts."""


@dataclass(frozen=True, slots=True)
class GoldenInput:
    """What one sample is fed."""

    picture: bytes | None
    """PNG that `feeds` was made from."""
    feeds: dict[str, NDArray[Any]]


def golden_inputs(
    source: Source,
    specs: Sequence[TensorSpec],
    count: int,
    *,
    data: Path | None = None,
    columns: Columns | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    skip_bad: bool = False,
) -> list[GoldenInput]:
    """Return `count` inputs: the first of the evaluation samples of `data`, or noise, the same every time.

    `shapes` are those of inputs with open dimensions where the model takes neither images nor texts. Raises TlcError
    where the data is broken or has too few samples, and for a model that does not take what `source` says.
    """
    fed = source.fed
    if fed is None:
        if data is not None:
            raise UsageError(
                f"--data, and it is not known how images or texts become inputs of {source.path}",
                hint="Say so: --input, --mean, --std; or leave --data out.",
            )
        return [GoldenInput(None, sample_feeds(specs, shapes=shapes, seed=seed)) for seed in range(count)]
    if isinstance(fed, TextInput):
        feeds = (
            _noise_texts(source, fed, count) if data is None else _texts(source, fed, data, columns, count, skip_bad)
        )
        return [GoldenInput(None, _as_fed(source.path, specs, list(feed.values()))) for feed in feeds]
    if data is None:
        pictures: list[Any] = [_noise_picture(fed, seed) for seed in range(count)]
    else:
        images = read_data(data, classes=source.classes, skip_bad=skip_bad).evaluation
        _require_enough(data, len(images), count)
        pictures = [images.image(index) for index in range(count)]
    return [_from_picture(source.path, specs, fed, picture) for picture in pictures]


def _from_picture(path: Path, specs: Sequence[TensorSpec], fed: Preprocess, picture: Any) -> GoldenInput:
    if not isinstance(picture, Image.Image):  # floating values, as they lie in an .npz
        values = fed.normalised(fed.cropped(fed.resized_values(picture))[None])
        return GoldenInput(None, _as_fed(path, specs, [values]))
    # Stored as the model's mode: another decoder of the original format may round differently.
    picture = picture.convert("L" if fed.channel_count == 1 else "RGB")
    file = io.BytesIO()
    picture.save(file, "png", compress_level=0)
    return GoldenInput(file.getvalue(), _as_fed(path, specs, [fed(picture)]))


def _as_fed(path: Path, specs: Sequence[TensorSpec], arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays by input name, in the model's dtypes, repeated to a batch size that the file fixes."""
    if len(specs) != len(arrays):
        raise TlcError(
            f"{path} has {len(specs)} inputs, and what feeds it gives {len(arrays)}",
            hint="Pack it without preprocessing, or another file.",
        )
    feeds = {}
    for spec, array in zip(specs, arrays, strict=True):
        batch = spec.shape[0] if spec.shape else 1
        repeated = np.repeat(array, batch, axis=0) if isinstance(batch, int) and batch > 1 else array
        fits = len(repeated.shape) == len(spec.shape) and all(
            isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, repeated.shape, strict=True)
        )
        if not fits:
            raise TlcError(
                f"{path} takes {spec.name} {list(spec.shape)}, and its preprocessing gives {list(array.shape)}",
                hint="Give the model's own: --input CxHxW.",
            )
        feeds[spec.name] = np.ascontiguousarray(repeated, np.dtype(spec.dtype))
    return feeds


def _noise_picture(fed: Preprocess, seed: int) -> Image.Image:
    """Return patches of random colours with fine noise on them, of another size than the input for most seeds."""
    rng = np.random.default_rng(seed)
    high, wide = _SIDES[seed % len(_SIDES)]
    height, width = (max(1, round(side * ratio)) for side, ratio in zip(fed.size, (high, wide), strict=True))
    patches = rng.integers(24, 232, (_GRID, _GRID, fed.channel_count))
    large = np.kron(patches, np.ones((-(-height // _GRID), -(-width // _GRID), 1), np.int64))[:height, :width]
    pixels = (large + rng.integers(-24, 24, large.shape)).astype(np.uint8)
    return Image.fromarray(pixels if fed.channel_count == 3 else pixels[:, :, 0])


def _noise_texts(source: Source, fed: TextInput, count: int) -> list[dict[str, NDArray[Any]]]:
    """Return random tokens, the whole length attended to."""
    size = load_tokenizer(str(source.tokenizer)).get_vocab_size()
    feeds: list[dict[str, NDArray[Any]]] = []
    for seed in range(count):
        shape = (1, min(_LENGTHS[seed % len(_LENGTHS)], fed.max_length))
        ids = np.random.default_rng(seed).integers(0, size, shape)
        feeds.append({name: _tokens(name, ids) for name in fed.inputs})
    return feeds


def _tokens(name: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids if name == "input_ids" else np.full_like(ids, name == "attention_mask")


def _texts(
    source: Source, fed: TextInput, data: Path, columns: Columns | None, count: int, skip_bad: bool
) -> list[dict[str, NDArray[Any]]]:
    texts = read_texts(data, task=fed.task, columns=columns, skip_bad=skip_bad).evaluation
    _require_enough(data, len(texts), count)
    tokens = encode(texts.subset(range(count)), str(source.tokenizer), fed)
    return [dict(tokens.feeds([index])) for index in range(count)]


def _require_enough(data: Path, there: int, count: int) -> None:
    if there < count:
        raise TlcError(f"{data} has {there} evaluation samples, and {count} are wanted", hint=f"--golden {there}")
