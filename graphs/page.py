"""Page: a circuit as one HTML file that works offline: the picture, a card for each box, controls.

The file holds plotly.js, the page's own script and style, and the circuit as JSON in a block that
no text can end: "<" is written \\u003c there and everything outside ASCII is escaped, so a token
`</script>` stays text. The script puts texts into the page as text only.
"""

import html
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphs.circuit import Circuit, rows
from graphs.drawing import Drawing, Trace, draw
from graphs.graph import feature_key
from graphs.plot import DARK, LIGHT, STYLES, UPRIGHT, plotly_layout, plotly_trace
from graphs.store import whole_file
from graphs.views import View, about, chances, concept_view, feature_view, strongest_path

WIDE, NARROW = 860.0, 480.0  # pixels for the picture: on a desk, and on a phone
ON_A_PHONE = 400  # a larger view has one picture only, to be moved about
CONTEXTS, AROUND, TOKENS = 5, 12, 8  # of a feature's evidence: contexts, words each side, tokens
FULL = 500  # features with all their evidence, in a page of more
PROMOTING = ("promotes", "suppresses", "promotes_through_attention")
DIGITS = 3  # of a number in a card


def save_html(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """Write the page, whole or not at all."""
    from plotly.offline import get_plotlyjs

    data = json.dumps(page_data(circuit), allow_nan=False, separators=(",", ":"))
    parts = {
        "title": html.escape(str(circuit.settings.get("prompt", "")) or "A circuit"),
        "style": _palettes() + _own("page.css"),
        "plotly": get_plotlyjs(),
        "data": data.replace("<", "\\u003c"),
        "script": _own("picture.js") + _own("card.js") + _own("page.js"),
    }
    # In one pass: what is put in is not searched for further places.
    page = re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], _own("page.html"))
    with whole_file(path) as file:
        file.write(page)
    return Path(path)


def page_data(circuit: Circuit) -> dict[str, Any]:
    """All that the page shows, ready for JSON."""
    path = strongest_path(circuit)
    tokens = [str(token) for token in circuit.settings.get("tokens", [])]
    views = {"concepts": concept_view(circuit, path), "features": feature_view(circuit, path)}
    return {
        **about(circuit),
        "tokens": tokens,
        "spaced": " ".join(tokens) == circuit.settings.get("prompt"),  # tokens are whole words
        "path": vars(path) if path else None,
        "palettes": {"light": LIGHT, "dark": DARK},
        "styles": STYLES,
        "views": {key: _view(view, circuit) for key, view in views.items()},
        "evidence": _all_evidence(circuit),
    }


def _view(view: View, circuit: Circuit) -> dict[str, Any]:
    """A view's columns and its pictures."""
    nodes = view.nodes
    table = list(rows(circuit.nodes))
    only = [table[each[0]] if len(each) == 1 else None for each in nodes["members"]]
    columns = ("name", "label", "role", "positions", "low", "top", "influence", "through")
    columns = (*columns, "members", "step", "method", "cohesion", "pinned")
    likely = chances(circuit)
    feature = [row if row is not None and row.kind == "feature" else None for row in only]
    widths = {"wide": WIDE} | ({"narrow": NARROW} if len(nodes) <= ON_A_PHONE else {})
    return {
        "nodes": {
            **{key: _plain(nodes[key]) for key in columns},
            "key": [row and feature_key(row.layer, row.feature) for row in feature],
            "activation": [row and _number(row.activation) for row in feature],
            "chance": [row and likely.get(row.node) for row in only],
        },
        "edges": {
            key: _plain(view.edges[key])
            for key in ("source", "target", "weight", "share", "direct")
        },
        "pictures": {key: _picture(draw(view, across)) for key, across in widths.items()},
    }


