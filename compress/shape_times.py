"""How long the shapes of students take on the target, measured before training: time does not depend on weights.

Every shape is exported and made what would ship of it. All are measured in turns beside the original, so that what is
kept is a ratio to it, which holds from one session of a machine to the next where milliseconds do not. A search does
this beside other work, so the fastest runs are compared: a p50 is that of a machine with nothing else to do.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from tlc.compress.events import Emit, Progress, silent
from tlc.compress.lock import alone, hold, wait_for
from tlc.compress.measure import Precision, Timing, latencies
from tlc.compress.plan import Network
from tlc.compress.quantize import worth_quantizing
from tlc.compress.runner import Runner
from tlc.compress.shape import Shape
from tlc.compress.shapes import shapes_of
from tlc.compress.work import AnyWork, Feeds
from tlc.runtime.artifact import replacing_dir, sha256_json, write_text
from tlc.runtime.bench_report import NS_PER_MS, Launch
from tlc.runtime.environment import environment, machine_identity
from tlc.runtime.errors import TlcError

TIMING = Timing(rounds=20, launches=2, seed=0)
"""Of a session; what two launches differ by is the noise."""
ORIGINAL = "original"
_SESSION = 4
"""Shapes that a process builds and then measures at once: they are lost when it is killed, and nobody else's."""
_NOISY_RATIO = 0.1
"""A shape of a larger `noise_ratio`, whose two launches differ by a fifth, is measured again: others were at work."""
_REPEATS = 2
"""At most; a shape that stays noisy is kept with its `noise_ratio`, which widens the errors of the table."""
_TIMES = "times.json"
_SCRATCH = ".session-"
_CLAIM = "shapes.json"
_FORMAT = 2


class ShapeTime(BaseModel):
    """What was measured of one shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float
    """Its time over the original's."""
    noise_ratio: float
    """Standard deviation of that, over it, as the launches of the session differ; 0 where there was one."""
    form: str
    """Which of its INT8 files this is, the fastest: "", "-dynamic"."""


