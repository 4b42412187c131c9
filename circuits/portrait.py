"""A validation drawn: predicted against observed, influence against effect, size against share."""

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.sufficiency import PATTERNS
from graphs.circuit import rows
from replacement.regimes import REGIMES

if TYPE_CHECKING:
    from circuits.validation import Validation

_COLOURS = {"concept": "#2a6fbb", "control": "#b5b5b5"}
_LINES = {"held": "#2a6fbb", "recomputed": "#d1702c"}


def portrait(found: "Validation") -> go.Figure:
    """One figure of five panels."""
    titles = [f"{regime}: predicted and observed" for regime in REGIMES]
    titles += ["influence and effect of ablation", "faithfulness over circuit size"]
    figure = make_subplots(rows=2, cols=3, subplot_titles=titles, vertical_spacing=0.16)
    for column, regime in enumerate(REGIMES, start=1):
        _agreement(figure, found.effects.loc[found.effects["regime"] == regime], column)
    _influence(figure, found.influence)
    _curve(figure, found.curve)
    prompt = str(found.graph.settings.get("prompt", ""))
    figure.update_layout(template="plotly_white", height=780, title=f"Validation of “{prompt}”")
    return figure


def _agreement(figure: go.Figure, effects: pd.DataFrame, column: int) -> None:
    """Changes as shares of what each target reads, with the line on which they are equal."""
    for kind, part in effects.groupby("kind"):
        text = part["cause"] + " → " + part["target"]
        figure.add_scatter(
            x=part["predicted"], y=part["observed"], text=text, mode="markers", name=str(kind),
            marker={"color": _COLOURS[str(kind)], "size": 7}, showlegend=column == 1,
            row=1, col=column,
        )  # fmt: skip
    ends = [float(effects["predicted"].min()), float(effects["predicted"].max())]
    line = {"color": "#888", "dash": "dot", "width": 1}
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip",
        row=1, col=column,
    )  # fmt: skip
    figure.update_xaxes(title="predicted", row=1, col=column)
    figure.update_yaxes(title="observed", row=1, col=column)


def _influence(figure: go.Figure, influence: pd.DataFrame) -> None:
    shown = influence.query("effect > 0")
    names = [f"{r.label} L{r.layer}/F{r.feature}@{r.token}" for r in rows(shown)]
    figure.add_scatter(
        x=shown["influence"], y=shown["effect"], text=names, mode="markers", showlegend=False,
        marker={"color": _COLOURS["concept"], "size": 5}, row=2, col=1,
    )  # fmt: skip
    figure.update_xaxes(type="log", title="influence", row=2, col=1)
    figure.update_yaxes(type="log", title="change of the output", row=2, col=1)


def _curve(figure: go.Figure, curve: pd.DataFrame) -> None:
    for patterns in PATTERNS:
        own = curve.loc[curve["patterns"] == patterns]
        part, circuit = own.query("not circuit").sort_values("share"), own.query("circuit")
        for side, dash in (("faithfulness", "solid"), ("without", "dot")):
            name = f"patterns {patterns}" + (", without" if side == "without" else "")
            line = {"color": _LINES[patterns], "dash": dash}
            figure.add_scatter(
                x=part["share"], y=part[side], name=name, line=line, mode="lines", row=2, col=2
            )
        figure.add_scatter(
            x=circuit["share"], y=circuit["faithfulness"], name=f"the circuit, {patterns}",
            mode="markers", marker={"color": _LINES[patterns], "size": 11, "symbol": "star"},
            row=2, col=2,
        )  # fmt: skip
    figure.update_xaxes(title="share of the active features", row=2, col=2)
    figure.update_yaxes(title="faithfulness", row=2, col=2)
