"""What `circuits features` does: gather what a dictionary's features are, keep it, report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import replacement
from circuits.report import check_device, progress_bar, silence
from replacement import bundled, evidence, formats
from replacement.evidence.evidence import Evidence, Place
from replacement.evidence.explain import explain
from replacement.evidence.gathering import distilled
from replacement.evidence.harvest import Harvest, harvest
from replacement.evidence.labels import place
from replacement.evidence.speakers import Endpoint, Local, Speaker
from replacement.model import dictionary_folder

_EXAMPLES = 12  # features in the report, or one of each layer


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    host: str
    dictionary: str
    corpus: str
    prompts: int
    tokens: int
    skip_first: int
    labels: Path | None
    explain: str | None
    explain_model: str | None
    explain_features: list[str]
    device: str
    out: Path | None


def run(request: Request, as_json: bool) -> None:
    """Open, harvest, distil, write and report."""
    _check(request)
    file, dictionary = _destination(request)
    labels = {} if request.labels is None else evidence.read_labels(request.labels)
    places = [place(name) for name in request.explain_features]
    silence()
    messages = Console(stderr=True, highlight=False)
    with messages.status(f"opening {escape(request.host)}"):
        model = replacement.load(request.host, dictionary, device=request.device)
        speaker = _speaker(request)
    Evidence(given=labels | dict.fromkeys(places, "")).check(model.dictionary)
    with progress_bar(messages, "reading", "prompts") as progress:
        found = harvest(
            model, request.corpus, request.prompts, request.tokens, request.skip_first, progress
        )
    with messages.status("naming features"):
        known = distilled(model, found, request.corpus).relabelled(labels)
    evidence.save(known, file)  # before an explainer, which may fail after hours
    if speaker is not None:
        known = _explained(known, model, found, places, speaker, messages)
        evidence.save(known, file)
    summary = summarise(request, known, found, file)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    else:
        show(summary, Console(highlight=False))


def _check(request: Request) -> None:
    """Refuse before any work what can be refused before it."""
    for name, least in (("prompts", 1), ("tokens", 1), ("skip_first", 0)):
        value = getattr(request, name)
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')}={value} must be at least {least}.")
    check_device(request.device)
    if request.out is not None and request.out.is_dir():
        raise ValueError(f"--out {request.out} is a folder; name a file.")
    if request.explain is None and (request.explain_model or request.explain_features):
        raise ValueError("--explain-model and --explain-feature need --explain.")
    address = _address(request.explain)
    if address and request.explain_model is None:
        raise ValueError(f"--explain {request.explain} needs --explain-model: one of its models.")
    if not address and request.explain_model is not None:
        raise ValueError(f"--explain-model is of an address, and {request.explain!r} is none.")


def _address(explain: str | None) -> bool:
    return explain is not None and explain.startswith(("http://", "https://"))


def _speaker(request: Request) -> Speaker | None:
    if request.explain is None:
        return None
    if request.explain_model is not None:
        return Endpoint(request.explain, request.explain_model)
    return Local.open(request.explain, request.device)


def _destination(request: Request) -> tuple[Path, Any]:
    """The file to write, and the dictionary as `load` takes it (without evidence it may have)."""
    shipped = bundled.dictionaries(request.host)
    folder = dictionary_folder(request.dictionary, shipped)
    if request.out is None and (folder is None or request.dictionary in shipped):
        raise ValueError(
            f"{request.dictionary} is not in a folder of yours; name a file with --out."
        )
    chosen = request.dictionary if folder is None else formats.load(folder)
    return request.out or Path(folder or "") / evidence.FILE, chosen


def _explained(
    known: Evidence,
    model: replacement.ReplacementModel,
    found: Harvest,
    places: list[Place],
    speaker: Speaker,
    messages: Console,
) -> Evidence:
    """The evidence with a speaker's labels, of the places asked for or of all."""
    every = [(m, f) for m, x in enumerate(found.layers) for f in x.fired.nonzero()[:, 0].tolist()]
    chosen = places or every
    with progress_bar(messages, "explaining", "features") as progress:
        said = explain(model, found, chosen, speaker, lambda done: progress(done, len(chosen)))
    return known.with_explanations(said)


def summarise(request: Request, known: Evidence, found: Harvest, file: Path) -> dict[str, Any]:
    """The report as one JSON-able object."""
    layers, examples = [], []
    each = max(1, _EXAMPLES // len(found.layers))
    for index, layer in enumerate(found.layers):
        described = {f: known.describe(index, f) for f in layer.fired.nonzero()[:, 0].tolist()}
        layers.append(
            {
                "features": len(layer.fired),
                "alive": len(described),
                "labelled": sum(bool(d["label"]) for d in described.values()),
            }
        )
        best = sorted(described, key=lambda f: -_score(described[f]))[:each]
        examples += [{"layer": index, "feature": f, **described[f]} for f in best]
    return {
        "host": request.host,
        "dictionary": request.dictionary,
        "corpus": request.corpus,
        "prompts": found.chunks,
        "positions": found.positions,
        "layers": layers,
        "explained": {f"L{m}/F{f}": list(said) for (m, f), said in known.explained.items()},
        "examples": examples,
        "file": str(file),
    }


def _score(described: dict[str, Any]) -> float:
    """How well a feature's first name tells where it is active, if it is active often enough."""
    often = sum(described["histogram"]["counts"]) > 1
    return described["names"][0]["score"] if described["names"] and often else 0.0


def show(summary: dict[str, Any], console: Console) -> None:
    """The report for people."""
    names = f"[bold]{escape(summary['dictionary'])}[/] for [bold]{escape(summary['host'])}[/]"
    size = f"{summary['prompts']} prompts, {summary['positions']} positions"
    console.print(f"{names}  [dim]{size} of {escape(summary['corpus'])}[/]\n", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "features", "with evidence", "dead", "labelled"):
        table.add_column(heading, justify="right")
    for index, layer in enumerate(summary["layers"]):
        table.add_row(str(index), *_counts(layer))
    keys = ("features", "alive", "labelled")
    total = {key: sum(layer[key] for layer in summary["layers"]) for key in keys}
    table.add_row("all", *_counts(total), style="bold")
    console.print(table)
    if summary["explained"]:
        scores = [score for _, score in summary["explained"].values()]
        mean = sum(scores) / len(scores)
        console.print(f"explained {len(scores)}, mean score {mean:.2f} [dim](chance 0.50)[/]")
    console.print("\n[bold]Some of them[/]")
    for one in summary["examples"]:
        head = f"L{one['layer']}/F{one['feature']}"
        text = escape(_context(one["contexts"][0]))
        console.print(f"  {head:9} [bold]{escape(one['label'])}[/]  [dim]{text}[/]", soft_wrap=True)
    console.print(f"[dim]wrote {escape(summary['file'])}[/]", soft_wrap=True)


def _counts(layer: dict[str, int]) -> tuple[str, ...]:
    numbers = (layer["features"], layer["alive"], layer["features"] - layer["alive"])
    return tuple(map(str, (*numbers, layer["labelled"])))


def _context(context: dict[str, Any]) -> str:
    """A context in one line, its activating token marked."""
    at, tokens = context["at"], list(context["tokens"])
    apart = "" if any(token[:1].isspace() for token in tokens) else " "
    word = tokens[at].strip()
    tokens[at] = tokens[at].replace(word, f"«{word}»") if word else "«»"
    return " ".join(apart.join(tokens).split())
