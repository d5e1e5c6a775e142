"""Charts: their SVG is parsed as XML, and points are found again where their values say."""

import math
import re
from xml.etree import ElementTree

import pytest

from ddpm_jax.reporting import charts
from ddpm_jax.reporting.charts import Series


def drawn(*series, **settings):
    text = charts.line_chart("a & b", series, x_label="step", y_label="loss", **settings)
    return ElementTree.fromstring(text)


def ticks(figure, anchor):
    """{value: place} of the labels at an axis; the others end in a letter."""
    place = "x" if anchor == "middle" else "y"
    return {
        float(text.text.replace(",", "")): float(text.get(place))
        for text in figure.iter("text")
        if text.get("text-anchor") == anchor and re.fullmatch(r"[-\d.,e+]+", text.text)
    }


def line(figure, order=0):
    path = [p for p in figure.iter("path") if p.get("class", "").startswith("line")
            and p.get("d") != "M0 4H28"][order]
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.get("d"))[1:]]


def test_points_stand_where_the_ticks_say():
    points = [(0, 1.0), (500, 2.5), (1000, 4.0), (1500, 3.0)]
    figure = drawn(Series("loss", points))
    x, y = ticks(figure, "middle"), ticks(figure, "end")
    for (value_x, value_y), (place_x, place_y) in zip(points, line(figure)):
        if value_x in x:
            assert place_x == pytest.approx(x[value_x], abs=0.2)
        assert value_y not in y or place_y == pytest.approx(y[value_y] - 5, abs=0.2)
    assert {1, 2, 3, 4} <= set(y) and "(log)" not in "".join(figure.itertext())


def test_values_that_differ_much_are_on_a_logarithmic_axis():
    figure = drawn(Series("loss", [(0, 1.0), (1, 0.01), (2, 0.1)]))
    (_, top), (_, bottom), (_, middle) = line(figure)
    assert middle == pytest.approx((top + bottom) / 2, abs=0.2)
    assert {1, 0.1, 0.01} <= set(ticks(figure, "end"))
    assert "loss (log)" in "".join(figure.itertext())


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_what_is_not_finite_is_a_gap(bad):
    figure = drawn(Series("loss", [(0, 1.0), (1, 2.0), (2, bad), (3, 1.5), (4, 1.0)]))
    path = next(p for p in figure.iter("path") if p.get("class", "").startswith("line"))
    assert path.get("d").count("M") == 2 and len(line(figure)) == 4


def test_many_points_are_means_and_the_figure_says_so():
    points = [(step, step % 2) for step in range(4000)]
    figure = drawn(Series("loss", points))
    assert len(line(figure)) == 400 and len({y for _, y in line(figure)}) == 1
    assert "the mean of 10 neighbours" in "".join(figure.itertext())


def test_a_single_point_is_a_dot_and_none_is_no_figure():
    assert list(drawn(Series("loss", [(5, 2.0)])).iter("circle"))
    assert charts.line_chart("t", [Series("a", [(0, None)])], x_label="x", y_label="y") == ""
    assert charts.line_chart("t", [], x_label="x", y_label="y") == ""


def test_more_lines_than_colours_differ_by_dashes():
    figure = drawn(*(Series(str(n), [(0, n), (1, n)]) for n in range(1, 21)))
    styles = [p.get("class") for p in figure.iter("path") if p.get("d") == "M0 4H28"]
    assert len(styles) == len(set(styles)) == 20


@pytest.mark.parametrize("low, high", [(0.97, 0.98), (-3, 1e6), (1e-9, 2e-9), (5, 5), (0, 0)])
def test_any_range_has_a_few_ticks(low, high):
    figure = drawn(Series("a", [(0, low), (1, high)]))
    assert 2 <= len(ticks(figure, "end")) <= 9


def test_text_is_escaped():
    text = charts.line_chart("<b>", [Series("<i>", [(0, 1), (1, 2)])], x_label="x", y_label="y")
    assert "<b>" not in text and "<i>" not in text


@pytest.mark.parametrize("value, text", [
    (0, "0"), (1500, "1,500"), (0.0868, "0.0868"), (2e-5, "2e-05"), (1.5e9, "1.5e+09"), (4.0, "4"),
])
def test_numbers_are_short(value, text):
    assert charts.number(value) == text
