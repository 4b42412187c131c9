"""Influence: a source's share of everything that reached the explained targets, over all paths.

With S[t, s] = |edge| over the row's sum of |edges| (the bias left out) and w the explained
targets' weights, the influence v solves

    v[s] = sum over t of (w[t] + v[t]) * S[t, s]

The graph has no cycles and descending layers are a reverse topological order, so one pass
gives the exact answer: when a layer's rows are visited, all that flows into them is known.
"""

import numpy as np
from jaxtyping import Float

from graphs.graph import BLOCK, AttributionGraph


def influence(graph: AttributionGraph) -> Float[np.ndarray, " nodes"]:
    """The influence of every node; an explained target has its weight in addition."""
    flow = np.zeros(len(graph.nodes))
    np.add.at(flow, graph.targets, graph.weights)
    for rows in descending(graph):
        shares = graph.shares(rows)
        flow[graph.sources] += flow[graph.targets[rows]].astype(shares.dtype) @ shares
    return flow


def descending(graph: AttributionGraph) -> list[np.ndarray]:
    """Blocks of rows, each of one layer, the highest layer first."""
    layers = graph.nodes["layer"].to_numpy()[graph.targets]
    blocks = []
    for layer in np.unique(layers)[::-1]:
        rows = np.flatnonzero(layers == layer)
        blocks += [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    return blocks


def scored(
    shares: Float[np.ndarray, "rows columns"],
    weights: Float[np.ndarray, " rows"],
    layers: np.ndarray,
    column_of_row: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Turn the shares within a part of a graph into edge scores, in place.

    Rows are renormalised over the part's columns, the influence is computed anew within it, and
    an edge scores its share times its target's influence. `column_of_row` is the column of the
    node that a row explains (-1 where it has none). Returns each row's influence (its weight
    included) and the sum of its shares before they were renormalised.
    """
    total = shares.sum(1, dtype=np.float64)
    shares /= np.where(total > 0, total, 1).astype(shares.dtype)[:, None]
    flow = np.zeros(shares.shape[1])
    own = weights.astype(np.float64)
    inner = column_of_row >= 0
    for layer in np.unique(layers)[::-1]:
        rows = np.flatnonzero(layers == layer)
        through = rows[inner[rows]]
        own[through] += flow[column_of_row[through]]
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            flow += own[part].astype(shares.dtype) @ shares[part]
    shares *= own[:, None].astype(shares.dtype)
    return own, total
