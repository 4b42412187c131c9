"""What `circuits show` does: read a saved graph, prune it, and draw its circuit. Needs no model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import graphs
from graphs.tree import tree
from replacement.evidence.labels import read_labels

FIGURES = (".html", ".svg", ".pdf", ".png")


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    file: Path
    nodes: float
    edges: float
    labels: Path | None
    groups: Path | None
    out: Path | None


def run(request: Request, as_json: bool) -> None:
    """Read, prune, label, group, draw."""
    if request.out is not None and request.out.suffix not in FIGURES:
        raise ValueError(f"--out {request.out} must end in one of {', '.join(FIGURES)}.")
    graph = graphs.load(request.file)
    if request.labels is not None:
        graph = _labelled(graph, request.labels)
    circuit = graph.prune(request.nodes, request.edges)
    if request.groups is not None:
        circuit = circuit.load_groups(request.groups)
    if request.out is not None:
        draw(circuit, request.out)
    if as_json:
        print(json.dumps(_summary(circuit), ensure_ascii=False, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(tree(circuit), soft_wrap=True)
    if request.out is not None:
        console.print(f"[dim]wrote {escape(str(request.out))}[/]", soft_wrap=True)


def _labelled(graph: graphs.AttributionGraph, path: Path) -> graphs.AttributionGraph:
    labels = read_labels(path)
    features = graph.nodes.loc[graph.nodes["kind"] == "feature"]
    if labels and not set(labels) & set(zip(features["layer"], features["feature"], strict=True)):
        raise ValueError(f"{path} has no label of a feature in this graph.")
    return graph.labelled(labels)


def draw(circuit: graphs.Circuit, path: Path) -> None:
    """An interactive page or a figure for papers, by the name's ending."""
    if path.suffix == ".html":
        circuit.save_html(path)
    else:
        circuit.save_figure(path)


def _summary(circuit: graphs.Circuit) -> Mapping[str, Any]:
    view = circuit.concepts()
    return {
        "prompt": circuit.settings.get("prompt", ""),
        "scores": circuit.scores()._asdict(),
        "concepts": view.nodes.to_dict("records"),
        "edges": view.edges.to_dict("records"),
        "paths": [path.to_dict() for path in circuit.paths()],
    }
