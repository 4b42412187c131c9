"""What `circuits trace` does: trace, prune, write the files, and report as text or as JSON."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import circuits
import graphs
import replacement
from replacement.evidence.labels import read_labels


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    prompt: str
    model: str
    dictionary: str | None
    targets: list[str]
    minus: str | None
    position: int
    budget: int | None
    nodes: float
    edges: float
    paths: int
    labels: Path | None
    features: Path | None
    groups: Path | None
    chat: bool
    device: str
    out: Path | None

    def wanted(self) -> list[Any]:
        """The targets to explain."""
        if self.minus is not None:
            if len(self.targets) != 1:
                raise ValueError(f"--minus needs exactly one --target, not {len(self.targets)}.")
            return [circuits.Difference(self.targets[0], self.minus, self.position)]
        if not self.targets:
            return [circuits.Likely(position=self.position)]
        return [circuits.Token(t, self.position) for t in self.targets]


def run(request: Request, as_json: bool) -> None:
    """Trace, prune, write and report."""
    wanted = request.wanted()
    _check(request)
    silence()
    messages = Console(stderr=True, highlight=False)
    with messages.status(f"opening {escape(request.model)}"):
        model = _open(request)
    with progress_bar(messages, "tracing", "rows") as progress:
        graph = circuits.trace(model, request.prompt, wanted, request.budget, progress)
    circuit = graph.prune(request.nodes, request.edges)
    if request.groups is not None:
        circuit = circuit.load_groups(request.groups)
    summary = summarise(graph, circuit, request.paths)
    summary["files"] = [str(p) for p in _write(graph, circuit, request.out)]
    if as_json:
        print(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    else:
        show(summary, Console(highlight=False))


def _open(request: Request) -> replacement.ReplacementModel:
    """The model, with the labels that were given for its features."""
    model = replacement.load(
        request.model,
        request.dictionary,
        request.features,
        device=request.device,
        chat=request.chat,
    )
    return model if request.labels is None else model.labelled(read_labels(request.labels))


def _check(request: Request) -> None:
    """Refuse before any work what can be refused before it."""
    if request.out is not None and request.out.exists() and not request.out.is_dir():
        raise ValueError(f"--out {request.out} is a file; name a folder.")
    if request.paths < 1:
        raise ValueError(f"--paths={request.paths} must be at least 1.")
    for name, share in (("--nodes", request.nodes), ("--edges", request.edges)):
        if not 0 < share <= 1:
            raise ValueError(f"{name}={share} must lie in (0, 1]; 0.8 keeps 80% of the influence.")
    check_device(request.device)


def check_device(device: str) -> None:
    """Refuse a --device that is none."""
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"--device={device} is none of auto, cpu, cuda and mps.")


def silence() -> None:
    """Other libraries' progress bars and warnings are not part of this report."""
    import logging

    from transformers.utils import logging as hf

    hf.set_verbosity_error()
    hf.disable_progress_bar()
    logging.getLogger("transformer_lens").setLevel(logging.ERROR)


