"""matplotlib figures as SVG for inlining in an HTML page.

Text stays text. Colours are CSS variables (`--ink`, `--series-0` ...), so that the page's light and dark themes apply.
The same figure gives the same bytes: no date, no random identifier.
"""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH = 430.0
"""Of every plot, in user units: a font of 11 units is legible on a phone and not huge on a desktop."""

# matplotlib draws in these stand-ins; `svg` turns them into the variables that the page's style defines.
INK, MUTED, GRID, ON_FILL, GOOD, BAD = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106"
SERIES = tuple(f"#02020{i}" for i in range(6))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    ON_FILL: "--on-fill",
    GOOD: "--good",
    BAD: "--bad",
    **{colour: f"--series-{i}" for i, colour in enumerate(SERIES)},
}
_RC: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x$"
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


def svg(draw: Callable[[Figure], None], *, height: float, name: str, label: str) -> str:
    """Return what `draw` puts on an empty figure as an `<svg>` element that scales to its container.

    `name` is its class, and keeps the identifiers of the plots in one page apart; `label` is read out in its place.
    """
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        mpl.rcParams.update(_RC)
        mpl.rcParams["svg.hashsalt"] = name
        # Only widths are estimated with matplotlib's font; the reader's own fonts draw what it has no glyph for.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    found = re.search(r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>(.*)</svg>", text.getvalue(), re.DOTALL)
    assert found, "matplotlib wrote no <svg>"
    body = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", found[2], count=1, flags=re.DOTALL)
    # Only inside tags: what a class is called is text, where '<' and '>' are escaped.
    body = re.sub(r"<[^>]*>", _themed, body)
    return f'<svg class="plot {name}" role="img" aria-label="{escape(label)}" viewBox="{found[1]}">{body}</svg>'


def _themed(tag: re.Match[str]) -> str:
    text = tag[0].replace("xlink:href", "href").replace("\n", " ")
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)  # never referred to, and not unique in a page of many plots
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", text)
    return re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda colour: f"var({_VARIABLES[colour[0]]})", text)
