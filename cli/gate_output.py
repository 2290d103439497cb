"""A gate's report in the forms that CI systems read.

Names of models and classes, and what a crashed model printed, may hold anything: in every form they are made harmless.
"""

import hashlib
import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlc.runtime.gate_report import Check, GateReport

COMMENT_MARKER = "<!-- tlc gate -->"
"""First line of a comment, by which CI finds the one to update."""

_VERDICTS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}
_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️"}
_MOST_CLASSES = 20
_MOST_ANNOTATIONS = 10
"""Of one kind that GitHub shows for one step."""
_MARKUP = re.compile(r"[&<>|`*_{}\[\]#!~$\\:]")


def gate_lines(report: "GateReport") -> list[str]:
    """Return the report as lines of text, none of which begins with what a model or class is called."""
    from tlc.cli.table import columns

    rows = [
        [printable(check.name), _VERDICTS[check.verdict].lower(), *_amounts(check)] for check in _shown(report.checks)
    ]
    lines = [f"{_VERDICTS[report.verdict]}: {printable(_title(report))}", ""]
    lines += columns(["check", "verdict", "limit", "found", "bounds"], rows)
    lines += _classes_left(report)
    lines += ["", *(f"{printable(check.name)}: {printable(check.reason)}" for check in _reasoned(report))]
    lines += [f"warning ({one.code}): {printable(one.message)}" for one in report.bench.warnings]
    return [*lines, _effort(report)]


def junit_xml(report: "GateReport", seconds: float) -> str:
    """Return JUnit XML, one test case per check: what failed is a failure, what is open an error.

    In the order and with the attributes that junit-10.xsd of Jenkins' xUnit plugin asks for.
    """
    from xml.etree import ElementTree as ET

    failures, errors = (sum(check.verdict == kind for check in report.checks) for kind in ("fail", "inconclusive"))
    counts = {
        "tests": str(len(report.checks)),
        "failures": str(failures),
        "errors": str(errors),
        "time": f"{seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "tlc gate", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": f"tlc gate {printable(report.candidate)}", **counts})
    for check in report.checks:
        case = ET.SubElement(suite, "testcase", {"name": printable(check.name), "classname": "tlc.gate", "time": "0"})
        reason = printable(check.reason)
        if check.verdict != "pass":
            kind = "failure" if check.verdict == "fail" else "error"
            ET.SubElement(case, kind, {"message": reason, "type": check.verdict}).text = reason
        else:
            ET.SubElement(case, "system-out").text = reason
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def markdown(report: "GateReport") -> str:
    """Return the report as GitHub's and GitLab's Markdown, for a step summary or a comment."""
    lines = [
        f"### {_SIGNS[report.verdict]} Gate: {_VERDICTS[report.verdict].lower()}",
        "",
        f"{_text(_title(report))}",
        "",
        "| check | verdict | limit | found | bounds |",
        "|---|---|---|---|---|",
    ]
    for check in _shown(report.checks):
        cells = [_text(check.name), f"{_SIGNS[check.verdict]} {check.verdict}", *map(_text, _amounts(check))]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_classes_left(report)] if _classes_left(report) else []
    reasons = [f"- {_text(check.name)}: {_text(check.reason)}" for check in _reasoned(report)]
    warnings = [f"- {_text(one.code)}: {_text(one.message)}" for one in report.bench.warnings]
    lines += ["", *reasons] if reasons else []
    lines += ["", "Warnings:", "", *warnings] if warnings else []
    return "\n".join([*lines, "", f"<sub>{_text(_effort(report))}</sub>", ""])


def comment(report: "GateReport") -> str:
    """Return the Markdown of a comment on a pull request, with the marker that finds it again."""
    return f"{COMMENT_MARKER}\n{markdown(report)}"


