"""Times of shapes, and what a table fitted to them says of others."""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_text
import torch
from launches import drawn_launch
from torch import Tensor, nn

import tiny
from tlc.compress import shape_times
from tlc.compress.arch import Architecture
from tlc.compress.image_shapes import ImageShapes
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.latency_table import LatencyTable, fitted, latency_table, student_t
from tlc.compress.measure import Timing
from tlc.compress.model import Model
from tlc.compress.plan import make_plan
from tlc.compress.recipe import DataSection, ModelSection, Recipe
from tlc.compress.runner import Runner
from tlc.compress.shape import Shape
from tlc.compress.shape_times import ShapeTime, ShapeTimes, measure_shapes, times_of, undisturbed_ms
from tlc.compress.shapes import shapes_of
from tlc.compress.text_shapes import TextShapes
from tlc.compress.work import AnyWork
from tlc.runtime.bench_report import Launch
from tlc.runtime.errors import TlcError
from tlc.runtime.process import Case
from tlc.runtime.target import load_target

TINY = f"{tiny.__file__}:tiny_net"
QUICK = Timing(rounds=10, launches=1, seed=0)


class Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 3, padding=1)
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + self.skip(x))


class Stages(nn.Module):
    """(N, 1, 8, 8) -> (N, 2); groups of 4 blocks, of which all can go, and of 3, of which the first cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.layer1 = nn.Sequential(*(Block(8, 8) for _ in range(4)))
        self.layer2 = nn.Sequential(Block(8, 16), Block(16, 16), Block(16, 16))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer2(self.layer1(torch.relu(self.stem(x)))).mean((2, 3)))
        return logits


def model_of(module: nn.Module) -> Model:
    torch.manual_seed(0)
    return Model(module.eval(), Architecture(kind="file", name=TINY), tiny.PREPROCESS, 2, ("flat", "upright"))


def times(shapes: Sequence[Shape], terms_ms: Mapping[str, float], noise: Any = None) -> ShapeTimes:
    """Return what measuring would find where a shape took the sum of its terms, and the original 10 ms."""
    found = {}
    for shape in shapes:
        ms = sum(terms_ms[name] * count for name, count in shape.terms.items())
        found[shape.name] = ShapeTime(
            ratio=ms / 10 * (1 if noise is None else 1 + 0.01 * noise.standard_normal()), noise_ratio=0.01, form=""
        )
    return ShapeTimes(original_ms=10, shapes=found)


STAGES_MS = {
    "constant at width 1": 0.4,
    "layer1 at width 1": 0.3,
    "layer2 at width 1": 0.1,
    "constant at width 0.5": 0.3,
    "layer1 at width 0.5": 0.2,
    "layer2 at width 0.5": 0.05,
}


def stages() -> ImageShapes:
    return ImageShapes(None, model_of(Stages()), (1.0, 0.5))  # type: ignore[arg-type] # builds nothing


def stages_table() -> LatencyTable:
    shapes = stages()
    design = shapes.design()
    return fitted(shapes, design, times(design, STAGES_MS))


def test_the_table_finds_what_each_part_takes() -> None:
    table = stages_table()
    assert table.terms_ms == pytest.approx(STAGES_MS)
    predicted = table.predict("depth:3,2+width:0.5")
    assert predicted.p50_ms == pytest.approx(0.3 + 3 * 0.2 + 1 * 0.05)
    assert 0 < predicted.bound_ms < 0.05  # 1 % of noise, which the measurements claim


def test_what_a_share_of_blocks_leaves_open_is_within_the_bound() -> None:
    table = stages_table()
    share = table.predict("depth:0.5")  # three of six stay
    slowest = table.predict("depth:3,1")
    fastest = table.predict("depth:1,3")
    assert share.p50_ms + share.bound_ms == pytest.approx(slowest.p50_ms + slowest.bound_ms)
    assert share.p50_ms - share.bound_ms == pytest.approx(fastest.p50_ms - fastest.bound_ms)


def test_nearly_all_new_measurements_lie_within_the_bound() -> None:
    noise, shapes = np.random.default_rng(0), stages()
    design, student = shapes.design(), shapes.shape("depth:2,2+width:0.5")
    within = 0
    for _ in range(100):
        predicted = fitted(shapes, design, times(design, STAGES_MS, noise)).predict_shape(student)
        measured_ms = times([student], STAGES_MS, noise).p50_ms(student.name)
        within += abs(measured_ms - predicted.p50_ms) <= predicted.bound_ms
        assert predicted.bound_ms < 0.2 * predicted.p50_ms
    assert within >= 90


def test_a_deviation_from_the_sum_widens_the_bound() -> None:
    shapes = stages()
    design = shapes.design()
    straight = times(design, STAGES_MS)
    bent = straight.model_copy(
        update={
            "shapes": {
                name: time.model_copy(update={"ratio": time.ratio * (1.2 if number % 2 else 1)})
                for number, (name, time) in enumerate(straight.shapes.items())
            }
        }
    )
    plain, wide = (fitted(shapes, design, found).predict("depth:4,3").bound_ms for found in (straight, bent))
    assert wide > 3 * plain


def test_a_width_that_was_not_measured_is_refused() -> None:
    with pytest.raises(TlcError) as refusal:
        stages_table().predict("depth:2,2+width:0.75")
    assert refusal.value.message.startswith(
        "The latency table has no constant at width 0.75, which depth:2,2+width:0.75 needs; it has constant at width 1,"
    )
    assert refusal.value.hint == "Build the table for it, or measure the shape itself."


def test_what_no_measured_shapes_tell_apart_is_refused() -> None:
    shapes = stages()
    design = [shapes.shape("depth:4,3"), shapes.shape("depth:2,2")]  # layer1 loses two whenever layer2 loses one
    table = fitted(shapes, design, times(design, STAGES_MS))
    assert table.predict("depth:2,2").p50_ms == pytest.approx(0.4 + 2 * 0.3 + 0.1)
    with pytest.raises(TlcError, match="cannot tell the time of depth:2,3: no measured shapes differ"):
        table.predict("depth:2,3")


def test_quantiles_of_students_t() -> None:
    # From the table of Abramowitz and Stegun, 26.10.
    for freedom, value in ((2, 4.303), (5, 2.571), (30, 2.042)):
        assert student_t(freedom, 0.95) == pytest.approx(value, rel=0.01)
    assert student_t(0, 0.95) == pytest.approx(1.960, abs=1e-3)


def test_blocks_that_cost_alike_are_one_kind() -> None:
    assert stages().kinds == {
        "layer1": ("layer1.0", "layer1.1", "layer1.2", "layer1.3"),
        "layer2": ("layer2.1", "layer2.2"),
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnyWork, Model, Path]:
    folder = tmp_path_factory.mktemp("images")
    data = tiny.write_bars(folder / "bars.npz")
    torch.save(tiny.seeded_net().state_dict(), folder / "tiny.pt")
    fed = PreprocessOptions(resize="none", mean=(0.5,), std=(0.25,), channels="gray")
    recipe = Recipe(model=ModelSection(path=folder / "tiny.pt", arch=TINY, preprocess=fed), data=DataSection(path=data))
    plan = make_plan(recipe)
    assert isinstance(plan.model, Model)
    return plan.start(folder / "cache"), plan.model, folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnyWork, Any, Path]:
    folder = tmp_path_factory.mktemp("texts")
    data = tiny_text.write_reviews(folder / "reviews.csv")
    model = tiny_text.write_tiny(folder / "model", layers=3)
    plan = make_plan(Recipe(model=ModelSection(path=model), data=DataSection(path=data)))
    return plan.start(folder / "cache"), plan.model, folder


def runner_of(work: AnyWork, folder: Path) -> Runner:
    return Runner.here(work.target, folder / "engines")


class Clock:
    """Stands in for exporting and measuring: a network takes 1 ms and another for each convolution."""

    def __init__(self) -> None:
        self.sessions: list[int] = []
        self.factor = 1.0
        """How much slower the machine is than at first."""

    def files(self, _work: AnyWork, network: Model, folder: Path, precision: str) -> list[tuple[str, Path]]:
        path = folder / "network.onnx"
        path.write_text(str(sum(isinstance(layer, nn.Conv2d) for layer in network.module.modules())))
        return [("", path)] if precision == "fp32" else [("", path), ("-slow", path)]

    def latencies(self, files: Mapping[str, tuple[Path, Any]], *_settings: object) -> dict[str, list[Launch]]:
        self.sessions.append(len(files))
        return {name: [self.launch(name, path)] for name, (path, _feeds) in files.items()}

    def launch(self, name: str, path: Path) -> Launch:
        ms = self.factor * (1 + int(path.read_text())) * (2 if name.endswith("-slow") else 1)
        return drawn_launch(Case(name, path), np.random.default_rng(0), latency_ms=ms, launch_sd=0, noise_sd=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shape_times, "latencies", clock.latencies)
    monkeypatch.setattr(shape_times, "_files", clock.files)
    return clock


def test_shapes_are_measured_once(images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock) -> None:
    work, model, folder = images
    runner = runner_of(work, folder)
    found = measure_shapes(work, model, ["", "depth:1", "depth:2", "depth:0.3"], runner, cache=tmp_path)
    assert found == pytest.approx({"original": 5, "": 5, "depth:1": 5, "depth:2": 4, "depth:0.3": 3})
    assert measure_shapes(work, model, ["depth:0.3"], runner, cache=tmp_path) == pytest.approx(
        {"original": 5, "depth:0.3": 3}
    )
    assert clock.sessions == [7]  # the original, and two forms of three shapes: two names are of the same one
    (kept,) = tmp_path.iterdir()
    assert sorted(path.name for path in kept.iterdir()) == [".lock", "original", "times.json"]


def test_a_shape_that_another_worker_is_at_is_waited_for(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, model, folder = images
    runner = runner_of(work, folder)

    def slowly(*given: Any) -> dict[str, list[Launch]]:
        time.sleep(0.3)
        return clock.latencies(*given)

    monkeypatch.setattr(shape_times, "latencies", slowly)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(measure_shapes, work, model, ["depth:2"], runner, cache=tmp_path) for _ in range(2)]
    assert both[0].result() == both[1].result()
    assert clock.sessions == [3]


def test_workers_that_share_a_cache_build_at_once_and_measure_one_after_the_other(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, model, folder = images
    runner = runner_of(work, folder)
    both_build, measuring = threading.Barrier(2, timeout=60), threading.Lock()

    def files(built: AnyWork, network: Model, place: Path, precision: str) -> list[tuple[str, Path]]:
        if precision != "fp32" and place.name == "0":
            both_build.wait()
        return clock.files(built, network, place, precision)

    def latencies(*given: Any) -> dict[str, list[Launch]]:
        assert measuring.acquire(blocking=False)
        time.sleep(0.1)
        measuring.release()
        return clock.latencies(*given)

    monkeypatch.setattr(shape_times, "_SESSION", 2)
    monkeypatch.setattr(shape_times, "_files", files)
    monkeypatch.setattr(shape_times, "latencies", latencies)
    specs = ["", "depth:2", "depth:0.3"]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(measure_shapes, work, model, specs, runner, cache=tmp_path) for _ in range(2)]
    expected = {"original": 5, "": 5, "depth:2": 4, "depth:0.3": 3}
    assert [one.result() for one in both] == [pytest.approx(expected)] * 2
    assert sorted(clock.sessions) == [3, 5]


def test_what_a_worker_was_at_when_it_failed_is_taken_up_by_another(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, model, folder = images
    runner = runner_of(work, folder)
    begun = threading.Event()

    def fails_once(built: AnyWork, network: Model, place: Path, precision: str) -> list[tuple[str, Path]]:
        if precision != "fp32" and not begun.is_set():
            begun.set()
            time.sleep(0.3)
            raise TlcError("No memory is left.")
        return clock.files(built, network, place, precision)

    monkeypatch.setattr(shape_times, "_files", fails_once)
    with ThreadPoolExecutor(2) as pool:
        failed = pool.submit(measure_shapes, work, model, ["depth:2"], runner, cache=tmp_path)
        assert begun.wait(60)
        other = pool.submit(measure_shapes, work, model, ["depth:2"], runner, cache=tmp_path)
    assert other.result() == pytest.approx({"original": 5, "depth:2": 4})
    with pytest.raises(TlcError, match="No memory is left"):
        failed.result()


def test_shapes_of_a_later_session_are_scaled_to_the_first(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock
) -> None:
    work, model, folder = images
    runner = runner_of(work, folder)
    measure_shapes(work, model, ["depth:2"], runner, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    (kept / ".session-killed").mkdir()
    (kept / ".session-killed" / "shapes.json").write_text(json.dumps([shapes_of(work, model).shape("depth:0.3").name]))
    clock.factor = 1.5
    later = measure_shapes(work, model, ["depth:2", "depth:0.3"], runner, cache=tmp_path)
    assert later == pytest.approx({"original": 5, "depth:2": 4, "depth:0.3": 3})
    assert clock.sessions == [3, 3]
    assert not (kept / ".session-killed").exists()


def test_times_are_those_of_runs_that_nothing_delays() -> None:
    rng = np.random.default_rng(0)
    inputs_ms = np.array([1.0, 2.0, 4.0])
    samples_ms = np.tile(inputs_ms, 60) + rng.exponential(5, 180) * rng.choice([0, 1], 180)
    one = drawn_launch(Case("a", Path("a.onnx")), rng, rounds=30, block=6)
    launch = one.model_copy(update={"samples_ns": [round(1e6 * ms) for ms in samples_ms]})
    assert undisturbed_ms([launch], 3) == pytest.approx(2.0)
    assert undisturbed_ms([launch], 1) == pytest.approx(1.0)  # of one input the fastest


def test_launches_that_differ_are_noise(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, model, folder = images

    def uneven(files: Mapping[str, tuple[Path, Any]], *settings: object) -> dict[str, list[Launch]]:
        first = clock.latencies(files, *settings)
        clock.factor = 1.1
        again = clock.latencies({name: file for name, file in files.items() if name != "original"}, *settings)
        return {name: [*launches, *again.get(name, launches)] for name, launches in first.items()}

    monkeypatch.setattr(shape_times, "latencies", uneven)
    shapes = [shapes_of(work, model).shape("depth:2")]
    found = times_of(work, model, shapes, runner_of(work, folder), cache=tmp_path)
    assert found.shapes[shapes[0].name].noise_ratio == pytest.approx(0.05 / 1.05)


def test_a_shape_whose_launches_differ_much_is_measured_again_until_they_do_not(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, model, folder = images
    noisy, calm = shapes = [shapes_of(work, model).shape(spec) for spec in ("depth:0.3", "depth:2")]
    factors = iter([1.5, 1.3, 1.0])
    sessions: list[set[str]] = []

    def busy(files: Mapping[str, tuple[Path, Any]], *settings: object) -> dict[str, list[Launch]]:
        sessions.append(set(files))
        first = clock.latencies(files, *settings)
        clock.factor = next(factors)
        again = clock.latencies({name: file for name, file in files.items() if noisy.name in name}, *settings)
        clock.factor = 1.0
        return {name: [*launches, *again.get(name, launches)] for name, launches in first.items()}

    monkeypatch.setattr(shape_times, "latencies", busy)
    found = times_of(work, model, shapes, runner_of(work, folder), cache=tmp_path)

    alone = {"original", noisy.name, f"{noisy.name} -slow"}
    assert sessions == [alone | {calm.name, f"{calm.name} -slow"}, alone, alone]
    assert [found.shapes[shape.name].noise_ratio for shape in shapes] == [0, 0]
    assert set(json.loads(next(tmp_path.glob("*/times.json")).read_text())["shapes"]) == {noisy.name, calm.name}


def test_many_shapes_are_measured_in_several_sessions(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, model, folder = images
    monkeypatch.setattr(shape_times, "_SESSION", 2)
    found = measure_shapes(work, model, ["", "depth:2", "depth:0.3"], runner_of(work, folder), cache=tmp_path)
    assert found == pytest.approx({"original": 5, "": 5, "depth:2": 4, "depth:0.3": 3})
    assert clock.sessions == [5, 3]


def test_another_target_is_measured_for_itself(
    images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock
) -> None:
    work, model, folder = images
    runner = runner_of(work, folder)
    measure_shapes(work, model, [], runner, cache=tmp_path)
    threads = runner.target.model_copy(update={"threads": 2})
    measure_shapes(work, model, [], replace(runner, target=threads), cache=tmp_path)
    measure_shapes(work, model, [], runner, cache=tmp_path, precision="fp32")
    assert clock.sessions == [1, 1, 1]


def test_a_damaged_cache_is_measured_anew(images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock) -> None:
    work, model, folder = images
    runner = runner_of(work, folder)
    measure_shapes(work, model, [], runner, cache=tmp_path)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:20])
    assert measure_shapes(work, model, [], runner, cache=tmp_path)["original"] == pytest.approx(5)
    assert clock.sessions == [1, 1]


def test_a_table_of_a_measured_network(images: tuple[AnyWork, Model, Path], tmp_path: Path, clock: Clock) -> None:
    work, model, folder = images
    table = latency_table(work, model, runner_of(work, folder), cache=tmp_path, widths=(1.0, 0.5))
    assert table.terms_ms == pytest.approx(
        {"constant at width 1": 2, "layer1 at width 1": 1, "constant at width 0.5": 2, "layer1 at width 0.5": 1}
    )
    assert table.predict("depth:2+width:0.5").p50_ms == pytest.approx(4)
    assert len(table.measured_ms) == 6
    assert table.freedom == 2
    assert len(clock.sessions) == 2  # of six shapes


def test_a_shape_is_exported_quantized_and_measured(images: tuple[AnyWork, Model, Path], tmp_path: Path) -> None:
    work, model, folder = images
    found = measure_shapes(work, model, ["depth:0.3"], runner_of(work, folder), cache=tmp_path, timing=QUICK)
    assert all(0 < ms < 100 for ms in found.values())
    (file,) = tmp_path.rglob("*.json")
    assert 0 < ShapeTimes.model_validate_json(file.read_text()).shapes["width 1 without layer1.0 layer1.1"].ratio < 20


def test_the_file_for_timing_has_the_operators_of_the_file_that_ships(
    images: tuple[AnyWork, Model, Path], tmp_path: Path
) -> None:
    work, model, folder = images
    plain = tmp_path / "float.onnx"
    work.export(model, plain)
    (timed,) = work.int8_for_timing(plain, tmp_path)
    for_real, _found, _summary = work.quantize(None, plain, tmp_path, runner_of(work, folder), lambda _event: None)
    assert operators(timed.path) == operators(for_real[-1].path)


@pytest.mark.slow
def test_text_files_for_timing_have_the_operators_of_those_that_ship(
    texts: tuple[AnyWork, Any, Path], tmp_path: Path
) -> None:
    work, model, folder = texts
    plain = tmp_path / "float.onnx"
    work.export(model, plain)
    (tmp_path / "timed").mkdir()
    timed = {file.suffix: file.path for file in work.int8_for_timing(plain, tmp_path / "timed")}
    real, _found, _summary = work.quantize(None, plain, tmp_path, runner_of(work, folder), lambda _event: None)
    shipped = {file.suffix: file.path for file in real}
    assert set(timed) == {"-matmul", "-dynamic"} < set(shipped)
    assert all(operators(timed[form]) == operators(shipped[form]) for form in timed)


def operators(path: Path) -> Counter[tuple[str, str]]:
    """Which operators there are how often, by the shapes and types of their constants."""
    graph = onnx.load(path).graph
    constants = {tensor.name: f"{tensor.data_type}{list(tensor.dims)}" for tensor in graph.initializer}
    return Counter((node.op_type, " ".join(constants.get(name, "-") for name in node.input)) for node in graph.node)


TEXT_MS = {"constant": 0.2, "layer": 0.1, "head": 0.05, "channel": 0.002}


def test_a_table_of_text_students(texts: tuple[AnyWork, Any, Path]) -> None:
    work, model, _folder = texts
    shapes = shapes_of(work, model)
    assert isinstance(shapes, TextShapes)
    design = shapes.design()
    table = fitted(shapes, design, times(design, TEXT_MS))
    assert table.terms_ms == pytest.approx(TEXT_MS)
    predicted = table.predict("depth:2+heads:0.5+intermediate:0.5+vocabulary:data")
    assert predicted.p50_ms == pytest.approx(0.2 + 2 * (0.1 + 2 * 0.05 + 32 * 0.002))
    with pytest.raises(TlcError, match="The latency table has no embedding 8, which depth:2"):
        table.predict("depth:2+embedding:8")


def test_text_shapes_are_built_as_they_are_named(texts: tuple[AnyWork, Any, Path]) -> None:
    work, model, _folder = texts
    shapes = TextShapes(work, model)
    for shape in shapes.design():
        built = TextShapes(work, shape.build())  # type: ignore[arg-type]
        assert (built.layers, built.layers * built.heads, built.layers * built.channels) == (
            shape.terms["layer"],
            shape.terms["head"],
            shape.terms["channel"],
        )


def test_image_shapes_are_built_as_they_are_named(images: tuple[AnyWork, Model, Path]) -> None:
    work, model, _folder = images
    for shape in ImageShapes(work, model, (1.0, 0.5)).design():
        built = shape.build()
        assert isinstance(built, Model)
        width = 0.5 if "width 0.5" in shape.name else 1
        assert built.module.get_parameter("stem.weight").shape[0] == 8 * width
        assert len(list(built.module.get_submodule("layer1").children())) == shape.terms[f"layer1 at width {width}"]


def test_a_target_that_is_not_here_is_refused(images: tuple[AnyWork, Model, Path], tmp_path: Path) -> None:
    work, model, _folder = images
    away = Runner(load_target("jetson-orin"), tmp_path, "TensorRT is not installed.")
    with pytest.raises(TlcError) as refusal:
        times_of(work, model, [], away, cache=tmp_path)
    assert refusal.value.message == "Shapes are timed where jetson-orin runs, and not here: TensorRT is not installed."
    assert refusal.value.hint == "Search on the target, or leave the limit on latency out."
