"""Charts as SVG text, which needs nothing, and as PNG files, which need Pillow."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llmtrain.metrics.chart import AXIS, GRID, LIGHT, TEXT, Chart, Dot, Label, Line, draw
from llmtrain.utils.io import atomic_write

WIDTH, HEIGHT = 520, 260
"""Pixels of one chart."""

SCALE = 2
"""Pixels of a PNG for one of the chart: for sharp screens."""

SMOOTH = 2
"""How much larger a PNG is drawn before it is made smaller, which smooths its lines."""

FONT_SIZE = 12

PNG_HINT = "pip install 'llmtrain[report]'"
"""What makes `loss.png` possible."""

VARIABLES = {AXIS: "--axis", GRID: "--grid", TEXT: "--text"} | {
    colour: f"--c{number}" for number, colour in enumerate(LIGHT)
}
"""CSS variables by which a page may give other colours."""


def can_draw_png() -> bool:
    """Whether Pillow is installed."""
    return importlib.util.find_spec("PIL") is not None


def svg(chart: Chart, width: int = WIDTH, height: int = HEIGHT) -> str:
    """A chart as an `<svg>` element; every text in it is escaped."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(chart.title)}" font-family="system-ui, sans-serif" font-size="{FONT_SIZE}">'
    ]
    for shape in draw(chart, width, height):
        colour = f"var({VARIABLES[shape.colour]}, {shape.colour})"
        if isinstance(shape, Line):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            style = f'style="fill:none;stroke:{colour};stroke-width:{shape.width};stroke-linejoin:round"'
            parts.append(f'<polyline points="{points}" {style}/>')
        elif isinstance(shape, Dot):
            told = f"<title>{escape(shape.text)}</title>" if shape.text else ""
            place = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="3"'
            parts.append(f'<circle {place} style="fill:{colour}">{told}</circle>')
        else:
            weight = ' font-weight="600"' if shape.bold else ""
            place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.anchor}"'
            parts.append(f'<text {place}{weight} style="fill:{colour}">{escape(shape.text)}</text>')
    return "".join([*parts, "</svg>"])


def svg_sheet(charts: Sequence[Chart], columns: int = 2) -> str:
    """Several charts side by side, as one SVG file."""
    rows = -(-len(charts) // columns)
    width, height = WIDTH * min(columns, max(len(charts), 1)), HEIGHT * max(rows, 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, chart in enumerate(charts):
        x, y = number % columns * WIDTH, number // columns * HEIGHT
        parts.append(f'<svg x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}">{svg(chart)}</svg>')
    return "".join([*parts, "</svg>\n"])


def png(charts: Sequence[Chart], columns: int = 2, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """Several charts side by side, as a PNG file; needs Pillow."""
    from PIL import Image, ImageDraw, ImageFont

    zoom = SCALE * SMOOTH
    rows = -(-len(charts) // columns)
    sheet = Image.new("RGB", (width * columns * SCALE, height * rows * SCALE), "white")
    font = ImageFont.load_default(FONT_SIZE * zoom)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for number, chart in enumerate(charts):
        image = Image.new("RGB", (width * zoom, height * zoom), "white")
        pen = ImageDraw.Draw(image)
        for shape in draw(chart, width, height):
            if isinstance(shape, Line):
                places = [(x * zoom, y * zoom) for x, y in shape.points]
                pen.line(places, fill=shape.colour, width=max(1, round(shape.width * zoom)), joint="curve")
            elif isinstance(shape, Dot):
                x, y, radius = shape.x * zoom, shape.y * zoom, 3 * zoom
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shape.colour)
            else:
                _write(pen, shape, zoom, font, anchors[shape.anchor])
        image = image.resize((width * SCALE, height * SCALE), Image.Resampling.LANCZOS)
        sheet.paste(image, (number % columns * width * SCALE, number // columns * height * SCALE))
    buffer = io.BytesIO()
    sheet.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _write(pen: object, label: Label, zoom: int, font: object, anchor: str) -> None:
    """Write a text; characters that the font does not have appear as boxes."""
    pen.text(  # type: ignore[attr-defined]
        (label.x * zoom, label.y * zoom),
        label.text,
        fill=label.colour,
        font=font,
        anchor=anchor,
        stroke_width=zoom // 4 if label.bold else 0,
    )


def write_png(path: Path, charts: Sequence[Chart], columns: int = 1) -> None:
    """Write charts as a PNG file; needs Pillow."""
    atomic_write(path, png(charts, columns))
