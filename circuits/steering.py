"""What `circuits steer` does: a prompt continued as it is and with features changed, side by side.

A change is written WHAT=NUMBER (takes this activation), WHAT=NUMBERx (times what it is) or
WHAT+=NUMBER (more by so much). WHAT is a concept that the model's evidence names, or L2/F472. What
is not active on the prompt has nothing to multiply: there NUMBERx means so many times the largest
activation that the evidence records of each feature.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import replacement
from circuits.report import check_device, silence
from replacement import Add, Scale, Set
from replacement.evidence import concepts
from replacement.generation import Generation
from replacement.interventions import feature_name, resolve
from replacement.model import ReplacementModel

SHOWN = 5  # likely tokens of each run
_CHANGE = re.compile(r"\s*(.+?)\s*(\+?=)\s*([^=\s]+?)(x?)\s*", re.IGNORECASE)
_EXAMPLES = "Texas=0, California=2x or L2/F472+=1.5"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    prompt: str
    model: str
    dictionary: str | None
    changes: list[str]
    at: list[int]
    start: int | None
    tokens: int
    temperature: float
    seed: int
    chat: bool
    device: str


@dataclass(frozen=True)
class Change:
    """One change as it was written: of what, how ("=", "x" or "+=") and how much."""

    text: str
    what: str
    how: str
    number: float


def read(text: str) -> Change:
    """A change from its text."""
    match = _CHANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"--feature {text!r} says no change; write {_EXAMPLES}.")
    what, sign, digits, times = match.groups()
    try:
        number = float(digits)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (sign == "+=" and times):
        raise ValueError(f"--feature {text!r}: {digits + times!r} is no number; write {_EXAMPLES}.")
    return Change(text, what, "x" if times else sign, number)


def run(request: Request, as_json: bool) -> None:
    """Open, change, continue, report."""
    changes = [read(text) for text in request.changes]
    positions = _positions(request, changes)
    silence()
    messages = Console(stderr=True, highlight=False)
    with messages.status(f"opening {escape(request.model)}"):
        model = replacement.load(
            request.model, request.dictionary, device=request.device, chat=request.chat
        )
    ids = model.host.tokenize(request.prompt)
    readings = model.features(model.run(ids))
    done = [intervention(model, c, positions, lambda: (ids, readings)) for c in changes]
    with messages.status("continuing"):
        clean, steered = (_continued(model, request, ids, each) for each in ([], done))
    summary = _summary(request, model, changes, done)
    summary |= {"clean": _said(clean), "steered": _said(steered)}
    summary["likely"] = _likely(model, ids, done, positions)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    else:
        show(summary, Console(highlight=False))


def _positions(request: Request, changes: Sequence[Change]) -> Any:
    """Where the changes are made: everywhere, at some positions, or from one on."""
    if not changes:
        raise ValueError(f"nothing is to be changed; give --feature {_EXAMPLES}.")
    if request.at and request.start is not None:
        raise ValueError(f"--at {request.at[0]} and --from {request.start} exclude each other.")
    check_device(request.device)
    return slice(request.start, None) if request.start is not None else request.at or None


def intervention(
    model: ReplacementModel, change: Change, positions: Any, seen: Callable[[], Any]
) -> Set | Scale | Add:
    """A change as an intervention on the features that it names on the prompt."""
    pairs = resolve(model, change.what, seen=seen)
    if change.how == "=":
        return Set(pairs, change.number, positions)
    if change.how == "+=":
        return Add(pairs, change.number, positions)
    active = {(e.layer, e.feature) for e in concepts.everything(seen()[1])}
    if active & set(pairs):
        return Scale(pairs, change.number, positions)
    known = model.evidence
    largest = [None if known is None else concepts.largest(known, pair) for pair in pairs]
    if None in largest:
        raise ValueError(
            f"--feature {change.text!r}: it is not active on this prompt and no evidence says how "
            f"strong it can be; give its activation, as in {change.what}=3.5."
        )
    return Set(pairs, [change.number * size for size in largest if size is not None], positions)


def _continued(
    model: ReplacementModel, request: Request, ids: list[int], done: Sequence[Any]
) -> Generation:
    return model.generate(
        ids, done, request.tokens, temperature=request.temperature, seed=request.seed
    )


def _said(generation: Generation) -> dict[str, Any]:
    return {
        "text": generation.new_text,
        "tokens": generation.new_tokens,
        "stopped": generation.stopped,
    }


def _summary(
    request: Request, model: ReplacementModel, changes: Sequence[Change], done: Sequence[Any]
) -> dict[str, Any]:
    changed = [
        {
            "change": change.text,
            "kind": type(each).__name__.lower(),
            "features": [feature_name(*pair) for pair in each.what],
        }
        for change, each in zip(changes, done, strict=True)
    ]
    return {"model": model.host.name, "prompt": request.prompt, "changes": changed}


def _likely(
    model: ReplacementModel, ids: list[int], done: Sequence[Any], positions: Any
) -> list[dict[str, Any]]:
    """The likely next tokens of both runs; changes of what is generated do not count yet."""
    later = isinstance(positions, slice) and positions.start >= len(ids)
    outcome = model.run(ids, [] if later else done)
    before, after = (
        x[-1].cpu().double().softmax(-1) for x in (outcome.clean_logits, outcome.logits)
    )
    likely = [p.topk(min(SHOWN, len(p))).indices.tolist() for p in (before, after)]
    return [
        {"token": model.host.token(i), "before": float(before[i]), "after": float(after[i])}
        for i in dict.fromkeys(i for tokens in likely for i in tokens)
    ]


def show(summary: dict[str, Any], console: Console) -> None:
    """The report for people."""
    console.print(f"[bold]{escape(summary['prompt'])}[/]", soft_wrap=True)
    for change in summary["changes"]:
        features = ", ".join(change["features"])
        console.print(f"  {escape(change['change'])}  [dim]{features}[/]", soft_wrap=True)
    table = Table("clean", "steered", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_row(*(escape(summary[side]["text"].strip()) for side in ("clean", "steered")))
    console.print()
    console.print(table)
    likely = Table("\nnext token", "\nbefore", "\nafter", box=None, pad_edge=False)
    for row in summary["likely"]:
        likely.add_row(escape(repr(row["token"])), f"{row['before']:.3f}", f"{row['after']:.3f}")
    console.print(likely)
