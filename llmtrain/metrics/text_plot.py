"""Curves as lines of characters."""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain.metrics.chart import Series, linear_axis, tick_text


def text_plot(series: Sequence[Series], marks: str, width: int = 72, height: int = 12) -> list[str]:
    """Lines of a plot: numbers on the left, steps below.

    Args:
        series: curves; where two meet, the mark of the later one is seen.
        marks: a character for each of them.
        width: columns of the plane.
        height: its rows.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return ["no numbers yet"]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_axis = linear_axis(min(ys), max(ys), height - 1, 0, 5)
    plane = [[" "] * width for _ in range(height)]
    for mark, one in zip(marks, series, strict=True):
        for x, y in one.points:
            column = round((x - x_low) / (x_high - x_low) * (width - 1)) if x_high > x_low else width // 2
            plane[round(y_axis(y))][column] = mark
    names = {round(y_axis(tick)): tick_text(tick) for tick in y_axis.ticks}
    room = max(len(name) for name in names.values())
    lines = [f"{names.get(row, ''):>{room}} │{''.join(cells).rstrip()}" for row, cells in enumerate(plane)]
    left, right = tick_text(x_low), tick_text(x_high)
    lines.append(f"{'':>{room}} └{'─' * width}")
    return [*lines, f"{'':>{room}}  {left}{right:>{width - len(left)}}"]
