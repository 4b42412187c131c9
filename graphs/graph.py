"""The attribution graph of one prompt: a table of nodes and a rectangle of edges.

``edges[r, c]`` is the direct effect of node ``sources[c]`` on node ``targets[r]``.  The books balance:
a row, bias included, sums to the target's own value.  A feature which was expanded is one node, and
both a row and a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64

from graphs.checks import check_edges, check_frame, check_rectangle
from graphs.circuit import Circuit, entire
from graphs.influence import Edges, Flow, Wiring, flow, row_blocks
from graphs.prune import prune
from graphs.scores import Scores, graph_scores

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """What a trace yields.  Everything in it is checked once, when it is made."""

    nodes: pd.DataFrame = field(repr=False)
    """One row a node: kind, layer, position, feature, token, activation, influence."""
    edges: Edges = field(repr=False)
    """(targets x sources), dense or scipy CSR, float32 or float64."""
    targets: Int64[np.ndarray, " targets"] = field(repr=False)
    """The node of each row."""
    sources: Int64[np.ndarray, " sources"] = field(repr=False)
    """The node of each column."""
    values: Float64[np.ndarray, " targets"] = field(repr=False)
    """Each target's own value, which its row sums to."""
    weights: Float64[np.ndarray, " targets"] = field(repr=False)
    """Seed weight of each row: the share of an explained target, 0 for any other.  Sums to 1."""
    scale: Float64[np.ndarray, " targets"] = field(repr=False)
    """Sum of |edges| of each row before anything was merged."""
    settings: Mapping[str, Any] = field(repr=False)
    """The prompt, the model, what was chosen, the versions: JSON-able."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "nodes", check_frame(self.nodes))
        for name in ("targets", "sources"):
            put(self, name, _frozen(np.asarray(getattr(self, name), dtype=np.int64)))
        for name in ("values", "weights", "scale"):
            put(self, name, _frozen(np.asarray(getattr(self, name), dtype=np.float64)))
        if isinstance(self.edges, np.ndarray):
            put(self, "edges", _frozen(self.edges))
        put(self, "settings", dict(self.settings))
        check_rectangle(self)
        check_edges(self.wiring, self.targets, self.sources)

    def __repr__(self) -> str:
        rows, columns = self.edges.shape
        layout = "dense" if isinstance(self.edges, np.ndarray) else "sparse"
        return f"AttributionGraph({len(self.nodes)} nodes, {rows} x {columns} {layout} edges)"

    @cached_property
    def wiring(self) -> Wiring:
        """Edges, with the layers of rows and columns and which column each row is."""
        layers = self.nodes["layer"].to_numpy()
        column_of = np.full(len(self.nodes), -1)
        column_of[self.sources] = np.arange(len(self.sources))
        driven = (self.nodes["kind"] != "bias").to_numpy(dtype=bool)[self.sources]
        return Wiring(
            edges=self.edges,
            row_layer=layers[self.targets],
            column_layer=layers[self.sources],
            column_of_row=column_of[self.targets],
            driven=driven,
            weights=self.weights,
        )

    @cached_property
    def flow(self) -> Flow:
        """The influence of every source, over all paths."""
        return flow(self.wiring)

    @cached_property
    def discrepancy(self) -> float:
        """The largest |sum of a row - its value| relative to the row's scale: do the books balance?"""
        worst = 0.0
        for part, block in row_blocks(self.edges, np.arange(len(self.targets))):
            gap = np.abs(np.asarray(block.sum(axis=1, dtype=np.float64)) - self.values[part])
            scale = self.scale[part]
            relative = np.divide(gap, scale, out=np.full_like(gap, np.inf), where=scale > 0.0)
            worst = max(worst, float(np.where(gap == 0.0, 0.0, relative).max(initial=0.0)))
        return worst

    def scores(self) -> Scores:
        """Replacement and completeness, see ``graphs.scores``."""
        return graph_scores(self)

    def prune(
        self,
        nodes: float = 0.8,
        edges: float = 0.98,
        errors: Literal["prunable", "kept"] = "prunable",
    ) -> Circuit:
        """The smallest circuit that keeps these shares of the influence, see ``graphs.prune``."""
        return prune(self, nodes, edges, errors)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.  ``graphs.load`` reads it."""
        from graphs.store import save

        save(self, path)

    def to_networkx(self) -> nx.DiGraph:
        """All nodes and all non-zero edges, the bias included.  Meant for small graphs."""
        return entire(self).to_networkx()


def assemble(
    nodes: pd.DataFrame,
    edges: Edges,
    targets: np.ndarray,
    sources: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    scale: np.ndarray,
    settings: Mapping[str, Any],
) -> AttributionGraph:
    """Check the parts, compute the influence column and put the graph together.

    ``nodes`` has the graph's columns but for ``influence``.  A source's influence is its inflow; an
    explained target's is its seed weight and, if it is a feature, what flows into it besides.
    """
    graph = AttributionGraph(
        nodes=nodes.assign(influence=0.0),
        edges=edges,
        targets=targets,
        sources=sources,
        values=values,
        weights=weights,
        scale=scale,
        settings=settings,
    )
    influence = np.zeros(len(graph.nodes))
    influence[graph.sources] = graph.flow.inflow
    influence[graph.targets] += graph.weights
    graph.nodes["influence"] = (
        influence  # the table is the graph's own copy; nobody has seen it yet
    )
    return graph


def _frozen(array: Float[np.ndarray, "..."] | Int64[np.ndarray, "..."]) -> np.ndarray:
    """A read-only view; the caller's own array stays as it was."""
    view = array.view()
    view.flags.writeable = False
    return view
