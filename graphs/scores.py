"""How much of what reached the targets went through features, and how much through errors.

With ``inflow`` as in ``graphs.influence`` and "error" standing for everything that the dictionary did
not explain (errors, the remainder and, for a circuit, what was pruned):

    replacement  = token inflow / (token inflow + error inflow)
    completeness = 1 - error inflow / (seed weights + all inflow)

These are circuit-tracer's ``compute_graph_scores``.  Its completeness is the mean over all nodes,
weighted by ``weights + inflow``, of the share of a node's input which is no error; a node without
input (a token, an error) counts as fully explained, which is why all inflow is in the denominator.
In it, ``sum_t carried[t] * (error share of row t)`` is by definition the inflow of the errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool

from graphs.influence import Flow, flow

if TYPE_CHECKING:
    from graphs.graph import AttributionGraph

UNEXPLAINED = ("error", "remainder")


class Scores(NamedTuple):
    """``replacement`` is nan when neither a token nor an error reaches any target."""

    replacement: float
    completeness: float

    def as_dict(self) -> dict[str, float]:
        return self._asdict()


def graph_scores(graph: AttributionGraph) -> Scores:
    """The two scores of the whole graph."""
    return _scores(graph, graph.flow, np.ones(len(graph.nodes), dtype=bool))


def circuit_scores(graph: AttributionGraph, kept: Bool[np.ndarray, " nodes"]) -> Scores:
    """The two scores of ``graph`` when every node outside ``kept`` counts as error.

    Influence that arrives at a pruned feature stays there: it is not followed to what drives it.
    """
    return _scores(graph, flow(graph.wiring, rows=kept[graph.targets]), kept)


def _scores(graph: AttributionGraph, flowing: Flow, kept: np.ndarray) -> Scores:
    kinds = graph.nodes["kind"].to_numpy(dtype=object)[graph.sources]
    unexplained = np.isin(kinds, UNEXPLAINED) | ~kept[graph.sources]
    error = float(flowing.inflow[unexplained].sum())
    token = float(flowing.inflow[(kinds == "token") & ~unexplained].sum())
    everything = float(graph.weights.sum() + flowing.inflow.sum())
    replacement = token / (token + error) if token + error > 0.0 else float("nan")
    return Scores(replacement, 1.0 - error / everything)
