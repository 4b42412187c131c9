"""Plot: a circuit as a plotly figure, and the figure as SVG, PDF or PNG."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs.circuit import Circuit
from graphs.drawing import FONT, Drawing, Trace, draw
from graphs.hovering import hover_texts
from graphs.lettering import escaped
from graphs.store import whole_file
from graphs.views import concept_view, strongest_path

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACROSS, PAPER = 900.0, 720.0  # widths that pictures try to keep: on a screen, and in a paper
FONTS = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
UPRIGHT = "upright-text"
LEGEND = {"raises": ("edge+",), "lowers": ("edge-",), "strongest path": ("path+", "path-")}
ABOVE, BELOW = 24.0, 40.0  # room for plotly's buttons and for the legend
FORMATS = (".svg", ".pdf", ".png")
DOTS = 3  # of a PNG, for each pixel of the picture

# Blue and orange are told apart with every common colour blindness, and by lightness too.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b2129",
    "muted": "#5c6673",
    "guide": "#edf0f3",
    "plus": "#8dbce6",
    "minus": "#eeae7c",
    "strong-plus": "#0b63b5",
    "strong-minus": "#b9500b",
    "box": "#ffffff",
    "line": "#aeb7c2",
    "word": "#f1f3f6",
    "mark": "#7d8b9b",
    "rest": "#b8c0ca",
    "faint": "#dde1e6",
    "path": "#e4f0fb",
    "output": "#1b2129",
    "on-output": "#ffffff",
}
DARK = {
    "paper": "#13171c",
    "ink": "#e9edf2",
    "muted": "#9aa6b4",
    "guide": "#20262e",
    "plus": "#3d74a5",
    "minus": "#a56c37",
    "strong-plus": "#6cb6ff",
    "strong-minus": "#ffa657",
    "box": "#1b2128",
    "line": "#556170",
    "word": "#222a33",
    "mark": "#8593a3",
    "rest": "#566270",
    "faint": "#2c343d",
    "path": "#16324d",
    "output": "#e9edf2",
    "on-output": "#13171c",
}
# role: (line, fill, text), each a colour of the palette or nothing
STYLES: dict[str, tuple[str, str, str]] = {
    "guide": ("guide", "", ""),
    "row": ("", "", "muted"),
    "edge+": ("plus", "", ""),
    "edge-": ("minus", "", ""),
    "rest+": ("faint", "", ""),
    "rest-": ("faint", "", ""),
    "path+": ("strong-plus", "", ""),
    "path-": ("strong-minus", "", ""),
    "stack": ("line", "box", ""),
    "word": ("word", "word", ""),
    "folded": ("word", "word", ""),
    "feature": ("line", "box", ""),
    "mark": ("mark", "box", ""),
    "rest": ("rest", "rest", ""),
    "on-path": ("strong-plus", "path", ""),
    "output": ("output", "output", ""),
    "word-text": ("", "", "ink"),
    "upright-text": ("", "", "muted"),
    "feature-text": ("", "", "ink"),
    "path-text": ("", "", "ink"),
    "output-text": ("", "", "on-output"),
}


def plot(circuit: Circuit) -> "go.Figure":
    """The circuit's concepts: words below, layers upward, outputs above."""
    return _figure(circuit, ACROSS, ABOVE)


