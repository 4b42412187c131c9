"""Concepts: a circuit seen by its groups. Sums of what the members have, and nothing else.

    edge(S -> T) = sum of the edges from S's members to T's
    value(T)     = sum of its members' values = edges into T + inner(T) + rest(T)

`inner` is what T's members give each other, and `rest` what was pruned, with the bias: the books
balance for concepts as they do for nodes. Scores stay those of the members, since a merged node
would blur which member passes on what it was given.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from graphs.flow import explained, flow
from graphs.groups import Group

if TYPE_CHECKING:
    from graphs.circuit import Circuit


@dataclass(frozen=True, eq=False)
class Concepts:
    """The merged view of a circuit.

    `nodes`, one row a concept: name, label, kind, position (of its most influential member),
    layer and top (its lowest and highest layer), members (names), influence, weight, value, rest
    (sums), inner, through (the share of what is explained that runs through it in this circuit,
    every path once), method ("single" where nothing was grouped), cohesion, pinned. `edges`: source
    and target (names), weight, share and direct as in `Circuit.edges`.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame


def concepts(circuit: "Circuit") -> Concepts:
    """Merge each group's members into one node."""
    names = circuit.names()
    owner = circuit.concept_of()
    nodes = _nodes(circuit, names, owner)
    table = circuit.edges.assign(
        source=circuit.edges["source"].map(owner), target=circuit.edges["target"].map(owner)
    )
    # A concept reads what its members read, each as much as it matters.
    reads = circuit.nodes["influence"]  # of what is explained its weight is part
    by_node = dict(zip(circuit.nodes["node"], reads, strict=True))
    own = reads.groupby(circuit.nodes["node"].map(owner)).sum()
    table["direct"] *= circuit.edges["target"].map(by_node)
    within = table["source"] == table["target"]
    inner = table.loc[within].groupby("target")["weight"].sum()
    nodes["inner"] = nodes["name"].map(inner).fillna(0.0)
    nodes["through"] = nodes["name"].map(_through(circuit, owner))
    edges = table.loc[~within].groupby(["source", "target"], sort=False, as_index=False)
    merged = edges[["weight", "share", "direct"]].sum()
    merged["direct"] /= merged["target"].map(own).astype(float)
    return Concepts(nodes, merged.sort_values("share", ascending=False, ignore_index=True))


def _nodes(circuit: "Circuit", names: dict[int, str], owner: dict[int, str]) -> pd.DataFrame:
    """One row a concept, in the order of their first members."""
    numbers = circuit.nodes["node"]
    nodes = circuit.nodes.assign(
        name=numbers.map(owner),
        members=numbers.map(names),
        label=numbers.map(circuit.labels()),
        top=circuit.nodes["layer"],
    )
    by_name = nodes.groupby("name", sort=False)
    strongest = nodes.loc[by_name["influence"].idxmax(), ["name", "label", "kind", "position"]]
    extent = {"layer": "min", "top": "max", "members": tuple}
    sums = dict.fromkeys(("influence", "weight", "value", "rest"), "sum")
    found = strongest.merge(by_name.agg({**extent, **sums}).reset_index(), on="name")
    groups = dict(zip(circuit.group_names(), circuit.groups, strict=True))
    own = [groups.get(name, Group("", (), "single")) for name in found["name"]]
    return found.assign(
        method=[group.method for group in own],
        cohesion=[group.cohesion for group in own],
        pinned=[group.pinned for group in own],
    )


def _through(circuit: "Circuit", owner: dict[int, str]) -> dict[str, float]:
    """Of all that is explained, how much runs through each concept: members count a path once."""
    found = flow(circuit)
    seeds = explained(circuit, found)
    names = np.array([owner[int(node)] for node in found.nodes], dtype=object)
    share = dict(zip(names, found.backward(seeds), strict=True))
    for name in circuit.group_names():
        own = names == name
        share[name] = found.begun_at(own).backward(seeds)[own].sum()
    return {name: float(value) for name, value in share.items()}
