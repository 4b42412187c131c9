"""Prune: the smallest graph that keeps the stated share.

Nodes first: the fewest features, errors and tokens whose influence adds up to the share `nodes`
of all influence. Then edges: the influence is computed anew within what is left, an edge scores
its target's influence times its share of the target's row, and the fewest edges that add up to
the share `edges` stay. Then whatever has lost its edges goes. Tokens and explained targets always
stay; the bias never enters a circuit.
"""

import numpy as np
import pandas as pd
from jaxtyping import Bool

from graphs.circuit import Circuit, known, with_books
from graphs.graph import AttributionGraph, dense, row_blocks
from graphs.influence import scored
from graphs.scores import graph_scores
from graphs.threshold import smallest_kept, threshold


def prune(graph: AttributionGraph, nodes: float, edges: float, errors: str) -> Circuit:
    """Keep the nodes and edges that carry these shares of the influence."""
    for name, share, example in (("nodes", nodes, "0.8 keeps 80%"), ("edges", edges, "0.98 98%")):
        if not 0 < share <= 1:
            raise ValueError(f"{name}={share} must lie in (0, 1]; {example} of the influence.")
    if errors not in ("prunable", "kept"):
        raise ValueError(f"errors={errors!r} must be 'prunable' or 'kept'.")
    kept = _kept_nodes(graph, nodes, errors)
    table = _kept_edges(graph, kept, edges)
    table = _drop_stranded(graph, table)
    return _circuit(graph, table, {"nodes": nodes, "edges": edges, "errors": errors})


def _kept_nodes(graph: AttributionGraph, share: float, errors: str) -> Bool[np.ndarray, " nodes"]:
    kind = graph.nodes["kind"].to_numpy()
    influence = graph.nodes["influence"].to_numpy().copy()
    np.subtract.at(influence, graph.targets, graph.weights)  # the explained keep what flows in
    kept = smallest_kept(np.maximum(influence, 0), share)
    kept[kind == "token"] = True
    kept[graph.explained] = True
    kept[kind == "bias"] = False
    if errors == "kept":
        kept[kind == "error"] = True
    return kept


def _kept_edges(
    graph: AttributionGraph, kept: Bool[np.ndarray, " nodes"], share: float
) -> pd.DataFrame:
    """The edges that carry the share, among kept nodes: node ids, weight and shares."""
    rows = np.flatnonzero(kept[graph.targets])
    columns = np.flatnonzero(kept[graph.sources])
    scores = np.empty((len(rows), len(columns)), dtype=np.float32)
    for part in row_blocks(len(rows)):
        scores[part] = graph.shares(rows[part])[:, columns]
    place = np.full(len(graph.nodes), -1)
    place[graph.sources[columns]] = np.arange(len(columns))
    targets = graph.targets[rows]
    layers = graph.nodes["layer"].to_numpy()[targets]
    own, total = scored(scores, graph.weights[rows], layers, place[targets])
    least = threshold(scores.ravel(), share)
    whole = max(float(own.sum()), np.finfo(float).tiny)
    tables = []
    for part in row_blocks(len(rows)):
        r, c = np.nonzero((scores[part] >= least) & (scores[part] > 0))
        score, r = scores[part][r, c].astype(np.float64), r + part.start
        block = dense(graph.edges[rows[part]])
        tables.append(
            {
                "source": graph.sources[columns[c]],
                "target": targets[r],
                "weight": block[r - part.start, columns[c]].astype(np.float64),
                "share": score / whole,
                "direct": score / own[r] * total[r],
            }
        )
    return pd.DataFrame({key: np.concatenate([t[key] for t in tables]) for key in tables[0]})


def _drop_stranded(graph: AttributionGraph, table: pd.DataFrame) -> pd.DataFrame:
    """Drop edges of features that nothing feeds or that feed nothing, until none is left."""
    kind = graph.nodes["kind"].to_numpy()
    explained = np.zeros(len(kind), dtype=bool)
    explained[graph.explained] = True
    feature = kind == "feature"
    while True:
        fed = np.zeros(len(kind), dtype=bool)
        feeding = explained.copy()
        fed[table["target"]] = True
        feeding[table["source"]] = True
        stranded = (feature & ~fed) | ~feeding
        bad = stranded[table["source"].to_numpy()] | stranded[table["target"].to_numpy()]
        if not bad.any():
            return table.reset_index(drop=True)
        table = table.loc[~bad]


def _circuit(graph: AttributionGraph, table: pd.DataFrame, options: dict) -> Circuit:
    kind = graph.nodes["kind"].to_numpy()
    kept = np.zeros(len(kind), dtype=bool)
    kept[table["source"]] = True
    kept[table["target"]] = True
    kept[kind == "token"] = True
    kept[graph.explained] = True
    ids = np.flatnonzero(kept)
    nodes = graph.nodes.iloc[ids].assign(node=ids).reset_index(drop=True)
    nodes = with_books(graph, nodes, table)
    settings = {**graph.settings, "pruned": options}
    measured = graph_scores(graph, kept)
    return Circuit(nodes, table, measured, settings, evidence=known(graph, nodes)).grouped()
