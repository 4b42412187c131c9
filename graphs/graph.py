"""AttributionGraph: who wrote what each target read on one prompt.

`edges` is rectangular, (targets x sources): only features and outputs have incoming edges;
errors, tokens, remainders and the bias never do. For every row the books balance:

    sum over sources of edges[t, s]  ==  values[t]        (bias and remainders included)
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse

if TYPE_CHECKING:
    import networkx as nx

    from graphs.circuit import Circuit
    from graphs.scores import Scores

Matrix: TypeAlias = Float[np.ndarray, "targets sources"] | sparse.csr_array

KINDS = ("feature", "error", "token", "bias", "remainder", "logit")
COLUMNS = ("kind", "layer", "position", "feature", "token", "activation", "influence")
BLOCK = 256  # rows looked at together: nothing ever copies all edges


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """A frozen attribution graph; operations on it return new objects."""

    nodes: pd.DataFrame
    edges: Matrix
    targets: Int[np.ndarray, " targets"]  # the node of each row
    sources: Int[np.ndarray, " sources"]  # the node of each column
    values: Float[np.ndarray, " targets"]  # what each row sums to: the target's own value
    weights: Float[np.ndarray, " targets"]  # share of the explanation; zero for inner targets
    scale: Float[np.ndarray, " targets"]  # sum of |edge| over single sources, before any merging
    settings: Mapping[str, Any]

    @property
    def discrepancy(self) -> float:
        """The largest imbalance of the books, relative to the row's scale, bias included."""
        worst = 0.0
        bias = self._columns("bias")
        for rows in row_blocks(len(self.targets)):
            block = dense(self.edges[rows]).astype(np.float64)
            scale = self.scale[rows] + np.abs(block[:, bias]).sum(1)
            gap = np.abs(block.sum(1) - self.values[rows])
            worst = max(worst, float(np.max(gap / np.maximum(scale, np.finfo(float).tiny))))
        return worst

    @property
    def explained(self) -> Int[np.ndarray, " explained"]:
        """The nodes that were to be explained."""
        return self.targets[self.weights > 0]

    def mass(self, rows: Any) -> Float[np.ndarray, "rows sources"]:
        """What each source contributes to these rows, without sign.

        The bias, a constant, contributes nothing: it does not depend on the prompt (published
        scores leave it out too).
        """
        block = np.abs(dense(self.edges[rows]))
        block[:, self._columns("bias")] = 0
        return block

    def shares(self, rows: Any) -> Float[np.ndarray, "rows sources"]:
        """What each source contributes, as a share of all that the row reads."""
        block = self.mass(rows)
        total = block.sum(1, dtype=np.float64)
        block /= np.where(total > 0, total, 1)[:, None]
        return block

    def _columns(self, kind: str) -> Int[np.ndarray, " columns"]:
        return np.flatnonzero((self.nodes["kind"] == kind).to_numpy()[self.sources])

    def scores(self) -> "Scores":
        """How much of the explanation runs through features and not through errors."""
        from graphs.scores import graph_scores

        return graph_scores(self)

    def prune(
        self,
        nodes: float = 0.8,
        edges: float = 0.98,
        errors: Literal["prunable", "kept"] = "prunable",
    ) -> "Circuit":
        """The smallest circuit that keeps these shares of the influence; see `graphs.prune`."""
        from graphs.prune import prune

        return prune(self, nodes, edges, errors)

    def to_networkx(self) -> "nx.DiGraph":
        """All nodes and nonzero edges as a DiGraph (for graphs that are small)."""
        from graphs.circuit import whole

        return whole(self).to_networkx()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all."""
        from graphs.store import save

        save(self, path)


def row_blocks(count: int) -> Iterator[slice]:
    """Slices of rows, small enough to copy."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def dense(block: Any) -> np.ndarray:
    """Some rows as an ordinary array."""
    return block.toarray() if sparse.issparse(block) else np.asarray(block)


def assemble(
    nodes: pd.DataFrame,
    edges: Matrix,
    targets: Int[np.ndarray, " targets"],
    sources: Int[np.ndarray, " sources"],
    values: Float[np.ndarray, " targets"],
    weights: Float[np.ndarray, " targets"],
    scale: Float[np.ndarray, " targets"],
    settings: Mapping[str, Any],
) -> AttributionGraph:
    """Check the parts, compute the influence of every node, and freeze them into a graph."""
    from graphs.influence import influence

    _check_shapes(nodes, edges, targets, sources, (values, weights, scale))
    nodes = nodes.reset_index(drop=True).assign(influence=0.0)
    graph = AttributionGraph(nodes, edges, targets, sources, values, weights, scale, dict(settings))
    _check_edges(graph)
    nodes["influence"] = influence(graph)
    return graph


def _check_shapes(
    nodes: pd.DataFrame,
    edges: Matrix,
    targets: np.ndarray,
    sources: np.ndarray,
    by_row: tuple[np.ndarray, ...],
) -> None:
    if edges.shape != (len(targets), len(sources)):
        raise ValueError(
            f"edges has shape {edges.shape} for {len(targets)} targets and {len(sources)} sources."
        )
    if any(len(array) != len(targets) for array in by_row):
        raise ValueError(
            f"values, weights and scale need one entry for each of {len(targets)} rows."
        )
    missing = [c for c in COLUMNS[:-1] if c not in nodes]
    if missing:
        raise ValueError(f"the node table lacks the columns {', '.join(missing)}.")
    unknown = sorted(set(nodes["kind"]) - set(KINDS))
    if unknown:
        raise ValueError(f"node kind {unknown[0]!r} is not one of {', '.join(KINDS)}.")
    weights = by_row[1]
    if not np.isclose(weights.sum(), 1) or (weights < 0).any():
        raise ValueError(f"weights sum to {weights.sum():g}; the explained targets' must sum to 1.")


def _check_edges(graph: AttributionGraph) -> None:
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
                f"row {row} (node {graph.targets[row]}) has an edge from its own layer or above."
            )
