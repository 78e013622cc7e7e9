"""Plots as SVG text: lines or dots over a linear time, or what else grows evenly, and a logarithmic value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadtest.results import Fault

WIDTH, HEIGHT = 900, 300
GAP_SECONDS = 1.5
"""A line does not go on over a longer time without a point: there was nothing to measure."""
STYLE = """
.line { fill: none; stroke-width: 1.5; stroke-linecap: round; } .grid { stroke: #d1d9e0; }
.fault { fill: #cf222e; fill-opacity: 0.12; }
"""
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 150, 30, 30


@dataclass(frozen=True, slots=True)
class Series:
    """Points (time, value), in order of time (or of what is on that axis); `style` is `line`, `dashed` or `dots`."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    style: str = "line"


class Chart:
    """One plot from `begun_at` to `ended_at`, with the faults as bands; values that are not positive are left out."""

    def __init__(
        self, begun_at: float, ended_at: float, faults: Sequence[Fault], unit: str = "s", gap: float = GAP_SECONDS
    ) -> None:
        self._begun_at = begun_at
        self._seconds = max(ended_at - begun_at, 1.0)
        self._faults = faults
        self._unit = unit
        self._gap = gap

    def draw(self, title: str, series: Sequence[Series]) -> str:
        """The SVG element; `title` names the unit of the values."""
        values = [value for one in series for _, value in one.points if value > 0] or [1.0]
        self._lowest = math.floor(math.log10(min(values)))
        self._highest = max(math.ceil(math.log10(max(values))), self._lowest + 1)
        drawn = [*self._bands(), *self._grid(), *(self._series(one) for one in series), *_legend(series)]
        head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        return head + _text(_LEFT, 16, title) + "".join(drawn) + "</svg>\n"

    def _x(self, at: float) -> float:
        share = min(max((at - self._begun_at) / self._seconds, 0.0), 1.0)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        share = (math.log10(value) - self._lowest) / (self._highest - self._lowest)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def _bands(self) -> list[str]:
        bands = []
        for fault in self._faults:
            left, right = self._x(fault.begun_at), self._x(fault.ended_at)
            size = f'width="{max(right - left, 1):.1f}" height="{HEIGHT - _TOP - _BOTTOM}"'
            bands.append(f'<rect class="fault" x="{left:.1f}" y="{_TOP}" {size}/>')
            bands.append(_text(left, _TOP + 12, fault.name))
        return bands

    def _grid(self) -> list[str]:
        marks = []
        for power in range(self._lowest, self._highest + 1):
            y = self._y(10.0**power)
            marks.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            marks.append(_text(_LEFT - 6, y + 4, f"{10.0**power:g}", "end"))
        step = next((s for s in (1, 2, 5, 10, 30, 60, 300) if self._seconds / s <= 12), 600)
        seconds = range(0, int(self._seconds) + 1, step)
        return marks + [_text(self._x(self._begun_at + s), HEIGHT - 10, f"{s} {self._unit}", "middle") for s in seconds]

    def _series(self, series: Series) -> str:
        points = [(at, value) for at, value in series.points if value > 0]
        if series.style == "dots":
            dots = "".join(
                f'<circle cx="{self._x(at):.1f}" cy="{self._y(value):.1f}" r="1.5"/>' for at, value in points
            )
            return f'<g fill="{series.colour}" fill-opacity="0.6">{dots}</g>'
        steps = []
        last_at = -math.inf
        for at, value in points:
            steps.append(f"{'L' if at - last_at <= self._gap else 'M'}{self._x(at):.1f} {self._y(value):.1f}h0")
            last_at = at
        dashes = ' stroke-dasharray="3 3"' if series.style == "dashed" else ""
        return f'<path class="line" d="{"".join(steps)}" stroke="{series.colour}"{dashes}/>'


def standalone(svg: str) -> str:
    """What `draw` gave, as a file of its own."""
    head, title, rest = svg.partition("</title>")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" ')
    return f"{head}{title}<style>{STYLE}</style>{rest}"


def _legend(series: Sequence[Series]) -> list[str]:
    left = WIDTH - _RIGHT + 12
    rows = []
    for row, one in enumerate(series):
        y = _TOP + 10 + 16 * row
        dashes = ' stroke-dasharray="3 3"' if one.style == "dashed" else ""
        rows.append(f'<path d="M{left} {y - 4}h16" stroke="{one.colour}" stroke-width="2"{dashes}/>')
        rows.append(_text(left + 22, y, one.name))
    return rows


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
