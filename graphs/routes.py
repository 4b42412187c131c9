"""Routes: an edge leaves its source upward, arrives from below, and goes around what is between.

A route is x as a smooth function of y. The strongest edges are led past every box that stands in
their way: boxes above each other in one cell are passed as one, on the nearer side that is free all
along them, and the points beside them are joined by cubics without overshoot. The rest go straight
through: they are thin, and lie behind the boxes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from graphs.layout import BOX, GAP, Places

LED, CURVED = 300, 1200  # how many of the strongest edges are led, and how many are curves
SMOOTH, COARSE = 60, 14  # points at most: of a piece of a led edge, and of another curve
DENSE = 14.0  # pixels from point to point
ASIDE = 8.0  # pixels between a route and the box that it passes
ROUNDS = 3  # of looking for what a detour meets
LOOP = 30.0  # how far an edge that runs down goes out above its source and below its target

Line = Float[np.ndarray, "2 points"]


def routes(source: np.ndarray, target: np.ndarray, places: Places) -> list[Line]:
    """The points of each edge, of which the strongest come first."""
    found, boxes = [], _Boxes.of(places)
    for number, (s, t) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        start = (float(places.x[s]), float(places.y[s] + places.high[s] / 2))
        end = (float(places.x[t]), float(places.y[t] - places.high[t] / 2))
        if number >= CURVED:
            found.append(np.array([start, end]).T)
        elif end[1] - start[1] < LOOP / 2:
            found.append(_loop(start, end))
        elif number < LED:
            found.append(_led(start, end, (s, t), boxes))
        else:
            found.append(_curve([start, end], COARSE))
    return found


def _led(
    start: tuple[float, float], end: tuple[float, float], own: tuple[int, int], boxes: "_Boxes"
) -> Line:
    """A curve past all boxes on its way; what a detour meets is gone around in its turn."""
    between = (boxes.y > start[1]) & (boxes.y < end[1])
    between &= ~np.isin(boxes.node, own)
    met = np.zeros(len(between), dtype=bool)
    lean = 0.1 if sum(own) % 2 else -0.1  # decides where both sides are as near
    line = _curve([start, end], SMOOTH)
    for _ in range(ROUNDS):
        at = np.interp(boxes.y, line[1], line[0])
        hit = between & (np.abs(at - boxes.x) < boxes.wide / 2 + ASIDE / 2)
        hit = between & np.isin(boxes.run, boxes.run[hit])
        if not (hit & ~met).any():
            break
        met |= hit
        points = [start]
        for band in np.unique(boxes.band[met]):
            heights = boxes.y[met & (boxes.band == band)]
            low, high = float(heights.min()), float(heights.max())
            x = np.interp((low + high) / 2, line[1], line[0]) + lean
            x = _beside(x, low, high, boxes, between)
            points += [(x, low), (x, high)] if high > low else [(x, low)]
        line = _curve([*points, end], SMOOTH)
    return line


def _beside(
    x: float, low: float, high: float, boxes: "_Boxes", between: Bool[np.ndarray, " boxes"]
) -> float:
    """The place nearest to x that is in no box from this height to that."""
    near = between & (boxes.y > low - BOX / 2) & (boxes.y < high + BOX / 2)
    half, centre = boxes.wide[near] / 2, boxes.x[near]
    sides = np.concatenate([centre - half - ASIDE, centre + half + ASIDE])
    free = (np.abs(sides[:, None] - centre) >= half + ASIDE / 2 - 1e-6).all(1)
    free &= (sides > ASIDE) & (sides < boxes.across - ASIDE / 2)
    return float(min(sides[free], key=lambda side: abs(side - x), default=x))


@dataclass(frozen=True, eq=False)
class _Boxes:
    """What routes are led past: boxes, but no marks and no folded words.

    Boxes right above each other are a `run`, which is passed on one side. A `band` is what a row's
    boxes fill from its lowest to its highest; a route goes through it at one x.
    """

    node: np.ndarray
    x: np.ndarray
    y: np.ndarray
    wide: np.ndarray
    run: np.ndarray
    band: np.ndarray
    across: float

    @staticmethod
    def of(places: Places) -> "_Boxes":
        node = np.flatnonzero(places.high == BOX)
        x, y = places.x[node], places.y[node]
        apart = BOX + GAP + 0.5
        rising, stacked = np.argsort(y, kind="stable"), np.lexsort((y, x))
        run, band = np.zeros(len(node), dtype=np.int64), np.zeros(len(node), dtype=np.int64)
        band[rising] = np.cumsum(np.diff(y[rising], prepend=y[rising][:1]) > apart)
        new = (np.abs(np.diff(x[stacked])) > 0.5) | (np.diff(y[stacked]) > apart)
        run[stacked] = np.concatenate([[0], np.cumsum(new)])[: len(node)]
        return _Boxes(node, x, y, places.wide[node], run, band, places.size[0])


def _curve(points: list[tuple[float, float]], most: int) -> Line:
    """Cubics through points of rising y, upright at both ends and wherever x turns back."""
    x, y = np.array(points).T
    steps = np.diff(y)
    slopes = np.diff(x) / steps
    inner = np.zeros(len(x))
    a, b = slopes[:-1], slopes[1:]
    same = a * b > 0  # the harmonic mean never overshoots (Fritsch and Carlson)
    inner[1:-1][same] = 2 * a[same] * b[same] / (a[same] + b[same])
    lengths = np.abs(np.diff(x)) + steps
    counts = np.where(np.diff(x) == 0, 2, np.clip(np.ceil(lengths / DENSE), 8, most)).astype(int)
    at = np.unique(np.concatenate([*map(np.linspace, y[:-1], y[1:], counts.tolist())]))
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
