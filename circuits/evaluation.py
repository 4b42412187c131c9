"""What `circuits evaluate` does: how faithful a dictionary is, and how well traces through it fare.

Faithfulness compares the host with its replacement over all prompts; the scores are means over the
graphs of a few of them, spread evenly over the corpus.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import circuits
import replacement
from circuits.report import check_device, progress_bar, silence
from graphs.store import whole_file

Advance = Callable[[float], Any]


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    host: str
    dictionary: str
    corpus: Path
    prompts: int
    tokens: int
    positions: str
    skip_first: int
    traces: int
    device: str
    out: Path | None


class TraceScores(NamedTuple):
    """Mean scores of graphs; how many, how many complete, and how far their books balance."""

    replacement: float
    completeness: float
    traces: int
    complete: int
    discrepancy: float


def run(request: Request, as_json: bool) -> None:
    """Read the corpus, measure, write and report."""
    _check(request)
    texts = read_texts(request.corpus, request.prompts)
    silence()
    messages = Console(stderr=True, highlight=False)
    with messages.status(f"opening {escape(request.host)}"):
        model = replacement.load(request.host, request.dictionary, device=request.device)
    prompts = [model.host.tokenize(t, min(request.tokens, model.host.context)) for t in texts]
    with _progress(messages, "evaluating", len(prompts)) as advance:
        measured = replacement.evaluate(
            model, _told(prompts, advance), request.positions == "last", request.skip_first
        )
    chosen = spread(prompts, request.traces)
    with _progress(messages, "tracing", len(chosen)) as advance:
        scores = mean_scores(model, chosen, advance) if chosen else None
    summary = summarise(request, model, measured, scores)
    text = json.dumps(summary, ensure_ascii=False, allow_nan=False)
    if request.out is not None:
        with whole_file(request.out) as file:
            file.write(text + "\n")
    if as_json:
        print(text)
    else:
        show(summary, Console(highlight=False))


def _check(request: Request) -> None:
    """Refuse before any work what can be refused before it."""
    least = {"prompts": 1, "tokens": 1, "skip_first": 0, "traces": 0}
    for name, least_value in least.items():
        value = getattr(request, name)
        if value < least_value:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}={value} must be at least {least_value}.")
    if request.positions not in ("all", "last"):
        raise ValueError(f"--positions={request.positions} is neither all nor last.")
    check_device(request.device)
    if request.out is not None and request.out.is_dir():
        raise ValueError(f"--out {request.out} is a folder; name a JSON file.")


def read_texts(corpus: Path, count: int) -> list[str]:
    """The first texts of a corpus: the lines of a text file, or field "text" of a JSONL file."""
    from replacement.training.corpus import open_corpus

    documents = (str(document) for document in open_corpus(corpus)(0))
    texts = list(islice((text for text in documents if text.strip()), count))
    if not texts:
        raise ValueError(
            f'{corpus} holds no text; give one prompt a line, or JSON lines with a field "text".'
        )
    return texts


def spread(prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """That many prompts, or all there are, evenly spaced: the same ones at every call."""
    places = np.linspace(0, len(prompts) - 1, min(count, len(prompts)))
    return [prompts[round(place)] for place in places]


def mean_scores(
    model: replacement.ReplacementModel,
    prompts: Iterable[list[int]],
    advance: Advance = lambda done: None,
) -> TraceScores:
    """The mean scores of the prompts' graphs; `advance` is told how many are done."""
    rows, complete, discrepancy = [], 0, 0.0
    for number, prompt in enumerate(prompts):
        graph = circuits.trace(
            model, prompt, progress=lambda done, total, n=number: advance(n + done / max(total, 1))
        )
        rows.append(graph.scores())
        complete += bool(graph.settings["complete"])
        discrepancy = max(discrepancy, graph.discrepancy)
    means = np.mean(rows, axis=0)
    return TraceScores(float(means[0]), float(means[1]), len(rows), complete, discrepancy)


def _told(prompts: Iterable[list[int]], advance: Advance) -> Iterator[list[int]]:
    for done, prompt in enumerate(prompts):
        advance(done)
        yield prompt


@contextmanager
def _progress(console: Console, label: str, total: int) -> Iterator[Advance]:
    """A bar on stderr of how many prompts are done."""
    with progress_bar(console, label, "prompts") as advance:
        yield lambda done: advance(done, total)


def summarise(
    request: Request,
    model: replacement.ReplacementModel,
    measured: replacement.Faithfulness,
    scores: TraceScores | None,
) -> dict[str, Any]:
    """The report as one JSON-able object."""
    return {
        "host": model.host.name,
        "dictionary": request.dictionary,
        "corpus": str(request.corpus),
        "counted": request.positions,
        "skip_first": request.skip_first,
        "tokens": request.tokens,
        "prompts": measured.prompts,
        "positions": measured.positions,
        "fvu": measured.fvu,
        "l0": measured.l0,
        "dead": measured.dead,
        "kl": measured.kl,
        "top1": measured.top1,
        "scores": None if scores is None else scores._asdict(),
        "layers": [layer._asdict() for layer in measured.layers],
    }


def show(summary: dict[str, Any], console: Console) -> None:
    """The report for people."""
    names = f"[bold]{escape(summary['dictionary'])}[/] for [bold]{escape(summary['host'])}[/]"
    where = "positions" if summary["counted"] == "all" else "last positions"
    size = f"{summary['prompts']} prompts, {summary['positions']} {where}"
    console.print(f"{names}  [dim]{size} of {escape(summary['corpus'])}[/]\n", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "features", "FVU", "L0", "dead"):
        table.add_column(heading, justify="right")
    for index, layer in enumerate(summary["layers"]):
        table.add_row(str(index), str(layer["features"]), *_three(layer))
    features = str(sum(layer["features"] for layer in summary["layers"]))
    table.add_row("all", features, *_three(summary), style="bold")
    console.print(table)
    console.print("[dim]all: mean FVU, sum of L0, share of all features that are dead[/]\n")
    console.print("[bold]Every MLP replaced, no errors added back[/]")
    console.print(f"  KL from the host      {summary['kl']:.4f} nats")
    console.print(f"  same likeliest token  {summary['top1']:.1%}")
    if summary["scores"] is not None:
        _show_scores(summary["scores"], console)


def _show_scores(scores: dict[str, Any], console: Console) -> None:
    traces, complete = scores["traces"], scores["complete"]
    console.print(f"\n[bold]Graphs[/]  mean of {traces}, of which {complete} complete")
    console.print(f"  replacement           {scores['replacement']:.3f}")
    console.print(f"  completeness          {scores['completeness']:.3f}")
    console.print(f"  [dim]books balance to {scores['discrepancy']:.0e}[/]")


def _three(numbers: dict[str, Any]) -> tuple[str, str, str]:
    fvu = "-" if numbers["fvu"] is None else f"{numbers['fvu']:.4f}"
    return fvu, f"{numbers['l0']:.1f}", f"{numbers['dead']:.1%}"
