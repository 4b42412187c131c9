"""The strongest paths through a circuit, told in concepts.

A path of nodes has as its share the explained target's weight times the product, edge by edge, of
how much of all that the target reads comes from the source. Consecutive nodes of one label are one
step, and all paths with the same steps are one path, whose share is their sum: Dallas → Texas →
Austin is every way over which Dallas reached Austin through Texas and nothing else.

Paths are found best first: what all paths with the same beginning bring together bounds each of
them, so the first that comes out whole is the strongest. In a dense circuit too many beginnings
are alike; after `OPENED` of them, and where no two nodes have one label, the steps of the strongest
paths of single nodes are taken instead (layers order the nodes, so these are exact by dynamic
programming), and each is given the whole share of its steps.
"""

import difflib
import heapq
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from graphs.circuit import Circuit, label, rows
from graphs.flow import Flow, edge_matrix, ends, flow, settled

OPENED = 5000


@dataclass(frozen=True)
class Path:
    """One path: the labels of its steps, the names of the nodes in each, its share and its sign.

    The sign is that of the sum over its paths of nodes.
    """

    labels: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]
    share: float
    sign: int

    def __str__(self) -> str:
        return " → ".join(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it, with the line of text."""
        return {"text": str(self), **asdict(self)}


def strongest(circuit: Circuit, source: str | None, target: str | None, top: int) -> list[Path]:
    """The `top` strongest paths from a token (or any named node) to an explained target."""
    if top < 1:
        raise ValueError(f"top={top} must be at least 1.")
    starts = find(circuit, source, "source") if source else _where(circuit, "token")
    finish = find(circuit, target, "target") if target else None
    steps = _Steps(circuit, starts, finish)
    whole = None if steps.single else steps.best(top)
    return [steps.path(*found) for found in whole or steps.likely(top)]


class _Steps:
    """A circuit's nodes as steps, and what paths over them bring."""

    def __init__(self, circuit: Circuit, starts: list[int], finish: list[int] | None) -> None:
        found = flow(circuit)
        self.start = found.at(starts)
        self.flow = found.begun_at(self.start)
        if finish is not None:
            self.flow = self.flow.ended_at(found.at(finish))
        self.seeds = ends(circuit, found, _explained(circuit) if finish is None else finish)
        self.names, self.labels = circuit.names(), circuit.labels()
        texts = _step_texts(circuit, [int(node) for node in found.nodes], self.labels)
        number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        self.step = np.array([number[text] for text in texts])  # of each node
        self.columns = sparse.csc_array(self.flow.direct)
        self.signs = _signs(circuit, self.flow)

    @property
    def single(self) -> bool:
        """Whether no two nodes share a label, so that paths of concepts are paths of nodes."""
        return len(np.unique(self.step)) == len(self.step)

    @cached_property
    def worth(self) -> Float[np.ndarray, " nodes"]:
        """What a unit at each node brings to the ends."""
        return self.flow.backward(self.seeds)

    def best(self, top: int) -> list[tuple[float, tuple[int, ...]]] | None:
        """The strongest (share, steps), best first; None where too many beginnings are alike."""
        heap = list(self._pushed((), self.start.astype(float)))
        heapq.heapify(heap)
        found: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(OPENED):
            if not heap or len(found) == top:
                return found
            bound, steps, done, mass = heapq.heappop(heap)
            if done:
                if len(steps) > 1:
                    found.append((-bound, steps))
                continue
            inside = self._inside(steps[-1], mass, self.flow.direct)
            arrived = float(inside @ self.seeds)
            if arrived > 0:
                heapq.heappush(heap, (-arrived, steps, True, inside))
            out = self.columns @ inside
            out[self.step == steps[-1]] = 0
            for item in self._pushed(steps, out):
                heapq.heappush(heap, item)
        return None

    def _pushed(self, steps: tuple[int, ...], mass: np.ndarray) -> Iterator[tuple]:
        """What has arrived, one beginning a step that it has arrived at, with its bound."""
        for step in np.unique(self.step[mass > 0]).tolist():
            here = np.where(self.step == step, mass, 0)
            bound = float(here @ self.worth)
            if bound > 0:
                yield (-bound, (*steps, step), False, here)

    def _inside(self, step: int, mass: np.ndarray, direct: sparse.csr_array) -> np.ndarray:
        """What stands at the nodes of a step after running on within it."""
        return settled(direct, np.flatnonzero(self.step == step), mass)

    def likely(self, top: int) -> list[tuple[float, tuple[int, ...]]]:
        """The steps of the strongest paths of nodes, with the whole share of each."""
        nodes = _best_of_nodes(self.flow, self.start, self.seeds, top if self.single else 10 * top)
        steps = dict.fromkeys(
            tuple(k for k, _ in groupby(self.step[list(p)].tolist())) for p in nodes
        )
        found = [(float(self._arrived(s, self.flow.direct) @ self.seeds), s) for s in steps]
        return sorted((f for f in found if len(f[1]) > 1), key=lambda f: (-f[0], f[1]))[:top]

    def _arrived(self, steps: tuple[int, ...], direct: sparse.csr_array) -> np.ndarray:
        """What stands at the last step's nodes, over all paths with exactly these steps."""
        mass = np.where(self.step == steps[0], self.start.astype(float), 0)
        for place, step in enumerate(steps):
            if place:
                mass = np.where(self.step == step, direct @ mass, 0)
            mass = self._inside(step, mass, direct)
        return mass

    def path(self, share: float, steps: tuple[int, ...]) -> Path:
        """A path for people."""
        net = float(self._arrived(steps, self.signs) @ self.seeds)
        on = [self._on(steps, place) for place in range(len(steps))]
        nodes = tuple(tuple(self.names[int(n)] for n in self.flow.nodes[mask]) for mask in on)
        labels = tuple(self.labels[int(self.flow.nodes[mask][0])] for mask in on)
        return Path(labels, nodes, share, 1 if net >= 0 else -1)

    def _on(self, steps: tuple[int, ...], place: int) -> np.ndarray:
        """The nodes of one step that lie on a path with these steps."""
        before = self._arrived(steps[: place + 1], self.flow.direct)
        worth = np.where(self.step == steps[-1], self.seeds, 0)
        down = self.flow.down
        worth = self._inside(steps[-1], worth, down)
        for step in reversed(steps[place:-1]):
            worth = self._inside(step, np.where(self.step == step, down @ worth, 0), down)
        return (before > 0) & (worth > 0)


def _step_texts(circuit: Circuit, nodes: list[int], labels: dict[int, str]) -> list[str]:
    """What tells steps apart: the labels, but a word of the prompt is never one with an output."""
    kind = dict(zip(circuit.nodes["node"], circuit.nodes["kind"], strict=True))
    words = {labels[node] for node in nodes if kind[node] == "token"}
    return [
        f"output\0{labels[n]}" if kind[n] == "logit" and labels[n] in words else labels[n]
        for n in nodes
    ]


def _signs(circuit: Circuit, found: Flow) -> sparse.csr_array:
    """The flow's matrix with the edges' signs."""
    signs = edge_matrix(
        circuit, found.nodes, np.sign(circuit.edges["weight"].to_numpy(dtype=float))
    )
    return sparse.csr_array(found.direct.multiply(signs))


def _best_of_nodes(
    found: Flow, start: np.ndarray, seeds: np.ndarray, top: int
) -> list[tuple[int, ...]]:
    """The `top` strongest paths of single nodes: the k best to a node are among the k best to each
    of its sources."""
    best: dict[int, list[tuple[float, tuple[int, ...]]]] = {
        int(n): [(1.0, (int(n),))] for n in np.flatnonzero(start)
    }
    direct = found.direct
    for node in range(len(found.nodes)):
        row = slice(direct.indptr[node], direct.indptr[node + 1])
        longer = [
            (share * weight, (*nodes, node))
            for s, weight in zip(
                direct.indices[row].tolist(), direct.data[row].tolist(), strict=True
            )
            if weight > 0
            for share, nodes in best.get(s, ())
        ]
        if longer:
            best[node] = heapq.nlargest(top, [*best.get(node, ()), *longer])
    whole = [
        (share * float(seeds[end]), nodes)
        for end in np.flatnonzero(seeds).tolist()
        for share, nodes in best.get(end, ())
        if len(nodes) > 1
    ]
    return [nodes for _, nodes in sorted(whole, key=lambda item: (-item[0], item[1]))[:top]]


def find(circuit: Circuit, wanted: str, role: str) -> list[int]:
    """Nodes by name or label; as a source tokens come before others, as a target outputs do."""
    names, labels = circuit.names(), circuit.labels()
    own = {int(row.node): label(row) for row in rows(circuit.nodes)}  # a word in a group has it too
    exact = [n for n in names if wanted in (names[n], labels[n])]
    exact = exact or [n for n in names if wanted == own[n]]
    first = _where(circuit, {"source": "token", "target": "logit"}[role])
    if exact:
        return [n for n in exact if n in set(first)] or exact
    known = sorted({*labels.values(), *names.values()})
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(map(repr, near))}." if near else "see circuit.nodes."
    raise ValueError(f"{role}={wanted!r} names no node of this circuit; {hint}")


def _where(circuit: Circuit, kind: str) -> list[int]:
    return circuit.nodes.loc[circuit.nodes["kind"] == kind, "node"].tolist()


def _explained(circuit: Circuit) -> list[int]:
    return circuit.nodes.loc[circuit.nodes["weight"] > 0, "node"].tolist()