@contextmanager
def progress_bar(console: Console, label: str, unit: str) -> Iterator[Any]:
    """A bar on stderr of how many are done; yields what is to be told (done, total)."""
    columns = (
        TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def summarise(graph: graphs.AttributionGraph, circuit: graphs.Circuit, top: int) -> dict[str, Any]:
    """The report as one JSON-able object."""
    settings = graph.settings
    keys = ("model", "dictionary", "prompt", "tokens", "active", "expanded", "complete")
    explained = graph.nodes.loc[graph.explained]
    return {
        **{key: settings[key] for key in keys},
        "predictions": [
            {"token": token, "id": index, "probability": p}
            for token, index, p in settings["predictions"]
        ],
        "targets": [
            {"name": row.token, "kind": row.kind, "position": int(row.position)}
            for row in explained.itertuples()
        ],
        "scores": graph.scores()._asdict(),
        "circuit_scores": circuit.scores()._asdict(),
        "discrepancy": graph.discrepancy,
        "graph": {"nodes": len(graph.nodes), "rows": len(graph.targets)},
        "circuit": {"nodes": len(circuit.nodes), "edges": len(circuit.edges)},
        "paths": [path.to_dict() for path in circuit.paths(top=top)],
    }


def _write(graph: graphs.AttributionGraph, circuit: graphs.Circuit, out: Path | None) -> list[Path]:
    if out is None:
        return []
    from graphs.export import write_graphml, write_tables
    from graphs.neuronpedia import write_neuronpedia

    graph.save(out / "graph.safetensors")
    return [
        out / "graph.safetensors",
        circuit.save_html(out / "circuit.html"),
        *write_tables(circuit, out),
        write_graphml(circuit, out / "circuit.graphml"),
        write_neuronpedia(circuit, out / "neuronpedia.json"),
        circuit.save_groups(out / "groups.json"),
    ]


def show(summary: dict[str, Any], console: Console) -> None:
    """The report for people."""
    tokens = "[dim]|[/]".join(escape(_visible(t)) for t in summary["tokens"])
    console.print(f"[bold]Prompt[/]  {tokens}", soft_wrap=True)
    likely = "  ".join(
        f"[cyan]{escape(repr(p['token']))}[/] {p['probability']:.3f}"
        for p in summary["predictions"][:6]
    )
    console.print(f"[bold]Likely[/]  {likely}", soft_wrap=True)
    asked = ", ".join(escape(repr(t["name"])) for t in summary["targets"])
    console.print(f"[bold]Explained[/]  {asked}\n", soft_wrap=True)
    table = Table("", "nodes", "edges", "replacement", "completeness", box=None, pad_edge=False)
    whole, part = summary["scores"], summary["circuit_scores"]
    graph, circuit = summary["graph"], summary["circuit"]
    table.add_row("graph", str(graph["nodes"]), f"{graph['rows']} rows", *_two(whole))
    table.add_row("circuit", str(circuit["nodes"]), str(circuit["edges"]), *_two(part))
    console.print(table)
    console.print(f"[dim]{escape(_coverage(summary))}[/]\n")
    console.print("[bold]Strongest paths[/]")
    for path in summary["paths"]:
        sign = "[green]+[/]" if path["sign"] > 0 else "[red]-[/]"
        console.print(f"  {sign} {path['share']:.3%}  {escape(path['text'])}", soft_wrap=True)
    if not summary["paths"]:
        console.print("  none from a token to a target; raise --nodes or --edges")
    for file in summary["files"]:
        console.print(f"[dim]wrote {escape(file)}[/]", soft_wrap=True)
    if summary["paths"]:
        console.print(f"\n{_conclusion(summary['paths'])}", soft_wrap=True)


def _conclusion(paths: list[dict[str, Any]]) -> str:
    """The strongest path, and the strongest that join it from other words."""
    first, *others = paths
    text = f"[bold]{escape(first['text'])}[/]  {_percent(first['share'])} of the influence"
    begun, joining = {first["labels"][0]}, []
    for path in others:
        if path["labels"][0] not in begun and path["labels"][-1] == first["labels"][-1]:
            begun.add(path["labels"][0])
            joining.append(f"{escape(path['text'])} {_percent(path['share'])}")
    return text + (f", joined by {', '.join(joining)}" if joining else "")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def _coverage(summary: dict[str, Any]) -> str:
    active, expanded = summary["active"], summary["expanded"]
    balance = f"books balance to {summary['discrepancy']:.0e}"
    if summary["complete"]:
        return f"complete: all {active} active features expanded; {balance}"
    return f"{expanded} of {active} active features expanded, by influence; {balance}"


def _two(scores: dict[str, float]) -> tuple[str, str]:
    return f"{scores['replacement']:.2f}", f"{scores['completeness']:.2f}"


def _visible(token: str) -> str:
    """Spaces stay; what would break the line is written as its escape."""
    return token if token.isprintable() else repr(token)[1:-1]
