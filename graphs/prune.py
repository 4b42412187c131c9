"""Prune: the smallest circuit that keeps a stated share of the influence.

1. Nodes.  Of all sources but the bias, the smallest set whose inflow reaches the share ``nodes``.
   Tokens and explained targets stay in any case, and with ``errors="kept"`` errors do too.
2. Edges.  Influence is computed anew on what was kept, with rows renormalised over the kept columns.
   An edge scores ``carried[target] * share[target, source]``, what flows along it; the smallest set
   that reaches the share ``edges`` of all scores stays.
3. Loose ends.  A feature without an incoming or an outgoing edge goes, and an error or remainder
   without an outgoing one, until there is none.  What is left is exactly what lies on a path of kept
   edges from a root (token, error, remainder, explained target) to an explained target, so one walk
   down the layers and one up find it.

The semantics are circuit-tracer's; both cuts are exact and nothing is sorted (``graphs.threshold``).
The scores of edges are computed by blocks of rows and never stored; only kept edges are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, vstack

from graphs.circuit import Circuit, circuit_of
from graphs.influence import Edges, Flow, flow, magnitudes, row_blocks
from graphs.scores import UNEXPLAINED
from graphs.threshold import cut

if TYPE_CHECKING:
    from graphs.graph import AttributionGraph


def prune(
    graph: AttributionGraph,
    nodes: float = 0.8,
    edges: float = 0.98,
    errors: Literal["prunable", "kept"] = "prunable",
) -> Circuit:
    """The circuit that keeps ``nodes`` of the influence and then ``edges`` of what flows.

    ``errors="kept"`` is the rule of the paper: errors (and remainders) are not pruned by influence,
    they only go when no edge of theirs is left.
    """
    _check_shares(nodes, edges, errors)
    kept = _kept_nodes(graph, nodes, errors == "kept")
    rows = np.flatnonzero(kept[graph.targets])
    columns = np.flatnonzero(kept[graph.sources] & graph.wiring.driven)
    flowing = flow(graph.wiring, kept[graph.targets], kept[graph.sources])
    chosen, total = _kept_edges(graph.edges, flowing, rows, columns, edges)
    alive = _on_a_path(graph, kept, chosen, rows, columns)
    table = _edge_table(graph, alive, chosen, flowing.rate[rows] / (total or 1.0), rows, columns)
    pruning = {"nodes": nodes, "edges": edges, "errors": errors}
    return circuit_of(graph, alive, table, {**graph.settings, "prune": pruning})


def _check_shares(nodes: float, edges: float, errors: str) -> None:
    for name, share, what in (("nodes", nodes, "influence"), ("edges", edges, "flow")):
        if not 0.0 < share <= 1.0:
            default = 0.8 if name == "nodes" else 0.98
            raise ValueError(
                f"{name}={share} must lie in (0, 1]; {default} keeps {default:.0%} of the {what}."
            )
    if errors not in ("prunable", "kept"):
        raise ValueError(
            f"errors={errors!r} is neither 'prunable' nor 'kept'; "
            "'kept' spares error nodes when nodes are pruned by influence."
        )


def _kept_nodes(graph: AttributionGraph, share: float, keep_errors: bool) -> np.ndarray:
    """Which nodes stay by influence, or in any case."""
    inflow = graph.flow.inflow
    limit, _ = cut(lambda: [inflow], share, inflow.dtype)
    kept = np.zeros(len(graph.nodes), dtype=bool)
    kept[graph.sources] = inflow >= limit
    kept[graph.targets] |= graph.weights > 0.0
    kinds = graph.nodes["kind"].to_numpy(dtype=object)
    kept |= kinds == "token"
    if keep_errors:
        kept |= np.isin(kinds, UNEXPLAINED)
    return kept


def _kept_edges(
    edges: Edges, flowing: Flow, rows: np.ndarray, columns: np.ndarray, share: float
) -> tuple[csr_array, float]:
    """The kept edges, signed, as CSR over ``rows`` x ``columns``; and the total of all scores."""

    def scored() -> Iterator[tuple[Edges, np.ndarray]]:
        for part, block in row_blocks(edges, rows, columns):
            yield block, _scores(block, flowing.rate[part]).astype(edges.dtype)

    limit, total = cut(lambda: (score for _, score in scored()), share, edges.dtype)
    parts = [_select(block, score >= limit) for block, score in scored()]
    if not parts:
        return csr_array((len(rows), len(columns)), dtype=edges.dtype), total
    return csr_array(vstack(parts, format="csr")), total


def _scores(block: Edges, rate: np.ndarray) -> np.ndarray:
    """``|edge| * carried / total`` of each entry (of each stored entry, if sparse)."""
    if isinstance(block, np.ndarray):
        return magnitudes(block) * rate[:, None]
    return np.abs(block.data.astype(np.float64)) * np.repeat(rate, np.diff(block.indptr))


def _select(block: Edges, keep: np.ndarray) -> csr_array:
    """The entries of ``block`` for which ``keep`` holds, aligned as ``_scores`` aligns them."""
    if isinstance(block, np.ndarray):
        flat = np.flatnonzero(keep)
        row, column = np.divmod(flat, block.shape[1])
        lengths, indices, data = np.bincount(row, minlength=len(block)), column, block.ravel()[flat]
    else:
        ends = np.concatenate(([0], np.cumsum(keep)))[block.indptr]
        lengths, indices, data = np.diff(ends), block.indices[keep], block.data[keep]
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return csr_array((data, indices.astype(np.int32), starts), shape=block.shape)


def _on_a_path(
    graph: AttributionGraph,
    kept: np.ndarray,
    chosen: csr_array,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Tokens, explained targets, and whatever lies on a path of kept edges from a root to one."""
    target, source = graph.targets[rows], graph.sources[columns]
    kinds = graph.nodes["kind"].to_numpy(dtype=object)
    explained = np.zeros(len(kept), dtype=bool)
    explained[graph.targets] = graph.weights > 0.0
    levels = np.unique(graph.wiring.row_layer[rows])
    members = {level: np.flatnonzero(graph.wiring.row_layer[rows] == level) for level in levels}

    leads = explained.copy()
    for level in levels[::-1]:
        onward = members[level][leads[target[members[level]]]]
        leads[source[chosen[onward].indices]] = True
    fed = explained | np.isin(kinds, ("token", *UNEXPLAINED))
    for level in levels:
        block = chosen[members[level]]
        known = np.concatenate(([0], np.cumsum(fed[source[block.indices]])))
        fed[target[members[level]]] |= np.diff(known[block.indptr]) > 0
    return kept & ((leads & fed) | explained | (kinds == "token"))


def _edge_table(
    graph: AttributionGraph,
    alive: np.ndarray,
    chosen: csr_array,
    rate: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> pd.DataFrame:
    """Kept edges between live nodes, and the share of all scores that each of them carries."""
    lengths = np.diff(chosen.indptr)
    target = np.repeat(graph.targets[rows].astype(np.int32), lengths)
    source = graph.sources[columns].astype(np.int32)[chosen.indices]
    share = np.abs(chosen.data) * np.repeat(rate.astype(chosen.dtype), lengths)
    live = alive[source] & alive[target]
    return pd.DataFrame(
        {
            "source": source[live],
            "target": target[live],
            "weight": chosen.data[live],
            "share": share[live],
        }
    )
