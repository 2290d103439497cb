"""Static INT8 quantisation of a float ONNX file as the target wants it, and the search for what to leave in float."""

import fnmatch
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import nncf
import onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix, QuantizationParameters
from pydantic import BaseModel, ConfigDict, Field

from tlc.compress.bias import correct_biases, correct_biases_in_order
from tlc.compress.layer_noise import LayerNoise, layer_noise, tensor_ranges
from tlc.compress.smooth import smooth
from tlc.export.fp16 import RANGE_SAMPLES, float32_on_data, name_nodes
from tlc.export.half import constants_as_initializers
from tlc.export.placement import place, quantized_tensors
from tlc.export.qdq import (
    carry_through,
    dequantize_rows,
    float_convolution_outputs,
    quantize_sigmoids,
    quantize_tensors,
    set_activation_type,
    store_int8_weights,
)
from tlc.export.quiet import quiet
from tlc.export.typed import typed_from_qdq
from tlc.export.view import View
from tlc.runtime.artifact import write_bytes
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.target import Target
from tlc.runtime.tensor import Feeds, Samples

FEWEST_SAMPLES = 16
"""Below it, the range of an activation depends on which samples were drawn."""
QAT_EPOCHS = 3
"""Of training for INT8, where the settings leave it open."""
_RANKING_SAMPLES = 32
_IN_ORDER_SAMPLES = 64
"""Of each pass when biases are corrected in order, which takes a pass per layer."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_NNCF_REFUSALS = (
    nncf.InternalError,
    nncf.ValidationError,
    nncf.UnsupportedModelError,
    nncf.UnsupportedBackendError,
)

Progress = Callable[[int, int], None]


class QuantizeSettings(BaseModel):
    """How to quantise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    samples: int = Field(default=300, ge=FEWEST_SAMPLES)
    """Calibration samples at most; all there are if fewer."""
    preset: Literal["performance", "mixed"] = "performance"
    """`mixed` gives activations of both signs a grid of their own zero point instead of a symmetric one. TensorRT has
    none."""
    bias_correction: Literal["fast", "accurate", "off"] = "fast"
    """Makes up for the shift that rounding puts on each layer's mean output; `accurate` is slower."""
    ignored: tuple[str, ...] = ()
    """Layers that stay in float: patterns (`*`, `?`) for names of nodes, or of modules as far as weights keep them."""
    qat_epochs: int | None = Field(default=None, ge=0)
    """Epochs of training with INT8's rounding in the network; absent, 3 where the files made without training miss the
    budget: for images the one with everything in INT8, if there are 500 training images or more, for texts all. A
    search leaves it out where no time is left."""
    max_exclusions: int = Field(default=8, ge=0)
    """Images: layers that may be left in float, beyond `ignored`, to meet the accuracy budget."""


class Attempt(BaseModel):
    """One candidate: what stayed in float, and what it cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    excluded: tuple[str, ...]
    drop_points: float
    """Top-1 on the holdout that it loses against the original, percentage points."""


class QuantizeRecord(BaseModel):
    """What was tried to meet the budget. The file holds the last attempt that met it, else the one that lost least."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: tuple[Attempt, ...]
    chosen: int
    """Index into `attempts`; 0 is everything in INT8."""
    met: bool
    budget_points: float
    ranking: tuple[LayerNoise, ...]
    """Worst first; empty when full INT8 met the budget."""


def check_calibration(available: int, settings: QuantizeSettings) -> int:
    """Return how many samples to calibrate with: `settings.samples`, or all if fewer.

    Raises TlcError when there are fewer than 16.
    """
    if available < FEWEST_SAMPLES:
        raise TlcError(
            f"too few calibration samples: {available}, the limit is {FEWEST_SAMPLES}",
            hint="Add training samples, or leave quantisation out.",
        )
    return min(available, settings.samples)


