"""Layout: where each box of a picture goes.

Words stand along the bottom in their order, one column each; layers rise above them, one row each,
with the outputs in the last. What a layer computed at a word is in the cell of that row and column.
Within a cell, boxes are ordered by the barycentre of what they are connected with, sweep by sweep,
and the order with the fewest crossings is kept. Cells are then packed like the cells of a table: a
column is as wide as its widest cell and a row as high as its highest, so nothing can overlap.

Lengths are pixels, y grows upward. A picture that is too wide puts fewer boxes side by side, then
turns the words that nothing is connected with upright (or, where they are many, makes them marks),
and then is wider than was asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse

BOX, MARK = 26.0, 9.0  # heights
GAP, ASIDE = 9.0, 18.0  # between boxes of one cell: above each other, and side by side
PITCH = 13.0  # from mark to mark
MARKS_ACROSS = 5  # in a cell without boxes
BESIDE = 2  # marks to the right of a cell's boxes; more stand beneath them
TALL = 6  # boxes above each other, before a cell grows wider
BETWEEN_COLUMNS, MOST_BETWEEN = 12.0, 84.0
BETWEEN_ROWS, MOST_BETWEEN_ROWS = 34.0, 80.0
RISE = 560.0  # the height that a picture of few rows fills
LEFT, MARGIN = 68.0, 16.0  # room for the rows' names, and around everything
UPRIGHT, THIN = 20.0, 6.0  # the widths of a word that stands upright, and of one that is a mark
MOST_UPRIGHT = 40  # words
SWEEPS, COUNTED = 12, 600  # and how many of the strongest edges are looked at for crossings
# Boxes side by side, whether words without edges are folded, and how much wider than asked for the
# picture may be: the first that fits.
WAYS = (
    (4, False, 1.0),
    (3, False, 1.0),
    (2, False, 1.25),
    (1, False, 1.15),
    (3, True, 1.0),
    (2, True, 1.25),
    (1, True, np.inf),
)


_Sizes: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # widths, heights, which are marks


@dataclass(frozen=True, eq=False)
class Places:
    """The centre and the size of every box, the rows' layers and heights, and the whole's size.

    A `folded` word is a mark, or stands `upright`.
    """

    x: Float[np.ndarray, " nodes"]
    y: Float[np.ndarray, " nodes"]
    wide: Float[np.ndarray, " nodes"]
    high: Float[np.ndarray, " nodes"]
    folded: Bool[np.ndarray, " nodes"]
    upright: bool
    layers: Int[np.ndarray, " rows"]
    heights: Float[np.ndarray, " rows"]
    size: tuple[float, float]


def place(nodes: pd.DataFrame, edges: pd.DataFrame, across: float) -> Places:
    """Places for nodes (layer, position, wide, mark, loose) and edges (source, target, share).

    `wide` is the width that a box needs; a `mark` is a small square instead; a `loose` node may be
    folded. Edges name their ends by row of the node table.
    """
    layers, row = np.unique(nodes["layer"].to_numpy(), return_inverse=True)
    _, column = np.unique(nodes["position"].to_numpy(), return_inverse=True)
    order = ordered(row, column, edges)
    loose, mark = nodes["loose"].to_numpy(dtype=bool), nodes["mark"].to_numpy(dtype=bool)
    upright = int(loose.sum()) <= MOST_UPRIGHT
    for per_line, fold, larger in WAYS:
        folded = loose & fold
        wide, high = _sizes(nodes["wide"].to_numpy(dtype=float), mark, folded, upright, across)
        boxes = (wide, high, mark)
        cells = {
            (int(row[own[0]]), int(column[own[0]])): _Cell.of(own, boxes, per_line)
            for own in _cells(order, row, column)
        }
        narrow = np.ones(column.max() + 1, dtype=bool)
        narrow[column[~folded]] = False
        free = _free(cells, len(layers) - 1)
        columns = _columns(cells, free, narrow, across)
        if columns[2] <= across * larger:
            break
    if free is not None:
        cells[free] = _stretched(cells[free], boxes, columns[2])
    x, y, heights, rise = _settled(cells, columns, len(layers), across)
    size = (float(np.ceil(columns[2])), float(np.ceil(rise)))
    return Places(x, y, wide, high, folded, upright, layers, heights, size)


def _settled(
    cells: "dict[tuple[int, int], _Cell]",
    columns: tuple[np.ndarray, np.ndarray, float],
    rows: int,
    across: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Every box's centre, the rows' heights and the whole height."""
    lefts, widths, total = columns
    heights, rise, tall = _rows(cells, rows, RISE * max(1.0, total / across))
    count = sum(len(cell.nodes) for cell in cells.values())
    x, y = np.zeros(count), np.zeros(count)
    for (r, c), cell in cells.items():
        hang = 0.0 if r else (tall - cell.high) / 2  # words hang from one line
        half = cell.wide / 2
        middle = max(LEFT + half, min(lefts[c] + widths[c] / 2, total - MARGIN - half))
        x[cell.nodes] = middle + cell.dx
        y[cell.nodes] = heights[r] + cell.dy + hang
    return x, y, heights, rise