def annotations(report: "GateReport") -> list[str]:
    """Return GitHub's workflow commands for what did not pass, at most ten of each kind, as GitHub shows them.

    Escaped as https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts does.
    """
    lines = []
    for verdict, command in (("fail", "error"), ("inconclusive", "warning")):
        checks = [check for check in report.checks if check.verdict == verdict]
        for check in checks[: _MOST_ANNOTATIONS if len(checks) <= _MOST_ANNOTATIONS else _MOST_ANNOTATIONS - 1]:
            title = _escaped(f"tlc gate: {check.name}").replace(":", "%3A").replace(",", "%2C")
            lines.append(f"::{command} title={title}::{_escaped(check.reason)}")
        if len(checks) > _MOST_ANNOTATIONS:
            more = len(checks) - _MOST_ANNOTATIONS + 1
            lines.append(f"::{command} title=tlc gate::{more} more checks: see the step summary")
    return lines


def code_quality_json(report: "GateReport") -> str:
    """Return GitLab's code quality report: one finding for each check that did not pass.

    The fingerprint is the same from run to run, so that a merge request shows what is new and what was resolved.
    https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
    """
    path = printable(next(one.path for one in report.bench.models if one.name == report.candidate))
    return json.dumps(
        [
            {
                "description": printable(f"{check.name}: {check.reason}"),
                "check_name": f"tlc-gate/{printable(check.name)}",
                "fingerprint": hashlib.sha256(json.dumps([path, check.name]).encode()).hexdigest(),
                "severity": "critical" if check.verdict == "fail" else "minor",
                "location": {"path": path, "lines": {"begin": 1}},
            }
            for check in report.checks
            if check.verdict != "pass"
        ],
        indent=2,
    )


def printable(text: str) -> str:
    r"""Return the text on one line: line ends, control and invisible characters are spelled out, such as `\x1b`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _text(text: str) -> str:
    """Return the text as Markdown that shows it and nothing else: no markup, no table cells, no mentions."""
    harmless = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))
    return harmless.replace("@", "&#64;&#8203;")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _title(report: "GateReport") -> str:
    device = report.bench.environment.get("device")
    where = f" on {device}" if device else ""
    if report.stored_baseline is not None:
        return f"{report.candidate} against {report.baseline} of {report.stored_baseline}{where}"
    against = "" if report.baseline is None else f" against {report.baseline}"
    return f"{report.candidate}{against}{where}"


def _effort(report: "GateReport") -> str:
    candidate = next(model for model in report.bench.models if model.name == report.candidate)
    runs, launches = sum(len(launch.samples_ns) for launch in candidate.launches), len(candidate.launches)
    return (
        f"{report.looks} of 3 looks, {launches} launch{'' if launches == 1 else 'es'}, {runs} runs of the candidate, "
        f"confidence {100 * report.confidence:g} %, seed {report.seed}."
    )


def _shown(checks: "list[Check]") -> "list[Check]":
    """Return the checks without those of classes that passed, if they are many."""
    classes = [check for check in checks if check.name.startswith("per-class-drop ")]
    if len(classes) <= _MOST_CLASSES:
        return checks
    return [check for check in checks if check not in classes or check.verdict != "pass"]


def _classes_left(report: "GateReport") -> list[str]:
    left = len(report.checks) - len(_shown(report.checks))
    return [f"And {left} classes within their limit."] if left else []


def _reasoned(report: "GateReport") -> "list[Check]":
    return [check for check in report.checks if check.verdict != "pass"]


def _amounts(check: "Check") -> list[str]:
    """Return limit, value and bounds as text."""
    bounds = "" if check.low is None or check.high is None or check.low == check.high else _range(check)
    return [_amount(check.limit, check.unit), _amount(check.value, check.unit), bounds]


def _range(check: "Check") -> str:
    return f"{_amount(check.low, check.unit)} to {_amount(check.high, check.unit)}"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e6:.3f} MB"
    if unit == "ms":
        return f"{value:.4g} ms"
    return f"{value:+.2f} {unit}" if unit == "%" else f"{value:.2f} {unit}"
