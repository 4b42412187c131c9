"""What makes an attribution graph one; each breach is named with the remedy."""

import numpy as np
import pandas as pd

from graphs.graph import COLUMNS, KINDS, AttributionGraph, Matrix, dense, row_blocks


def check_parts(
    nodes: pd.DataFrame,
    edges: Matrix,
    targets: np.ndarray,
    sources: np.ndarray,
    by_row: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Shapes fit, every row and column has one node of a fitting kind, numbers are finite."""
    if edges.shape != (len(targets), len(sources)):
        raise ValueError(
            f"edges has shape {edges.shape} for {len(targets)} targets and {len(sources)} sources."
        )
    for name, array in zip(("values", "weights", "scale"), by_row, strict=True):
        if len(array) != len(targets):
            raise ValueError(f"{name} has {len(array)} entries for {len(targets)} targets.")
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{name} of row {row} is {array[row]}; trace with finite weights.")
    _check_table(nodes)
    kind = nodes["kind"].to_numpy()
    _check_nodes("target", targets, kind, ("feature", "logit"))
    _check_nodes("source", sources, kind, ("feature", "error", "token", "remainder", "bias"))
    weights = by_row[1]
    if not np.isclose(weights.sum(), 1) or (weights < 0).any():
        raise ValueError(f"weights sum to {weights.sum():g}; the explained targets' must sum to 1.")


def _check_table(nodes: pd.DataFrame) -> None:
    missing = [column for column in COLUMNS[:-2] if column not in nodes]
    if missing:
        raise ValueError(f"the node table lacks the columns {', '.join(missing)}.")
    unknown = sorted(set(nodes["kind"]) - set(KINDS))
    if unknown:
        raise ValueError(f"node kind {unknown[0]!r} is not one of {', '.join(KINDS)}.")


def _check_nodes(role: str, ids: np.ndarray, kind: np.ndarray, fitting: tuple[str, ...]) -> None:
    outside = (ids < 0) | (ids >= len(kind))
    if outside.any():
        raise ValueError(f"{role} {ids[outside][0]} is outside the table of {len(kind)} nodes.")
    if len(np.unique(ids)) != len(ids):
        twice = ids[np.flatnonzero(np.bincount(ids)[ids] > 1)[0]]
        raise ValueError(f"node {twice} is a {role} twice; give it one row or column.")
    wrong = ~np.isin(kind[ids], fitting)
    if wrong.any():
        node = ids[wrong][0]
        raise ValueError(f"node {node} is of kind {kind[node]!r}, which cannot be a {role}.")


def check_edges(graph: AttributionGraph) -> None:
    """Edges are finite and go up: a target's sources lie in layers below its own."""
    layer = graph.nodes["layer"].to_numpy()
    from_layer, to_layer = layer[graph.sources], layer[graph.targets]
    for rows in row_blocks(len(graph.targets)):
        block = dense(graph.edges[rows])
        finite = np.isfinite(block).all(1)
        if not finite.all():
            row = rows.start + int(np.flatnonzero(~finite)[0])
            raise ValueError(
                f"row {row} (node {graph.targets[row]}) holds NaN or infinite edges; "
                "trace in float32 with finite weights."
            )
        against = from_layer >= to_layer[rows].min()
        wrong = (block[:, against] != 0) & (from_layer[against] >= to_layer[rows][:, None])
        if wrong.any():
            row = rows.start + int(np.argwhere(wrong)[0, 0])
            raise ValueError(
                f"row {row} (node {graph.targets[row]}) has an edge from its own layer or above; "
                "the nodes' layers are wrong."
            )