def save_figure(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """Write the picture as SVG, PDF or PNG, by the path's ending."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(FORMATS)}.")
    try:
        import kaleido  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "writing figures needs an extra: pip install 'circuits-tracing[figures]'"
        ) from error
    try:
        image = _figure(circuit, PAPER, 0.0).to_image(path.suffix[1:].lower(), scale=DOTS)
    except RuntimeError as error:
        raise ValueError(
            "writing figures needs Chromium or Chrome: install one (Debian: apt-get install "
            "chromium), or name it in the environment variable BROWSER_PATH."
        ) from error
    with whole_file(path, "wb") as file:
        file.write(image)
    return path


def _figure(circuit: Circuit, across: float, above: float) -> "go.Figure":
    """The figure in light colours, with hover texts and a legend."""
    import plotly.graph_objects as go

    drawing = draw(concept_view(circuit, strongest_path(circuit)), across)
    parts = [plotly_trace(trace) for trace in drawing.traces if trace.role != UPRIGHT]
    roles = {trace.role for trace in drawing.traces}
    drawn = {name: [role for role in of if role in roles] for name, of in LEGEND.items()}
    key = [_key(of[0], name) for name, of in drawn.items() if of]
    figure = go.Figure([*parts, *key, _hover(drawing, circuit)], plotly_layout(drawing))
    figure.update_yaxes(scaleanchor="x")
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 0, "yanchor": "top"}
    return figure.update_layout(
        showlegend=True,
        legend={**legend, "itemclick": False, "itemdoubleclick": False, "font.size": 12},
        height=drawing.places.size[1] + above + BELOW,
        margin={"l": 0, "r": 0, "t": above, "b": BELOW},
    )


def plotly_trace(trace: Trace) -> dict[str, Any]:
    """A trace for plotly, in light colours; the page changes them by its role."""
    line, fill, text = (LIGHT.get(key, "rgba(0,0,0,0)") for key in STYLES[trace.role])
    found: dict[str, Any] = {
        "type": "scatter",
        "x": trace.x,
        "y": trace.y,
        "hoverinfo": "skip",
        "opacity": trace.opacity,
        "showlegend": False,
    }
    if trace.text:
        bold = trace.role in ("path-text", "output-text")
        font = {
            "color": text,
            "size": FONT if trace.of else FONT - 2,
            "weight": 600 if bold else 400,
        }
        place = "middle center" if trace.of else "middle left"
        shown = [escaped(each) for each in trace.text]
        return {**found, "mode": "text", "text": shown, "textposition": place, "textfont": font}
    filled = {"fill": "toself", "fillcolor": fill} if trace.of == "nodes" else {}
    width = 1.8 if trace.role == "on-path" else trace.width
    stroke = {"color": line, "width": width, "simplify": False}
    return {**found, **filled, "mode": "lines", "line": stroke}


def plotly_layout(drawing: Drawing) -> dict[str, Any]:
    """A bare canvas, one pixel to the unit."""
    wide, high = drawing.places.size
    axis = {"visible": False, "fixedrange": False}
    return {
        "template": "none",
        "width": wide,
        "height": high,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "paper_bgcolor": LIGHT["paper"],
        "plot_bgcolor": LIGHT["paper"],
        "font": {"family": FONTS, "size": FONT, "color": LIGHT["ink"]},
        "xaxis": {**axis, "range": [0, wide]},
        "yaxis": {**axis, "range": [0, high]},
        "showlegend": False,
        "hovermode": "closest",
        "hoverdistance": 60,
        "dragmode": "pan",
        "annotations": [note for t in drawing.traces if t.role == UPRIGHT for note in _upright(t)],
    }


def _upright(trace: Trace) -> Iterator[dict[str, Any]]:
    """Texts turned upright, which only annotations can be."""
    font = {"size": FONT - 1, "color": LIGHT[STYLES[UPRIGHT][2]]}
    still = {"showarrow": False, "textangle": -90, "font": font}
    for x, y, text in zip(trace.x, trace.y, trace.text, strict=True):
        yield {**still, "x": float(x), "y": float(y), "text": escaped(text)}


def _key(role: str, name: str) -> dict[str, Any]:
    """A line of the legend: a trace without points."""
    line = {"color": LIGHT[STYLES[role][0]], "width": 3.5}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [None],
        "y": [None],
        "line": line,
        "name": name,
    }


def _hover(drawing: Drawing, circuit: Circuit) -> dict[str, Any]:
    """What to show over each box: an unseen point in its middle."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": np.asarray(drawing.places.x),
        "y": np.asarray(drawing.places.y),
        "marker": {"size": 14, "opacity": 0},
        "hovertext": hover_texts(drawing.view, circuit),
        "hoverinfo": "text",
        "hoverlabel": {
            "align": "left",
            "bgcolor": LIGHT["paper"],
            "bordercolor": LIGHT["line"],
            "font.color": LIGHT["ink"],
        },
        "showlegend": False,
    }
