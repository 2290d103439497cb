"""What `tlc sensitivity` shows: the numbers of the result, nothing that its intervals do not carry, names as text."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tlc.cli import sensitivity_output as output
from tlc.cli.sensitivity import NAMES, sensitivity_command
from tlc.compress.sensitivity_report import TREATMENTS, Effect, Row, Sensitivity
from tlc.runtime.report import Interval


def effect(points: float, divergence: float, ratio: tuple[float, float, float] | None = None) -> Effect:
    return Effect(
        changed=("a", "b"),
        share_ratio=0.25,
        change_points=Interval(estimate=points, low=points - 1, high=points + 1),
        lost=3,
        won=1,
        divergence=divergence,
        latency_ratio=None if ratio is None else Interval(estimate=ratio[0], low=ratio[1], high=ratio[2]),
        timed_as="block" if ratio else None,
    )


def found(**changes: object) -> Sensitivity:
    rows = (
        Row(
            name="block",
            kind="block",
            type="BasicBlock",
            block=None,
            parameters=10,
            macs=300,
            effects={"removed": effect(-5.25, 0.5, (0.9, 0.89, 0.91)), "int8": effect(0.0, 2e-9, (1.3, 1.2, 1.4))},
        ),
        Row(
            name="block.<b>conv</b>",
            kind="layer",
            type="Conv2d",
            block="block",
            parameters=10,
            macs=300,
            effects={"int8": effect(-0.2, 0.00123, (1.01, 0.97, 1.03))},
        ),
        Row(name="head", kind="layer", type="Linear", block=None, parameters=10, macs=100, effects={}),
    )
    values: dict[str, object] = {
        "tlc_version": "1",
        "command": "tlc sensitivity model.pt",
        "model": "model.pt",
        "arch": "net.py:net",
        "target": "cpu-x86",
        "runtime": "onnxruntime 1",
        "not_measured": "",
        "noun": "images",
        "samples": 500,
        "held_out": 500,
        "top1_ratio": 0.9,
        "temperature": 4.0,
        "cuts_top1_ratio": 0.88,
        "p50_ms": 2.0,
        "threads": 1,
        "notes": (),
        "seconds": 3.0,
        "rows": rows,
    }
    return Sensitivity.model_validate({**values, **changes})


def test_the_table_has_points_divergence_and_time_of_every_treatment_that_there_is() -> None:
    lines = output.lines(found())

    assert re.split(r"\s{2,}", lines[0].strip()) == ["MACs %", "INT8", "KL", "p50 %", "removed", "KL", "p50 %"]
    assert lines[1].split() == ["block", "75", "0.00", "<", "1e-6", "+30.0", "−5.25", "0.50", "−10.0"]
    assert lines[2].split()[1:] == ["75", "−0.20", "1.2e-3", "≈"]
    assert "Untreated: 90.00 % top-1 on 500 images, held out; p50 2.00 ms on cpu-x86." in lines[-1]


def test_an_interval_that_reaches_what_two_starts_differ_in_is_no_effect() -> None:
    assert not output.unclear(Interval(estimate=1.05, low=1.03, high=1.07))
    assert output.unclear(Interval(estimate=1.05, low=1.0, high=1.1))
    assert output.unclear(Interval(estimate=0.97, low=0.96, high=0.99))


def test_colour_follows_the_logarithm_of_the_divergence() -> None:
    heats = [output.heat(effect(0, divergence), worst=1.0) for divergence in (1.0, 0.01, 1e-4, 1e-9, 0.0)]

    assert heats == [60, 30, 0, 0, 0]


def test_the_page_shows_every_row_and_names_stay_text() -> None:
    page = output.html(found())

    assert "&lt;b&gt;conv&lt;/b&gt;" in page
    assert "<b>conv" not in page
    assert page.count('<tr class="') == 3
    assert "−5.25 [−6.25, −4.25] points; 3 lost, 1 won; divergence 0.50; 25 % went" in page
    assert "http" not in re.sub(r"<p class=\"kicker\">.*?</p>", "", page)


def test_without_latencies_there_are_no_columns_of_time_and_the_reason_is_said() -> None:
    rows = [row.model_copy(update={"effects": {"int8": effect(0, 0.1)}}) for row in found().rows]
    bare = found(p50_ms=None, not_measured="It is elsewhere.", rows=rows)

    assert "p50" not in output.lines(bare)[0]
    assert output.lines(bare)[-1] == "No latencies: It is elsewhere."
    assert "No latencies: It is elsewhere." in output.html(bare)


def test_samples_that_were_held_out_are_counted() -> None:
    assert "Cuts are compared with 88.00 %" in output.basis(found())
    assert "Cuts" not in output.basis(found(cuts_top1_ratio=0.9))
    assert "on 500 images, 40 of them held out" in output.basis(found(held_out=40))


def test_json_reads_back(tmp_path: Path) -> None:
    output.write(found(), tmp_path / "new")

    text = (tmp_path / "new" / "sensitivity.json").read_text(encoding="utf-8")
    assert Sensitivity.model_validate_json(text) == found()
    assert (tmp_path / "new" / "sensitivity.html").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--treatments", "int4"], "'int4' is no treatment; there are int8, channels-25, channels-50, removed"),
        (["--samples", "3"], "3 is not in the range x>=16"),
    ],
)
def test_wrong_options_are_refused(options: list[str], said: str) -> None:
    done = CliRunner().invoke(sensitivity_command, ["net.pt", "--data", "x", "-o", "out", *options])

    assert done.exit_code == 2
    assert said in done.output


def test_the_options_name_every_treatment() -> None:
    assert NAMES == TREATMENTS == tuple(output.TITLES)
