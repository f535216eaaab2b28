"""Line charts as SVG, small enough to stand inside a page: no library, no script; its colours are the page's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250  # pixels
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 38  # pixels around the plot
POINTS = 400  # of a curve that are drawn, at most


@dataclass(frozen=True)
class Curve:
    """A named line.

    Args:
        name: for the legend, which the page shows.
        colour: as CSS writes it.
        points: (x, y), finite.
        dashed: whether it is.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS of `points`, evenly chosen, the last one among them."""
    step = -(-len(points) // POINTS) or 1
    return [*points[:-1:step], *points[-1:]]


def chart(title: str, across: str, curves: Sequence[Curve], marks: Sequence[float] = ()) -> str:
    """An SVG element with the curves, or nothing when none has a point.

    Args:
        title: above the plot.
        across: name of the horizontal axis.
        marks: where to draw dashed vertical lines.
    """
    everything = [point for curve in curves for point in curve.points]
    if not everything:
        return ""
    left, right = bounds([x for x, _ in everything], 0)
    low, high = bounds([y for _, y in everything], 0.06)

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    for value in ticks(low, high):
        y = to_pixels(left, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in filter(float.is_integer, map(float, ticks(left, right))):  # epochs
        x = to_pixels(value, low)[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(across)}</text>')
    for mark in (mark for mark in marks if left <= mark <= right):
        x = to_pixels(mark, low)[0]
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
    for curve in curves:
        parts += line(curve, [to_pixels(*point) for point in thinned(curve.points)])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def line(curve: Curve, places: Sequence[tuple[float, float]]) -> list[str]:
    """SVG of one curve through `places` (pixels)."""
    if not places:
        return []
    style = f'style="--line:{escape(curve.colour)}"'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    dashed = ' class="dashed"' if curve.dashed else ""
    return [f'<polyline points="{path}" {style}{dashed}/>', f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {style}/>']


def bounds(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Smallest and largest of `values`, moved apart by `margin` of their distance; never the same."""
    low, high = min(values), max(values)
    gap = (high - low) * margin or (0 if high > low else max(abs(high), 1) * 0.5)
    return low - gap, high + gap
