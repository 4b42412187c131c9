"""Circuits for other programs: CSV tables, GraphML, Neuronpedia's JSON."""

import json
import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any

from graphs.circuit import Circuit, rows
from graphs.store import whole_file

# What XML 1.0 cannot hold, however it is written.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write_tables(circuit: Circuit, folder: str | os.PathLike[str]) -> list[Path]:
    """nodes.csv and edges.csv, one row each, the nodes named as in `Circuit.names`."""
    names = circuit.names()
    nodes = circuit.nodes.assign(node=circuit.nodes["node"].map(names))
    edges = circuit.edges.assign(
        source=circuit.edges["source"].map(names), target=circuit.edges["target"].map(names)
    )
    paths = []
    for stem, table in (("nodes", nodes), ("edges", edges)):
        paths.append(Path(folder) / f"{stem}.csv")
        with whole_file(paths[-1]) as file:
            table.to_csv(file, index=False, lineterminator="\n")
    return paths


def write_graphml(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """GraphML, for Gephi, Cytoscape, networkx and others."""
    import networkx as nx

    found = circuit.to_networkx()
    for attributes in (found.graph, *(d for _, d in found.nodes(data=True))):
        attributes |= {k: _legal(v) for k, v in attributes.items() if isinstance(v, str)}
    renamed = {n: _legal(n) for n in found if _ILLEGAL.search(n)}
    buffer = BytesIO()
    nx.write_graphml(nx.relabel_nodes(found, renamed, copy=False), buffer)
    with whole_file(path, "wb") as file:
        file.write(buffer.getvalue())
    return Path(path)


def _legal(text: str) -> str:
    """What XML cannot hold is written as Python would show it."""
    return _ILLEGAL.sub(lambda found: repr(found.group())[1:-1], text)


def write_neuronpedia(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """The JSON that Neuronpedia and circuit-tracer's viewer read."""
    with whole_file(path) as file:
        json.dump(neuronpedia(circuit), file, ensure_ascii=False, allow_nan=False)
    return Path(path)


def neuronpedia(circuit: Circuit) -> dict[str, Any]:
    """The circuit in Neuronpedia's schema."""
    settings = circuit.settings
    prompt = str(settings.get("prompt", ""))
    tokens = list(settings.get("tokens", []))
    chances = {index: p for _, index, p in settings.get("predictions", [])}
    ids = settings.get("token_ids", [])
    named = {
        int(row.node): _node(row, settings.get("n_layers", 0), ids, chances)
        for row in rows(circuit.nodes)
    }
    links = [
        {"source": named[int(s)]["node_id"], "target": named[int(t)]["node_id"], "weight": float(w)}
        for s, t, w in circuit.edges[["source", "target", "weight"]].itertuples(index=False)
    ]
    pruned = settings.get("pruned", {})
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "graph"
    return {
        "metadata": {
            "slug": slug,
            "scan": str(settings.get("model", "")),
            "transcoder_list": [str(settings.get("dictionary", ""))],
            "prompt_tokens": tokens,
            "prompt": prompt,
            "node_threshold": pruned.get("nodes"),
            "schema_version": 1,
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": list(named.values()),
        "links": links,
    }


def _node(row: Any, n_layers: int, ids: list[int], chances: dict[int, float]) -> dict[str, Any]:
    vocabulary_id = ids[row.position] if row.kind == "token" and ids else row.feature
    if row.kind == "logit" and row.feature < 0:
        vocabulary_id = row.node  # a direction has no id of its own
    kinds = {
        "feature": ("cross layer transcoder", str(row.layer), f"{row.layer}_{row.feature}"),
        "error": ("mlp reconstruction error", str(row.layer), f"error_{row.layer}"),
        "token": ("embedding", "E", f"E_{vocabulary_id}"),
        "logit": ("logit", str(n_layers + 1), f"{n_layers + 1}_{vocabulary_id}"),
        "remainder": ("remainder", str(row.layer), f"remainder_{row.layer}"),
        "bias": ("bias", "E", "bias"),
    }
    feature_type, layer, stem = kinds[row.kind]
    chance = float(chances.get(row.feature, 0.0)) if row.kind == "logit" else 0.0
    # Cantor's pairing of layer and feature: one number per feature of the host.
    pair = (row.layer + row.feature) * (row.layer + row.feature + 1) // 2 + row.feature
    number = {"feature": pair, "token": row.position, "logit": row.feature}.get(row.kind, -1)
    active = row.kind == "feature"
    return {
        "node_id": f"{stem}_{row.position}",
        "feature": int(number),
        "layer": layer,
        "ctx_idx": max(int(row.position), 0),
        "feature_type": feature_type,
        "token_prob": chance,
        "is_target_logit": row.kind == "logit" and row.weight > 0,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{stem}-0",
        "clerp": f'Output "{row.token}" (p={chance:.3f})' if row.kind == "logit" else "",
        "influence": float(row.influence),
        "activation": float(row.activation) if active else None,
    }
