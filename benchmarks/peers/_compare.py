"""Do two graphs of one prompt agree? Asked, and answered, before anything is timed.

circuit-tracer leaves features and errors out at position 0, so neither side's count here.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

KINDS = ("feature", "error", "token", "logit", "bias", "remainder")
TOLERANCE = 1e-4
BLOCK = 1024  # rows compared at a time: the edges of both graphs are hundreds of megabytes each


@dataclass(frozen=True)
class Table:
    """A graph's edges with a name for every row and column: (kind, layer, position, feature)."""

    edges: object  # (rows, columns), a dense array or a scipy.sparse.csr_array
    rows: pd.MultiIndex
    columns: pd.MultiIndex


def names(kind: str, layer: object, position: object, feature: object) -> pd.MultiIndex:
    """Node names, comparable between the tools. Arguments broadcast against each other."""
    columns = np.broadcast_arrays(KINDS.index(kind), layer, position, feature)
    return pd.MultiIndex.from_arrays([np.atleast_1d(column).astype(int) for column in columns])


def peer_table(arrays: dict[str, np.ndarray], layers: int, tokens: int) -> Table:
    """The worker's arrays, named."""
    chosen = names("feature", *arrays["active"][arrays["selected"]].T)
    layer, position = np.divmod(np.arange(layers * tokens), tokens)
    columns = chosen.append(
        [names("error", layer, position, -1), names("token", -1, np.arange(tokens), -1)]
    )
    logits = names("logit", layers, tokens - 1, arrays["logits"])
    return Table(arrays["edges"], chosen.append(logits), columns)


def our_table(graph) -> Table:
    """An AttributionGraph, named. Bias and remainder have no counterpart at the peer's."""
    kinds = pd.Categorical(graph.nodes["kind"], categories=KINDS).codes
    places = graph.nodes[["layer", "position", "feature"]].to_numpy().T
    index = pd.MultiIndex.from_arrays([kinds.astype(int), *places])
    return Table(graph.edges, index[graph.targets], index[graph.sources])


def shared(index: pd.MultiIndex) -> pd.MultiIndex:
    """The nodes that the peer could have too: no bias and remainder, and at position 0, where it
    zeroes them, no features and errors."""
    kind, position = index.get_level_values(0), index.get_level_values(2)
    zeroed = kind.isin([KINDS.index("feature"), KINDS.index("error")]) & (position == 0)
    return index[~zeroed & (kind <= KINDS.index("logit"))]


def same(what: str, ours: pd.MultiIndex, peer: pd.MultiIndex) -> None:
    """Stop unless both sides name the same nodes."""
    extra, missing = len(ours.difference(peer)), len(peer.difference(ours))
    if extra or missing:
        raise SystemExit(
            f"the tools disagree on {what}: {extra} of {len(ours)} are only ours and {missing} of "
            f"{len(peer)} only the peer's. No timing is reported."
        )


def close(what: str, difference: float) -> float:
    """Stop unless a relative difference is within the tolerance; else hand it back."""
    if not difference <= TOLERANCE:  # so that NaN stops too
        raise SystemExit(
            f"the tools disagree on {what}: a relative difference of {difference:.1e}, "
            f"{TOLERANCE:.0e} is allowed. No timing is reported."
        )
    return difference


def relative(ours: np.ndarray, peer: np.ndarray) -> float:
    """Largest difference over the largest entry."""
    return float(np.abs(ours - peer).max() / np.abs(peer).max())


def edge_differences(ours: Table, peer: Table) -> dict[str, float | int]:
    """Compare the rows and columns that both have. Each row's largest difference is taken relative
    to that row's largest edge, and the worst row counts; and all of them in the Frobenius norm."""
    rows = shared(ours.rows).intersection(peer.rows)
    columns = shared(ours.columns).intersection(peer.columns)
    worst, squares, total = 0.0, 0.0, 0.0
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        a, b = _take(ours, block, columns), _take(peer, block, columns)
        gap = np.abs(a - b)
        worst = max(worst, float((gap.max(1) / np.abs(b).max(1).clip(1e-30)).max()))
        squares, total = squares + float((gap**2).sum()), total + float((b**2).sum())
    return {
        "rows_compared": len(rows),
        "columns_compared": len(columns),
        "largest": close("edges", worst),
        "frobenius": close("edges (Frobenius)", (squares / total) ** 0.5),
    }


def _take(table: Table, rows: pd.MultiIndex, columns: pd.MultiIndex) -> np.ndarray:
    block = table.edges[table.rows.get_indexer(rows)]
    dense = block.toarray() if hasattr(block, "toarray") else block
    return dense[:, table.columns.get_indexer(columns)].astype(np.float64)
