"""Routes: an edge leaves its source upward, arrives from below, and goes around what is between.

A route is x as a smooth function of y. The strongest edges are led past every box that stands in
their way: each such box adds a point beside it, on the nearer free side, and the points are joined
by cubics without overshoot. The rest go straight through: they are thin, and lie behind the boxes.
"""

import numpy as np
from jaxtyping import Float

from graphs.layout import BOX, Places

LED, CURVED = 300, 1200  # how many of the strongest edges are led, and how many are curves
SMOOTH, COARSE = 36, 14  # points of a led edge, and of another curve
ASIDE = 8.0  # pixels between a route and the box that it passes
LOOP = 30.0  # how far an edge that runs down goes out above its source and below its target

Line = Float[np.ndarray, "2 points"]


def routes(source: np.ndarray, target: np.ndarray, places: Places) -> list[Line]:
    """The points of each edge, of which the strongest come first."""
    found = []
    for number, (s, t) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        start = (float(places.x[s]), float(places.y[s] + places.high[s] / 2))
        end = (float(places.x[t]), float(places.y[t] - places.high[t] / 2))
        if number >= CURVED:
            found.append(np.array([start, end]).T)
        elif end[1] - start[1] < LOOP / 2:
            found.append(_loop(start, end))
        elif number < LED:
            found.append(_led(start, end, (s, t), places))
        else:
            found.append(_curve([start, end], COARSE))
    return found


def _led(
    start: tuple[float, float], end: tuple[float, float], own: tuple[int, int], places: Places
) -> Line:
    """A curve past all boxes on its way; what a detour meets is gone around in its turn."""
    points = [start, end]
    between = (places.y > start[1]) & (places.y < end[1])
    between[list(own)] = False
    between &= places.high == BOX
    for _ in range(3):
        line = _curve(points, SMOOTH)
        at = np.interp(places.y[between], line[1], line[0])
        met = np.abs(at - places.x[between]) < places.wide[between] / 2 + ASIDE / 2
        heights = set(np.round(places.y[between][met], 3)) - {round(y, 3) for _, y in points}
        if not heights:
            break
        beside = [(_beside(np.interp(y, line[1], line[0]), y, places, own), y) for y in heights]
        points = sorted([*points, *beside], key=lambda point: point[1])
    return _curve(points, SMOOTH)


def _beside(x: float, y: float, places: Places, own: tuple[int, int]) -> float:
    """The place nearest to x, at this height, that is in no box."""
    near = np.abs(places.y - y) < places.high / 2
    near[list(own)] = False
    near &= places.high == BOX
    half = places.wide[near] / 2 + ASIDE
    centre = places.x[near]
    sides = np.concatenate([centre - half, centre + half])
    free = (np.abs(sides[:, None] - centre) >= half - 1e-6).all(1)
    free &= (sides > ASIDE) & (sides < places.size[0] - ASIDE / 2)
    return float(min(sides[free], key=lambda side: abs(side - x), default=x))


def _curve(points: list[tuple[float, float]], count: int) -> Line:
    """Cubics through points of rising y, upright at both ends and wherever x turns back."""
    x, y = np.array(points).T
    steps = np.diff(y)
    slopes = np.diff(x) / steps
    inner = np.zeros(len(x))
    a, b = slopes[:-1], slopes[1:]
    same = a * b > 0  # the harmonic mean never overshoots (Fritsch and Carlson)
    inner[1:-1][same] = 2 * a[same] * b[same] / (a[same] + b[same])
    at = np.union1d(np.linspace(y[0], y[-1], max(count, 5 * len(y))), y)
    piece = np.clip(np.searchsorted(y, at, side="right") - 1, 0, len(steps) - 1)
    step = steps[piece]
    t = (at - y[piece]) / step
    line = x[piece] * (1 + 2 * t) * (1 - t) ** 2 + x[piece + 1] * t**2 * (3 - 2 * t)
    line += step * (inner[piece] * t * (1 - t) ** 2 - inner[piece + 1] * t**2 * (1 - t))
    return np.stack([line, at])


def _loop(start: tuple[float, float], end: tuple[float, float]) -> Line:
    """An edge between concepts of many layers may run down: out above, and in from below."""
    t = np.linspace(0, 1, COARSE)
    parts = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    away = LOOP if abs(start[0] - end[0]) > LOOP else 2 * LOOP
    side = away if abs(start[0] - end[0]) <= LOOP else 0.0
    x = np.array([start[0], start[0] + side, end[0] + side, end[0]])
    y = np.array([start[1], start[1] + away, end[1] - away, end[1]])
    return np.stack([x @ parts, y @ parts])
