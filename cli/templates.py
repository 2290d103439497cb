"""HTML and Markdown made of the templates of this folder: text of others stays text in both."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tlc.cli import wording


def rendered(template: str, context: Mapping[str, Any]) -> str:
    """Return the template of that name with `context`; HTML is escaped by itself, Markdown by the filter `plain`.

    Filters besides Jinja's own: `code` and `plain` for Markdown, `svg` for markup that is ours, `interval`, `flat` and
    `json` for values.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.j2"),  # Markdown has filters of its own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        code=_code, plain=_plain, svg=Markup, interval=_interval, flat=wording.flat, json=wording.as_json
    )
    return environment.get_template(template).render(context)


def _interval(text: str) -> Markup:
    """Return `text` as HTML, its bounds (`[low, high]`) set smaller than its estimate."""
    return Markup(re.sub(r"(\[.*?\])", r'<span class="ci">\1</span>', str(escape(text))))  # noqa: S704 (escaped)


def _code(text: str) -> str:
    """Return `text` as a Markdown code span, where nothing of it is markup, a link or a mention."""
    text = wording.printable(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text[:1] in ("`", "") or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", r"\|")


def _plain(text: str) -> str:
    """Return `text` as Markdown that renders as itself; an `@` mentions nobody."""
    return re.sub(r"([\\`*_\[\]<>|~&#])", r"\\\1", wording.printable(text)).replace("@", "@\N{ZERO WIDTH SPACE}")
