"""AttributionGraph: who wrote what each target read on one prompt.

`edges` is rectangular, (targets x sources): only features and outputs have incoming edges;
errors, tokens, remainders and the bias never do. For every row the books balance:

    sum over sources of edges[t, s]  ==  values[t]        (bias and remainders included)
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
COLUMNS = ("kind", "layer", "position", "feature", "token", "activation", "label", "influence")
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
    evidence: Mapping[str, Any] = field(default_factory=dict)  # of features: "L2/F472" -> what

    def __repr__(self) -> str:
        prompt, model = self.settings.get("prompt", ""), self.settings.get("model", "")
        rows = f"{len(self.nodes)} nodes, {len(self.targets)} rows"
        return f"AttributionGraph({prompt!r} on {model}: {rows})"

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

    def labelled(self, labels: Mapping[tuple[int, int], str]) -> "AttributionGraph":
        """The graph with these labels, by (layer, feature), over whatever it had."""
        nodes = self.nodes.copy()
        keys = zip(nodes["layer"], nodes["feature"], strict=True)
        feature = (nodes["kind"] == "feature").to_numpy()
        given = [labels.get(key) if own else None for key, own in zip(keys, feature, strict=True)]
        nodes["label"] = [new or old for new, old in zip(given, nodes["label"], strict=True)]
        return replace(self, nodes=nodes)

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
    evidence: Mapping[str, Any] | None = None,
) -> AttributionGraph:
    """Check the parts, compute the influence of every node, and freeze them into a graph.

    The node table may have labels of features; `evidence` says of them more than a label can.
    """
    from graphs.checks import check_edges, check_parts
    from graphs.influence import influence

    check_parts(nodes, edges, targets, sources, (values, weights, scale))
    nodes = nodes.reset_index(drop=True)
    if "label" not in nodes:
        nodes = nodes.assign(label="")
    nodes = nodes.assign(influence=0.0).reindex(columns=list(COLUMNS))
    graph = AttributionGraph(
        nodes=nodes,
        edges=_frozen(edges),
        targets=_frozen(targets),
        sources=_frozen(sources),
        values=_frozen(values),
        weights=_frozen(weights),
        scale=_frozen(scale),
        settings=dict(settings),
        evidence=dict(evidence or {}),
    )
    check_edges(graph)
    nodes["influence"] = influence(graph)
    return graph


def feature_key(layer: int, feature: int) -> str:
    """How a feature is written: "L2/F472"."""
    return f"L{layer}/F{feature}"


def _frozen(array: Any) -> Any:
    """A view of an array that cannot be written through."""
    if isinstance(array, np.ndarray):
        array = array.view()
        array.setflags(write=False)
    return array
