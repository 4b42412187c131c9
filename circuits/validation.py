"""Validate: a graph against the model, by intervening. `validate` is the table of contents."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import graphs
from circuits.agreement import compare, concepts, controls, correlation, figures, singly, summary
from circuits.subject import Subject, subject
from circuits.sufficiency import PATTERNS, SHARES, areas, curve
from replacement.model import ReplacementModel
from replacement.regimes import REGIMES

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Validation:
    """How far a graph can be trusted.

    `figures` are the key figures, as JSON can hold them; `graph` is the graph that carries them in
    its settings. `agreement` has how well predicted and observed effects agree by regime and kind
    of cause, `by_distance` the same by the layers from cause to target, `effects` what both count.
    `influence` has single features: their influence, and what ablating each does to the output in
    the constrained regime. `curve` is the faithfulness over circuit size (`circuits.sufficiency`).
    """

    figures: dict[str, Any]
    graph: graphs.AttributionGraph
    agreement: pd.DataFrame
    by_distance: pd.DataFrame
    effects: pd.DataFrame
    influence: pd.DataFrame
    curve: pd.DataFrame

    def plot(self) -> "go.Figure":
        """Predicted against observed, influence against effect, and faithfulness over size."""
        from circuits.portrait import portrait

        return portrait(self)


def validate(
    model: ReplacementModel,
    graph: graphs.AttributionGraph,
    circuit: graphs.Circuit | None = None,
    factor: float = 0.0,
    concepts_tested: int = 40,
    features_tested: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Validation:
    """Intervene on a graph's concepts, and compare with what it predicts.

    The concepts are those of `circuit` (`graph.prune()` unless given), the most influential
    `concepts_tested` of them; each is scaled by `factor`, which ablates it unless given. Single
    features are ablated to compare their influence with their effect: at most `features_tested`,
    drawn by `seed`, as the controls are.
    """
    _check(factor, concepts_tested, features_tested)
    found = subject(model, graph, circuit)
    draw = np.random.default_rng(seed)
    tested = concepts(found, concepts_tested)
    drawn = controls(found, tested, draw)
    runs = len(REGIMES) * (len(tested) + len(drawn)) + min(features_tested, len(found.features))
    done = _counter(runs + len(PATTERNS) * (len(SHARES) + 1), progress)
    effects = compare(found, tested, drawn, factor, done)
    influence = singly(found, features_tested, draw, done)
    sizes = curve(found, done)
    key = _figures(found, factor, effects, influence, sizes)
    return Validation(
        figures=key,
        graph=replace(graph, settings={**graph.settings, "validation": key}),
        agreement=summary(effects, ["regime", "kind"]),
        by_distance=summary(effects.query("kind == 'concept'"), ["regime", "distance"]),
        effects=effects,
        influence=influence,
        curve=sizes,
    )


def _check(factor: float, concepts_tested: int, features_tested: int) -> None:
    if not math.isfinite(factor) or factor == 1:
        raise ValueError(
            f"factor={factor} must be a finite number, and not 1, which changes nothing; 0 ablates."
        )
    for name, value in (("concepts", concepts_tested), ("features", features_tested)):
        if value < 3:
            raise ValueError(f"{name}_tested={value} must be at least 3, to be compared.")


def _counter(total: int, progress: Callable[[int, int], Any]) -> Callable[[], None]:
    """Tells how many of all runs are done."""
    count = 0

    def done() -> None:
        nonlocal count
        count += 1
        progress(count, total)

    return done


def _figures(
    found: Subject,
    factor: float,
    effects: pd.DataFrame,
    influence: pd.DataFrame,
    sizes: pd.DataFrame,
) -> dict[str, Any]:
    """What is kept with the graph."""
    own = effects.query("kind == 'concept'")
    size = effects.query("to == 'output' and regime == 'free'")
    change = {kind: float(part["observed"].abs().mean()) for kind, part in size.groupby("kind")}
    ranks = correlation(influence["influence"], influence["effect"], "spearman")
    return _plain(
        {
            "factor": factor,
            "concepts": len(set(own["cause"])),
            "agreement": {r: figures(own.loc[own["regime"] == r]) for r in REGIMES},
            "output_change": {"concepts": change.get("concept"), "controls": change.get("control")},
            "influence": {"spearman": ranks, "features": len(influence)},
            "probability": found.probability(found.clean.run),
            "circuit": {p: _alone(sizes.loc[sizes["patterns"] == p]) for p in PATTERNS},
        }
    )


def _alone(sizes: pd.DataFrame) -> dict[str, Any]:
    """The circuit alone, and the areas of its curve."""
    (own,) = sizes.query("circuit").to_dict("records")
    del own["patterns"], own["circuit"]
    cpr, cmd = areas(sizes)
    return {**own, "cpr": cpr, "cmd": cmd}


def _plain(value: Any) -> Any:
    """The same as JSON can hold it: what is not a number is None."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
