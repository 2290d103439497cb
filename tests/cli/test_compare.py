"""`tlc compare`: what it prints and writes, what it says of wrong options, and that names stay names."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import bar_nets
import pytest
from bar_nets import write_fog, write_net
from click.testing import CliRunner, Result

import tiny
from tlc.cli.compare import compare_command
from tlc.cli.compare_output import alerts, headline, html, lines, markdown
from tlc.cli.main import TlcGroup
from tlc.compress.compare import compare
from tlc.compress.recipe import read_recipe
from tlc.runtime.bench import Timing
from tlc.runtime.compare_report import CompareReport
from tlc.runtime.report import Interval

HOSTILE = "<img src=x>|`a`\n::error::@all"


def tlc(*arguments: object) -> Result:
    group = TlcGroup("tlc", commands={"compare": compare_command})
    return CliRunner().invoke(group, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_net(folder / "a.onnx")
    write_net(folder / "b.onnx", bias=bar_nets.SHY)
    write_fog(tiny.write_bars(folder / "clear.npz", 400), folder / "foggy.npz")
    return folder


@pytest.fixture(scope="module")
def untimed(folder: Path) -> CompareReport:
    """What is found about both data sets where the target's runtime is elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlc.compress.runner.missing", lambda _target: "it is elsewhere")
        data = [folder / "clear.npz", folder / "foggy.npz"]
        a, b = (read_recipe(None, {"model.path": folder / name, "data.path": data[0]}) for name in ("a.onnx", "b.onnx"))
        return compare(a, b, data, Timing(rounds=2), command="tlc compare a.onnx b.onnx").report


def test_terminal_page_and_markdown_of_one_run(folder: Path, tmp_path: Path) -> None:
    result = tlc(
        folder / "a.onnx", folder / "b.onnx", "--data", folder / "clear.npz", "--data", folder / "foggy.npz",
        "--rounds", 4, "--launches", 2, "--html", tmp_path / "c.html", "--md", tmp_path / "c.md", "--no-history",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    text = result.stdout.splitlines()
    assert "points of accuracy on" in text[0]
    assert "foggy.npz; " in text[0]
    assert any(re.search(r"A .*a\.onnx \(onnxruntime .* MB +\d+ B$", line) for line in text)
    assert any(re.match(r"B's latency over A's: .*, of 4 rounds: too few to rely on\)$", line) for line in text)
    assert [line.split()[-1] for line in text if ".npz  " in line] == ["shown", "WORSE"]
    assert any(line.startswith("worse: class upright of ") for line in text)
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert page.count("<img ") == page.count("data:image/jpeg;base64,") > 20
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # Nothing to load.
    assert "❌" in (tmp_path / "c.md").read_text(encoding="utf-8")


def test_json_has_everything(folder: Path) -> None:
    result = tlc(
        folder / "a.onnx", folder / "b.onnx", "--data", folder / "foggy.npz", "--rounds", 2, "--launches", 1, "--json",
        "--quiet", "--no-history",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    report = CompareReport.model_validate_json(result.stdout)
    assert report.bench is not None
    assert [model.name for model in report.bench.models] == [str(folder / "a.onnx"), str(folder / "b.onnx")]
    assert len(report.bench.models[1].launches[0].samples_ns) >= 16
    assert report.latency_ratio is not None
    assert json.loads(result.stdout)["kind"] == "compare"


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["none.onnx", "b.onnx", "--data", "clear.npz"], 1, "There is nothing at none.onnx"),
        (["a.onnx", "b.onnx", "--data", "clear.npz", "--data", "none.npz"], 1, "There is nothing at none.npz"),
        (["a.onnx", "b.onnx"], 2, "Missing option '--data'"),
        (["a.onnx", "b.onnx", "--data", "clear.npz", "--data", "clear.npz"], 2, "A data set is given twice"),
        (["a.onnx", "b.onnx", "--data", "clear.npz", "--html", "none/c.html"], 2, "There is no folder none for c.html"),
        (["a.onnx", "b.onnx", "--data", "clear.npz", "--duration", "soon"], 2, "soon"),
        (["a.onnx", "b.onnx", "--data", "clear.npz", "--target", "moon"], 2, "unknown target 'moon'"),
    ],
)
def test_wrong_options_are_said_before_anything_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], status: int, sentence: str
) -> None:
    monkeypatch.chdir(folder)

    result = tlc(*options)

    assert result.exit_code == status, result.output
    assert sentence in result.stderr


