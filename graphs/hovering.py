"""Hover texts: what a plotly figure says of a box under the pointer, in a few escaped lines."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from graphs.circuit import Circuit, rows
from graphs.graph import feature_key
from graphs.lettering import escaped, shortened
from graphs.views import View, percent, place_text

LINE = 420.0  # pixels of a line at the size of the hover's letters
SIZE = 12.0
NEIGHBOURS = 4


def hover_texts(view: View, circuit: Circuit) -> list[str]:
    """One text for each box of the view."""
    labels = view.nodes["label"].tolist()
    fed = _strongest(view.edges, "target", "source")
    feeds = _strongest(view.edges, "source", "target")
    table = list(rows(circuit.nodes))
    found = []
    for number, node in enumerate(rows(view.nodes)):
        lines = [f"<b>{_line(node.label)}</b>", _line(where(node, circuit))]
        lines.append(_line(f"{percent(node.through)} of the influence runs through it"))
        lines += [_line(text) for text in _known(node, table, circuit)]
        lines += _neighbours("fed by", fed.get(number, ()), labels)
        lines += _neighbours("feeds", feeds.get(number, ()), labels)
        found.append("<br>".join(lines))
    return found


def where(node: Any, circuit: Circuit) -> str:
    """What kind of thing this is, and where it stands."""
    at = _at(node.positions, circuit)
    layers = f"layer {node.low}" if node.low == node.top else f"layers {node.low} to {node.top}"
    if node.role == "word":
        several = len(node.positions) > 1
        which = f"{len(node.positions)} words" if several else f"word {node.positions[0] + 1}"
        return f"{which} of the prompt"
    count = len(node.members)
    if node.role == "output":
        return f"{count} outputs{at}" if count > 1 else f"output{at}"
    kind = "feature" if node.role != "rest" else "error" if node.positions else "remainder"
    return f"{count} {kind}s, {layers}{at}" if count > 1 else f"{kind}, {layers}{at}"


def _at(positions: list[int], circuit: Circuit) -> str:
    """The word that a thing stands at, or how many."""
    if len(positions) > 1:
        return f" at {len(positions)} words"
    word = place_text(circuit, positions[0]) if positions else ""
    return f" at {word}" if word else ""


def _known(node: Any, table: list[Any], circuit: Circuit) -> Iterator[str]:
    """The evidence of a concept's most influential feature."""
    strongest = max((table[m] for m in node.members), key=lambda row: row.influence)
    key = feature_key(strongest.layer, strongest.feature)
    evidence = circuit.evidence.get(key, {}) if strongest.kind == "feature" else {}
    promoted = [str(token).strip() for token, _ in evidence.get("promotes", ())][:6]
    if promoted:
        yield f"promotes {', '.join(promoted)}"
    for context in evidence.get("contexts", ())[:1]:
        at = context["at"]
        before, after = context["tokens"][max(0, at - 6) : at], context["tokens"][at + 1 : at + 4]
        mid = str(context["tokens"][at]).strip()
        yield f"e.g. {' '.join(map(str.strip, before))} [{mid}] {' '.join(map(str.strip, after))}"


def _strongest(edges: pd.DataFrame, end: str, other: str) -> dict[int, list[tuple[int, float]]]:
    found: dict[int, list[tuple[int, float]]] = {}
    for own, far, share in zip(edges[end], edges[other], edges["direct"], strict=True):
        found.setdefault(int(own), []).append((int(far), float(share)))
    return {n: sorted(each, key=lambda p: -p[1])[:NEIGHBOURS] for n, each in found.items()}


def _neighbours(word: str, pairs: Iterable[tuple[int, float]], labels: list[str]) -> list[str]:
    listed = ", ".join(f"{labels[n]} {percent(share)}" for n, share in pairs)
    return [_line(f"{word} {listed}")] if listed else []


def _line(text: str) -> str:
    return escaped(shortened(text, SIZE, LINE))
