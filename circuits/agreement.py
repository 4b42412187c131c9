"""Agreement: what a graph predicts of an intervention, beside what happens.

Each concept of the circuit is scaled in turn, and beside it, as its control, as many random
features of the same layers that are in none. The prediction is the linear effect along the graph's
edges: direct edges where everything is held, and over all paths through features that are free to
recompute. Changes of a concept are the sums over its features, in shares of all that they read.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from circuits.subject import Subject
from graphs.circuit import rows as each
from graphs.effects import effects
from replacement.regimes import REGIMES

FIGURES = ("count", "spearman", "pearson", "sign", "error")


@dataclass(frozen=True, eq=False)
class Concept:
    """Features that are one concept, or its control."""

    name: str
    nodes: Int[np.ndarray, " nodes"]


def concepts(subject: Subject, most: int) -> list[Concept]:
    """The circuit's most influential concepts of features."""
    table, owner = subject.circuit.nodes.query("kind == 'feature'"), subject.circuit.concept_of()
    members: dict[str, list[int]] = {}
    influence: Counter[str] = Counter()
    for row in each(table):
        name = owner[int(row.node)]
        members.setdefault(name, []).append(int(row.node))
        influence[name] += row.influence
    found = [Concept(name, np.array(members[name])) for name, _ in influence.most_common(most)]
    if not found:
        raise ValueError("the circuit has no features, so nothing can be tested; prune less.")
    return found


def controls(subject: Subject, of: Sequence[Concept], draw: np.random.Generator) -> list[Concept]:
    """For each concept as many random features of the same layers, outside of the circuit."""
    table = subject.features
    outside = table.loc[~table.index.isin(subject.circuit.nodes["node"])]
    found = []
    for concept in of:
        layers = Counter(subject.graph.nodes["layer"].to_numpy()[concept.nodes].tolist())
        chosen = []
        for layer, count in sorted(layers.items()):
            free = outside.index[outside["layer"] == layer].to_numpy()
            chosen.append(draw.choice(free, min(count, len(free)), replace=False))
        nodes = np.concatenate(chosen)
        if len(nodes):
            found.append(Concept(f"control:{concept.name}", nodes))
    return found


def compare(
    subject: Subject,
    tested: Sequence[Concept],
    drawn: Sequence[Concept],
    factor: float,
    done: Callable[[], Any],
) -> pd.DataFrame:
    """Predicted and observed, for every regime, cause and target.

    One row each: regime, kind (concept or control), cause, target, to (concept or output),
    distance (layers from the cause's lowest to the target's highest), predicted, observed.
    """
    causes = [*tested, *drawn]
    parts = []
    for regime in REGIMES:
        predicted = _predicted(subject, causes, factor, regime)
        for column, cause in enumerate(causes):
            observed = subject.change(cause.nodes, factor, regime)
            done()
            kind = "concept" if column < len(tested) else "control"
            rows = _rows(subject, cause, tested, predicted[:, column], observed)
            parts += [{"regime": regime, "kind": kind, "cause": cause.name, **row} for row in rows]
    return pd.DataFrame(parts)


def _predicted(
    subject: Subject, causes: Sequence[Concept], factor: float, regime: str
) -> Float[np.ndarray, "targets causes"]:
    graph, layers = subject.graph, subject.model.dictionary.layers
    fractions = np.zeros((len(graph.nodes), len(causes)))
    passing = np.zeros(len(causes), dtype=np.int64)
    for column, cause in enumerate(causes):
        fractions[cause.nodes, column] = factor - 1
        changed = graph.nodes["layer"][cause.nodes]
        # Held are the layers from the first that is changed to the last that is written to.
        held = max(m for layer in set(changed) for m in (layer, *layers[layer].writers))
        passing[column] = {"direct": len(layers), "constrained": held + 1, "free": 0}[regime]
    return effects(graph, fractions, passing)


def _rows(
    subject: Subject,
    cause: Concept,
    tested: Sequence[Concept],
    predicted: Float[np.ndarray, " targets"],
    observed: Float[np.ndarray, " targets"],
) -> list[dict[str, Any]]:
    """One cause's effects on the other concepts that it can reach, and on the outputs."""
    graph, layers = subject.graph, subject.graph.nodes["layer"]
    nodes = graph.targets[subject.outputs]
    names = graph.nodes["token"][nodes]
    others = [(c.name, "concept", c.nodes) for c in tested if c is not cause]
    others += [(str(n), "output", np.array([i])) for n, i in zip(names, nodes, strict=True)]
    found = []
    for name, to, members in others:
        rows = np.flatnonzero(np.isin(graph.targets, members))
        if not _reaches(graph.nodes, cause.nodes, members) or not len(rows):
            continue
        scale = max(float(graph.scale[rows].sum()), np.finfo(float).tiny)
        found.append(
            {
                "target": name,
                "to": to,
                "distance": int(layers[members].max() - layers[cause.nodes].min()),
                "predicted": float(predicted[rows].sum()) / scale,
                "observed": float(observed[rows].sum()) / scale,
            }
        )
    return found


def _reaches(nodes: pd.DataFrame, cause: np.ndarray, target: np.ndarray) -> bool:
    """Whether any feature of the one stands above and not before any of the other."""
    one, other = nodes.loc[cause], nodes.loc[target]
    above = other["layer"].to_numpy()[:, None] > one["layer"].to_numpy()
    after = other["position"].to_numpy()[:, None] >= one["position"].to_numpy()
    return bool((above & after).any())


def singly(
    subject: Subject, most: int, draw: np.random.Generator, done: Callable[[], Any] = lambda: None
) -> pd.DataFrame:
    """Single features drawn of those with any influence, each ablated in the constrained regime.

    `effect` is how much the outputs change in size, each with its weight.
    """
    table = subject.features.query("influence > 0")
    nodes = np.sort(draw.choice(table.index.to_numpy(), min(most, len(table)), replace=False))
    effects = []
    for node in nodes:
        changes = subject.change(np.array([node]), 0.0, "constrained")[subject.outputs]
        effects.append(float(subject.weights @ np.abs(changes)))
        done()
    names = ["layer", "position", "feature", "token", "label", "influence"]
    return table.loc[nodes, names].assign(effect=effects).reset_index(drop=True)


def correlation(one: pd.Series, other: pd.Series, method: Literal["pearson", "spearman"]) -> float:
    """A correlation; NaN where there is nothing to correlate."""
    varied = len(one) > 2 and np.ptp(one) > 0 and np.ptp(other) > 0
    return float(one.corr(other, method=method)) if varied else float("nan")


def figures(table: pd.DataFrame) -> dict[str, int | float]:
    """How well prediction and observation agree: see `FIGURES`.

    sign: the share of the changes whose direction was right. error: the root of the mean squared
    difference, in those of what was observed.
    """
    p, o = table["predicted"], table["observed"]
    size = float(np.sqrt((o**2).sum()))
    numbers = (
        len(p),
        correlation(p, o, "spearman"),
        correlation(p, o, "pearson"),
        float((np.sign(p) == np.sign(o)).mean()) if len(p) else float("nan"),
        float(np.sqrt(((p - o) ** 2).sum())) / size if size else float("nan"),
    )
    return dict(zip(FIGURES, numbers, strict=True))


def summary(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The figures of every part of a table of effects."""
    rows = []
    for _, part in table.groupby(list(by), sort=False):
        rows.append({**{name: part[name].iloc[0] for name in by}, **figures(part)})
    return pd.DataFrame(rows, columns=[*by, *FIGURES])