def quantize_onnx(
    float_onnx: Path,
    out: Path,
    samples: Samples,
    *,
    count: int,
    target: Target,
    settings: QuantizeSettings,
    ignored: Sequence[str] = (),
    around: Path | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Write the INT8 file of a float one: weights INT8 per channel, activations per tensor in `target`'s type.

    The same inputs give the same bytes. Memory does not grow with `count`.

    For ONNX Runtime and OpenVINO the quantisers are NNCF's; for ONNX Runtime `tlc.export.qdq` moves them. For TensorRT
    `tlc.export.placement` places them, with ranges from the largest values of all samples. The activations of
    transformers are smoothed first.

    Args:
        float_onnx: made by `onnx_from_torch`.
        out: file to write.
        samples: of the calibration; iterated from the start several times, so no generator.
        count: how many of them to use.
        target: decides where quantisers stand, the type of activations and whether weights use 7 bits.
        settings: see `QuantizeSettings`.
        ignored: names of nodes that stay in float, beyond the patterns in `settings`.
        around: also write the graph with float32 around the INT8 layers here; the ranking of layers reads that.
        on_progress: called with the number of the sample in the current pass over them, and `count`.

    Raises:
        UsageError: a pattern of `settings.ignored` matches no layer; the target does not do `settings.preset`.
        TlcError: the target has no INT8 arithmetic, or no layer that gains from it; NNCF cannot quantise the graph.

    """
    if iter(samples) is samples:
        raise TypeError("samples must be iterable more than once, not an iterator")
    check_target(target, settings)
    model = onnx.load(float_onnx)
    name_nodes(model)
    excluded = [*matching_layers(model, settings.ignored), *ignored]
    stream = _Stream(samples, count, on_progress)
    if target.contract == "tensorrt":
        smooth(model, stream)
        if not (names := quantized_tensors(model, ignored=excluded)):
            raise TlcError(
                f"no layer of {float_onnx.name} gains from INT8 on {target.name}: all are too small, or left out",
                hint="Use its float16 file.",
            )
        ranges = tensor_ranges(model, names, stream, over_samples="extreme")
        quantized = place(model, target, ranges, ignored=excluded)
        if settings.bias_correction == "fast":
            correct_biases(model, quantized, stream)
        elif settings.bias_correction == "accurate":
            correct_biases_in_order(model, quantized, replace(stream, count=min(count, _IN_ORDER_SAMPLES)))
    else:
        quantized = _by_nncf(model, stream, target, settings, excluded, name=float_onnx.name)
        if target.contract != "openvino":
            _fit_onnx_runtime(quantized, float_onnx, stream, target)
    quantized.ClearField("metadata_props")
    if around is not None:
        write_bytes(around, quantized.SerializeToString(deterministic=True))
    _write(_stored(quantized, model, stream, target), out)


def quantize_for_timing(
    float_onnx: Path, out: Path, samples: Samples, *, target: Target, settings: QuantizeSettings
) -> None:
    """Write a file of the operators that `quantize_onnx` gives, with ranges from 16 samples and no slow correction."""
    fast = settings.model_copy(update={"bias_correction": "off" if settings.bias_correction == "off" else "fast"})
    quantize_onnx(float_onnx, out, samples, count=FEWEST_SAMPLES, target=target, settings=fast)


def _write(model: onnx.ModelProto, out: Path) -> None:
    onnx.checker.check_model(model, full_check=True)
    write_bytes(out, model.SerializeToString(deterministic=True))


def write_trained(
    trained: onnx.ModelProto, float_onnx: Path, out: Path, samples: Samples, *, count: int, target: Target
) -> None:
    """Write the INT8 file of the `around` of `quantize_onnx`, the graph with float32 around its INT8 layers, trained.

    Args:
        trained: that graph with other weights and scales.
        float_onnx: what it was made of: what leaves float16's range there stays in float32 here.
        out: file to write.
        samples: of the calibration.
        count: how many of them to use.
        target: as for `quantize_onnx`.

    """
    model = onnx.load(float_onnx)
    name_nodes(model)
    _write(_stored(trained, model, _Stream(samples, count, None), target), out)


def worth_quantizing(float_onnx: Path, target: Target) -> bool:
    """Whether the target has INT8 arithmetic and the file a layer that gains from it.

    TensorRT runs layers of few channels, and products with vectors, as fast in float16 (`tlc.export.placement`).
    """
    if "int8" not in target.precisions:
        return False
    return target.contract != "tensorrt" or bool(quantized_tensors(onnx.load(float_onnx)))


def _stored(quantized: onnx.ModelProto, model: onnx.ModelProto, stream: "_Stream", target: Target) -> onnx.ModelProto:
    """Return `quantized` with weights as INT8 where TensorRT reads them, and float16 around them where it is typed."""
    if target.tensorrt is None or target.tensorrt.release < (10, 0):
        return quantized
    if target.tensorrt.strongly_typed:
        outside, _ = float32_on_data(constants_as_initializers(model), islice(stream, RANGE_SAMPLES))
        return typed_from_qdq(quantized, keep_float32=[node.name for node in outside])
    store_int8_weights(quantized)
    return quantized


def check_target(target: Target, settings: QuantizeSettings) -> None:
    """Check that the target can do what the settings ask for.

    Raises:
        UsageError: `preset = "mixed"` for TensorRT.
        TlcError: the target has no INT8 arithmetic.

    """
    if "int8" not in target.precisions:
        raise TlcError(
            f"target {target.name} has no INT8 arithmetic: {', '.join(target.precisions)}",
            hint="Leave quantisation out; its float16 file is the small one.",
        )
    if target.contract == "tensorrt" and settings.preset == "mixed":
        raise UsageError(
            f"quantize.preset = 'mixed' needs zero points other than 0, which {target.name} (TensorRT) does not take",
            hint="Leave quantize.preset at 'performance' for this target.",
        )


def _fit_onnx_runtime(quantized: onnx.ModelProto, float_onnx: Path, stream: "_Stream", target: Target) -> None:
    """Move NNCF's quantisers to where ONNX Runtime fuses them, and give activations the target's type."""
    dequantize_rows(quantized)
    carry_through(quantized)  # a convolution behind a moved tensor is one with quantised inputs from now on
    if names := float_convolution_outputs(quantized):
        quantize_tensors(quantized, tensor_ranges(onnx.load(float_onnx), names, stream, over_samples="mean"))
        quantize_sigmoids(quantized)
    set_activation_type(quantized, "uint8" if target.contract == "ort-u8s8" else "int8")
    carry_through(quantized)


def quantize_within_budget(
    float_onnx: Path,
    out: Path,
    samples: Samples,
    *,
    count: int,
    target: Target,
    settings: QuantizeSettings,
    drop_points: Callable[[Path], float],
    budget_points: float,
    full: Path | None = None,
    around: Path | None = None,
    on_progress: Progress | None = None,
) -> QuantizeRecord:
    """Quantise everything; while that costs more than the budget, leave more of the worst layers in float.

    Layers are ranked once by what each alone does to the probabilities (`tlc.compress.layer_noise`). Then the worst
    1, 2, 4, ... up to `settings.max_exclusions` stay in float, each a new quantisation and one call of `drop_points`.
    At most 2 + log2(max_exclusions) quantisations. `out` gets the first candidate that meets the budget, else the one
    that lost least.

    Args:
        float_onnx: as for `quantize_onnx`, like the arguments not named here.
        out: file to write.
        samples: of the calibration, iterable again and again.
        count: how many of them to use.
        target: as for `quantize_onnx`.
        settings: as for `quantize_onnx`.
        drop_points: top-1 that a candidate file loses on the holdout against the original, percentage points.
        budget_points: the largest drop accepted.
        full: also keep the file with everything in INT8 here. It is the fastest, and few samples cannot tell its drop
            from one within the budget.
        around: also keep that with float32 around the INT8 layers here.
        on_progress: as for `quantize_onnx`.

    """
    attempts: list[Attempt] = []
    ranking: tuple[LayerNoise, ...] = ()
    best = 0
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        files: list[Path] = []
        around_full = Path(scratch) / "around.onnx"
        for exclusions in _steps(settings.max_exclusions):
            if exclusions and not ranking:
                ranking = layer_noise(float_onnx, around_full, islice(samples, min(count, _RANKING_SAMPLES)))
            worst = tuple(layer.name for layer in ranking[:exclusions])
            if exclusions and (len(worst) == len(ranking) or len(worst) == len(attempts[-1].excluded)):
                break  # with every layer in float it is the float file
            candidate = Path(scratch) / f"{exclusions}.onnx"
            quantize_onnx(
                float_onnx,
                candidate,
                samples,
                count=count,
                target=target,
                settings=settings,
                ignored=worst,
                around=None if exclusions else around_full,
                on_progress=on_progress,
            )
            files.append(candidate)
            attempts.append(Attempt(excluded=worst, drop_points=drop_points(candidate)))
            best = min(range(len(attempts)), key=lambda index: attempts[index].drop_points)
            if attempts[-1].drop_points <= budget_points:
                best = len(attempts) - 1
                break
        if full is not None:
            shutil.copyfile(files[0], full)
        if around is not None:
            around_full.replace(around)
        files[best].replace(out)
    return QuantizeRecord(
        attempts=tuple(attempts),
        chosen=best,
        met=attempts[best].drop_points <= budget_points,
        budget_points=budget_points,
        ranking=ranking,
    )


def matching_layers(model: onnx.ModelProto, patterns: Sequence[str]) -> list[str]:
    """Return the names of the weighted nodes that a pattern matches, by node name or by the module of the weight.

    Raises UsageError for a pattern that matches none.
    """
    layers = {node.name: _module_name(node) for node in model.graph.node if node.op_type in _LAYERS}
    found: list[str] = []
    for pattern in patterns:
        hits = [name for name, owner in layers.items() if any(fnmatch.fnmatchcase(n, pattern) for n in (name, owner))]
        if not hits:
            known = ", ".join(list(layers.values())[:5])
            raise UsageError(
                f"quantize.ignored: {pattern!r} matches none of the {len(layers)} layers ({known}, ...)",
                hint="Use a layer's name or a pattern such as 'layer1.*'.",
            )
        found.extend(name for name in hits if name not in found)
    return found


def _module_name(node: onnx.NodeProto) -> str:
    weight: str = node.input[1]
    return weight.removesuffix(".weight")


def _steps(limit: int) -> list[int]:
    """0, 1, 2, 4, ... and `limit` itself."""
    steps = [0]
    while steps[-1] < limit:
        steps.append(min(limit, max(1, 2 * steps[-1])))
    return steps


def _by_nncf(
    model: onnx.ModelProto,
    stream: "_Stream",
    target: Target,
    settings: QuantizeSettings,
    excluded: Sequence[str],
    *,
    name: str,
) -> onnx.ModelProto:
    """Return what NNCF makes of the model, placed for OpenVINO; a transformer's activations are smoothed (SmoothQuant).

    The products inside attention stay in float. They have no weights to shrink, and rounding both factors takes as long
    as integers save: BERT of 6 layers and 384 wide is 5 % faster so in OpenVINO 2026.4, a vision transformer of that
    width as fast, and 5 % faster in ONNX Runtime 1.31 (one thread, Xeon with AMX).
    """
    products = _products_of_activations(model)
    attention = bool(products) and any(node.op_type == "Softmax" for node in model.graph.node)
    parameters = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if target.weights_reduced_range else OverflowFix.DISABLE,
        disable_bias_correction=settings.bias_correction == "off",
    )
    if target.contract != "openvino":
        # NNCF's default for depthwise convolutions, a scale per channel, is what ONNX Runtime cannot fuse.
        parameters.activations_quantization_params = QuantizationParameters(per_channel=False)
    try:
        with quiet():
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset(stream),
                preset=nncf.QuantizationPreset(settings.preset),
                subset_size=stream.count,
                fast_bias_correction=settings.bias_correction != "accurate",
                model_type=nncf.ModelType.TRANSFORMER if attention else None,
                ignored_scope=nncf.IgnoredScope(names=list(dict.fromkeys([*excluded, *products]))),
                advanced_parameters=parameters,
            )
    except _NNCF_REFUSALS as error:
        raise TlcError(
            f"NNCF cannot quantise {name}: {error}",
            hint="Leave quantisation out, or name the layer in the recipe's quantize.ignored.",
        ) from error
    return quantized


def _products_of_activations(model: onnx.ModelProto) -> list[str]:
    """Return the names of the matrix products without weights, such as those inside attention."""
    view = View(model)
    products = (node for node in view.nodes if node.op_type in ("Gemm", "MatMul"))
    return [node.name for node in products if not any(view.is_constant(name) for name in node.input[:2])]


@dataclass(frozen=True)
class _Stream:
    """The first `count` samples, counted while they pass, as often as NNCF asks."""

    samples: Samples
    count: int
    on_progress: Progress | None

    def __iter__(self) -> Iterator[Feeds]:
        for done, sample in enumerate(islice(self.samples, self.count), start=1):
            if self.on_progress is not None:  # before the sample: NNCF never asks for one more, so nothing runs after
                self.on_progress(done, self.count)
            yield sample
