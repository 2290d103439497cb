"""Networks ranked before fine-tuning: the one that sees the task is first, costs are measured, the rest is refused."""

from pathlib import Path
from typing import Any

import bar_net
import pytest
import torch
import torchvision
import transformers
from click.testing import CliRunner
from tiny_text import write_reviews, write_tiny, write_tiny_encoder

import tiny
from tlc.calibration import cache
from tlc.calibration.data import read_data
from tlc.cli.rank import lines, rank_command
from tlc.compress import rank as ranking
from tlc.compress.candidates import parse_candidate
from tlc.compress.rank import rank
from tlc.compress.recipe import Recipe, read_recipe
from tlc.runtime.errors import TlcError, UsageError
from tlc.runtime.rank_report import RankReport

QUICK = {"measure.rounds": 10, "measure.launches": 1}
NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Features that tell bars apart, or only how bright an image is."""

    def __init__(self, sees, num_classes):
        super().__init__()
        self.sees = sees
        self.head = nn.Linear(2, num_classes)

    def forward(self, x):
        rows, columns = x.mean(3).amax(2), x.mean(2).amax(2)
        mean = x.mean((2, 3))
        return self.head(torch.cat([rows, columns] if self.sees else [mean, mean], 1))


def seeing(num_classes=2):
    return Net(True, num_classes)


def blind(num_classes=2):
    return Net(False, num_classes)


def other_task():
    return Net(True, 7)
'''


def recipe(path: Path, data: Path, **options: Any) -> Recipe:
    fed = {"model.preprocess.channels": "gray", "model.preprocess.mean": (0.5,), "model.preprocess.std": (0.25,)}
    return read_recipe(None, {"model.path": path, "data.path": data, **fed, **QUICK, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    tiny.write_bars(folder / "bars.npz", 400)
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> RankReport:
    names = [f"{folder}/nets.py:{name}" for name in ("blind", "other_task", "seeing")]
    return rank(names, recipe(folder / "nets.py", folder / "bars.npz"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's runtime is not here: everything but the timing."""
    monkeypatch.setattr("tlc.compress.runner.missing", lambda _target: "it is elsewhere")


def test_the_network_that_sees_the_task_is_first(report: RankReport) -> None:
    best, last = report.rows[0], report.rows[-1]

    assert last.name.endswith("blind")
    assert best.probe_ratio.low > last.probe_ratio.high
    assert (best.behind_points.estimate, best.weights, best.layer, best.features) == (0, "random", "head", 2)
    assert last.behind_points.high < 0
    assert max(row.logme for row in report.rows) == best.logme > last.logme


def test_each_is_measured_with_a_layer_for_the_task(report: RankReport) -> None:
    other = next(row for row in report.rows if row.name.endswith("other_task"))

    assert all(row.fp32.p50_ms and row.fp32.peak_memory_bytes and row.fp32.size_bytes for row in report.rows)
    assert {row.parameters for row in report.rows} == {2 * 2 + 2}
    assert other.notes == ["head has 2 outputs in place of 7"]
    assert RankReport.model_validate_json(report.model_dump_json()) == report


def test_few_images_are_all_asked_about_in_folds_and_many_apart(folder: Path, tmp_path: Path) -> None:
    few, folds = ranking._read(recipe(folder, folder / "bars.npz"), 60, texts=False)
    many, none = ranking._read(recipe(folder, tiny.write_bars(tmp_path / "many.npz", 1400)), 300, texts=False)

    assert (folds, len(few.fit), few.fit.digest) == (5, 60, few.holdout.digest)
    assert (none, len(many.fit), len(many.holdout)) == (None, 300, 200)
    assert not set(many.fit.digests) & set(many.holdout.digests)


