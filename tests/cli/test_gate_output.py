"""A gate's report as text, JUnit, Markdown, annotations and code quality, whatever models and classes are called."""

import json
import re
from xml.etree import ElementTree as ET

import pytest
from launches import gate_report

from tlc.cli.gate_output import (
    COMMENT_MARKER,
    annotations,
    code_quality_json,
    comment,
    gate_lines,
    junit_xml,
    markdown,
    printable,
)
from tlc.runtime.bench_report import BenchWarning
from tlc.runtime.gate_report import Check, GateReport, Verdict

HOSTILE = "a|b\n::error::<script>\r\x1b[31m@team`*x*`[y](z)&\0%0A ]]> --> :+1:"
REASON = "At least 7 % slower.\n::stop-commands::x"


def check(name: str, verdict: Verdict = "pass", reason: str = "It is.") -> Check:
    return Check(name=name, limit=5.0, value=7.25, low=6.0, high=8.5, unit="%", verdict=verdict, reason=reason)


@pytest.fixture
def report() -> GateReport:
    checks = [
        check("max-slowdown", "fail", REASON),
        check("max-size"),
        check(f"per-class-drop {HOSTILE}", "inconclusive"),
    ]
    warning = BenchWarning(code="throttled", model=None, message=f"It was {HOSTILE}.")
    return gate_report(checks, candidate=HOSTILE, warnings=[warning])


def test_the_text_has_a_line_for_each_check_and_a_reason_for_what_did_not_pass(report: GateReport) -> None:
    lines = gate_lines(report)

    assert lines[0].startswith("FAIL: a|b\\n::error::<script>")
    assert lines[2].split() == ["check", "verdict", "limit", "found", "bounds"]
    assert lines[3].split() == ["max-slowdown", "fail", "+5.00", "%", "+7.25", "%", "+6.00", "%", "to", "+8.50", "%"]
    assert r"max-slowdown: At least 7 % slower.\n::stop-commands::x" in lines
    assert not any(line.startswith("max-size:") for line in lines)
    assert lines[-1] == "2 of 3 looks, 1 launch, 3 runs of the candidate, confidence 99 %, seed 7."


def test_no_line_of_the_text_is_a_command_to_a_runner_or_moves_the_cursor(report: GateReport) -> None:
    for line in gate_lines(report):
        assert not line.lstrip().startswith("::")
        assert line.isprintable()


def test_many_classes_that_kept_their_limit_are_counted(report: GateReport) -> None:
    classes = [check(f"per-class-drop {number}", "fail" if number == 3 else "pass") for number in range(30)]
    many = report.model_copy(update={"checks": classes})

    text, page = "\n".join(gate_lines(many)), markdown(many)

    for shown in (text, page):
        assert "And 29 classes within their limit." in shown
        assert "per-class-drop 3" in shown
        assert "per-class-drop 7" not in shown


def test_junit_has_a_case_per_check_in_the_order_of_its_schema(report: GateReport) -> None:
    root = ET.fromstring(junit_xml(report, 12.3456))

    (suite,) = root
    assert (root.tag, suite.tag, suite.get("time")) == ("testsuites", "testsuite", "12.346")
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
    }
    assert set(suite.keys()) <= {"name", "tests", "failures", "errors", "time"}
    assert [(case.tag, case.get("classname"), [child.tag for child in case]) for case in suite] == [
        ("testcase", "tlc.gate", ["failure"]),
        ("testcase", "tlc.gate", ["system-out"]),
        ("testcase", "tlc.gate", ["error"]),
    ]
    assert suite[0].get("name") == "max-slowdown"
    assert suite[0][0].get("message") == r"At least 7 % slower.\n::stop-commands::x"
    assert suite[2].get("name") == f"per-class-drop {printable(HOSTILE)}"


def test_markdown_has_one_row_per_check_and_shows_names_as_they_are(report: GateReport) -> None:
    rows = [line for line in markdown(report).splitlines() if line.startswith("|")]

    assert rows[0] == "| check | verdict | limit | found | bounds |"
    assert rows[2] == "| max-slowdown | ❌ fail | +5.00 % | +7.25 % | +6.00 % to +8.50 % |"
    assert len(rows) == 2 + 3
    assert {row.count("|") for row in rows} == {6}
    for text in ("<script", "@team", "`", "[y]", "*x*", "\x1b", "\0", ":+1:", "-->"):
        assert text not in markdown(report)
    assert "&#60;script&#62;" in markdown(report)
    assert "&#64;&#8203;team" in markdown(report)


def test_a_comment_begins_with_the_marker_that_finds_it_again(report: GateReport) -> None:
    first, rest = comment(report).split("\n", 1)

    assert first == COMMENT_MARKER
    assert rest == markdown(report)
    assert COMMENT_MARKER not in rest


def test_annotations_are_one_line_each_and_escaped(report: GateReport) -> None:
    fail, open_ = annotations(report)

    assert fail == "::error title=tlc gate%3A max-slowdown::At least 7 %25 slower.%0A::stop-commands::x"
    assert open_.startswith("::warning title=tlc gate%3A per-class-drop a|b%0A%3A%3Aerror%3A%3A<script>%0D")
    assert open_.endswith("::It is.")
    assert "%250A" in open_


def test_annotations_are_as_many_as_github_shows(report: GateReport) -> None:
    many = report.model_copy(update={"checks": [check(f"per-class-drop {i}", "fail") for i in range(12)]})
    ten = report.model_copy(update={"checks": many.checks[:10]})

    assert len(annotations(many)) == len(annotations(ten)) == 10
    assert annotations(many)[-1] == "::error title=tlc gate::3 more checks: see the step summary"


def test_code_quality_has_a_finding_for_each_check_that_did_not_pass(report: GateReport) -> None:
    found = json.loads(code_quality_json(report))

    assert [one["severity"] for one in found] == ["critical", "minor"]
    assert found[0]["check_name"] == "tlc-gate/max-slowdown"
    assert found[0]["location"] == {"path": "models/candidate.onnx", "lines": {"begin": 1}}
    assert all(re.fullmatch("[0-9a-f]{64}", one["fingerprint"]) for one in found)
    assert all(one["description"].isprintable() for one in found)


def test_a_finding_keeps_its_fingerprint_while_its_numbers_change(report: GateReport) -> None:
    later = report.model_copy(update={"checks": [check("max-slowdown", "fail", "At least 9 % slower.")]})

    before, after = (json.loads(code_quality_json(one))[0]["fingerprint"] for one in (report, later))
    assert before == after
