"""Drawing: a view as lines, boxes and texts, in a handful of traces.

All edges of one sign and width are one trace, all boxes of one role another: pieces are parted by
NaN, and `items` says which edge or box each piece is, so that a page can leave pieces out. Nothing
here knows a colour; `graphs.plot.STYLES` gives each role its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphs.layout import LEFT, MARGIN, Places, place
from graphs.lettering import shortened, text_width
from graphs.routes import routes
from graphs.views import View

FONT = 13.0  # pixels
LONGEST = 158.0  # the widest text of a box, in pixels
PADDING = 11.0
LABELLED = 120  # the most influential features are boxes with their label; others are marks
WIDTHS = (1.0, 1.5, 2.4, 3.8, 5.6)
SHADES = (0.55, 0.7, 0.85, 1.0, 1.0)  # opacities
STRENGTHS = (0.15, 0.3, 0.5, 0.75)  # where the next width begins: the root of share over largest
CORNER = {"output": 13.0, "rest": 2.0}
ROUND = 7.0


@dataclass(frozen=True, eq=False)
class Trace:
    """Pieces of one role: lines or closed shapes parted by NaN, or one text a point."""

    role: str
    of: str  # what `items` are rows of: "edges", "nodes", or "" for neither
    items: np.ndarray
    x: np.ndarray
    y: np.ndarray
    text: tuple[str, ...] = ()
    width: float = 1.0
    opacity: float = 1.0


@dataclass(frozen=True, eq=False)
class Drawing:
    """A view in its places, as traces from the back to the front."""

    view: View
    places: Places
    traces: tuple[Trace, ...]


def draw(view: View, across: float) -> Drawing:
    """Lay a view out in about this width, and draw it."""
    nodes = view.nodes
    texts = [shortened(text, FONT, LONGEST) for text in nodes["text"]]
    role = nodes["role"].to_numpy()
    influence = nodes["influence"].where(role == "feature", -1.0).to_numpy()
    weak = np.argsort(np.argsort(-influence, kind="stable"), kind="stable") >= LABELLED
    mark = (role == "rest") | ((role == "feature") & weak & (nodes["step"].to_numpy() < 0))
    joined = {*view.edges["source"], *view.edges["target"]}
    table = nodes.assign(
        wide=[text_width(text, FONT) + 2 * PADDING for text in texts],
        mark=mark,
        loose=[r == "word" and n not in joined for n, r in enumerate(role)],
    )
    places = place(table, view.edges, across)
    named = ~mark & (~places.folded | places.upright)
    parts = [*_rows(view, places), *_edges(view, places), *_boxes(view, places, named)]
    return Drawing(view, places, (*parts, *_texts(view, places, named, texts)))


def _rows(view: View, places: Places) -> Iterator[Trace]:
    """A guide for each layer, and its name at the left."""
    outputs = view.nodes.loc[view.nodes["role"] == "output", "layer"]
    kept = places.layers >= 0
    layers, y = places.layers[kept], places.heights[kept]
    names = tuple("output" if n in set(outputs) else f"layer {n}" for n in layers.tolist())
    x = np.tile([LEFT - 6, places.size[0] - MARGIN], (len(y), 1))
    none = np.zeros(0, dtype=np.int64)
    yield Trace("guide", "", none, *_pieces(x, np.stack([y, y], 1)))
    yield Trace("row", "", none, np.full(len(y), LEFT - 14), y, names)


def _edges(view: View, places: Places) -> Iterator[Trace]:
    """Edges by sign and width, the thin ones first, and those of the strongest path over all."""
    edges = view.edges.sort_values("share", ascending=False, kind="stable")
    share = edges["share"].to_numpy(float)
    width = np.digitize(np.sqrt(share / max(share.max(initial=0.0), 1e-300)), STRENGTHS)
    rest = (view.nodes["role"] == "rest").to_numpy()[edges["source"]]
    kind = np.where(edges["path"], "path", np.where(rest, "rest", "edge"))
    sign = np.where(edges["weight"] >= 0, "+", "-")
    lines = routes(edges["source"].to_numpy(), edges["target"].to_numpy(), places)
    gap = np.full((2, 1), np.nan)
    for role in ("rest", "edge", "path"):
        for step, pixels in enumerate(WIDTHS):
            for own in ("-", "+"):
                chosen = np.flatnonzero((kind == role) & (width == step) & (sign == own))
                if len(chosen):
                    items = edges.index.to_numpy()[chosen]
                    x, y = np.hstack([part for n in chosen for part in (lines[n], gap)]).round(1)
                    shade = 1.0 if role == "path" else SHADES[step]
                    yield Trace(role + own, "edges", items, x, y, (), pixels, shade)


def _boxes(view: View, places: Places, named: np.ndarray) -> Iterator[Trace]:
    """Boxes by role; a concept of several features has a second box behind it."""
    role = view.nodes["role"].to_numpy()
    path = view.nodes["step"].to_numpy() >= 0
    several = view.nodes["members"].map(len).to_numpy() > 1
    feature = role == "feature"
    for style, chosen, offset in (
        ("stack", named & several & feature, 4.0),
        ("word", (role == "word") & named & ~path, 0.0),
        ("folded", (role == "word") & ~named, 0.0),
        ("feature", feature & named & ~path, 0.0),
        ("mark", feature & ~named, 0.0),
        ("rest", role == "rest", 0.0),
        ("on-path", path & (role != "output"), 0.0),
        ("output", role == "output", 0.0),
    ):
        items = np.flatnonzero(chosen)
        if len(items):
            yield Trace(style, "nodes", items, *_outlines(items, places, style, offset))


def _outlines(
    items: np.ndarray, places: Places, role: str, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Closed boxes with round corners; small ones are plain squares."""
    half = np.stack([places.wide[items], places.high[items]]) / 2
    corner = np.minimum(CORNER.get(role, ROUND), half.min(0))
    steps = 1 if role in ("mark", "rest", "folded") else 5
    turn = np.linspace(0, np.pi / 2, steps) if steps > 1 else np.array([np.pi / 4])
    angle = np.concatenate([turn + quarter * np.pi / 2 for quarter in range(4)])
    corner = corner if steps > 1 else np.zeros(len(items))
    quadrant = np.repeat(np.array([[1, -1, -1, 1], [1, 1, -1, -1]]), steps, axis=1)
    centre = np.stack([places.x[items] + offset, places.y[items] + offset])
    inner = centre[:, :, None] + quadrant[:, None, :] * (half - corner)[:, :, None]
    points = inner + corner[:, None] * np.stack([np.cos(angle), np.sin(angle)])[:, None, :]
    closed = np.concatenate([points, points[:, :, :1]], axis=2)
    return _pieces(closed[0], closed[1])


def _texts(view: View, places: Places, named: np.ndarray, texts: list[str]) -> Iterator[Trace]:
    """The boxes' texts, by colour; those of upright words apart."""
    role = view.nodes["role"].to_numpy()
    path = (view.nodes["step"].to_numpy() >= 0) & (role != "output")
    for style, chosen in (
        ("word-text", (role == "word") & ~path & ~places.folded),
        ("upright-text", places.folded),
        ("feature-text", (role == "feature") & ~path),
        ("path-text", path),
        ("output-text", role == "output"),
    ):
        items = np.flatnonzero(chosen & named)
        if len(items):
            shown = tuple(texts[n] for n in items)
            yield Trace(style, "nodes", items, places.x[items], places.y[items], shown)


def _pieces(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of points as one line, parted by NaN."""
    gap = np.full((len(x), 1), np.nan)
    return np.hstack([x, gap]).round(1).ravel(), np.hstack([y, gap]).round(1).ravel()
