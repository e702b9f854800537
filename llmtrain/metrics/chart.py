"""Curves as shapes on a plane, which `metrics.picture` turns into SVG or PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

LIGHT = ("#1f6feb", "#d1560f", "#1a7f37", "#8250df", "#bf3989", "#7d6608", "#0a7a83", "#57606a")
"""Colours of the series, in their order; told apart by colour-blind people too as far as eight can be."""

AXIS, GRID, TEXT = "#57606a", "#d8dee4", "#24292f"

LEFT, RIGHT, TOP, BOTTOM = 62, 22, 30, 34
"""Room around the curves for titles and numbers, in pixels."""

LETTER, LEGEND_MARK, LEGEND_ROW = 6.4, 32, 16
"""Width of a letter (about), of the mark before a name in the legend, and height of its rows."""

LOG_SPREAD = 50.0
"""Positive values that spread further are drawn on a logarithmic axis, where the chart allows it."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        points: (x, y), sorted by x; both finite.
        dots: mark each point, as for few of them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves in one pair of axes.

    Attributes:
        wide: positive values of very different size may go on a logarithmic axis.
        first_colour: number of the first series among the colours.
    """

    title: str
    series: Sequence[Series]
    wide: bool = False
    first_colour: int = 0

    @property
    def drawn(self) -> list[tuple[int, Series]]:
        """Series that have points, with the number of their colour."""
        return [(self.first_colour + i, one) for i, one in enumerate(self.series) if one.points]


@dataclass(frozen=True)
class Line:
    """A line through points, in pixels from the left upper corner."""

    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.0


@dataclass(frozen=True)
class Dot:
    """A small disc; `text` is what it says when one points at it."""

    x: float
    y: float
    colour: str
    text: str = ""


@dataclass(frozen=True)
class Label:
    """A text whose `anchor` (start, middle or end) stands at x, its base line at y."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    colour: str = TEXT
    bold: bool = False


Shape = Line | Dot | Label


@dataclass
class Axis:
    """Numbers -> pixels.

    Args:
        low, high: of the numbers.
        start, end: pixels of these.
        log: logarithmic; the numbers are positive.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5 x a power of ten that cuts `span` into at most `most` parts."""
    base = 10.0 ** math.floor(math.log10(span / most))
    return next(base * factor for factor in (1, 2, 5, 10, 20) if span / (base * factor) <= most)


def linear_axis(low: float, high: float, start: float, end: float, most: int, whole: bool = False) -> Axis:
    """An axis that ends at round numbers (with `whole`: at the numbers themselves, whole ticks between)."""
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = nice_step(high - low, most)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step) if whole else math.floor(low / step + 1e-9)
    last = math.floor(high / step) if whole else math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    if not whole:
        low, high = ticks[0], ticks[-1]
    return Axis(low, high, start, end, ticks=ticks)


def log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis that ends at powers of ten."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    stride = max(1, (last - first) // 6)
    ticks = [10.0**number for number in range(first, last + 1, stride)]
    return Axis(10.0**first, 10.0**last, start, end, log=True, ticks=ticks)


def tick_text(value: float) -> str:
    """A round number in few characters."""
    size = abs(value)
    if size >= 1e4 or (0 < size < 1e-3):
        for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= unit:
                return f"{value / unit:.4g}{letter}"
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.5g}"


def thin(points: Sequence[tuple[float, float]], columns: int) -> list[tuple[float, float]]:
    """At most two points for each column: the least and the greatest, in their order, so that no spike is
    lost; the first and the last point stay."""
    if len(points) <= 2 * columns:
        return list(points)
    kept = [points[0]]
    edges = [round(1 + i * (len(points) - 2) / columns) for i in range(columns + 1)]
    for start, end in pairwise(edges):
        part = points[start:end]
        if part:
            ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
            kept += sorted(ends)
    return [*kept, points[-1]]


def draw(chart: Chart, width: int, height: int) -> list[Shape]:
    """The shapes of a chart; only a title and a word where there is no point."""
    shapes: list[Shape] = [Label(LEFT, 18, chart.title, bold=True)]
    drawn = chart.drawn
    if not drawn:
        return [*shapes, Label(width / 2, height / 2, "no numbers", "middle", AXIS)]
    xs = [x for _, one in drawn for x, _ in one.points]
    ys = [y for _, one in drawn for _, y in one.points]
    x_axis = linear_axis(min(xs), max(xs), LEFT, width - RIGHT, max(2, width // 90), whole=True)
    legend, lower = _legend(chart, drawn, width)
    y_span = height - BOTTOM, TOP + lower
    log = chart.wide and min(ys) > 0 and max(ys) / min(ys) > LOG_SPREAD
    y_axis = log_axis(min(ys), max(ys), *y_span) if log else linear_axis(min(ys), max(ys), *y_span, 5)
    shapes += _frame(x_axis, y_axis)
    columns = width - LEFT - RIGHT
    for number, one in drawn:
        colour = LIGHT[number % len(LIGHT)]
        places = [(x_axis(x), y_axis(y)) for x, y in thin(one.points, columns)]
        if len(places) > 1:
            shapes.append(Line(places, colour, 1.6))
        if one.dots or len(one.points) == 1:
            shapes += [
                Dot(x_axis(x), y_axis(y), colour, f"{one.name}, step {x:g}: {y:.6g}")
                for x, y in thin(one.points, 60)
            ]
    return shapes + legend


def _frame(x_axis: Axis, y_axis: Axis) -> list[Shape]:
    """Grid, axes and their numbers."""
    left, right, bottom = x_axis.start, x_axis.end, y_axis.start
    shapes: list[Shape] = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        shapes += [Line([(left, y), (right, y)], GRID), Label(left - 6, y + 4, tick_text(tick), "end", AXIS)]
    for tick in x_axis.ticks:
        x = x_axis(tick)
        shapes += [
            Line([(x, bottom), (x, bottom + 4)], AXIS),
            Label(x, bottom + 16, tick_text(tick), "middle", AXIS),
        ]
    shapes.append(Line([(left, bottom), (right, bottom)], AXIS))
    return [*shapes, Label(right, bottom + 30, "step", "end", AXIS)]


def _legend(chart: Chart, drawn: Sequence[tuple[int, Series]], width: int) -> tuple[list[Shape], int]:
    """Names of the series, beside the title where there is room, else in rows below it; and the pixels that
    these rows take. A single series that the title names has none."""
    if len(drawn) == 1 and drawn[0][1].name == chart.title:
        return [], 0
    widths = [LEGEND_MARK + LETTER * len(one.name) for _, one in drawn]
    end = float(width - RIGHT)
    beside = sum(widths) <= end - LEFT - 1.3 * LETTER * len(chart.title)
    x, y = (end - sum(widths), 18) if beside else (float(LEFT), 18 + LEGEND_ROW)
    shapes: list[Shape] = []
    for (number, one), room in zip(drawn, widths, strict=True):
        if x + room > end + 1 and x > LEFT:
            x, y = float(LEFT), y + LEGEND_ROW
        shapes += [
            Line([(x, y - 4), (x + 14, y - 4)], LIGHT[number % len(LIGHT)], 3),
            Label(x + 19, y, one.name, colour=AXIS),
        ]
        x += room
    return shapes, y - 18
