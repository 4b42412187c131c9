"""Circuit: what is left after pruning. Frozen, small, and independent of the graph it came from."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphs.graph import AttributionGraph, dense, feature_key
from graphs.groups import Group
from graphs.scores import Scores, graph_scores

if TYPE_CHECKING:
    from pathlib import Path as File

    import networkx as nx
    import plotly.graph_objects as go

    from graphs.concepts import Concepts
    from graphs.mediators import Mediator
    from graphs.paths import Path


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodes and edges of a pruned graph, and which of the nodes are one concept.

    `nodes` has the graph's columns, `node` (its number in the graph), `weight` (its share of the
    explanation, if it is explained), `value` (what its row sums to) and `rest` (what of that came
    over no edge of this circuit, the bias included; both are zero where nothing is read). `edges`
    has source and target (numbers in the graph), weight (signed), share (of the influence of all
    edges within the kept nodes) and direct (of all that the target reads). `groups` are the
    concepts of more than one node, or made by hand; `evidence` is what is known of the features,
    by layer and index ("L2/F472").
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    measured: Scores
    settings: Mapping[str, Any]
    groups: tuple[Group, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        prompt, model = self.settings.get("prompt", ""), self.settings.get("model", "")
        count = f"{len(self.nodes)} nodes, {len(self.edges)} edges, {len(self.groups)} groups"
        return f"Circuit({prompt!r} on {model}: {count})"

    def scores(self) -> Scores:
        """Replacement and completeness, pruned nodes counting as error; groups change neither."""
        return self.measured

    def names(self) -> dict[int, str]:
        """Graph node number -> a name that survives tracing again."""
        nodes = list(rows(self.nodes))
        texts = unique(name(row) for row in nodes)  # two directions may have been given one name
        return {int(row.node): text for row, text in zip(nodes, texts, strict=True)}

    def labels(self) -> dict[int, str]:
        """Graph node number -> a short text for people: its group's label, or its own."""
        own = {member: group.label for group in self.groups for member in group.members}
        names = self.names()
        return {int(r.node): own.get(names[int(r.node)]) or label(r) for r in rows(self.nodes)}

    def features(self, label: str) -> list[tuple[int, int]]:
        """The (layer, feature) of every feature of this label, as interventions take them."""
        from graphs.groups import named_nodes

        wanted = set(named_nodes(self, label))
        own = self.nodes["node"].map(self.names()).isin(wanted) & (self.nodes["kind"] == "feature")
        if not own.any():
            raise ValueError(f"{label!r} is no concept of features in this circuit.")
        places = self.nodes.loc[own, ["layer", "feature"]].drop_duplicates()
        return [(int(layer), int(feature)) for layer, feature in places.itertuples(index=False)]

    def concept_of(self) -> dict[int, str]:
        """Graph node number -> the name of its concept: its group's, or its own."""
        names = self.names()
        pairs = zip(self.group_names(), self.groups, strict=True)
        own = {member: text for text, group in pairs for member in group.members}
        return {node: own.get(text, text) for node, text in names.items()}

    def group_names(self) -> tuple[str, ...]:
        """The groups' names: each its label, and the position of its most influential member."""
        names = self.names()
        where = {names[int(r.node)]: (r.influence, r.position) for r in rows(self.nodes)}
        return tuple(
            unique(
                f"concept:P{max(where[member] for member in group.members)[1]}:{group.label}"
                for group in self.groups
            )
        )

    def grouped(self, by: str | Sequence[str] = "label") -> "Circuit":
        """Its features grouped by "label", "promotes" or "profile"; see `graphs.supernodes`."""
        from graphs.supernodes import grouped

        return grouped(self, by)

    def group(self, members: Sequence[str], label: str) -> "Circuit":
        """Nodes, given by name or label, as one concept of this label."""
        from graphs.groups import joined

        return joined(self, members, label)

    def split(self, label: str) -> "Circuit":
        """The concepts of this label taken apart."""
        from graphs.groups import split

        return split(self, label)

    def rename(self, old: str, new: str) -> "Circuit":
        """What bears this label under another; single features become groups of one."""
        from graphs.groups import renamed

        return renamed(self, old, new)

    def pin(self, label: str) -> "Circuit":
        """What bears this label shown whatever a picture leaves out."""
        from graphs.groups import pinned

        return pinned(self, label)

    def save_groups(self, path: str | os.PathLike[str]) -> "File":
        """Write the groups as JSON, which fits the same prompt traced again."""
        from graphs.groups import save_groups

        return save_groups(self, path)

    def load_groups(self, path: str | os.PathLike[str]) -> "Circuit":
        """With the groups of a file; members that this circuit lacks are left out."""
        from graphs.groups import load_groups

        return load_groups(self, path)

    def concepts(self) -> "Concepts":
        """Every group merged into one node, with exact sums; see `graphs.concepts`."""
        from graphs.concepts import concepts

        return concepts(self)

    def to_networkx(self, concepts: bool = False) -> "nx.DiGraph":
        """A DiGraph with attributes on every node and edge; `graphs.from_networkx` reads it back.

        With `concepts` its nodes are the concepts, with their members in an attribute: a view to
        look at, from which the single nodes cannot be had back.
        """
        from graphs.interchange import concepts_to_networkx, to_networkx

        return concepts_to_networkx(self) if concepts else to_networkx(self)

    def paths(
        self, source: str | None = None, target: str | None = None, top: int = 5
    ) -> "list[Path]":
        """The strongest paths from a token to an explained target; see `graphs.paths`."""
        from graphs.paths import strongest

        return strongest(self, source, target, top)

    def mediators(self, source: str, target: str) -> "list[Mediator]":
        """The concepts between two others, by what runs through them; see `graphs.mediators`."""
        from graphs.mediators import mediators

        return mediators(self, source, target)

    def tree(self) -> str:
        """The circuit as text: what was predicted, and under each concept what fed it."""
        from rich.console import Console

        from graphs.tree import tree

        console = Console(width=120, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(tree(self), soft_wrap=True)
        return captured.get()

    def plot(self) -> "go.Figure":
        """The circuit as a plotly figure; see `graphs.plot`."""
        from graphs.plot import plot

        return plot(self)

    def show(self) -> None:
        """Display the figure: in a notebook beneath the cell, else in a browser."""
        self.plot().show()

    def save_html(self, path: str | os.PathLike[str]) -> "File":
        """One interactive file that works offline; see `graphs.page`."""
        from graphs.page import save_html

        return save_html(self, path)

    def save_figure(self, path: str | os.PathLike[str]) -> "File":
        """SVG, PDF or PNG, by the name's ending, for papers; needs the extra `figures`."""
        from graphs.plot import save_figure

        return save_figure(self, path)


def unique(texts: Iterable[str]) -> list[str]:
    """The texts, those that came before with the first number after them that is free."""
    wanted = list(texts)
    free, found = set(wanted), []
    given: set[str] = set()
    for text in wanted:
        new, number = text, 1
        while new in given or (number > 1 and new in free):
            number += 1
            new = f"{text}#{number}"
        given.add(new)
        found.append(new)
    return found


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
    """A node's text for people: its own label, its token, or where the feature is."""
    if row.label:
        return row.label
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
    nodes = graph.nodes.assign(node=np.arange(len(graph.nodes)))
    nodes = with_books(graph, nodes, edges)
    return Circuit(
        nodes, edges, graph_scores(graph), dict(graph.settings), evidence=dict(graph.evidence)
    )


def with_books(graph: AttributionGraph, nodes: pd.DataFrame, edges: pd.DataFrame) -> pd.DataFrame:
    """A circuit's node table with each node's weight, its own value, and what edges leave of it."""
    count = len(graph.nodes)
    weight, value, read = np.zeros(count), np.zeros(count), np.zeros(count)
    np.add.at(weight, graph.targets, graph.weights)
    np.add.at(value, graph.targets, graph.values)
    np.add.at(read, edges["target"].to_numpy(), edges["weight"].to_numpy())
    kept = nodes["node"].to_numpy()
    return nodes.assign(weight=weight[kept], value=value[kept], rest=(value - read)[kept])


def known(graph: AttributionGraph, nodes: pd.DataFrame) -> dict[str, Any]:
    """What the graph knows of the features among these nodes."""
    features = nodes.loc[nodes["kind"] == "feature", ["layer", "feature"]]
    keys = {feature_key(*row) for row in features.itertuples(index=False)}
    return {key: graph.evidence[key] for key in sorted(keys & set(graph.evidence))}
