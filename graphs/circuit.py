"""Circuit: what is left after pruning. Frozen, small, and independent of the graph it came from."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphs.graph import AttributionGraph, dense
from graphs.scores import Scores, graph_scores

if TYPE_CHECKING:
    import networkx as nx

    from graphs.paths import Path


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodes and edges of a pruned graph.

    `nodes` has the graph's columns, `node` (its number in the graph) and `weight` (its share of
    the explanation, if it is explained). `edges` has source and target (numbers in the graph),
    weight (signed), share (of the influence of all edges within the kept nodes) and direct (of
    all that the target reads).
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    measured: Scores
    settings: Mapping[str, Any]

    def scores(self) -> Scores:
        """Replacement and completeness, pruned nodes counting as error."""
        return self.measured

    def names(self) -> dict[int, str]:
        """Graph node number -> a name that survives tracing again."""
        found: dict[int, str] = {}
        seen: Counter[str] = Counter()
        for row in rows(self.nodes):
            text = name(row)
            seen[text] += 1  # two directions may have been given one name
            found[int(row.node)] = text if seen[text] == 1 else f"{text}#{seen[text]}"
        return found

    def labels(self) -> dict[int, str]:
        """Graph node number -> a short text for people."""
        return {int(row.node): label(row) for row in rows(self.nodes)}

    def to_networkx(self) -> "nx.DiGraph":
        """A DiGraph with attributes on every node and edge, safe for GraphML."""
        import networkx as nx

        found = nx.DiGraph(
            model=str(self.settings.get("model", "")), prompt=str(self.settings.get("prompt", ""))
        )
        names, labels = self.names(), self.labels()
        for row in self.nodes.to_dict("records"):
            node = int(row.pop("node"))
            found.add_node(
                names[node], label=labels[node], **{k: _plain(v) for k, v in row.items()}
            )
        for row in self.edges.to_dict("records"):
            source, target = names[int(row.pop("source"))], names[int(row.pop("target"))]
            found.add_edge(source, target, **{k: _plain(v) for k, v in row.items()})
        return found

    def paths(
        self, source: str | None = None, target: str | None = None, top: int = 5
    ) -> "list[Path]":
        """The strongest paths from a token to an explained target; see `graphs.paths`."""
        from graphs.paths import strongest

        return strongest(self, source, target, top)


def rows(table: pd.DataFrame) -> Iterator[Any]:
    """A table's rows, with its columns as attributes."""
    yield from table.itertuples()


def name(row: Any) -> str:
    """A node's name: by layer, position and feature, never by its number in one graph."""
    if row.kind == "feature":
        return f"feature:L{row.layer}:P{row.position}:F{row.feature}"
    if row.kind == "error":
        return f"error:L{row.layer}:P{row.position}"
    if row.kind == "token":
        return f"token:P{row.position}"
    if row.kind == "logit":
        what = f"F{row.feature}" if row.feature >= 0 else row.token
        return f"logit:P{row.position}:{what}"
    return f"remainder:L{row.layer}" if row.kind == "remainder" else str(row.kind)


def label(row: Any) -> str:
    """A node's text for people: its token, or where the feature is."""
    if row.kind in ("token", "logit"):
        return row.token.strip() or repr(row.token)
    if row.kind == "feature":
        return f"L{row.layer}/F{row.feature}@{row.token.strip() or repr(row.token)}"
    if row.kind == "error":
        return f"error L{row.layer}@{row.token.strip() or repr(row.token)}"
    return f"remainder L{row.layer}" if row.kind == "remainder" else str(row.kind)


def whole(graph: AttributionGraph) -> Circuit:
    """The unpruned graph in a circuit's shape, with every nonzero edge."""
    matrix = dense(graph.edges)
    r, c = matrix.nonzero()
    weight = matrix[r, c].astype(np.float64)
    own = graph.nodes["influence"].to_numpy()[graph.targets[r]]
    direct = graph.shares(slice(None))[r, c].astype(np.float64)
    score = own * direct
    edges = pd.DataFrame(
        {
            "source": graph.sources[c],
            "target": graph.targets[r],
            "weight": weight,
            "share": score / max(score.sum(), np.finfo(float).tiny),
            "direct": direct,
        }
    )
    weights = np.zeros(len(graph.nodes))
    np.add.at(weights, graph.targets, graph.weights)
    nodes = graph.nodes.assign(node=np.arange(len(graph.nodes)), weight=weights)
    return Circuit(nodes, edges, graph_scores(graph), dict(graph.settings))


def _plain(value: Any) -> Any:
    """Python's own numbers, which every file format of networkx can write."""
    return value.item() if isinstance(value, np.generic) else value