def _free(cells: "dict[tuple[int, int], _Cell]", top: int) -> tuple[int, int] | None:
    """The cell of the top row if it stands there alone: it need not keep to its column."""
    found = [key for key in cells if key[0] == top > 0]
    return found[0] if len(found) == 1 else None


def _stretched(cell: "_Cell", boxes: _Sizes, total: float) -> "_Cell":
    """The cell with as many boxes side by side as there is room for."""
    for per_line in range(len(cell.nodes), 0, -1):
        found = _Cell.of(cell.nodes, boxes, per_line)
        if found.wide <= total - LEFT - MARGIN:
            return found
    return cell


def _sizes(
    wanted: np.ndarray, mark: np.ndarray, folded: np.ndarray, upright: bool, across: float
) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of each box."""
    wide, high = np.where(mark, MARK, wanted), np.where(mark, MARK, BOX)
    if upright:
        return np.where(folded, UPRIGHT, wide), np.where(folded, wanted, high)
    thin = max(1.0, min(THIN, across / (4 * max(1, folded.sum()))))
    return np.where(folded, thin, wide), np.where(folded, THIN, high)


def ordered(
    row: Int[np.ndarray, " nodes"], column: Int[np.ndarray, " nodes"], edges: pd.DataFrame
) -> Int[np.ndarray, " nodes"]:
    """The nodes from cell to cell, each cell's in the order with the fewest crossings found."""
    source, target = edges["source"].to_numpy(np.int64), edges["target"].to_numpy(np.int64)
    pull = np.sqrt(np.maximum(edges["share"].to_numpy(float), 0)) + 1e-9
    matrix = sparse.csr_array((pull, (source, target)), shape=(len(row), len(row)))
    matrix = sparse.csr_array(matrix + matrix.T)
    strong = np.argsort(-pull, kind="stable")[:COUNTED]
    ends = (source[strong], target[strong])
    layers = [np.flatnonzero(row == r) for r in range(row.max() + 1)]
    x = _spread(np.lexsort((np.arange(len(row)), column, row)), row, column)
    best, fewest = x, crossings(x, row.astype(float), *ends)
    for _ in range(SWEEPS):
        for own in (*layers[1:], *layers[-2::-1]):
            x = _reordered(own, matrix, x, column)
        found = crossings(x, row.astype(float), *ends)
        if found < fewest:
            best, fewest = x, found
    return np.lexsort((best, column, row))


