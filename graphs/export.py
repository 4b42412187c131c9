"""Circuits for other programs: CSV tables, GraphML, GEXF; see `graphs.neuronpedia` for its JSON."""

import os
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphs.circuit import Circuit
from graphs.store import whole_file

if TYPE_CHECKING:
    import networkx as nx

# What XML 1.0 cannot hold, however it is written.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write_tables(circuit: Circuit, folder: str | os.PathLike[str]) -> list[Path]:
    """nodes.csv, edges.csv and the same of concepts, nodes named as in `Circuit.names`."""
    names, concepts = circuit.names(), circuit.concepts()
    members = concepts.nodes["members"].map(" ".join)
    tables = {
        "nodes": circuit.nodes.assign(
            node=circuit.nodes["node"].map(names),
            concept=circuit.nodes["node"].map(circuit.concept_of()),
        ),
        "edges": circuit.edges.assign(
            source=circuit.edges["source"].map(names), target=circuit.edges["target"].map(names)
        ),
        "concepts": concepts.nodes.assign(members=members),
        "concept_edges": concepts.edges,
    }
    paths = []
    for stem, table in tables.items():
        paths.append(Path(folder) / f"{stem}.csv")
        with whole_file(paths[-1]) as file:
            table.to_csv(file, index=False, lineterminator="\n")
    return paths


def write_graphml(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """GraphML, for Gephi, Cytoscape, networkx and others."""
    import networkx as nx

    return _write_xml(circuit.to_networkx(), path, nx.write_graphml)


def write_gexf(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """GEXF, Gephi's own format; settings, groups and evidence are not in it."""
    import networkx as nx

    found = circuit.to_networkx()
    found.graph.clear()
    for node, data in found.nodes(data=True):
        data["name"] = node  # in GEXF a node's label is its text for people
    return _write_xml(found, path, nx.write_gexf)


def _write_xml(
    found: "nx.DiGraph", path: str | os.PathLike[str], write: Callable[[Any, BytesIO], None]
) -> Path:
    import networkx as nx

    for attributes in (found.graph, *(d for _, d in found.nodes(data=True))):
        attributes |= {k: _legal(v) for k, v in attributes.items() if isinstance(v, str)}
    renamed = {n: _legal(n) for n in found if _ILLEGAL.search(n)}
    buffer = BytesIO()
    write(nx.relabel_nodes(found, renamed, copy=False), buffer)
    with whole_file(path, "wb") as file:
        file.write(buffer.getvalue())
    return Path(path)


def _legal(text: str) -> str:
    """What XML cannot hold is written as Python would show it."""
    return _ILLEGAL.sub(lambda found: repr(found.group())[1:-1], text)
