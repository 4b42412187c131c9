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
        flow[graph.sources] += flow[graph.targets[rows]] @ graph.shares(rows)
    return flow


def descending(graph: AttributionGraph) -> list[np.ndarray]:
    """Blocks of rows, each of one layer, the highest layer first."""
    layers = graph.nodes["layer"].to_numpy()[graph.targets]
    blocks = []
    for layer in np.unique(layers)[::-1]:
        rows = np.flatnonzero(layers == layer)
        blocks += [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    return blocks


def restricted(
    direct: Float[np.ndarray, "rows columns"],
    weights: Float[np.ndarray, " rows"],
    layers: np.ndarray,
    column_of_row: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Influence within a part of a graph, rows renormalised over the part's columns.

    `column_of_row` is the column of the node that a row explains (-1 where it has none). Returns
    each row's own influence (weight included) and each row's shares.
    """
    total = direct.sum(1, dtype=np.float64)
    shares = direct / np.where(total > 0, total, 1).astype(direct.dtype)[:, None]
    flow = np.zeros(direct.shape[1])
    own = weights.astype(np.float64).copy()
    inner = column_of_row >= 0
    for layer in np.unique(layers)[::-1]:
        rows = np.flatnonzero(layers == layer)
        through = rows[inner[rows]]
        own[through] += flow[column_of_row[through]]
        flow += own[rows] @ shares[rows]
    return own, shares
