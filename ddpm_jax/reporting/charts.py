"""Line charts as inline SVG: axes, ticks, a line for each series, a legend as HTML."""

import dataclasses
import html
import math
from collections.abc import Sequence

COLOURS = 8  # Of `page.css`, by the classes c0, c1, ...; a ninth line has the first again, dashed.
_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 26, 12, 48
_MOST = 400  # Points of a line.
_WIDE = 8.0  # Highest value over lowest from which an axis is logarithmic.


@dataclasses.dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: in the legend.
        points: (x, y); where y is None or not finite the line has a gap.
    """

    label: str
    points: Sequence[tuple[float, float | None]]


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str, log_y: bool | None = None
) -> str:
    """A figure of lines, HTML.

    A line of more than 400 points is drawn with the means of its neighbours, and the caption says
    so.

    Args:
        title: above it.
        series: lines; those without a finite point are left out.
        x_label, y_label: of the axes.
        log_y: a logarithmic y axis; None where all y are above 0 and differ by a factor of 8.

    Returns:
        "" where no line has a point.
    """
    thinned = [(each.label, *_thinned(each.points)) for each in series]
    thinned = [(label, parts, size) for label, parts, size in thinned if parts]
    if not thinned:
        return ""
    points = [point for _, parts, _ in thinned for part in parts for point in part]
    x_scale = _Scale([x for x, _ in points], _LEFT, _WIDTH - _RIGHT, log=False)
    y_scale = _Scale([y for _, y in points], _HEIGHT - _BOTTOM, _TOP, log=log_y)
    lines = "".join(
        _line(parts, x_scale, y_scale, number) for number, (_, parts, _) in enumerate(thinned)
    )
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true"><path class="{_style(number)}"'
        f' d="M0 4H28"/></svg>{html.escape(label)}</li>'
        for number, (label, _, _) in enumerate(thinned)
    )
    size = max(size for _, _, size in thinned)
    note = f'<p class="note">Each point is the mean of {size} neighbours.</p>' if size > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{_axes(x_scale, y_scale, x_label, y_label)}{lines}</svg>"
        f'<ul class="legend">{legend}</ul>{note}</figure>'
    )


class _Scale:
    """From values to places on the page."""

    def __init__(self, values, start, end, *, log):
        low, high = min(values), max(values)
        self.log = low > 0 and (high / low > _WIDE if log is None else log)
        if low == high:
            spread = abs(low) / 10 or 1.0
            low, high = (low / 2, low * 2) if self.log else (low - spread, high + spread)
        self._low, self._high, self._start, self._end = low, high, start, end
        self.ticks = _powers(low, high) if self.log else _round_steps(low, high)

    def place(self, value):
        low, high = self._low, self._high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low)
        return round(self._start + share * (self._end - self._start), 1)


def _round_steps(low, high):
    """Four to eight round numbers in low..high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low, high):
    """Powers of ten in low..high, with twice and five times these where they are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**e for e in exponents for m in factors if low <= m * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    every = math.ceil(len(ticks) / 8)
    return ticks[::every] or [low, high]


def _axes(x_scale, y_scale, x_label, y_label):
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in x_scale.ticks:
        x = x_scale.place(tick)
        parts.append(
            f'<path class="grid" d="M{x} {_TOP}V{bottom}"/>'
            f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>'
        )
    for tick in y_scale.ticks:
        y = y_scale.place(tick)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y}H{right}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 5}" text-anchor="end">{number(tick)}</text>'
        )
    middle = (_LEFT + right) / 2
    y_label += " (log)" if y_scale.log else ""
    return "".join(parts) + (
        f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="translate(15 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )


def _line(parts, x_scale, y_scale, order):
    path, dots = "", ""
    for part in parts:
        places = [f"{x_scale.place(x):g} {y_scale.place(y):g}" for x, y in part]
        path += f"M{'L'.join(places)}"
        if len(part) == 1:
            x, y = places[0].split()
            dots += f'<circle class="{_style(order)}" cx="{x}" cy="{y}" r="3"/>'
    return f'<path class="{_style(order)}" d="{path}"/>{dots}'


def _style(order):
    dashes = order // COLOURS
    return f"line c{order % COLOURS}" + (f" d{min(dashes, 3)}" if dashes else "")


def _thinned(points):
    """(parts without a gap, how many points each of theirs stands for)."""
    size = max(1, math.ceil(len(points) / _MOST))
    parts, part = [], []
    for start in range(0, len(points), size):
        block = points[start : start + size]
        finite = [(x, y) for x, y in block if y is not None and math.isfinite(y)]
        if finite:
            part.append((block[-1][0], math.fsum(y for _, y in finite) / len(finite)))
        if len(finite) < len(block) and part:
            parts.append(part)
            part = []
    return parts + ([part] if part else []), size


def number(value: float) -> str:
    """A number as text: 1,500, 0.083 or 2e-05."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e7:
        text = f"{value:,.4f}" if abs(value) < 1 else f"{float(f'{value:.6g}'):,.4f}"
        return text.rstrip("0").rstrip(".")
    return f"{value:.3g}"
