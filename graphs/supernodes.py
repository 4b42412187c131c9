"""Supernodes: which features are one concept, found by the circuit itself.

Three ways, each within one position:

label     the same label (see `AttributionGraph.nodes`); features without one stay alone
promotes  the tokens that they promote most, at least half of both features' five in common
profile   like attribution profiles: who feeds them and whom they feed, in shares of all that
          flows in and of all that flows out (average linkage of cosine similarities)

Ways may be combined: what the first leaves alone, the second may group. A group records the way
that found it and its cohesion, the mean cosine similarity of two members' profiles.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from graphs.flow import edge_matrix
from graphs.graph import feature_key
from graphs.groups import BY_HAND, Group, with_groups

if TYPE_CHECKING:
    from graphs.circuit import Circuit

MOST_PROMOTED = 5
ALIKE = 0.5  # the least similarity, of promoted tokens or of profiles, within a group


def grouped(circuit: "Circuit", by: str | Sequence[str]) -> "Circuit":
    """The circuit with its features grouped; groups made by hand or pinned stay as they are."""
    ways = (by,) if isinstance(by, str) else tuple(by)
    for way in ways:
        if way not in WAYS:
            raise ValueError(f"by={way!r} is not one of {', '.join(WAYS)}.")
    kept = [g for g in circuit.groups if g.method == BY_HAND or g.pinned]
    circuit = replace(circuit, groups=())
    taken = {member for group in kept for member in group.members}
    for way in ways:
        found = [g for g in WAYS[way](_free(circuit, taken), circuit) if len(g.members) > 1]
        kept += found
        taken |= {member for group in found for member in group.members}
    return with_groups(circuit, kept)


def profiles(circuit: "Circuit") -> sparse.csr_array:
    """One row a node: what flows in from each node and out to each, each half of length one.

    The whole row has length one too. What nothing feeds, or feeds nothing, has only one half.
    """
    weight = circuit.edges["weight"].to_numpy(dtype=float)
    into = edge_matrix(circuit, circuit.nodes["node"].to_numpy(), weight)
    out = sparse.csr_array(into.transpose())
    return _unit(sparse.csr_array(sparse.hstack([_unit(into), _unit(out)])))


def cohesion(rows: sparse.csr_array) -> float:
    """The mean cosine similarity of two members' profiles; one member agrees with itself."""
    count = len(rows.indptr) - 1
    if count < 2:
        return 1.0
    alike = (rows @ rows.T).sum() - rows.multiply(rows).sum()
    return float(max(0.0, alike / (count * (count - 1))))


def _free(circuit: "Circuit", taken: set[str]) -> pd.DataFrame:
    """The features that are in no group yet, with their names."""
    nodes = circuit.nodes.assign(name=list(circuit.names().values()))
    return nodes.loc[(nodes["kind"] == "feature") & ~nodes["name"].isin(taken)]


def _by_label(free: pd.DataFrame, circuit: "Circuit") -> Iterator[Group]:
    labelled = free.loc[free["label"] != ""]
    for (_, label), members in labelled.groupby(["position", "label"], sort=False):
        yield Group(str(label), tuple(members["name"]), "label")


def _by_promoted(free: pd.DataFrame, circuit: "Circuit") -> Iterator[Group]:
    promoted: dict[str, frozenset[str]] = {}
    for name, layer, feature in zip(free["name"], free["layer"], free["feature"], strict=True):
        tokens = circuit.evidence.get(feature_key(layer, feature), {}).get("promotes", ())
        promoted[name] = frozenset(token for token, _ in tokens[:MOST_PROMOTED])

    def alike(names: list[str]) -> np.ndarray:
        sets = [promoted[name] for name in names]
        return np.array([[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets])

    yield from _clustered(free, circuit, "promotes", alike)


def _by_profile(free: pd.DataFrame, circuit: "Circuit") -> Iterator[Group]:
    table = profiles(circuit)
    row = {name: n for n, name in enumerate(circuit.names().values())}

    def alike(names: list[str]) -> np.ndarray:
        rows = table[[row[name] for name in names]]
        return (rows @ rows.T).toarray()

    yield from _clustered(free, circuit, "profile", alike)


def _clustered(
    free: pd.DataFrame,
    circuit: "Circuit",
    way: str,
    alike: Callable[[list[str]], np.ndarray],
) -> Iterator[Group]:
    """Average linkage of the features of each position, cut where they are less than `ALIKE`."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    labels = circuit.labels()
    for _, here in free.groupby("position", sort=False):
        if len(here) < 2:
            continue
        far = np.clip(1 - alike(list(here["name"])), 0, None)
        np.fill_diagonal(far, 0)
        tree = linkage(squareform((far + far.T) / 2, checks=False), "average")
        cluster = fcluster(tree, 1 - ALIKE, "distance")
        for number in dict.fromkeys(cluster.tolist()):
            members = here.loc[cluster == number]
            strongest = members.loc[members["influence"].idxmax()]
            more = f" +{len(members) - 1}" if len(members) > 1 else ""
            yield Group(labels[int(strongest["node"])] + more, tuple(members["name"]), way)


def _unit(matrix: sparse.csr_array) -> sparse.csr_array:
    """Rows scaled to length one; an empty row stays empty."""
    length = np.sqrt(matrix.multiply(matrix).sum(1))
    scale = sparse.diags_array(1 / np.where(length > 0, length, 1), format="csr")
    return sparse.csr_array(scale @ matrix)


WAYS: dict[str, Callable[[pd.DataFrame, "Circuit"], Iterator[Group]]] = {
    "label": _by_label,
    "promotes": _by_promoted,
    "profile": _by_profile,
}