def test_a_drop_that_one_domain_has_is_said_first(untimed: CompareReport) -> None:
    first, second = alerts(untimed)
    text = lines(untimed)

    assert first.startswith(untimed.data[1].path)
    assert first.endswith("adjusted for 2 data sets). 1 other data set shows no loss.")
    assert second.startswith("class upright of ")
    assert headline(untimed).startswith("B is not timed; −")
    assert text[-1].startswith("not timed: It is elsewhere.")


def test_speed_is_claimed_only_where_the_interval_shows_it(untimed: CompareReport) -> None:
    def said(low: float, estimate: float, high: float, of_rounds: int = 10) -> str:
        class Timed(CompareReport):
            @property
            def latency_ratio(self) -> Interval:
                return Interval(estimate=estimate, low=low, high=high)

            @property
            def rounds(self) -> int:
                return of_rounds

        return headline(Timed.model_construct(**dict(untimed))).split(";")[0]

    assert said(0.2, 0.25, 0.3) == "B is 4.00× faster"
    assert said(1.2, 1.25, 1.3) == "B is 1.25× slower"
    assert said(0.9, 1.25, 1.3) == "B is as fast as far as can be told"
    assert said(0.2, 0.25, 0.3, of_rounds=9) == "B is not timed for long enough"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def _hostile(report: CompareReport) -> CompareReport:
    data = report.data[1]
    changed = [
        sample.model_copy(
            update={"key": HOSTILE, "text": HOSTILE, "truth": HOSTILE, "answer_a": HOSTILE, "answer_b": HOSTILE}
        )
        for sample in data.changed
    ]
    per_class = [change.model_copy(update={"name": HOSTILE}) for change in data.per_class]
    drift = [one.model_copy(update={"output": HOSTILE}) for one in data.drift]
    more = {"path": HOSTILE, "changed": changed, "per_class": per_class, "drift": drift, "not_compared": [HOSTILE]}
    named = {"a": HOSTILE, "b": HOSTILE, "command": HOSTILE, "not_measured": HOSTILE}
    return report.model_copy(update={**named, "data": [data.model_copy(update=more)]})


def test_names_are_not_markup(untimed: CompareReport) -> None:
    report = _hostile(untimed)

    page = html(report, [[]], limit=200)
    text = markdown(report)

    tags = _Tags()
    tags.feed(page)
    assert not [tag for tag, _ in tags.found if tag == "img"]
    assert "&lt;img src=x&gt;" in page
    outside = re.sub(r"(?<![`\\])``.+?``(?!`)", "", text)  # of code spans
    assert not re.search(r"(?<!\\)<img", outside)
    assert "@all" not in outside
    assert not re.search(r"^::error", text, re.MULTILINE)
    widths = {line.count("|") - line.count(r"\|") for line in text.splitlines() if line.startswith("| A")}
    assert widths == {8}
    assert not any("\n" in line or line.startswith("::") for line in lines(report))


def test_a_page_shows_so_many_samples_and_says_how_many_more(untimed: CompareReport) -> None:
    total = len(untimed.data[1].changed)

    page = html(untimed, [[], []], limit=3)

    assert page.count('<li class="card lost">') == 3
    assert f"The first 3 are shown, lost ones first; {total - 3} more are in the JSON." in page


def test_the_same_report_gives_the_same_page(untimed: CompareReport) -> None:
    assert html(untimed, [[], []], limit=9) == html(untimed, [[], []], limit=9)
    again = CompareReport.model_validate_json(untimed.model_dump_json())
    assert markdown(again) == markdown(untimed)