class ShapeTimes(BaseModel):
    """All that was measured of one model's shapes on one machine for one target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    original_ms: float
    """p50 of the float32 file of the model itself, as it is deployed: of the calmest block of the first session."""
    shapes: dict[str, ShapeTime]

    def p50_ms(self, name: str) -> float:
        """Return the p50 of the shape of that name."""
        return self.original_ms * self.shapes[name].ratio


def measure_shapes(
    work: AnyWork,
    model: Network,
    specs: Sequence[str],
    runner: Runner,
    *,
    cache: Path,
    precision: Precision = "int8",
    timing: Timing = TIMING,
    emit: Emit = silent,
) -> dict[str, float]:
    """Return the p50, in ms at batch 1, of every student in `specs`, and under "original" that of the model in float32.

    Arguments and errors as in `times_of`. Of students named alike but for the choice of blocks (`depth:0.5`), the one
    whose blocks go evenly over the network is measured.
    """
    known = shapes_of(work, model)
    shapes = {spec: known.shape(spec) for spec in specs}
    times = times_of(
        work, model, list(shapes.values()), runner, cache=cache, precision=precision, timing=timing, emit=emit
    )
    return {ORIGINAL: times.original_ms, **{spec: times.p50_ms(shape.name) for spec, shape in shapes.items()}}


def times_of(
    work: AnyWork,
    model: Network,
    shapes: Sequence[Shape],
    runner: Runner,
    *,
    cache: Path,
    precision: Precision = "int8",
    timing: Timing = TIMING,
    emit: Emit = silent,
) -> ShapeTimes:
    """Return the times of `shapes`, and of all others that `cache` knows; what it lacks is measured, and kept there.

    Args:
        work: with the target, and the data for inputs and calibration.
        model: what the shapes are students of.
        shapes: of `tlc.compress.shapes`.
        runner: of this machine.
        cache: folder that remembers; what counts is the model's shape, not its weights, the inputs' sizes, the target,
            the machine and what the times are of. Processes that share it divide the shapes among them, and measure one
            after the other.
        precision: of the files: float32, float16, or INT8 with ranges from a few samples (float16 or float32 where no
            layer gains from INT8). Of several INT8 files the fastest counts.
        timing: of each session of 4 shapes or fewer.
        emit: is told what is made and measured.

    Raises:
        TlcError: the target's runtime is not here; a shape cannot be built, exported or run.

    """
    if runner.missing:
        raise TlcError(
            f"Shapes are timed where {runner.target.name} runs, and not here: {runner.missing}",
            hint="Search on the target, or leave the limit on latency out.",
        )
    feeds = work.for_network(model).timing_feeds()
    folder = cache / f"shapes-{_key(model, feeds, runner, precision, timing)[:16]}"
    wanted = {shape.name: shape for shape in shapes}
    while True:
        with ExitStack() as claim:
            with alone(folder):
                known = _read(folder / _TIMES)
                missing = [shape for name, shape in wanted.items() if known is None or name not in known.shapes]
                if known is not None and not missing:
                    return known
                original = _original(work, model, folder / ORIGINAL)
                at_work = _at_work(folder)
                others = {name for names in at_work.values() for name in names}
                own = [shape for shape in missing if shape.name not in others][:_SESSION]
                if own or not missing:
                    scratch = claim.enter_context(_claimed(folder, [shape.name for shape in own]))
            if missing and not own:
                wait_for(next(scratch for scratch, names in at_work.items() if missing[0].name in names))
                continue
            files = {(ORIGINAL, ""): original}
            for number, shape in enumerate(own):
                place = scratch / str(number)
                place.mkdir()
                files |= {(shape.name, form): file for form, file in _files(work, shape.build(), place, precision)}
                emit(Progress("shapes built", len(wanted) - len(missing) + number + 1, len(wanted)))
            with alone(folder):
                found = _joined(_read(folder / _TIMES), _calm(files, feeds, runner, timing, emit))
                write_text(folder / _TIMES, found.model_dump_json(indent=1) + "\n")


@contextmanager
def _claimed(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Make a folder in `folder` for the files of shapes of these names, for as long as this process is at them."""
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=_SCRATCH))
    with hold(scratch):
        write_text(scratch / _CLAIM, json.dumps(list(names)))
        try:
            yield scratch
        finally:
            with alone(folder):
                shutil.rmtree(scratch)


def _at_work(folder: Path) -> dict[Path, list[str]]:
    """Return which shapes other processes are at, by their folders; what killed ones left is removed."""
    found = {}
    for scratch in folder.glob(f"{_SCRATCH}*"):
        try:
            with hold(scratch):
                shutil.rmtree(scratch)
        except TlcError:
            found[scratch] = json.loads((scratch / _CLAIM).read_text())
    return found


def _original(work: AnyWork, model: Network, folder: Path) -> Path:
    """Return the float32 file of the model as it is deployed, of whatever weights; it is made where it is not there."""
    name = folder / "deployed.txt"
    if not name.exists():
        with replacing_dir(folder) as new:
            ((_form, file),) = _files(work, model, new, "fp32")
            (new / name.name).write_text(file.name)
    return folder / name.read_text()


def _files(work: AnyWork, network: Network, folder: Path, precision: Precision) -> list[tuple[str, Path]]:
    """Write the files that would ship of a network, and return each with the name of its form."""
    own = work.for_network(network)
    plain = folder / "float.onnx"
    own.export(network, plain)
    if precision == "int8" and worth_quantizing(plain, own.target):
        return [(file.suffix, file.path) for file in own.int8_for_timing(plain, folder)]
    if precision != "fp32" and "fp16" in own.target.precisions:
        own.fp16(plain, folder / "fp16.onnx")
        return [("", folder / "fp16.onnx")]
    deployed, _note = own.fused(plain, folder)
    return [("", deployed)]


