"""Bars, curves and grids for the report, as inline SVG. Text from outside is escaped."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np


def bar(share: float, colour: np.ndarray | None = None) -> str:
    """A bar of 0..1 as SVG, as wide as its cell."""
    fill = f"rgb{tuple(map(int, colour))}" if colour is not None else "var(--accent)"
    long = 100 * min(max(share, 0), 1)
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rail" width="100" height="10"/><rect width="{long:.1f}" height="10" style="fill:{fill}"/></svg>'
    )


def curve(xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str, top: float | None = None) -> str:
    """A line as SVG; the y axis runs from 0, or from below it where a value is negative, to `top` or the largest value."""
    width, height, left, right, upper, lower = 480, 260, 62, 12, 14, 44
    marks = ticks(min([0.0, *ys]), top or (max([0.0, *ys]) or 1.0))
    low, high = marks[0], marks[-1]
    span = max(xs) - min(xs) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - min(xs)) / span, (y - low) / (high - low)
        return left + across * (width - left - right), height - lower - up * (height - lower - upper)

    parts = []
    for y in marks:
        _, row = at(min(xs), y)
        parts.append(f'<path class="grid" d="M{left} {row:.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{row + 5:.1f}" text-anchor="end">{y:.4g}</text>')
    for i, anchor in enumerate(("start", "middle", "end")):
        x = min(xs) + span * i / 2
        parts.append(f'<text x="{at(x, low)[0]:.1f}" y="{height - 24}" text-anchor="{anchor}">{x:g}</text>')
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in zip(xs, ys, strict=True)))
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 5}" text-anchor="middle">{escape(x_name)}</text>')
    said = escape(f"{y_name} over {x_name}: from {ys[0]:.3g} to {ys[-1]:.3g}")
    return f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def lines(xs: Sequence[float], series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_name: str) -> str:
    """Several lines with a bar of one standard deviation at each point: name to values and deviations at xs. The y axis
    runs from 0, or from below it, to 1. Lines are told apart by dashes and by a name at their end as well as by colour.
    """
    width, height, left, right, upper, lower = 560, 280, 46, 96, 14, 44
    marks = ticks(min(0.0, *(y - d for ys, ds in series.values() for y, d in zip(ys, ds, strict=True))), 1.0)
    low, high, span = marks[0], marks[-1], (max(xs) - min(xs)) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - min(xs)) / span, (y - low) / (high - low)
        return left + 8 + across * (width - left - right - 16), height - lower - up * (height - lower - upper)

    parts = []
    for y in marks:
        row = at(min(xs), y)[1]
        parts.append(f'<path class="grid" d="M{left} {row:.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{row + 5:.1f}" text-anchor="end">{y:.4g}</text>')
    parts += [f'<text x="{at(x, low)[0]:.1f}" y="{height - 24}" text-anchor="middle">{x:g}</text>' for x in xs]
    ends = spaced([at(xs[-1], ys[-1])[1] for ys, _ in series.values()], 15)
    for i, (name, (ys, ds)) in enumerate(series.items()):
        for x, y, d in zip(xs, ys, ds, strict=True):
            (px, top), (_, bottom) = at(x, min(y + d, high)), at(x, max(y - d, low))
            parts.append(f'<path class="line s{i}" style="stroke-width:1" d="M{px:.1f} {top:.1f}V{bottom:.1f}"/>')
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in zip(xs, ys, strict=True)))
        parts.append(f'<polyline class="line s{i}" points="{points}"/>')
        parts.append(f'<text x="{width - right + 4}" y="{ends[i] + 5:.1f}">{escape(name)}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 5}" text-anchor="middle">{escape(x_name)}</text>')
    said = escape(f"{', '.join(series)} over {x_name}")
    return f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def spaced(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved down as little as keeps them `gap` apart."""
    moved, last = list(places), -np.inf
    for i in np.argsort(places, kind="stable").tolist():
        moved[i] = last = max(places[i], last + gap)
    return moved


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, 4 to 13 of them, from at most low to at least high; low is at most 0, high above it."""
    rough = (high - low) / 6
    power = 10.0 ** np.floor(np.log10(rough))
    step = min((power * m for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    return [float(i * step) for i in range(int(np.floor(low / step)), int(np.ceil(high / step - 1e-9)) + 1)]


def heat(shares: np.ndarray, rows: Sequence[str], cols: Sequence[str]) -> str:
    """Shares [R, C] in 0..1 as a grid in SVG, from white to dark blue, the percentage in each cell where there is room.

    nan rows (nothing to share out) stay empty. Each cell says on hovering what it is.
    """
    cell, left, top = (34, 130, 110) if max(shares.shape) <= 24 else (13, 130, 110)
    parts = []
    for i, row in enumerate(rows):
        parts.append(f'<text x="{left - 6}" y="{top + i * cell + cell / 2 + 5}" text-anchor="end">{escape(short(row))}</text>')
    for j, col in enumerate(cols):
        x, y = left + (j + 0.5) * cell + 4, float(top - 6)
        parts.append(f'<text x="{x}" y="{y}" transform="rotate(-60 {x} {y})">{escape(short(col))}</text>')
    light, dark = np.array([255.0, 255, 255]), np.array([8.0, 48, 107])
    for i, j in np.argwhere(shares > 0.005).tolist():
        share = float(shares[i, j])
        fill = f"rgb{tuple(map(int, light + (dark - light) * share**0.7))}"
        box = f'x="{left + j * cell}" y="{top + i * cell}" width="{cell}" height="{cell}"'
        title = escape(f"{rows[i]} taken for {cols[j]}: {100 * share:.1f} %")
        parts.append(f'<rect {box} fill="{fill}"><title>{title}</title></rect>')
        if cell > 20:
            ink = "#fff" if share > 0.35 else "#111"
            x, y = left + (j + 0.5) * cell, top + i * cell + cell / 2 + 5
            parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" style="fill:{ink}">{100 * share:.0f}</text>')
    wide, high = left + len(cols) * cell + 60, top + len(rows) * cell + 4
    frame = f'<rect class="frame" x="{left}" y="{top}" width="{len(cols) * cell}" height="{len(rows) * cell}"/>'
    size = f'width="{wide}" height="{high}" viewBox="0 0 {wide} {high}"'
    return f'<svg class="heat" {size} role="img" aria-label="confusion of classes">{frame}{"".join(parts)}</svg>'


def short(name: str) -> str:
    """A name of at most 15 letters."""
    return name if len(name) <= 15 else f"{name[:14]}…"
