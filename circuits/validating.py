"""What `circuits validate` does: test a saved graph on its model, and keep how far it holds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import graphs
import replacement
from circuits.report import check_device, progress_bar, silence
from circuits.validation import Validation, validate
from graphs.store import whole_file
from replacement import bundled


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; model and dictionary default to the graph's own."""

    file: Path
    model: str | None
    dictionary: str | None
    nodes: float
    edges: float
    groups: Path | None
    factor: float
    concepts: int
    features: int
    seed: int
    device: str
    out: Path | None


def run(request: Request, as_json: bool) -> None:
    """Read, test, draw, keep, report."""
    _check(request)
    graph = graphs.load(request.file)
    circuit = graph.prune(request.nodes, request.edges)
    if request.groups is not None:
        circuit = circuit.load_groups(request.groups)
    silence()
    messages = Console(stderr=True, highlight=False)
    host = request.model or str(graph.settings["model"])
    with messages.status(f"opening {escape(host)}"):
        model = replacement.load(host, _dictionary(request, graph, host), device=request.device)
    with progress_bar(messages, "intervening", "runs") as progress:
        found = validate(
            model, graph, circuit, request.factor, request.concepts, request.features,
            request.seed, progress,
        )  # fmt: skip
    if request.out is not None:
        with whole_file(request.out) as file:
            file.write(found.plot().to_html(include_plotlyjs=True))
    found.graph.save(request.file)
    if as_json:
        print(json.dumps(_summary(request, found), ensure_ascii=False, allow_nan=False))
    else:
        show(request, found, Console(highlight=False))


def _check(request: Request) -> None:
    """Refuse before any work what can be refused before it."""
    if request.out is not None and request.out.suffix != ".html":
        raise ValueError(f"--out {request.out} must end in .html.")
    check_device(request.device)


def _dictionary(request: Request, graph: graphs.AttributionGraph, host: str) -> str:
    """The dictionary asked for, or the one of the graph's name where the host has it."""
    own = str(graph.settings["dictionary"])
    known = {f"{host} {name}": name for name in bundled.dictionaries(host)}
    known[bundled.NEURONS] = bundled.NEURONS
    chosen = request.dictionary or known.get(own)
    if chosen is None:
        raise ValueError(f"the graph's dictionary is {own!r}; say where it is with --dictionary.")
    return chosen


def _summary(request: Request, found: Validation) -> dict[str, Any]:
    """The report as one JSON-able object."""
    tables = {
        name: json.loads(str(table.to_json(orient="records")))
        for name, table in (("by_distance", found.by_distance), ("curve", found.curve))
    }
    return {
        "file": str(request.file),
        "prompt": found.graph.settings.get("prompt", ""),
        **found.figures,
        **tables,
    }


def show(request: Request, found: Validation, console: Console) -> None:
    """The report for people."""
    prompt = escape(str(found.graph.settings.get("prompt", "")))
    done = "ablated" if request.factor == 0 else f"scaled by {request.factor:g}"
    console.print(f"[bold]{prompt}[/]  [dim]{found.figures['concepts']} concepts {done}[/]\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("predicted and observed")
    for heading in ("effects", "Spearman", "Pearson", "right sign", "error"):
        table.add_column(heading, justify="right")
    for row in found.agreement.to_dict("records"):
        numbers = (_two(row[key]) for key in ("spearman", "pearson", "sign", "error"))
        table.add_row(f"{row['regime']}, {row['kind']}s", str(row["count"]), *numbers)
    console.print(table)
    ranks = found.figures["influence"]
    text = f"{_two(ranks['spearman'])} over {ranks['features']} features"
    console.print(f"\n[bold]Influence against ablation[/]  Spearman {text}, constrained")
    _show_circuit(found.figures, console)
    for file in (request.out, request.file):
        if file is not None:
            console.print(f"[dim]wrote {escape(str(file))}[/]", soft_wrap=True)


def _show_circuit(figures: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("\nthe circuit, attention patterns")
    headings = ("features", "faithfulness", "p alone", "p without", "CPR", "CMD")
    for heading in headings:
        table.add_column(f"\n{heading}", justify="right")
    keys = ("faithfulness", "probability", "probability_without", "cpr", "cmd")
    for patterns, own in figures["circuit"].items():
        table.add_row(patterns, str(own["size"]), *(_two(own[key]) for key in keys))
    console.print(table)
    console.print(f"[dim]p of what is explained on the clean run {figures['probability']:.2f}[/]")


def _two(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"
