import io
import re
import runpy
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tlc.cli import plots, wording
from tlc.cli.report import print_report, write_report
from tlc.runtime.budget import Budget
from tlc.runtime.report import AccuracyChange, Interval, Report

make_report: Callable[..., Report] = runpy.run_path(str(Path(__file__).with_name("make_report.py")))["make_report"]

_HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    '$x$ & "y"',
    "`tick`",
    "@everyone",
    "[link](http://x.example)",
    "\x1b[31m",
    "猫",
]
_VOID = {"meta", "br", "hr", "img", "link", "input", "use", "path", "rect"}


class _Page(HTMLParser):
    """Every tag with its attributes, the text by tag, and a check that all tags are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open, f"</{tag}> closes nothing"
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _written(report: Report, folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    write_report(report, folder)
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def _printed(report: Report, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    print_report(report, Console(file=stream, width=width))
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(encoding)


def _with_change(report: Report, change: Interval, speedup: Interval) -> Report:
    """Return `report`, whose chosen file changed so."""
    last = report.measurements[-1]
    assert last.change
    last = last.model_copy(
        update={
            "change": last.change.model_copy(update={"change_points": change}),
            "latency": wording.latency(last).model_copy(update={"speedup": speedup}),
        }
    )
    return report.model_copy(update={"measurements": [*report.measurements[:-1], last]})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return _written(make_report(), tmp_path_factory.mktemp("report"))


def test_the_json_reads_back_as_an_equal_report(files: dict[str, str]) -> None:
    assert Report.model_validate_json(files["report.json"]) == make_report()
    assert files["report.json"].endswith("}\n")


def test_latency_samples_keep_six_digits_and_nothing_else_is_rounded(tmp_path: Path) -> None:
    report = make_report(rows=("original", "int8"), samples=200)
    first = report.measurements[0]
    latency = wording.latency(first).model_copy(update={"samples_ms": [1.23456789] * 320, "mean_ms": 1.23456789})
    first = first.model_copy(update={"latency": latency})
    text = _written(report.model_copy(update={"measurements": [first, report.measurements[1]]}), tmp_path)
    read = wording.latency(Report.model_validate_json(text["report.json"]).measurements[0])
    assert set(read.samples_ms) == {1.23457}
    assert read.mean_ms == 1.23456789


def test_the_same_report_gives_the_same_bytes(files: dict[str, str], tmp_path: Path) -> None:
    assert _written(make_report(), tmp_path) == files


def test_the_markdown_has_the_true_numbers(files: dict[str, str]) -> None:
    text, report = files["report.md"], make_report()
    assert report.verdict.replace("_", r"\_") in text
    for row in report.measurements:
        line = next(line for line in text.splitlines() if line.startswith((f"| {row.name} ", f"| **{row.name}**")))
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[2] == wording.significant(wording.latency(row).p50_ms)
        assert cells[10] == f"{100 * row.accuracy.top1:.2f}"
        assert cells[4 + 1] == ("1" if row.change is None else wording.times_interval(wording.latency(row).speedup))
        assert len(cells) == 14
    for stage in report.stages:
        assert f"| {stage.name} | {stage.status} | {stage.reason} |" in text
    assert report.command in text
    assert report.data.sha256 in text


def test_every_markdown_table_has_as_many_cells_in_each_row_as_in_its_head(tmp_path: Path) -> None:
    text = _written(make_report(classes=_HOSTILE, samples=4000, seed=3), tmp_path)["report.md"]
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:
        rows = [re.sub(r"\\\|", "", row).count("|") for row in table.splitlines()]
        assert len(set(rows)) == 1, table


def test_the_page_is_well_formed_and_loads_nothing(files: dict[str, str]) -> None:
    page = _Page(files["report.html"])
    assert not re.search(r"(https?:)?//[a-z]", files["report.html"])
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("href", "src", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")


def test_every_reference_inside_the_page_resolves_to_one_element(files: dict[str, str]) -> None:
    page = _Page(files["report.html"])
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', files["report.html"]))
    assert len(names) == len(set(names))
    assert {next(filter(None, groups)) for groups in used} <= set(names)


def test_every_colour_of_the_plots_is_defined_in_both_themes(files: dict[str, str]) -> None:
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", files["report.html"]))
    assert "--series-4" in used
    for theme in re.findall(r":root \{(.*?)\}", files["report.html"], re.DOTALL):
        assert used <= set(re.findall(r"(--[a-z0-9-]+):", theme))
    assert not re.search(r"<svg.*?(?:fill|stroke): #", files["report.html"])


def test_plots_and_tables_speak_to_a_screen_reader(files: dict[str, str]) -> None:
    page = _Page(files["report.html"])
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(plots) == 6
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert next(attributes for tag, attributes in page.tags if tag == "html")["lang"] == "en"


def test_the_page_stays_small(files: dict[str, str]) -> None:
    assert len(files["report.html"].encode()) < 1_500_000


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    report = make_report(classes=_HOSTILE, samples=4000, seed=3).model_copy(update={"verdict": "<b>bold</b> \x07"})
    report = report.model_copy(update={"command": "tlc compress '</pre><script>'", "warnings": ["<img src=x>"]})
    text = _written(report, tmp_path)
    page = _Page(text["report.html"])
    assert not {"script", "img", "b"} & {tag for tag, _ in page.tags}
    assert any("<script>alert(1)</script>" in words for words in page.words)
    assert any('$x$ & "y"' in words for words in page.words)
    assert "\x1b" not in text["report.html"] + text["report.md"] + text["report.json"]
    assert r"\<b\>bold\</b\>" in text["report.md"]
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)|^    .*", "", text["report.md"], flags=re.MULTILINE)  # not code
    assert not re.search(r"(?<!\\)<|@[a-z]", outside)
    assert "\x1b" not in _printed(report, 100)


def test_an_interval_around_nothing_is_called_no_change_distinguishable(tmp_path: Path) -> None:
    nothing = Interval(estimate=-0.1, low=-0.4, high=0.2)
    report = _with_change(make_report(samples=1000), nothing, Interval(estimate=1.01, low=0.99, high=1.03))
    page = "".join(_Page(_written(report, tmp_path)["report.html"]).words)
    heading = page[page.index("No change in speed") :]
    assert heading.startswith(
        "No change in speed distinguishable, no change in accuracy distinguishable, 9.53× smaller"
    )


def test_a_slower_file_is_called_slower() -> None:
    row = make_report(rows=("original", "int8"), samples=200).measurements[1]
    slower = wording.latency(row).model_copy(update={"speedup": Interval(estimate=0.5, low=0.4, high=0.6)})
    assert wording.speed_words(row.model_copy(update={"latency": slower})) == "2.00× slower"
    assert wording.size_words(100, 150) == "1.50× larger"


def test_a_missed_budget_is_said_in_every_form(tmp_path: Path) -> None:
    report = make_report(chosen=None, budget=Budget(max_drop_points=0.1, max_latency_ms=0.4))
    assert not report.budget_met
    missed = f"No measured file meets the budget. {report.chosen} comes closest: "
    assert report.needed.startswith(missed)
    text = _written(report, tmp_path)
    assert missed in text["report.md"]
    assert f'class="status missed">✗ {report.needed}' in text["report.html"]
    assert missed in _printed(report, 300)


def test_a_budget_met_only_by_the_estimate_is_not_called_sure() -> None:
    one = Interval(estimate=1.5, low=1.4, high=1.6)
    sure = _with_change(make_report(samples=1000), Interval(estimate=-0.5, low=-0.9, high=-0.1), one)
    unsure = _with_change(sure, Interval(estimate=-0.5, low=-1.2, high=0.2), one)
    budget = Budget(max_size_bytes=400_000)
    sure = sure.model_copy(update={"budget_met": True, "confident": True, "budget": budget})
    unsure = unsure.model_copy(update={"budget_met": True, "confident": False})
    assert "so is the whole 95 % interval: −0.50" in wording.budget_words(sure)
    assert wording.budget_words(sure).endswith(" Kept as well: file 380 kB of 400 kB.")
    assert wording.budget_words(unsure).endswith("does not exclude a larger drop.")


def test_why_the_others_do_not_ship_is_in_the_page_and_in_the_markdown(files: dict[str, str]) -> None:
    report = make_report()
    page = "".join(_Page(files["report.html"]).words)
    assert "original" in report.front
    assert set(report.lost) == {"original", "student", "pruned", "fp16"}
    for name, why in report.lost.items():
        assert f"| {name} | {'yes' if name in report.front else 'no'} | {why} |" in files["report.md"]
        assert why in page
    assert "Budget: 1 point of accuracy; the fastest." in page


def test_a_selection_after_the_run_is_part_of_how_to_reproduce_it(tmp_path: Path) -> None:
    report = make_report(samples=500, chosen="fp16", selected_by="tlc select runs/invented --name fp16")
    text = _written(report, tmp_path)
    assert f"{report.command}\n    tlc select runs/invented --name fp16\n" in text["report.md"]
    assert f"{report.command}\ntlc select runs/invented --name fp16</pre>" in text["report.html"]


def test_the_plot_joins_the_front_and_draws_a_limit_on_latency() -> None:
    free, held = make_report(), make_report(budget=Budget(max_latency_ms=1.0))
    names = [row.name for row in plots.front_line(free)]
    assert names[0] == "int8"
    assert names[-1] == "original"
    tops = [wording.by_name(free, name).accuracy.top1 for name in names]
    assert tops == sorted(set(tops))
    assert "budget: 1.00 ms" not in plots.accuracy_against_latency(free)
    assert "budget: 1.00 ms" in plots.accuracy_against_latency(held)


def test_only_classes_whose_interval_excludes_zero_are_listed(tmp_path: Path) -> None:
    report = make_report()
    worse = wording.regressions(report)
    assert worse
    text = _written(report, tmp_path)["report.md"]
    section = text[text.index("## Classes that lost recall") : text.index("## Data")]
    assert re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE) == [item.name for item in worse]
    change = report.measurements[-1].change
    assert isinstance(change, AccuracyChange)
    calm = [
        item.model_copy(update={"change_points": Interval(estimate=0, low=-1, high=1)}) for item in change.per_class
    ]
    last = report.measurements[-1].model_copy(update={"change": change.model_copy(update={"per_class": calm})})
    report = report.model_copy(update={"measurements": [*report.measurements[:-1], last]})
    text = _written(report, tmp_path)["report.md"]
    assert "No class of 10 lost recall by an interval that excludes zero; none gained." in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings",
    [
        {"rows": ("original", "int8"), "samples": 500},
        {"rows": ("original", "int8"), "chosen": "original", "samples": 500},
        {"classes": 2, "samples": 140, "roc_auc": False},
        {"spread": 0.0, "samples": 500},
        {"latency_samples": 8, "samples": 40},
    ],
    ids=["two rows", "original ships", "two classes, no ROC-AUC", "no variance", "few samples"],
)
def test_reports_of_every_shape_are_written_and_printed(settings: dict[str, object], tmp_path: Path) -> None:
    report = make_report(**settings)
    text = _written(report, tmp_path)
    assert Report.model_validate_json(text["report.json"]) == report
    page = _Page(text["report.html"])
    assert "nan" not in " ".join(page.words).lower()
    assert "None" not in page.words
    assert report.chosen in _printed(report, 100)


def test_a_thousand_classes_show_those_that_changed_most(tmp_path: Path) -> None:
    report = make_report(rows=("original", "int8"), classes=1000, samples=20_000)
    text = _written(report, tmp_path)
    _Page(text["report.html"])
    assert len(text["report.html"].encode()) < 300_000
    assert "The 20 lowest of 1,000 classes" in text["report.html"]
    assert "The 12 of 1,000 classes whose counts changed most" in text["report.html"]
    assert text["report.json"].count("\n") < 40_000  # a matrix row is a line


def test_the_original_ships_when_nothing_was_worth_it(tmp_path: Path) -> None:
    report = make_report(rows=("original", "int8"), chosen="original", samples=500)
    text = _written(report, tmp_path)
    assert "The original itself ships" in text["report.md"]
    assert "faster" not in "".join(_Page(text["report.html"]).words)


def test_the_terminal_table_starts_with_the_original_and_marks_what_ships() -> None:
    report = make_report()
    lines = _printed(report, 160).splitlines()
    assert lines[0].split() == [column.title.split()[0] for column in wording.columns(report)[:-1]] + ["same", "top-1"]
    names = [line[:12].strip() for line in lines[2:7]]
    assert names == ["original", "student", "pruned", "fp16", "> int8"]
    assert lines[7].startswith("Invented verdict")
    assert lines[-1].startswith("warning: ")


@pytest.mark.parametrize("width", [100, 80, 60, 44])
def test_a_narrow_terminal_gets_fewer_columns_but_whole_numbers(width: int) -> None:
    report = make_report()
    lines = _printed(report, width).splitlines()
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("> int8"))
    assert wording.significant(wording.latency(report.measurements[-1]).p50_ms) in row
    assert f"{100 * report.measurements[-1].accuracy.top1:.2f}" in row
    assert "…" not in "".join(lines[:7])


def test_without_the_targets_runtime_no_form_shows_a_latency(tmp_path: Path) -> None:
    report = make_report(samples=500, not_measured="TensorRT is not installed.")
    text = _written(report, tmp_path)
    page = "".join(_Page(text["report.html"]).words)
    terminal = _printed(report, 160)
    for form in (text["report.md"].replace("\\", ""), page, terminal):
        assert "Latency on jetson-orin was not measured. TensorRT is not installed." in form
        assert "p50, ms" not in form
        assert "speed-up" not in form
        assert "peak" not in form
    assert page.count("Speed not measured") == 1
    assert "file size after each step: original 3.62 MB" in text["report.html"]
    assert Report.model_validate_json(text["report.json"]) == report


def test_the_layers_of_a_built_file_are_shown(tmp_path: Path) -> None:
    page = "".join(_Page(_written(make_report(samples=500), tmp_path)["report.html"]).words)
    assert "40 int8, 3 fp32" in page
    assert "int8 93 %, fp32 7 %" in page


def test_a_pipe_gets_no_colour_codes_and_ascii_gets_ascii() -> None:
    assert "\x1b" not in _printed(make_report(), 120)
    text = _printed(make_report(), 120, "ascii")
    assert "-0." in text
    assert "x [" in text
    assert "?" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.45678, "0.457"),
        (9.996, "10.0"),
        (2.0, "2.00"),
        (123.4, "123"),
        (12345.6, "12346"),
        (0, "0"),
        (-0.5, "−0.500"),
    ],
)
def test_three_significant_digits_without_exponent(value: float, text: str) -> None:
    assert wording.significant(value) == text


@pytest.mark.parametrize(
    ("value_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (380_323, "380 kB"), (999_600, "1.00 MB"), (3_623_881, "3.62 MB")],
)
def test_sizes_are_decimal(value_bytes: int, text: str) -> None:
    assert wording.size(value_bytes) == text


def test_points_have_a_sign_and_zero_has_none() -> None:
    assert [wording.points(value) for value in (0.5, -0.5, -0.001)] == ["+0.50", "−0.50", "0.00"]


def test_the_wilson_interval_matches_the_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263 gives 0.2553 to 0.3662.
    accuracy = make_report(rows=("original",), chosen="original", samples=100).measurements[0].accuracy
    interval = wording.top1_interval(accuracy.model_copy(update={"samples": 263, "correct": 81}))
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
