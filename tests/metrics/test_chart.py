"""Curves as shapes: what is drawn, where, and that nothing is lost."""

import math
import struct
import xml.etree.ElementTree as ET

import pytest

from llmtrain.metrics.chart import (
    Chart,
    Dot,
    Label,
    Line,
    Series,
    draw,
    linear_axis,
    log_axis,
    thin,
    tick_text,
)
from llmtrain.metrics.picture import can_draw_png, png, svg, svg_sheet
from llmtrain.metrics.text_plot import text_plot


def lines(shapes, colour):
    return [shape for shape in shapes if isinstance(shape, Line) and shape.colour == colour]


def test_axes_end_at_round_numbers():
    axis = linear_axis(0.13, 0.87, 100, 0, 5)
    assert axis.ticks == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert (axis(0.0), axis(1.0), axis(0.5)) == pytest.approx((100, 0, 50))
    steps = linear_axis(1, 6000, 0, 600, 6, whole=True)
    assert (steps.low, steps.high) == (1, 6000)
    assert steps.ticks == [1000, 2000, 3000, 4000, 5000, 6000]
    assert linear_axis(3, 4, 0, 1, 9, whole=True).ticks == [3, 4]
    powers = log_axis(0.02, 300, 0, 1)
    assert powers.ticks == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert powers(math.sqrt(0.01 * 1000)) == pytest.approx(0.5)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-30, 1e30])
def test_a_single_value_has_room_around_it(value):
    axis = linear_axis(value, value, 0, 1, 5)
    assert axis.low < value < axis.high or axis.low <= value <= axis.high
    assert 0 <= axis(value) <= 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1500"),
        (20000, "20k"),
        (3.5e6, "3.5M"),
        (2e-4, "2e-4"),
        (-0.5, "-0.5"),
    ],
)
def test_tick_texts_are_short(value, text):
    assert tick_text(value) == text


def test_thinning_keeps_ends_and_spikes():
    points = [(float(x), 0.0) for x in range(10_000)]
    points[5_001] = (5_001.0, 99.0)
    points[7_777] = (7_777.0, -99.0)
    kept = thin(points, 100)
    assert len(kept) <= 202
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert points[5_001] in kept
    assert points[7_777] in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_curves_stay_inside_the_frame_and_wide_ones_become_logarithmic():
    chart = Chart("g", [Series("g", [(1, 0.01), (2, 100.0), (3, 1.0)])], wide=True)
    (curve,) = [
        shape for shape in draw(chart, 500, 250) if isinstance(shape, Line) and len(shape.points) == 3
    ]
    assert all(0 < x < 500 and 0 < y < 250 for x, y in curve.points)
    (low, high, middle) = (y for _, y in curve.points)
    assert middle == pytest.approx((low + high) / 2)


def test_points_are_marked_where_wanted_and_where_there_is_only_one():
    shapes = draw(
        Chart("c", [Series("a", [(1, 1.0)]), Series("b", [(1, 2.0), (2, 3.0)], dots=True)]), 500, 250
    )
    assert len([shape for shape in shapes if isinstance(shape, Dot)]) == 3


def test_nothing_to_draw_is_said():
    texts = [
        shape.text for shape in draw(Chart("t", [Series("a", [])]), 500, 250) if isinstance(shape, Label)
    ]
    assert texts == ["t", "no numbers"]


def test_svg_is_well_formed_and_escaped():
    chart = Chart("<script>&", [Series('"><b>', [(1, 2.0), (2, 3.0)], dots=True), Series("n", [(1, 1.0)])])
    root = ET.fromstring(svg(chart))
    assert root.tag.endswith("svg")
    assert "<script>" not in svg(chart)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "<script>&" in texts
    assert '"><b>' in texts
    ET.fromstring(svg_sheet([chart, chart, chart]))


def test_png_has_the_size_of_its_charts():
    if not can_draw_png():
        pytest.skip("Pillow is not installed")
    data = png(
        [Chart("t", [Series("a", [(1, 2.0), (2, 3.0)], dots=True)])] * 3, columns=2, width=100, height=50
    )
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (2 * 2 * 100, 2 * 2 * 50)


def test_text_plots_put_marks_where_the_values_are():
    drawn = text_plot([Series("a", [(0, 0.0), (10, 1.0)]), Series("b", [(5, 0.5)])], "ab", width=11, height=5)
    plane = [line.partition("│")[2] for line in drawn[:5]]
    assert plane[0] == "          a"
    assert plane[2] == "     b"
    assert plane[4] == "a"
    assert drawn[-1].split() == ["0", "10"]
    assert text_plot([Series("a", [])], "a") == ["no numbers yet"]
