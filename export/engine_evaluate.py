"""Measuring engines in turns, and holding them against ONNX Runtime. Runs in the child."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlc.export.engine_request import Evaluated, EvaluateRequest, Scores
from tlc.runtime.errors import TlcError
from tlc.runtime.inspector import read_layers, summarize
from tlc.runtime.latency import measure_interleaved
from tlc.runtime.plan import LayerSummary, OutputComparison
from tlc.runtime.session import OrtSession
from tlc.runtime.tensor import TensorSpec
from tlc.runtime.tensorrt import TensorRTSession

Feeds = dict[str, NDArray[Any]]
_EQUAL_DB = 400.0
"""Stands for equal outputs, whose ratio is infinite: more than float64 can resolve."""


def evaluate(request: EvaluateRequest) -> Evaluated:
    """Measure every plan, compare its outputs with its ONNX file's, and score it where there is data."""
    images = _images(request)
    scores: dict[str, Scores] = {}
    with ExitStack() as stack:
        sessions = {c.name: stack.enter_context(TensorRTSession(Path(c.plan))) for c in request.contenders}
        feeds = {name: _feeds(session, images, 1, request.seed)[0] for name, session in sessions.items()}
        gpu_ms: dict[str, list[float]] = {name: [] for name in sessions}

        def runner(name: str) -> Callable[[], object]:
            def run() -> None:
                sessions[name].run(feeds[name])
                gpu_ms[name].append(sessions[name].last_gpu_ms or 0.0)

            return run

        measured = measure_interleaved({name: runner(name) for name in sessions}, rounds=request.rounds)
        for contender in request.contenders:
            session = sessions[contender.name]
            latency = measured[contender.name]
            top1 = _top1(session, images)
            comparison = compare_outputs(
                session, Path(contender.onnx), _feeds(session, images, request.samples, request.seed)
            )
            layers, problem = _layers(session, feeds[contender.name])
            scores[contender.name] = Scores(
                latency_ms=latency.p50_ms,
                # The runs that warm up come first and are not samples.
                gpu_ms=float(np.median(gpu_ms[contender.name][-len(latency.samples_ns) :])),
                layers=layers,
                comparison=comparison,
                top1=top1,
                notes=[*session.notes, *problem],
            )
    reference_top1 = None
    if images is not None:
        with OrtSession(Path(request.reference)) as reference:
            reference_top1 = _top1(reference, images)
    return Evaluated(scores=scores, reference_top1=reference_top1, inputs="noise" if images is None else "images")


def compare_outputs(session: TensorRTSession, onnx: Path, feeds: list[Feeds]) -> list[OutputComparison]:
    """Return how each output differs from ONNX Runtime's for the same ONNX file and `feeds`."""
    found: dict[str, list[NDArray[np.float64]]] = {spec.name: [] for spec in session.outputs}
    expected: dict[str, list[NDArray[np.float64]]] = {name: [] for name in found}
    with OrtSession(onnx) as reference:
        dtypes = {spec.name: spec.dtype for spec in reference.inputs}
        for one in feeds:
            # TensorRT 8 takes int32 where the file says int64.
            theirs = reference.run({name: array.astype(dtypes[name], copy=False) for name, array in one.items()})
            ours = session.run(one)
            for name in found:
                found[name].append(ours[name].astype(np.float64).ravel())
                expected[name].append(theirs[name].astype(np.float64).ravel())
    samples = sum(next(iter(one.values())).shape[0] if next(iter(one.values())).ndim else 1 for one in feeds)
    return [
        compared(name, np.concatenate(expected[name]), np.concatenate(found[name]), samples=samples) for name in found
    ]


