"""Scores: how far a graph can be trusted.

replacement: of the influence that ends somewhere, the share that ends in tokens and not in
errors (how much of the whole path the features explain, end to end).
completeness: the share of what is read directly that comes from features and tokens, over all
targets, weighted by their influence.
(circuit-tracer's completeness also counts tokens and errors themselves, which read nothing, as
fully explained; its figures are higher.) Remainders count as error in both, and so, for a pruned
graph, does every pruned node.
"""

from typing import NamedTuple

import numpy as np

from graphs.graph import AttributionGraph
from graphs.influence import descending


class Scores(NamedTuple):
    """Replacement and completeness, both in [0, 1]."""

    replacement: float
    completeness: float


def graph_scores(graph: AttributionGraph, kept: np.ndarray | None = None) -> Scores:
    """The scores of a graph, or of the part of it whose nodes are `kept` (a mask over nodes)."""
    kind = graph.nodes["kind"].to_numpy()
    kept = np.ones(len(kind), dtype=bool) if kept is None else kept
    meant = kept & np.isin(kind, ("feature", "token"))
    flow = np.zeros(len(kind))
    np.add.at(flow, graph.targets, graph.weights)
    explained = error = read = 0.0
    good = meant[graph.sources]
    token = good & (kind == "token")[graph.sources]
    for rows in descending(graph):
        # A pruned feature stands for error: nothing passes through it.
        own = flow[graph.targets[rows]] * kept[graph.targets[rows]]
        shares = graph.shares(rows)
        reached = (own.astype(shares.dtype) @ shares).astype(np.float64)
        flow[graph.sources] += reached
        read += own.sum()
        explained += reached[token].sum()
        error += reached[~good].sum()
    ended = explained + error
    return Scores(
        replacement=float(explained / ended) if ended else 0.0,
        completeness=float(1 - error / read) if read else 0.0,
    )
