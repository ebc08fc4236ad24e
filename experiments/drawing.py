"""Plots as SVG files of their own: with colours, and a legend inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wmpo.report.charts import Plot

COLOURS = (
    "#1278b5", "#d08a2e", "#7d5fb3", "#26a65b", "#b5432f", "#5c6670", "#a3358c", "#8a8d1f", "#2f8f9d", "#1d2328",
)  # fmt: skip
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#5c6670}.grid{stroke:#e3e5e3}.level{stroke:#5c6670;stroke-dasharray:3 4}"
    ".whisker{stroke:#5c6670;fill:none}.line-level{fill:none;stroke:#8b98a5;stroke-width:1.5}"
)
ROW = 20


def drawn(plot: Plot, labels: Sequence[str]) -> str:
    """A whole SVG file of `plot`, whose lines are of the kinds arm0, arm1 ... with these labels."""
    tall = plot.height + ROW * len(labels)
    style, legend = STYLE, []
    for i, label in enumerate(labels):
        colour, y = COLOURS[i % len(COLOURS)], plot.height + ROW * i + 6
        style += f".line-arm{i}{{fill:none;stroke:{colour};stroke-width:2.4}}.fill-arm{i}{{fill:{colour}}}"
        legend.append(f'<rect x="60" y="{y}" width="18" height="6" fill="{colour}"/>')
        legend.append(f'<text x="86" y="{y + 7}">{escape(label)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {plot.width} {tall}" role="img">'
    background = f'<rect width="{plot.width}" height="{tall}" fill="#fff"/>'
    return f"{head}<style>{style}</style>{background}{plot.inside}{''.join(legend)}</svg>\n"
