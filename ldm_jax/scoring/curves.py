"""Line charts as SVG, which browsers show without any library."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 300, 62, 44, 28


def chart(series: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, title: str = "") -> str:
    """An SVG of named lines through points (x, y), in the order given; the legend is left out for one line."""
    points = np.array([point for line in series.values() for point in line], float)
    if not len(points):
        raise ValueError(f"{title or up}: no point to draw")
    (x0, y0), (x1, y1) = (limits for limits in (points.min(0), points.max(0)))
    x0, x1, y0, y1 = (*_widened(x0, x1), *_widened(y0, y1))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - 14),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    if title:
        parts.append(f'<text x="{WIDTH / 2}" y="16" text-anchor="middle" font-size="13">{escape(title)}</text>')
    for x in ticks(x0, x1):
        at = place(x, y0)
        parts.append(f'<path d="M{at[0]:.1f} {at[1]:.1f}V{TOP}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{at[0]:.1f}" y="{at[1] + 15:.1f}" text-anchor="middle">{x:.4g}</text>')
    for y in ticks(y0, y1):
        at = place(x0, y)
        parts.append(f'<path d="M{at[0]:.1f} {at[1]:.1f}H{WIDTH - 14}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{at[0] - 6:.1f}" y="{at[1] + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text transform="rotate(-90 14 {middle})" x="14" y="{middle}" text-anchor="middle">{escape(up)}</text>')
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        placed = [place(x, y) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        if len(series) > 1:
            parts.append(f'<text x="{LEFT + 10}" y="{TOP + 14 + 14 * i}" fill="{colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>\n"])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    return [round(i * step, 12) for i in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]


def _widened(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return low - room, high + room