def _reordered(
    own: np.ndarray, matrix: sparse.csr_array, x: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """Every x, with the nodes of one layer put in the order of what they are connected with."""
    near = matrix[own]
    drawn = near.sum(1)
    centre = np.where(drawn > 0, (near @ x) / np.where(drawn > 0, drawn, 1), x[own])
    order = own[np.lexsort((x[own], centre, column[own]))]
    x = x.copy()
    x[order] = _spread(order, column * 0, column)[order]
    return x


def crossings(
    x: Float[np.ndarray, " nodes"],
    y: Float[np.ndarray, " nodes"],
    source: Int[np.ndarray, " edges"],
    target: Int[np.ndarray, " edges"],
) -> int:
    """How many pairs of straight edges cross, those with a common end left out."""
    a, b = np.stack([x[source], y[source]]), np.stack([x[target], y[target]])
    step = b - a

    def side(point: np.ndarray) -> np.ndarray:
        """[e, f]: on which side of edge e the point of edge f lies."""
        away = point[:, None, :] - a[:, :, None]
        return np.sign(step[0][:, None] * away[1] - step[1][:, None] * away[0])

    apart = side(a) * side(b) < 0
    shared = source[:, None] == source
    shared |= target[:, None] == target
    shared |= (source[:, None] == target) | (target[:, None] == source)
    return int((apart & apart.T & ~shared).sum()) // 2


def _spread(order: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The x of these nodes when every column is one wide."""
    x = np.zeros(len(row))
    for cell in _cells(order, row, column):
        x[cell] = column[cell[0]] + (np.arange(len(cell)) + 0.5) / len(cell)
    return x


def _cells(order: np.ndarray, row: np.ndarray, column: np.ndarray) -> Iterator[np.ndarray]:
    """The nodes of each cell, in order."""
    new = (np.diff(row[order]) != 0) | (np.diff(column[order]) != 0)
    yield from np.split(order, np.flatnonzero(new) + 1)


@dataclass(frozen=True, eq=False)
class _Cell:
    """Boxes in lines, marks in a grid beside or beneath them; offsets from the cell's centre."""

    nodes: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    wide: float
    high: float

    @staticmethod
    def of(nodes: np.ndarray, sizes: _Sizes, per_line: int) -> "_Cell":
        wide, high, mark = sizes
        boxes, marks = nodes[~mark[nodes]], nodes[mark[nodes]]
        across = max(per_line, -(-len(boxes) // TALL))
        bx, by, bw, bh = _grid(wide[boxes], high[boxes], across, (ASIDE, GAP))
        both = GAP if len(boxes) and len(marks) else 0.0
        beside = bool(both) and len(marks) <= BESIDE
        room = 1 if beside else max(MARKS_ACROSS, int(bw // PITCH), int(np.sqrt(len(marks))))
        mx, my, mw, mh = _grid(wide[marks], high[marks], room, (PITCH - MARK, PITCH - MARK))
        if beside:
            bx, mx = bx - (both + mw) / 2, mx + (both + bw) / 2
            whole, tall = bw + both + mw, max(bh, mh)
        else:
            by, my = by + (both + mh) / 2, my - (both + bh) / 2
            whole, tall = max(bw, mw), bh + both + mh
        x, y = np.concatenate([bx, mx]), np.concatenate([by, my])
        return _Cell(np.concatenate([boxes, marks]), x, y, whole, tall)


def _grid(
    wide: np.ndarray, high: np.ndarray, across: int, gaps: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Centres of items filled in column by column, about the middle, and the grid's size."""
    count = len(wide)
    if not count:
        return np.zeros(0), np.zeros(0), 0.0, 0.0
    lines = -(-count // across)
    line, lane = np.arange(count) % lines, np.arange(count) // lines
    widths, pitch = np.zeros(lane[-1] + 1), float(high.max()) + gaps[1]
    np.maximum.at(widths, lane, wide)
    whole = float(widths.sum() + gaps[0] * (len(widths) - 1))
    lefts = np.cumsum(widths + gaps[0]) - widths - gaps[0]
    x = (lefts + widths / 2)[lane] - whole / 2
    return x, (lines - 1) * pitch / 2 - line * pitch, whole, lines * pitch - gaps[1]


def _columns(
    cells: dict[tuple[int, int], _Cell],
    free: tuple[int, int] | None,
    narrow: np.ndarray,
    across: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Left edges and widths of the columns and the whole width; spare room goes between them."""
    widths, least = np.zeros(len(narrow)), 0.0
    for key, cell in cells.items():
        if key == free:
            least = cell.wide
        else:
            widths[key[1]] = max(widths[key[1]], cell.wide)
    # Between two folded words there is no more room than one takes.
    gaps = np.where(narrow[1:] & narrow[:-1], np.minimum(widths[1:], 6.0), BETWEEN_COLUMNS)
    wide = gaps == BETWEEN_COLUMNS
    spare = across - LEFT - MARGIN - widths.sum() - gaps.sum()
    if spare > 0 and wide.any():
        gaps[wide] += min(spare / wide.sum(), MOST_BETWEEN - BETWEEN_COLUMNS)
    lefts = LEFT + np.concatenate([[0.0], np.cumsum(widths[:-1] + gaps)])
    return lefts, widths, max(float(lefts[-1] + widths[-1]), LEFT + least) + MARGIN


def _rows(
    cells: dict[tuple[int, int], _Cell], count: int, wanted: float
) -> tuple[np.ndarray, float, float]:
    """The middle of each row, from the bottom, the whole height, and that of the lowest row."""
    highs = np.zeros(count)
    for (r, _), cell in cells.items():
        highs[r] = max(highs[r], cell.high)
    spare = (wanted - 2 * MARGIN - highs.sum()) / max(1, count - 1)
    gap = min(max(spare, BETWEEN_ROWS), MOST_BETWEEN_ROWS)
    bottoms = MARGIN + np.cumsum(highs + gap) - highs - gap
    return bottoms + highs / 2, float(bottoms[-1] + highs[-1] + MARGIN), float(highs[0])