def _picture(drawing: Drawing) -> dict[str, Any]:
    """The traces as plotly takes them, with what the page needs to leave pieces out."""
    places = drawing.places
    boxes = {key: _points(getattr(places, key)) for key in ("x", "y", "wide", "high")}
    return {
        "boxes": boxes,
        "layout": plotly_layout(drawing),
        "traces": [_trace(t, n) for n, t in enumerate(drawing.traces) if t.role != UPRIGHT],
    }


def _trace(trace: Trace, number: int) -> dict[str, Any]:
    found = {**plotly_trace(trace), "x": _points(trace.x), "y": _points(trace.y)}
    kind = trace.of or "still"
    meta = {"role": trace.role, "of": trace.of, "items": trace.items.tolist()}
    return {**found, "uid": f"{kind}{number}", "meta": meta}


def _points(values: np.ndarray) -> list[float | int | None]:
    """Coordinates to a tenth of a pixel; whole ones without a point, gaps as null."""
    return [
        None if np.isnan(v) else int(v) if float(v).is_integer() else round(float(v), 1)
        for v in values
    ]


def _plain(column: pd.Series) -> list[Any]:
    """A column as JSON takes it, floats to a few digits."""
    if column.dtype.kind == "f":
        return [_number(value) for value in column]
    return column.tolist()


def _number(value: float | int) -> float | int | None:
    """A few digits of a number; nothing where there is none."""
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _all_evidence(circuit: Circuit) -> dict[str, Any]:
    """The evidence of every feature; of the weak ones among many, only the tokens promoted."""
    features = circuit.nodes.loc[circuit.nodes["kind"] == "feature"]
    features = features.sort_values("influence", ascending=False)
    order = dict.fromkeys(map(feature_key, features["layer"], features["feature"]))
    known = {key: circuit.evidence[key] for key in order if key in circuit.evidence}
    return {
        key: _evidence(each) if rank < FULL else {"promotes": _tokens(each, "promotes")}
        for rank, (key, each) in enumerate(known.items())
    }


def _tokens(known: Mapping[str, Any], key: str) -> list[list[Any]]:
    return [[str(token), _number(value)] for token, value in known.get(key, ())][:TOKENS]


def _evidence(known: Mapping[str, Any]) -> dict[str, Any]:
    """What a card shows of a feature's evidence."""
    found: dict[str, Any] = {key: _tokens(known, key) for key in PROMOTING if known.get(key)}
    if known.get("names"):
        found["names"] = [[str(n["name"]), _number(n["share"])] for n in known["names"]][:TOKENS]
    bins = known.get("histogram", {"edges": (), "counts": ()})
    filled = np.flatnonzero(bins["counts"])
    if len(filled):  # without the empty bins at both ends
        first, last = int(filled[0]), int(filled[-1]) + 1
        ends = [_number(bins["edges"][first]), _number(bins["edges"][last])]
        found["histogram"] = {"ends": ends, "counts": [int(n) for n in bins["counts"][first:last]]}
    if "density" in known:
        found["density"] = _number(known["density"])
    contexts = [_context(each) for each in known.get("contexts", ())]
    return {**found, "contexts": contexts[:CONTEXTS]}


def _context(context: Mapping[str, Any]) -> dict[str, Any]:
    """The words around the strongest one."""
    at, tokens = int(context["at"]), [str(token) for token in context["tokens"]]
    first = max(0, at - AROUND)
    return {
        "tokens": tokens[first : at + AROUND + 1],
        "at": at - first,
        "activation": _number(context["activation"]),
    }


def _palettes() -> str:
    """The colours as variables of the style sheet, for both schemes."""

    def scheme(name: str, colours: Mapping[str, str]) -> str:
        variables = " ".join(f"--{key}: {value};" for key, value in colours.items())
        return f"[data-scheme={name}] {{ {variables} }}\n"

    return scheme("light", LIGHT) + scheme("dark", DARK)


def _own(name: str) -> str:
    return (files("graphs") / "page_files" / name).read_text(encoding="utf-8")