def _calm(
    files: Mapping[tuple[str, str], Path], feeds: Sequence[Feeds], runner: Runner, timing: Timing, emit: Emit
) -> ShapeTimes:
    """Measure files in one session, and the noisy of them in others; of each shape the calmest session counts."""
    found = _measured(files, feeds, runner, timing, emit)
    for _repeat in range(_REPEATS):
        noisy = {name for name, one in found.shapes.items() if one.noise_ratio > _NOISY_RATIO}
        if not noisy:
            break
        again = {key: file for key, file in files.items() if key[0] in {ORIGINAL, *noisy}}
        shapes = _measured(again, feeds, runner, timing, emit).shapes
        calmer = {name: one for name, one in shapes.items() if one.noise_ratio < found.shapes[name].noise_ratio}
        found = found.model_copy(update={"shapes": {**found.shapes, **calmer}})
    return found


def _measured(
    files: Mapping[tuple[str, str], Path], feeds: Sequence[Feeds], runner: Runner, timing: Timing, emit: Emit
) -> ShapeTimes:
    """Measure files, by shape and form, in one session; of a shape's forms the fastest counts."""
    keys = {" ".join(key).strip(): key for key in files}
    found = latencies({name: (files[key], feeds) for name, key in keys.items()}, runner, timing, emit)
    original = found.pop(ORIGINAL)
    own = np.array([undisturbed_ms([one], len(feeds)) for one in original])
    shapes: dict[str, ShapeTime] = {}
    for name, launches in found.items():
        shape, form = keys[name]
        ratios = np.array([undisturbed_ms([one], len(feeds)) for one in launches]) / own
        ratio = undisturbed_ms(launches, len(feeds)) / undisturbed_ms(original, len(feeds))
        if shape not in shapes or ratio < shapes[shape].ratio:
            noise_ratio = float(ratios.std() / ratios.mean() / math.sqrt(max(1, len(ratios) - 1)))
            shapes[shape] = ShapeTime(ratio=ratio, noise_ratio=noise_ratio, form=form)
    calmest_ms = min(float(one.block_medians_ns().min()) for one in original) / NS_PER_MS
    return ShapeTimes(original_ms=calmest_ms, shapes=shapes)


def undisturbed_ms(launches: Sequence[Launch], feeds: int) -> float:
    """Return the time of a run that nothing delays: the fastest of each of `feeds` inputs, of these the median.

    What else runs on a machine only ever adds time, to long runs more than to short ones: beside others' work medians
    of 0.2 and 2 ms were off by factors that differ, up to 2, and fastest runs by 7 % or less. J. Chen, J. Revels,
    "Robust benchmarking in noisy environments", arXiv 1608.04295, 2016.
    """
    samples_ns = np.array([sample for one in launches for sample in one.samples_ns], np.float64)
    return float(np.median(samples_ns.reshape(-1, feeds).min(axis=0))) / NS_PER_MS


def _joined(known: ShapeTimes | None, new: ShapeTimes) -> ShapeTimes:
    """Return both; the first session's original is what all ratios are multiplied with."""
    if known is None:
        return new
    return known.model_copy(update={"shapes": {**known.shapes, **new.shapes}})


def _key(model: Network, feeds: Sequence[Feeds], runner: Runner, precision: Precision, timing: Timing) -> str:
    return sha256_json(
        {
            "format": _FORMAT,
            "arch": model.arch.model_dump(mode="json"),
            "weights": {name: list(value.shape) for name, value in model.module.state_dict().items()},
            "inputs": [{name: list(value.shape) for name, value in feed.items()} for feed in feeds],
            "target": runner.target.model_dump(mode="json"),
            "runtime": runner.runtime,
            "machine": machine_identity(environment()),
            "precision": precision,
            "timing": asdict(timing),
            "tlc": version("tlc"),
        }
    )


def _read(path: Path) -> ShapeTimes | None:
    """Return what an earlier session found; None where there was none, or nobody can read it."""
    try:
        return ShapeTimes.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return None
