"""Views: what a picture shows of a circuit, as concepts or as single features.

A view has one row a box and one row an edge, and says which lie on the strongest path. Errors and
remainders, which no feature explains, are merged for each word among the concepts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphs.circuit import Circuit, rows
from graphs.circuit import label as node_label
from graphs.flow import explained, flow
from graphs.graph import feature_key
from graphs.groups import Group

if TYPE_CHECKING:
    from graphs.paths import Path

MOST_EDGES = 20_000  # of a view: a file of more is too large to open
REST = ("error", "remainder")
MISSED, LEFT_OUT = "what no feature explains", "features not expanded"
ROLES = {"token": "word", "logit": "output", "error": "rest", "remainder": "rest"}


@dataclass(frozen=True, eq=False)
class View:
    """Boxes and edges of a picture.

    `nodes` has name, label, text (in the box), role (word, feature, output, rest), layer (where it
    is drawn), low and top (layers of its members), position, positions (of all its members),
    influence, through (the share of what is explained that runs through it), members (rows of the
    circuit's node table), method, cohesion, pinned and step (on the strongest path, else -1).
    `edges` has source and target (rows of `nodes`), weight, share, direct and path.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    path: "Path | None"


def concept_view(circuit: Circuit, path: "Path | None") -> View:
    """The circuit's concepts."""
    merged = _rest_merged(circuit)
    found = merged.concepts()
    own = {text: number for number, text in enumerate(circuit.names().values())}
    members = [tuple(own[m] for m in each) for each in found.nodes["members"]]
    middle = [_middle(circuit, each) for each in members]
    nodes = found.nodes.assign(low=found.nodes["layer"], layer=middle, members=members)
    return _view(circuit, nodes, found.edges, path)


def feature_view(circuit: Circuit, path: "Path | None") -> View:
    """The circuit's single nodes."""
    names = circuit.names()
    nodes = circuit.nodes.assign(
        name=list(names.values()),
        label=[node_label(row) for row in rows(circuit.nodes)],
        low=circuit.nodes["layer"],
        top=circuit.nodes["layer"],
        through=circuit.nodes["node"].map(_through(circuit)),
        members=[(number,) for number in range(len(names))],
        method="single",
        cohesion=1.0,
        pinned=False,
    )
    source, target = (circuit.edges[end].map(names) for end in ("source", "target"))
    return _view(circuit, nodes, circuit.edges.assign(source=source, target=target), path)


def strongest_path(circuit: Circuit) -> "Path | None":
    """The path that pictures highlight."""
    found = circuit.paths(top=1)
    return found[0] if found else None


def place_text(circuit: Circuit, position: int) -> str:
    """A position for people: its word."""
    tokens = circuit.settings.get("tokens", [])
    return str(tokens[position]).strip() if 0 <= position < len(tokens) else ""


def chances(circuit: Circuit) -> dict[int, float]:
    """Graph node number -> how likely the model finds that output, where this is known.

    Known are the likely tokens after one position; the same token after another is another matter.
    """
    likely = {index: float(p) for _, index, p in circuit.settings.get("predictions", [])}
    at = circuit.settings.get("predicted_at", len(circuit.settings.get("tokens", [])) - 1)
    outputs = circuit.nodes.loc[
        (circuit.nodes["kind"] == "logit") & (circuit.nodes["feature"] >= 0)
    ]
    return {
        int(row.node): likely[row.feature]
        for row in rows(outputs)
        if row.position == at and row.feature in likely
    }


def _view(circuit: Circuit, nodes: pd.DataFrame, edges: pd.DataFrame, path: "Path | None") -> View:
    """A view of these nodes, with what is drawn of them; edges name their ends."""
    position = circuit.nodes["position"].to_numpy()
    steps = {n: place for place, names in enumerate(path.nodes if path else ()) for n in names}
    step = [steps.get(name, -1) for name in circuit.names().values()]
    nodes = nodes.reset_index(drop=True).assign(
        role=[ROLES.get(kind, "feature") for kind in nodes["kind"]],
        step=[max(step[m] for m in each) for each in nodes["members"]],
        positions=[sorted({int(position[m]) for m in each} - {-1}) for each in nodes["members"]],
        text=_texts(circuit, nodes["label"], nodes["members"]),
    )
    row = {text: number for number, text in enumerate(nodes["name"])}
    source, target = (edges[end].map(row).astype(np.int64) for end in ("source", "target"))
    edges = edges.reset_index(drop=True).assign(source=source, target=target)
    step = nodes["step"].to_numpy()
    before, after = step[edges["source"]], step[edges["target"]]
    edges["path"] = (before >= 0) & (after >= 0) & np.isin(after - before, (0, 1))
    if len(edges) > MOST_EDGES:
        strongest = edges["share"].rank(method="first", ascending=False) <= MOST_EDGES
        edges = edges.loc[strongest | edges["path"]].reset_index(drop=True)
    return View(nodes, edges, path)


def _through(circuit: Circuit) -> dict[int, float]:
    """Graph node number -> the share of what is explained that runs through it."""
    found = flow(circuit)
    worth = found.backward(explained(circuit, found))
    return dict(zip(found.nodes.tolist(), worth.tolist(), strict=True))


def _middle(circuit: Circuit, members: tuple[int, ...]) -> int:
    """The layer by which half of a concept's influence has come together; errors' lowest."""
    if circuit.nodes["kind"].iloc[members[0]] in REST:
        return int(circuit.nodes["layer"].to_numpy()[list(members)].min())  # they only feed
    layer = circuit.nodes["layer"].to_numpy()[list(members)]
    order = np.argsort(layer, kind="stable")
    gathered = np.cumsum(circuit.nodes["influence"].to_numpy()[list(members)][order])
    return int(layer[order][int(np.searchsorted(gathered, gathered[-1] / 2))])


def _texts(circuit: Circuit, labels: pd.Series, members: pd.Series) -> list[str]:
    """What is written in each box: the place is seen, so a feature's own number is enough."""
    table = list(rows(circuit.nodes))
    likely = chances(circuit)
    texts = []
    for label, each in zip(labels, members, strict=True):
        row = table[each[0]]
        if len(each) == 1 and row.kind == "feature" and label == node_label(row):
            label = row.label or feature_key(row.layer, row.feature)
        if len(each) == 1 and row.node in likely:
            label = f"{label} {percent(likely[row.node])}"
        texts.append(label)
    return texts


def _rest_merged(circuit: Circuit) -> Circuit:
    """One more group for each word: its errors, as one thing."""
    taken = {member for group in circuit.groups for member in group.members}
    found: dict[int, list[str]] = {}
    for number, row in zip(circuit.names().values(), rows(circuit.nodes), strict=True):
        if row.kind in REST and number not in taken:
            found.setdefault(int(row.position), []).append(number)
    groups = [
        Group(MISSED if position >= 0 else LEFT_OUT, tuple(each), "position")
        for position, each in found.items()
    ]
    return replace(circuit, groups=(*circuit.groups, *groups))


def percent(share: float) -> str:
    """A share for people: 12%, 0.4%, under 0.1%."""
    if share and share < 0.001:
        return "<0.1%"
    return f"{share:.0%}" if share >= 0.0995 or not share else f"{share:.1%}"


def about(circuit: Circuit) -> dict[str, Any]:
    """What a page says of the circuit as a whole, in sentences."""
    settings, scores = circuit.settings, circuit.scores()
    origin = [str(settings[key]) for key in ("model", "dictionary") if settings.get(key)]
    pruned = settings.get("pruned", {})
    if "nodes" in pruned and "edges" in pruned:
        nodes, edges = (percent(float(pruned[key])) for key in ("nodes", "edges"))
        origin.append(f"pruned to {nodes} of the nodes' and {edges} of the edges' influence")
    if len(circuit.edges) > MOST_EDGES:
        origin.append(f"the {MOST_EDGES:,} strongest of {len(circuit.edges):,} edges")
    whole, read = percent(scores.replacement), percent(scores.completeness)
    return {
        "prompt": str(settings.get("prompt", "")),
        "source": " · ".join(origin),
        "scores": f"{whole} of the influence on the outputs runs from words through features, end "
        f"to end (replacement); {read} of all that is read directly comes from the features and "
        "words shown (completeness). The rest comes from what no feature explains or was pruned."
        + _validated(settings.get("validation", {})),
    }


def _validated(found: Mapping[str, Any]) -> str:
    """What interventions made of the graph's predictions, where `circuits.validate` has run."""
    free = found.get("agreement", {}).get("free", {})
    if free.get("spearman") is None or free.get("sign") is None:
        return " Not validated yet: `circuits validate` pushes the model and looks."
    return (
        f" Validated on the model: of {free['count']} effects of ablating its concepts, with all "
        f"else recomputed, {percent(free['sign'])} go the way that it predicts, and their order "
        f"agrees by a rank correlation of {free['spearman']:.2f}."
    )
