"""Charts as inline SVG. Colours come from CSS classes, so that they follow the page's light or dark scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH = 640


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    low: float
    high: float
    kind: str
    """CSS class that gives the colour: base, wmpo, control, other."""


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[tuple[float, float]]
    kind: str
    dashed: bool = False
    whiskers: Sequence[tuple[float, float]] = ()
    """(low, high) per point; such a line is drawn as points only."""


class Plot(NamedTuple):
    """What is inside an SVG element, and its size."""

    width: int
    height: int
    inside: str


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def rate_bars(bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0 to 100 %, with whiskers from low to high."""
    left, right, row = 8, WIDTH - 70, 58
    high = min(1.0, max(0.1, math.ceil(10 * max(bar.high for bar in bars)) / 10))

    def x(value: float) -> float:
        return left + (right - left) * value / high

    parts = []
    for i in range(round(10 * high) + 1):
        if high <= 0.5 or i % 2 == 0:
            place = x(i / 10)
            parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="0" y2="{row * len(bars)}"/>')
            parts.append(_text(place, row * len(bars) + 18, percent(i / 10), "tick", "middle" if i else "start"))
    for i, bar in enumerate(bars):
        y = i * row
        middle = y + 36
        parts.append(_text(left, y + 16, bar.label, "label"))
        width = max(1.0, x(bar.value) - left)
        parts.append(f'<rect class="fill-{bar.kind}" x="{left}" y="{y + 24}" width="{width:.1f}" height="24" rx="3"/>')
        whisker = f"M{x(bar.low):.1f} {middle - 6}V{middle + 6}M{x(bar.low):.1f} {middle}H{x(bar.high):.1f}"
        parts.append(f'<path class="whisker" d="{whisker}M{x(bar.high):.1f} {middle - 6}V{middle + 6}"/>')
        parts.append(_text(x(bar.high) + 10, middle + 5, percent(bar.value), "value"))
    return _svg(Plot(WIDTH, row * len(bars) + 26, "".join(parts)))


def line_plot(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    height: int = 300,
    width: int = WIDTH,
    y_range: tuple[float, float] = (0.0, 1.0),
    rates: bool = True,
    level: tuple[float, str] | None = None,
    x_end: float | None = None,
    x_marks: Sequence[tuple[float, str]] = (),
) -> Plot:
    """Lines over a common x axis. `rates`: y is labelled in percent. `level`: a dashed line across, with its name.
    The x axis runs from 0 to `x_end`, or to the last point; `x_marks`: its labels, where they aren't round numbers."""
    left, right, top, bottom = 60, width - 16, 30, height - 44
    xs = [x for line in lines for x, _ in line.points]
    x0, x1 = 0.0, max([*xs, x_end or 0.0]) or 1.0
    y0, y1 = y_range

    def px(x: float) -> float:
        return left + (right - left) * (x - x0) / (x1 - x0)

    def py(y: float) -> float:
        return bottom - (bottom - top) * (min(max(y, y0), y1) - y0) / (y1 - y0)

    parts = []
    for y in ticks(y0, y1, 5):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        parts.append(_text(left - 8, py(y) + 4, percent(y) if rates else f"{y:g}", "tick", "end"))
    for x, text in x_marks or [(x, f"{x:g}") for x in ticks(x0, x1, 6)]:
        parts.append(_text(px(x), bottom + 18, text, "tick", "middle"))
    parts.append(_text((left + right) / 2, height - 6, x_label, "tick", "middle"))
    parts.append(_text(8, 16, y_label, "tick"))
    if level is not None:
        y = py(level[0])
        parts.append(f'<line class="level" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left + 6, y - 6, level[1], "tick"))
    for line in lines:
        points = [(px(x), py(y)) for x, y in line.points if math.isfinite(y)]
        if line.whiskers:
            for (x, y), (low, high) in zip(points, line.whiskers, strict=True):
                parts.append(f'<path class="whisker" d="M{x:.1f} {py(low):.1f}V{py(high):.1f}"/>')
                parts.append(f'<circle class="fill-{line.kind} ring" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>')
        elif points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path class="line-{line.kind}{" dashed" if line.dashed else ""}" d="{path}"/>')
    return Plot(width, height, "".join(parts))


def cost_bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars, each (label, value, text), on a scale from zero to the largest."""
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    left, right, row = 170, WIDTH - 110, 28
    parts = []
    for i, (label, value, text) in enumerate(rows):
        y = i * row
        width = max(1.0, (right - left) * value / most)
        parts.append(_text(left - 10, y + 18, label, "label", "end"))
        parts.append(f'<rect class="fill-other" x="{left}" y="{y + 4}" width="{width:.1f}" height="20" rx="3"/>')
        parts.append(_text(left + width + 8, y + 18, text, "tick"))
    return _svg(Plot(WIDTH, row * len(rows), "".join(parts)))


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def with_legend(plot: Plot, lines: Sequence[Line]) -> str:
    """A plot of these lines for a page."""
    return _svg(plot) + _legend(lines)


def _legend(lines: Sequence[Line]) -> str:
    items = []
    for line in lines:
        if line.whiskers:
            mark = f'<circle class="fill-{line.kind} ring" cx="14" cy="7" r="5"/>'
        else:
            mark = f'<path class="line-{line.kind}{" dashed" if line.dashed else ""}" d="M1 7H27"/>'
        items.append(f'<span><svg width="28" height="14" aria-hidden="true">{mark}</svg>{escape(line.label)}</span>')
    return f'<p class="legend">{"".join(items)}</p>' if len(items) > 1 else ""


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(plot: Plot) -> str:
    kind = "chart narrow" if plot.width < WIDTH else "chart"
    return f'<svg class="{kind}" viewBox="0 0 {plot.width} {plot.height}" role="img">{plot.inside}</svg>'
