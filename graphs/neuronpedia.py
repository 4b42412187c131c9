"""Circuits in Neuronpedia's JSON, which circuit-tracer's viewer reads too."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphs.circuit import Circuit, rows
from graphs.store import whole_file
from graphs.views import chances


def write_neuronpedia(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """The JSON that Neuronpedia and circuit-tracer's viewer read."""
    with whole_file(path) as file:
        json.dump(neuronpedia(circuit), file, ensure_ascii=False, allow_nan=False)
    return Path(path)


def neuronpedia(circuit: Circuit) -> dict[str, Any]:
    """The circuit in Neuronpedia's schema, its groups as supernodes."""
    settings = circuit.settings
    likely = chances(circuit)
    layers, ids = settings.get("n_layers", 0), settings.get("token_ids", [])
    named = {
        int(row.node): _node(row, layers, ids, likely.get(int(row.node)))
        for row in rows(circuit.nodes)
    }
    links = [
        {"source": named[int(s)]["node_id"], "target": named[int(t)]["node_id"], "weight": float(w)}
        for s, t, w in circuit.edges[["source", "target", "weight"]].itertuples(index=False)
    ]
    by_name = {name: named[node]["node_id"] for node, name in circuit.names().items()}
    grouped = [[g.label, *(by_name[member] for member in g.members)] for g in circuit.groups]
    view = {
        "pinnedIds": _pinned(circuit, by_name, grouped),
        "supernodes": grouped,
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }
    return {
        "metadata": _metadata(settings),
        "qParams": view,
        "nodes": list(named.values()),
        "links": links,
    }


def _metadata(settings: Mapping[str, Any]) -> dict[str, Any]:
    prompt = str(settings.get("prompt", ""))
    pruned = settings.get("pruned", {"nodes": 1.0, "edges": 1.0})
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "graph"
    return {
        "slug": slug,
        "scan": str(settings.get("model", "")),
        "transcoder_list": [str(settings.get("dictionary", ""))],
        "prompt_tokens": list(settings.get("tokens", [])),
        "prompt": prompt,
        "schema_version": 1,
        "info": {"generator": {"name": "circuits-tracing"}},
        "pruning_settings": {
            "node_threshold": pruned["nodes"],
            "edge_threshold": pruned["edges"],
        },
    }


def _pinned(circuit: Circuit, by_name: dict[str, str], grouped: list[list[str]]) -> list[str]:
    """What the viewer's subgraph opens with: all groups, and the strongest path."""
    strongest = [by_name[n] for path in circuit.paths(top=1) for step in path.nodes for n in step]
    return list(dict.fromkeys([*strongest, *(member for _, *ids in grouped for member in ids)]))


def _node(row: Any, n_layers: int, ids: list[int], chance: float | None) -> dict[str, Any]:
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
    likely = "" if chance is None else f" (p={chance:.3f})"
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
        "token_prob": chance or 0.0,
        "is_target_logit": row.kind == "logit" and row.weight > 0,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{stem}-0",
        "clerp": f'Output "{row.token}"{likely}' if row.kind == "logit" else row.label,
        "influence": float(row.influence),
        "activation": float(row.activation) if active else None,
    }