@pytest.mark.usefixtures("elsewhere")
def test_the_evaluation_split_stays_unread_where_nothing_is_timed_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def recording(images: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(images.digests)
        return cache.prepare(images, *args, **kwargs)

    monkeypatch.setattr(ranking, "prepare", recording)

    found = rank([f"{folder}/nets.py:seeing"], recipe(folder, folder / "bars.npz"))

    assert len(seen) == found.fit_samples
    assert not seen & set(read_data(folder / "bars.npz").evaluation.digests)
    assert found.not_measured.startswith("It is elsewhere")
    assert found.rows[0].fp32.p50_ms is None
    assert any("No latency: It is elsewhere" in line for line in lines(found))


def test_int8_is_measured_beside_float(tmp_path: Path, folder: Path) -> None:
    torch.save(tiny.wide_net().state_dict(), tmp_path / "wide.pt")
    source = Path(tiny.__file__)

    report = rank([f"{tmp_path / 'wide.pt'}@{source}:wide_net"], recipe(source, folder / "bars.npz"), int8=True)

    (row,) = report.rows
    assert row.weights == "file"
    assert row.int8 is not None
    assert row.int8.p50_ms
    assert row.int8.size_bytes != row.fp32.size_bytes
    assert row.deployed == row.int8
    assert row.on_front


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.usefixtures("elsewhere")
def test_an_encoder_is_ranked_beside_a_classifier(tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv", count=120)
    write_tiny_encoder(write_tiny(tmp_path / "classifier", labels=("a", "b", "c")), tmp_path / "encoder")
    given = {"model.path": tmp_path / "encoder", "data.path": tmp_path / "reviews.csv", **QUICK}

    report = rank([f"hf:{tmp_path / 'encoder'}", str(tmp_path / "classifier")], read_recipe(None, given))

    notes = {Path(row.name).name: row.notes for row in report.rows}
    assert notes["classifier"] == ["model.classifier has 2 outputs in place of 3"]
    assert notes["encoder"] == ["an encoder without a head: classifier.bias, classifier.weight drawn at random"]
    assert report.noun == "texts"
    # What is read of an encoder is the same, whatever head it came with.
    assert report.rows[0].logme == pytest.approx(report.rows[1].logme, abs=1e-4)


def test_an_encoder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv", count=120)
    folder = write_tiny_encoder(write_tiny(tmp_path / "classifier"), tmp_path / "encoder")
    model = transformers.BertModel.from_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if "layer.1.output" not in name}
    model.save_pretrained(folder, state_dict=state)
    given = {"model.path": folder, "data.path": tmp_path / "reviews.csv"}

    with pytest.raises(TlcError, match=r"lacks \d+ tensors of its encoder, first bert.encoder.layer.1.output"):
        rank([str(folder)], read_recipe(None, given))


def test_tags_of_words_are_not_ranked(tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv", count=120)
    model = write_tiny(tmp_path / "tagger", task="token-classification")

    with pytest.raises(TlcError, match="is for token-classification; ranked are classifiers of whole texts"):
        rank([str(model)], read_recipe(None, {"model.path": model, "data.path": tmp_path / "reviews.csv"}))


def test_what_cannot_be_ranked_is_named(folder: Path, tmp_path: Path) -> None:
    source = Path(bar_net.__file__)
    with pytest.raises(TlcError, match=r"bar_net.py:bars: no linear layer and no convolution is called in it"):
        rank([f"{source}:bars"], recipe(source, folder / "bars.npz"))
    with pytest.raises(UsageError, match="seeing is given twice"):
        rank([f"{folder}/nets.py:seeing"] * 2, recipe(folder, folder / "bars.npz"))
    text = write_tiny(tmp_path / "text")
    with pytest.raises(TlcError, match=r"text takes texts, .*nets.py:seeing images"):
        rank([f"{folder}/nets.py:seeing", str(text)], recipe(folder, folder / "bars.npz"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing.pt", "There is nothing at nothing.pt, and it is no architecture"),
        ("nothing.pt@torchvision:resnet18", "nothing.pt@torchvision:resnet18: there is nothing at nothing.pt"),
        ("hf:nowhere", "hf:nowhere: there is nothing at nowhere"),
        ("torchvision:resnet19", "no image classifier named 'resnet19'"),
        ("net.py:build", "there is no file net.py"),
    ],
)
def test_a_candidate_that_is_not_there_is_refused(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TlcError, match=said):
        parse_candidate(text)


def test_a_file_may_have_the_letter_that_parts_it_from_its_architecture(tmp_path: Path) -> None:
    path = tmp_path / "a@b.pt"
    path.touch()

    found = parse_candidate(f"{path}@torchvision:resnet18")

    assert (found.path, found.arch) == (path, "torchvision:resnet18")


def test_weights_that_torchvision_downloaded_are_used_if_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    file = tmp_path / "checkpoints" / url.rpartition("/")[2]
    file.write_bytes(b"half of it")

    assert parse_candidate("torchvision:squeezenet1_1").weights == "random"
    monkeypatch.setattr("tlc.compress.candidates.sha256_file", lambda _path: file.stem.rpartition("-")[2] + "0" * 56)
    found = parse_candidate("torchvision:squeezenet1_1")
    assert (found.weights, found.path, found.arch) == ("cache", file, "torchvision:squeezenet1_1")
    assert parse_candidate("torchvision:squeezenet1_1?dropout=0.1").weights == "random"


def test_the_command_hands_its_options_on_and_prints_a_table_or_json(
    folder: Path, report: RankReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[str, ...], Recipe, dict[str, Any]]] = []

    def found(candidates: tuple[str, ...], recipe: Recipe, **options: Any) -> RankReport:
        asked.append((candidates, recipe, options))
        return report

    monkeypatch.setattr(ranking, "rank", found)
    command = ["a.pt", "b.pt", "--data", "photos", "--input", "1x8x8", "--samples", "100", "--int8", "--quiet"]

    table = CliRunner().invoke(rank_command, command, catch_exceptions=False)
    as_json = CliRunner().invoke(rank_command, [*command, "--json"], catch_exceptions=False)

    candidates, recipe, options = asked[0]
    assert candidates == ("a.pt", "b.pt")
    assert (recipe.data.path, recipe.model.preprocess.input) == (Path("photos"), (1, 8, 8))
    assert (options["samples"], options["int8"]) == (100, True)
    assert report.rows[0].name in table.output.splitlines()[1]
    assert f"linear classifiers on the features of {report.fit_samples} training images, in 5 folds" in table.output
    assert f"{folder}/nets.py:blind: random weights; 2 features before head" in table.output
    assert RankReport.model_validate_json(as_json.stdout) == report


def test_front_rows_are_those_that_nothing_beats() -> None:
    points = [(-90, 2.0, 10, 5), (-90, 2.0, 10, 5), (-80, 1.0, 10, 5), (-80, 2.0, 10, 5)]

    kept = [not any(ranking._dominates(other, point) for other in points) for point in points]

    assert kept == [True, True, True, False]