def compared(name: str, expected: NDArray[np.float64], found: NDArray[np.float64], *, samples: int) -> OutputComparison:
    """Return largest difference, cosine and signal-to-noise ratio of two flat arrays of one length.

    Raises TlcError when the engine's output has values that are not finite where ONNX Runtime's are.
    """
    if not np.isfinite(found).all() and np.isfinite(expected).all():
        bad = int((~np.isfinite(found)).sum())
        raise TlcError(
            f"the engine's output {name} has {bad} of {found.size} values that are infinite or not a number; "
            "ONNX Runtime's are all finite",
            hint="Float16 overflows at 65504: keep the layers before it in float32, or build with --precision fp32.",
        )
    noise, signal = float(np.sum((expected - found) ** 2)), float(np.sum(expected**2))
    norm = float(np.sqrt(signal * np.sum(found**2)))
    ratio = _EQUAL_DB if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))
    return OutputComparison(
        name=name,
        samples=samples,
        max_abs=float(np.max(np.abs(expected - found), initial=0.0)),
        cosine=float(np.dot(expected, found)) / norm if norm > 0 else float(noise == 0),
        sqnr_db=min(_EQUAL_DB, ratio),
    )


def noise(specs: tuple[TensorSpec, ...], shapes: dict[str, list[int]], *, seed: int) -> Feeds:
    """Return seeded inputs: normal numbers for floats, 0 and 1 for everything else."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: (
            rng.standard_normal(shapes[spec.name]).astype(spec.dtype)
            if np.issubdtype(np.dtype(spec.dtype), np.floating)
            else rng.integers(0, 2, shapes[spec.name]).astype(spec.dtype)
        )
        for spec in specs
    }


def _feeds(session: TensorRTSession, images: Any, count: int, seed: int) -> list[Feeds]:
    """Return `count` samples in batches of the best shape, at least one batch."""
    shapes = {name: limits.opt for name, limits in session.profiles.items()}
    batch = shapes[session.inputs[0].name][0] if shapes[session.inputs[0].name] else 1
    batches = max(1, -(-count // batch))
    if images is None:
        return [noise(session.inputs, shapes, seed=seed + number) for number in range(batches)]
    spec = session.inputs[0]
    rows = np.arange(batches * batch).reshape(batches, batch) % len(images)
    return [{spec.name: images.batch(row).astype(spec.dtype, copy=False)} for row in rows]


def _images(request: EvaluateRequest) -> Any:
    """Return the evaluation images, prepared; None without data."""
    if request.data is None:
        return None
    from tlc.calibration.cache import prepare
    from tlc.calibration.data import read_data
    from tlc.calibration.preprocess import Preprocess

    # The pages of the data set are read by the same rules as everywhere: see tlc.calibration.data.
    preprocess = Preprocess.model_validate_json(request.preprocess or "")
    splits = read_data(Path(request.data))
    return prepare(splits.for_model(len(request.classes), request.classes).evaluation, preprocess)


def _top1(session: TensorRTSession | OrtSession, images: Any) -> float | None:
    """Return the share of evaluation images whose class comes first."""
    if images is None:
        return None
    spec, output = session.inputs[0], session.outputs[0].name
    fixed = spec.shape[0] if isinstance(spec.shape[0], int) else 0
    if isinstance(session, TensorRTSession):
        fixed = session.profiles[spec.name].opt[0]
    size = fixed or 16
    hits = 0
    for start in range(0, len(images), size):
        rows = np.arange(start, min(start + size, len(images)))
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))]) if fixed else rows
        batch = images.batch(padded).astype(spec.dtype, copy=False)
        logits = session.run({spec.name: batch})[output][: len(rows)]
        hits += int((logits.argmax(1) == np.asarray(images.labels)[rows]).sum())
    return hits / len(images)


def _layers(session: TensorRTSession, feeds: Feeds) -> tuple[LayerSummary | None, list[str]]:
    """Return what the layers run in, with times; and why not, where they cannot be told."""
    try:
        return summarize(read_layers(session.inspect()), session.layer_times_ms(feeds)), []
    except (TlcError, json.JSONDecodeError) as error:
        message = error.message if isinstance(error, TlcError) else str(error)
        return None, [f"Layers are not known: {message}."]
