"""Flow: how much of what reaches the explained targets runs where.

`direct[t, s]` is the share of all that t reads that comes from s. Layers order the nodes, so the
matrix is triangular and (1 - direct) can be solved against: forward, from what starts where to how
much passes each node; backward, from the targets to how much of what stands at a node arrives.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

if TYPE_CHECKING:
    from graphs.circuit import Circuit


@dataclass(frozen=True, eq=False)
class Flow:
    """A circuit's nodes in the order of their layers, and the shares between them."""

    nodes: np.ndarray  # graph node numbers, in order
    layers: np.ndarray
    direct: sparse.csr_array  # (targets, sources), both in that order

    @cached_property
    def down(self) -> sparse.csr_array:
        """The same shares from each source's side: (sources, targets)."""
        return sparse.csr_array(self.direct.T)

    def at(self, nodes: list[int]) -> Bool[np.ndarray, " nodes"]:
        """A mask of these graph nodes."""
        return np.isin(self.nodes, nodes)

    def forward(self, start: Float[np.ndarray, " nodes"]) -> Float[np.ndarray, " nodes"]:
        """How much passes each node, over all paths, of what starts at each."""
        passed = start.astype(float)
        for part in self._steps():
            passed[part] += self.direct[part] @ passed
        return passed

    def backward(self, ends: Float[np.ndarray, " nodes"]) -> Float[np.ndarray, " nodes"]:
        """What a unit at each node brings to the ends, over all paths."""
        worth = ends.astype(float)
        for part in reversed(self._steps()):
            worth[part] += self.down[part] @ worth
        return worth

    def within(self, kept: Bool[np.ndarray, " nodes"]) -> "Flow":
        """The same flow with every path cut that touches another node."""
        keep = sparse.diags_array(kept.astype(float), format="csr")
        return Flow(self.nodes, self.layers, sparse.csr_array(keep @ self.direct @ keep))

    def begun_at(self, start: Bool[np.ndarray, " nodes"]) -> "Flow":
        """The same flow with nothing running into the start: a path begins where it last leaves."""
        keep = sparse.diags_array((~start).astype(float), format="csr")
        return Flow(self.nodes, self.layers, sparse.csr_array(keep @ self.direct))

    def ended_at(self, ends: Bool[np.ndarray, " nodes"]) -> "Flow":
        """The same flow with nothing running on from the ends: a path ends where it arrives."""
        keep = sparse.diags_array((~ends).astype(float), format="csr")
        return Flow(self.nodes, self.layers, sparse.csr_array(self.direct @ keep))

    def _steps(self) -> list[slice]:
        """One slice a layer, the lowest first."""
        starts = np.flatnonzero(np.diff(self.layers, prepend=self.layers[:1] - 1))
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(self.layers)], strict=True)]


def flow(circuit: "Circuit") -> Flow:
    """The flow of a circuit."""
    table = circuit.nodes.sort_values("layer", kind="stable")
    nodes = table["node"].to_numpy()
    direct = edge_matrix(circuit, nodes, circuit.edges["direct"].to_numpy(dtype=float))
    return Flow(nodes, table["layer"].to_numpy(), direct)


def edge_matrix(circuit: "Circuit", nodes: np.ndarray, values: np.ndarray) -> sparse.csr_array:
    """A value for each edge as a matrix (targets, sources), both in the order of `nodes`."""
    place = {int(node): n for n, node in enumerate(nodes)}
    s = circuit.edges["source"].map(place).to_numpy(dtype=np.int64)
    t = circuit.edges["target"].map(place).to_numpy(dtype=np.int64)
    shape = (len(nodes), len(nodes))
    return sparse.csr_array((values, (t, s)), shape=shape)


def explained(circuit: "Circuit", found: Flow) -> Float[np.ndarray, " nodes"]:
    """Each node's share of the explanation, in the flow's order."""
    return circuit.nodes.set_index("node")["weight"].loc[found.nodes].to_numpy(dtype=float)


def ends(circuit: "Circuit", found: Flow, targets: list[int]) -> Float[np.ndarray, " nodes"]:
    """What each of these targets counts: its share of the explanation.

    Where none of them is explained, each counts as much as it matters, all together one.
    """
    at = found.at(targets)
    counts = np.where(at, explained(circuit, found), 0.0)
    if counts.sum() > 0:
        return counts
    influence = circuit.nodes.set_index("node")["influence"].loc[found.nodes]
    matter = np.where(at, influence.to_numpy(), 0.0)
    return matter / matter.sum() if matter.sum() > 0 else at / at.sum()


def settled(
    direct: sparse.csr_array, own: Int[np.ndarray, " own"], mass: Float[np.ndarray, " nodes"]
) -> Float[np.ndarray, " nodes"]:
    """What stands at some nodes once it has run on among them, over every way within."""
    if len(own) < 2:
        return mass
    inner = direct[own][:, own].toarray()
    out = np.zeros(len(mass))
    out[own] = np.linalg.solve(np.eye(len(own)) - inner, mass[own])
    return out
