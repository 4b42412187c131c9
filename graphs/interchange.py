"""Circuits to networkx and back.

The DiGraph holds all that the circuit does, in attributes that GraphML and GEXF can write: plain
numbers and texts. What is no number or text (settings, groups, evidence) is JSON text on the graph.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphs.circuit import Circuit
from graphs.groups import Group
from graphs.scores import Scores

if TYPE_CHECKING:
    import networkx as nx

_JSON = ("settings", "groups", "evidence", "scores")


def to_networkx(circuit: Circuit) -> "nx.DiGraph":
    """Single nodes, each with the label that people see and the concept that it belongs to."""
    import networkx as nx

    found = nx.DiGraph()
    found.graph.update(_about(circuit))
    names, shown, concept = circuit.names(), circuit.labels(), circuit.concept_of()
    for row in circuit.nodes.to_dict("records"):
        node = int(row["node"])
        own = {"label": shown[node], "own_label": row["label"], "concept": concept[node]}
        found.add_node(names[node], **{**{str(k): plain(v) for k, v in row.items()}, **own})
    for place, row in enumerate(circuit.edges.to_dict("records")):
        source, target = names[int(row.pop("source"))], names[int(row.pop("target"))]
        found.add_edge(source, target, place=place, **{str(k): plain(v) for k, v in row.items()})
    return found


def concepts_to_networkx(circuit: Circuit) -> "nx.DiGraph":
    """Concepts as nodes; `members` are the names of what each consists of, as JSON text."""
    import networkx as nx

    found = nx.DiGraph()
    found.graph.update(_about(circuit))
    view = circuit.concepts()
    for row in view.nodes.to_dict("records"):
        row["members"] = json.dumps(row["members"], ensure_ascii=False)
        found.add_node(row.pop("name"), **{str(k): plain(v) for k, v in row.items()})
    for row in view.edges.to_dict("records"):
        source, target = row.pop("source"), row.pop("target")
        found.add_edge(source, target, **{str(k): plain(v) for k, v in row.items()})
    return found


def from_networkx(graph: "nx.DiGraph") -> Circuit:
    """The circuit that `to_networkx` made this of, less the nodes and edges that were removed.

    Also after a detour through GraphML, which cannot hold control characters in texts. What people
    see (`label`, `concept`) is not read back: it follows from the rest.
    """
    missing = [key for key in _JSON if key not in graph.graph]
    records = [dict(data) for _, data in graph.nodes(data=True)]
    if missing or any("node" not in record or "own_label" not in record for record in records):
        raise ValueError(
            "this DiGraph does not come from Circuit.to_networkx() with its single nodes "
            f"(it lacks {', '.join(missing) or 'node numbers'}); concepts alone cannot be undone."
        )
    settings, groups, evidence, scores = (json.loads(graph.graph[key]) for key in _JSON)
    nodes = _nodes(records)
    number = {name: int(data["node"]) for name, data in graph.nodes(data=True)}
    edges = [
        {"source": number[s], "target": number[t], "place": d.get("place", 0), **d}
        for s, t, d in graph.edges(data=True)
    ]
    table = pd.DataFrame(edges, columns=[*_EDGE, "place"]).sort_values("place", kind="stable")
    if table.isna().any(axis=None):
        raise ValueError("an edge of this DiGraph lacks its weight, share or direct share.")
    kept = [_group(group, set(graph)) for group in groups]
    return Circuit(
        nodes,
        table[list(_EDGE)].astype({"source": np.int64, "target": np.int64}).reset_index(drop=True),
        Scores(**scores),
        settings,
        tuple(group for group in kept if group.members),
        evidence,
    )


def _group(group: Mapping[str, Any], known: set[str]) -> Group:
    """A group, without what was taken out of the DiGraph."""
    return Group(**{**group, "members": tuple(m for m in group["members"] if m in known)})


_EDGE = ("source", "target", "weight", "share", "direct")


def _nodes(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The node table, in the order of the nodes' numbers."""
    nodes = pd.DataFrame(records)
    nodes["label"] = nodes.pop("own_label")
    nodes = nodes.drop(columns="concept").sort_values("node", ignore_index=True)
    return nodes.astype({"kind": object, "token": object, "label": object})


def _about(circuit: Circuit) -> dict[str, str]:
    """What belongs to the whole, as text."""
    return {
        "model": str(circuit.settings.get("model", "")),
        "prompt": str(circuit.settings.get("prompt", "")),
        "settings": json.dumps(dict(circuit.settings)),
        "groups": json.dumps([vars(group) for group in circuit.groups]),
        "evidence": json.dumps(dict(circuit.evidence)),
        "scores": json.dumps(circuit.measured._asdict()),
    }


def plain(value: Any) -> Any:
    """Python's own numbers, which every file format of networkx can write."""
    return value.item() if isinstance(value, np.generic) else value
