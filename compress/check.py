"""Repair an ONNX file for a target, and measure what the repair changed."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tlc.calibration.cache import Pixels, prepare
from tlc.calibration.calibration_set import balanced_indices
from tlc.calibration.data import Splits
from tlc.calibration.metrics import accuracy_change, predict, score
from tlc.calibration.token_set import TextInput
from tlc.compress.inputs import resolve_preprocess
from tlc.compress.plan import read_splits
from tlc.compress.recipe import Recipe
from tlc.export.contract import Violation, load_onnx
from tlc.export.edit import Change
from tlc.export.fidelity import measured_ranges, output_sqnr_db
from tlc.export.metadata import read_metadata
from tlc.export.repair import Repaired, repair
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Accuracy, AccuracyChange
from tlc.runtime.session import OrtSession
from tlc.runtime.target import Target
from tlc.runtime.tensor import Feeds

SAMPLES = 32
"""Inputs that ranges are taken from, and as many others that outputs are compared on."""

_Feeds = list[Feeds]


class OutputNoise(BaseModel):
    """How far one output is from the float file's, or from the source's where there is no float file."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)

    output: str
    source_db: float | None
    """Signal-to-noise ratio of the source against the float file, dB; None without one."""
    repaired_db: float
    """Of the repaired file against the float file, or against the source, dB; infinite where they are equal."""


class FileScore(BaseModel):
    """Scores on the evaluation images, and the paired change against the source."""

    model_config = ConfigDict(frozen=True)

    file: Path
    accuracy: Accuracy
    change: AccuracyChange | None


class Fix(BaseModel):
    """What a repair did, what is left, and what it cost."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: Path
    changes: tuple[Change, ...]
    left: tuple[Violation, ...]
    compared_on: str
    """What the outputs were compared on."""
    noise: tuple[OutputNoise, ...]
    scores: tuple[FileScore, ...]
    """Of the float file, if there is one, the source and the repaired file; empty without data."""


def fix_file(
    path: Path, out: Path, target: Target, *, reference: Path | None = None, recipe: Recipe | None = None
) -> Fix:
    """Repair an ONNX file for a target, write it to `out`, and compare its outputs.

    Args:
        path: the source; it is not changed.
        out: where to write.
        target: whose rules.
        reference: the float file that the source was quantised from: weights are rounded again from its values, and
            both files are compared with it. Otherwise the repaired file is compared with the source.
        recipe: names the data: ranges that the file does not tell are measured on training images, outputs are compared
            and scored on evaluation images. Without it outputs are compared on noise.

    Raises:
        TlcError: a file is not ONNX, or the data does not fit it.

    """
    source = load_onnx(path)
    exact = None if reference is None else load_onnx(reference)
    images = None if recipe is None else _images(recipe, [path, *([] if reference is None else [reference])], source)
    repaired = repair(source, target, reference=exact)
    if repaired.unknown_ranges and images is not None:
        ranges = measured_ranges(repaired.model, repaired.unknown_ranges, _feeds(source, images[0]))
        repaired = repair(source, target, ranges, exact)
    feeds = _noise(source) if images is None else _feeds(source, images[1])
    write_bytes(out, repaired.model.SerializeToString(deterministic=True))
    if images is None:
        compared_on = f"{len(feeds)} inputs of normal noise" if feeds else "nothing: the input's size is open"
    else:
        compared_on = f"{len(feeds)} evaluation images"
    scores: tuple[FileScore, ...] = ()
    if images is not None and len(source.graph.output) == 1:
        scores = _scores([*([] if reference is None else [reference]), path, out], path, images[1])
    return Fix(
        path=out,
        changes=repaired.changes,
        left=repaired.left,
        compared_on=compared_on,
        noise=_compared(exact, source, repaired, feeds) if feeds else (),
        scores=scores,
    )


def _images(recipe: Recipe, files: Sequence[Path], model: onnx.ModelProto) -> tuple[Pixels, Pixels]:
    """Return training and evaluation images as the file that recorded its preprocessing, or the options, want them."""
    splits = read_splits(recipe)
    recorded = [read_metadata(file) for file in files]
    known = next((fed for fed, _ in recorded if fed is not None), None)
    classes = next((names for _, names in recorded if names), ())
    if isinstance(known, TextInput):
        raise TlcError(
            f"{files[0]} takes texts, and outputs are compared on images only",
            hint="Leave --data out here, and score both files: tlc eval A.onnx B.onnx --data FILE.",
        )
    fed = resolve_preprocess(known, None, recipe.model.preprocess, splits.image_size)
    splits = _labelled(splits, model, classes)
    calibration = splits.fit.subset(
        balanced_indices(splits.fit.labels, min(SAMPLES, len(splits.fit)), seed=recipe.seed)
    )
    return prepare(calibration, fed), prepare(splits.evaluation, fed)


def _labelled(splits: Splits, model: onnx.ModelProto, classes: tuple[str, ...]) -> Splits:
    shape = model.graph.output[0].type.tensor_type.shape.dim
    if len(model.graph.output) == 1 and len(shape) == 2 and shape[1].HasField("dim_value"):
        return splits.for_model(int(shape[1].dim_value), classes)
    return splits


def _feeds(model: onnx.ModelProto, pixels: Pixels) -> _Feeds:
    name = _open_inputs(model)[0].name
    chosen = np.linspace(0, len(pixels) - 1, min(SAMPLES, len(pixels))).astype(np.int64)
    return [{name: pixels.batch([int(index)])} for index in chosen]


def _noise(model: onnx.ModelProto) -> _Feeds:
    """Standard normal numbers, and 0 or 1 for integers; nothing where a size other than the batch is open."""
    rng = np.random.default_rng(0)
    shapes = {}
    for value in _open_inputs(model):
        dims = value.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in dims[1:]):
            return []
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shapes[value.name] = ([dim.dim_value or 1 for dim in dims], dtype)
    return [
        {
            name: (rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)).astype(dtype)
            for name, (shape, dtype) in shapes.items()
        }
        for _ in range(SAMPLES)
    ]


def _open_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _compared(
    exact: onnx.ModelProto | None, source: onnx.ModelProto, repaired: Repaired, feeds: _Feeds
) -> tuple[OutputNoise, ...]:
    if exact is None:
        (after,) = output_sqnr_db(source, [repaired.model], feeds)
        return tuple(OutputNoise(output=name, source_db=None, repaired_db=value) for name, value in after.items())
    before, after = output_sqnr_db(exact, [source, repaired.model], feeds)
    return tuple(OutputNoise(output=name, source_db=before[name], repaired_db=after[name]) for name in after)


def _scores(files: Sequence[Path], source: Path, pixels: Pixels) -> tuple[FileScore, ...]:
    labels, classes = np.asarray(pixels.labels), pixels.images.classes
    logits = {file: _logits(file, pixels) for file in files}
    if any(values.ndim != 2 or values.shape[1] != len(classes) for values in logits.values()):
        return ()
    return tuple(
        FileScore(
            file=file,
            accuracy=score(values, labels, classes),
            change=None if file == source else accuracy_change(logits[source], values, labels, classes),
        )
        for file, values in logits.items()
    )


def _logits(path: Path, pixels: Pixels) -> NDArray[np.float32]:
    """Return the first output for all samples, in batches of the size that the file takes."""
    with OrtSession(path, threads=os.cpu_count() or 1) as session:
        batch = session.inputs[0].shape[0] if session.inputs[0].shape else 1
        name, output = session.inputs[0].name, session.outputs[0].name
        size = batch if isinstance(batch, int) else 64
        return predict(lambda images: session.run({name: images})[output], pixels, batch_size=size)
