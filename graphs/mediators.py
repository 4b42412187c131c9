"""Mediators: which concepts stand between two others, by what runs through them.

The share of a concept is the part of all that flows from the source to the target which passes any
node of that label: one less what still arrives when those nodes are cut out, divided by what
arrives with them. Every path counts once, however many of the concept's nodes it passes; shares of
concepts on one path overlap, so they need not add up to one.
"""

from dataclasses import dataclass

import numpy as np

from graphs.circuit import Circuit
from graphs.flow import ends, flow
from graphs.paths import find


@dataclass(frozen=True)
class Mediator:
    """One concept in between: its label, the share through it, and its nodes' names."""

    label: str
    share: float
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.label} {self.share:.1%}"


def mediators(circuit: Circuit, source: str, target: str) -> list[Mediator]:
    """Features between two concepts, the one that most runs through first.

    What carries the source's or the target's own label is not between them.
    """
    start, end = find(circuit, source, "source"), find(circuit, target, "target")
    found = flow(circuit)
    found = found.begun_at(found.at(start)).ended_at(found.at(end))
    begun, seeds = found.at(start).astype(float), ends(circuit, found, end)
    passed, worth = found.forward(begun), found.backward(seeds)
    whole = float(begun @ worth)
    if whole <= 0:
        raise ValueError(
            f"nothing flows from {source!r} to {target!r} in this circuit; prune less, or see "
            "circuit.paths()."
        )
    labels, names = circuit.labels(), circuit.names()
    apart = {labels[node] for node in (*start, *end)} | {source, target}
    through = dict(zip(found.nodes.tolist(), passed * worth, strict=True))
    between: dict[str, list[int]] = {}
    for node in circuit.nodes.loc[circuit.nodes["kind"] == "feature", "node"].tolist():
        if through[node] > 0 and labels[node] not in apart:
            between.setdefault(labels[node], []).append(node)
    ranked = []
    for label, nodes in between.items():
        share = through[nodes[0]] / whole
        if len(nodes) > 1:
            cut = found.within(~found.at(nodes))
            share = 1 - float(begun @ cut.backward(np.where(found.at(nodes), 0, seeds))) / whole
        ranked.append(Mediator(label, float(share), tuple(names[node] for node in nodes)))
    return sorted(ranked, key=lambda mediator: (-mediator.share, mediator.label))
