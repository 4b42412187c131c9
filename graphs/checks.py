"""What must hold before a graph is put together; each failure names the value and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from graphs.influence import Edges, Wiring, row_blocks

if TYPE_CHECKING:
    from graphs.graph import AttributionGraph

COLUMNS = {
    "kind": "str",
    "layer": "int64",
    "position": "int64",
    "feature": "int64",
    "token": "str",
    "activation": "float64",
    "influence": "float64",
}
KINDS = ("feature", "error", "token", "bias", "remainder", "logit")
TARGET_KINDS = ("feature", "logit")


def check_frame(nodes: pd.DataFrame) -> pd.DataFrame:
    """A copy of the node table with the columns in order, each of its own dtype."""
    missing = [name for name in COLUMNS if name not in nodes.columns]
    excess = [str(name) for name in nodes.columns if name not in COLUMNS]
    if missing or excess:
        raise ValueError(
            f"the node table lacks the columns {missing} and has {excess} too many; "
            f"it needs exactly {list(COLUMNS)}."
        )
    unknown = sorted(set(map(str, nodes["kind"])) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown node kind {unknown[0]!r}; a node is one of {', '.join(KINDS)}.")
    return nodes[list(COLUMNS)].astype(COLUMNS).reset_index(drop=True)


def check_rectangle(graph: AttributionGraph) -> None:
    """Shapes, dtypes, which nodes may be rows and columns, and the vectors along the rows."""
    edges, rows, columns = graph.edges, len(graph.targets), len(graph.sources)
    _check_layout(edges)
    if edges.shape != (rows, columns):
        raise ValueError(
            f"edges have shape {tuple(edges.shape)}, but there are {rows} targets and {columns} "
            "sources; edges are (targets x sources)."
        )
    for name in ("values", "weights", "scale"):
        vector = getattr(graph, name)
        if vector.shape != (rows,):
            raise ValueError(
                f"{name} has shape {vector.shape}; it needs one entry for each of the {rows} targets."
            )
        if not np.isfinite(vector).all():
            row = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise ValueError(f"{name}[{row}] is {vector[row]}; it must be finite.")
    kinds = graph.nodes["kind"].to_numpy(dtype=object)
    _check_members("targets", graph.targets, kinds, TARGET_KINDS)
    _check_members("sources", graph.sources, kinds, tuple(k for k in KINDS if k != "logit"))
    _check_weights(graph.weights, graph.scale)


def check_edges(wiring: Wiring, targets: np.ndarray, sources: np.ndarray) -> None:
    """Every edge is finite and goes up in layer, which is why the graph has no cycles."""
    for layer in np.unique(wiring.row_layer):
        level = np.flatnonzero(wiring.column_layer >= layer)
        for part, block in row_blocks(wiring.edges, np.flatnonzero(wiring.row_layer == layer)):
            _check_finite(block, part, targets)
            upper = block[:, level]
            if upper.nnz if not isinstance(upper, np.ndarray) else upper.any():
                row, column = (int(index[0]) for index in upper.nonzero())
                raise ValueError(
                    f"the edge from node {sources[level[column]]} (layer "
                    f"{wiring.column_layer[level[column]]}) to node {targets[part[row]]} (layer "
                    f"{layer}) does not go up in layer; a target is driven from below only."
                )


def _check_layout(edges: Edges) -> None:
    layout = getattr(edges, "format", "dense" if isinstance(edges, np.ndarray) else None)
    if layout not in ("dense", "csr") or edges.ndim != 2:
        raise ValueError(
            f"edges are a {type(edges).__name__}; give a two-dimensional numpy array "
            "or a scipy.sparse.csr_array."
        )
    if edges.dtype not in (np.float32, np.float64):
        raise ValueError(f"edges are {edges.dtype}; they must be float32 or float64.")


def _check_members(
    name: str, members: np.ndarray, kinds: np.ndarray, allowed: tuple[str, ...]
) -> None:
    if members.ndim != 1 or not len(members):
        raise ValueError(f"{name} has shape {members.shape}; it needs one node index at least.")
    if members.min() < 0 or members.max() >= len(kinds):
        raise ValueError(
            f"{name} runs from {members.min()} to {members.max()}, but there are {len(kinds)} nodes."
        )
    first, count = np.unique(members, return_counts=True)
    if (count > 1).any():
        raise ValueError(
            f"node {first[count > 1][0]} is listed twice in {name}; a node is listed once."
        )
    wrong = ~np.isin(kinds[members], allowed)
    if wrong.any():
        node = members[wrong][0]
        raise ValueError(
            f"node {node} is a {kinds[node]} and stands in {name}, "
            f"where only {', '.join(allowed)} may stand."
        )


def _check_weights(weights: np.ndarray, scale: np.ndarray) -> None:
    if (weights < 0).any() or abs(weights.sum() - 1.0) > 1e-6:
        raise ValueError(
            f"weights run from {weights.min():g} and sum to {weights.sum():g}; "
            "they must not be negative and sum to 1 over the explained targets."
        )
    if (scale < 0).any():
        raise ValueError(
            f"scale holds {scale.min():g}; it is a sum of sizes and cannot be negative."
        )


def _check_finite(block: Edges, part: np.ndarray, targets: np.ndarray) -> None:
    finite = np.isfinite(block if isinstance(block, np.ndarray) else block.data)
    if finite.all():
        return
    if isinstance(block, np.ndarray):
        row = int(np.flatnonzero(~finite.all(axis=1))[0])
    else:
        row = int(np.searchsorted(block.indptr, np.flatnonzero(~finite)[0], side="right")) - 1
    raise ValueError(
        f"row {part[row]} of edges (target node {targets[part[row]]}) holds NaN or infinity; "
        "look for NaN or infinite weights in the host or the dictionary."
    )
