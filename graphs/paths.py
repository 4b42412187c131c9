"""The strongest paths through a circuit.

A path's share is the explained target's weight times the product, edge by edge, of how much of
all that the target reads comes from the source. Summed over every path from a source it would be
the source's influence. Layers order the nodes, so the k best paths to a node are among the k
best to each of its sources: dynamic programming, exact.
"""

import difflib
import heapq
import math
from dataclasses import dataclass
from itertools import pairwise

from graphs.circuit import Circuit


@dataclass(frozen=True)
class Path:
    """One path: names and labels of its nodes, its share of the influence, and its sign."""

    nodes: tuple[str, ...]
    labels: tuple[str, ...]
    share: float
    sign: int

    def __str__(self) -> str:
        return " → ".join(self.labels)


def strongest(circuit: Circuit, source: str | None, target: str | None, top: int) -> list[Path]:
    """The `top` strongest paths from a token (or any named node) to an explained target."""
    if top < 1:
        raise ValueError(f"top={top} must be at least 1.")
    starts = _find(circuit, source, "source") if source else _where(circuit, "kind", "token")
    ends = _find(circuit, target, "target") if target else _explained(circuit)
    best = _best_to_each(circuit, starts, top)
    weight = dict(zip(circuit.nodes["node"], circuit.nodes["weight"], strict=True))
    found = []
    for end in ends:
        seed = weight[end] if weight[end] > 0 else 1.0
        found += [(share * seed, nodes) for share, nodes in best.get(end, []) if len(nodes) > 1]
    found.sort(key=lambda item: (-item[0], item[1]))
    names, labels = circuit.names(), circuit.labels()
    signed = {
        (s, t): math.copysign(1, w)
        for s, t, w in circuit.edges[["source", "target", "weight"]].itertuples(index=False)
    }
    return [
        Path(
            tuple(names[n] for n in nodes),
            tuple(labels[n] for n in nodes),
            share,
            int(math.prod(signed[pair] for pair in pairwise(nodes))),
        )
        for share, nodes in found[:top]
    ]


def _best_to_each(
    circuit: Circuit, starts: list[int], top: int
) -> dict[int, list[tuple[float, tuple[int, ...]]]]:
    """Node -> its `top` best (product of shares, path from a start)."""
    layer = dict(zip(circuit.nodes["node"], circuit.nodes["layer"], strict=True))
    incoming: dict[int, list[tuple[int, float]]] = {}
    for s, t, direct in circuit.edges[["source", "target", "direct"]].itertuples(index=False):
        incoming.setdefault(int(t), []).append((int(s), float(direct)))
    best: dict[int, list[tuple[float, tuple[int, ...]]]] = {n: [(1.0, (n,))] for n in starts}
    for node in sorted(incoming, key=lambda n: layer[n]):
        longer = (
            (share * direct, (*nodes, node))
            for s, direct in incoming[node]
            for share, nodes in best.get(s, [])
        )
        best[node] = heapq.nlargest(top, [*best.get(node, []), *longer])
    return best


def _where(circuit: Circuit, column: str, value: str) -> list[int]:
    return circuit.nodes.loc[circuit.nodes[column] == value, "node"].tolist()


def _explained(circuit: Circuit) -> list[int]:
    return circuit.nodes.loc[circuit.nodes["weight"] > 0, "node"].tolist()


def _find(circuit: Circuit, wanted: str, role: str) -> list[int]:
    """Nodes by name, label or the text of a token (or output) stripped of spaces."""
    names, labels = circuit.names(), circuit.labels()
    exact = [n for n in names if wanted in (names[n], labels[n])]
    if exact:
        return exact
    near = difflib.get_close_matches(wanted, [*labels.values(), *names.values()], n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(map(repr, near))}." if near else "see circuit.nodes."
    raise ValueError(f"{role}={wanted!r} names no node of this circuit; {hint}")
