"""Curves for the report: values and ticks, which `templates/charts.html.j2` draws as inline SVG.

Not matplotlib: it takes 40 MB, and its colours could not follow the light or dark theme of the page.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """Values over the x axis, each with a standard deviation or none; the name is written at the end of the line."""

    values: Sequence[float]
    deviations: Sequence[float] = ()
    name: str = ""
    name_y: float = 0.0  # fraction of the axis


class Chart(NamedTuple):
    x_name: str
    y_name: str  # above the chart; with its first and last value
    xs: Sequence[float]
    series: Sequence[Series]
    y_ticks: Sequence[float]


def curve(xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str, top: float | None = None) -> Chart:
    """A line; the y axis runs from 0, or from the smallest value below 0, to `top` or the largest value."""
    return Chart(x_name, y_name, xs, [Series(ys)], ticks(min([0.0, *ys]), top or max([0.0, *ys]) or 1.0))


def lines(xs: Sequence[float], series: Sequence[Series], x_name: str) -> Chart:
    """Lines with a bar of one standard deviation at each point; the y axis runs from 0, or from below it, to 1."""
    y_ticks = ticks(min(0.0, *(y - d for s in series for y, d in zip(s.values, s.deviations, strict=True))), 1.0)
    ends = spaced([(y_ticks[-1] - s.values[-1]) / (y_ticks[-1] - y_ticks[0]) for s in series], 0.07)  # from the top
    return Chart(x_name, "", xs, [s._replace(name_y=1 - y) for s, y in zip(series, ends, strict=True)], y_ticks)


def spaced(positions: Sequence[float], gap: float) -> list[float]:
    """The positions, increased where needed so that all are at least `gap` apart; their order stays."""
    result, previous = list(positions), -np.inf
    for i in np.argsort(positions, kind="stable").tolist():
        result[i] = previous = max(positions[i], previous + gap)
    return result


def ticks(low: float, high: float) -> list[float]:
    """4 to 13 round numbers, from at most low to at least high; low is at most 0, high above it."""
    rough = (high - low) / 6
    power = 10.0 ** np.floor(np.log10(rough))
    step = min((power * m for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    return [float(i * step) for i in range(int(np.floor(low / step)), int(np.ceil(high / step - 1e-9)) + 1)]
