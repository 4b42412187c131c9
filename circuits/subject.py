"""Subject: a graph, its circuit and the model that it was traced on, ready to be intervened on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

import graphs
from replacement import Set
from replacement.host import Run
from replacement.intervene import intervene, observe
from replacement.model import ReplacementModel
from replacement.outcome import UNEMBEDDED, Outcome
from replacement.regimes import Clean

CLOSE = 1e-3  # relative: by how much activations may differ from those of the graph


@dataclass(frozen=True, eq=False)
class Subject:
    """What is validated. `outputs` are the rows of explained tokens, `tokens` their ids."""

    model: ReplacementModel
    graph: graphs.AttributionGraph
    circuit: graphs.Circuit
    clean: Clean
    outputs: list[int]
    tokens: Sequence[Sequence[int]]

    @property
    def features(self) -> pd.DataFrame:
        """The graph's feature nodes."""
        return self.graph.nodes.query("kind == 'feature'")

    @property
    def weights(self) -> Float[np.ndarray, " outputs"]:
        """What each output counts, in shares of all of them."""
        weights = self.graph.weights[self.outputs]
        return weights / weights.sum()

    def change(
        self, nodes: Int[np.ndarray, " nodes"], factor: float, regime: str
    ) -> Float[np.ndarray, " targets"]:
        """By how much each row of the graph changes when these features are scaled."""
        table = self.graph.nodes.loc[nodes]
        done = [
            Set((r.layer, r.feature), factor * r.activation, r.position) for r in table.itertuples()
        ]
        outcome = intervene(self.model, self.clean, done, regime)
        changes = self._features(outcome.features)
        for row, tokens in zip(self.outputs, self.tokens, strict=True):
            changes[row] = self._output(row, tokens, outcome)
        return changes

    def _features(self, table: pd.DataFrame) -> Float[np.ndarray, " targets"]:
        """The changes of the rows of features; those that an outcome lacks are not active."""
        names = ["layer", "position", "feature"]
        rows = pd.MultiIndex.from_frame(self.graph.nodes.loc[self.graph.targets, names])
        found = table.set_index(names)["change"]
        return found.reindex(rows).fillna(0.0).to_numpy(copy=True)

    def _output(self, row: int, tokens: Sequence[int], outcome: Outcome) -> float:
        return _signed(outcome.effect(self._after(row)), tokens)

    def _after(self, row: int) -> int:
        """The position after which an output stands."""
        return int(self.graph.nodes["position"].to_numpy()[self.graph.targets[row]])

    def explained(self, run: Run) -> float:
        """The explained outputs' values on a run, each with its weight."""
        total = 0.0
        for weight, row, tokens in zip(self.weights, self.outputs, self.tokens, strict=True):
            logits = run[UNEMBEDDED][self._after(row)].cpu().double()
            total += float(weight) * _signed(logits - logits.mean(), tokens)
        return total

    def probability(self, run: Run) -> float:
        """The probability of the explained tokens on a run, each with its weight."""
        total = 0.0
        for weight, row, tokens in zip(self.weights, self.outputs, self.tokens, strict=True):
            logits = run.logits[self._after(row)].cpu().double()
            total += float(weight * logits.softmax(-1)[tokens[0]])
        return total

    def answer(self, run: Run) -> int:
        """The likeliest token on a run, where the first output is."""
        return int(run.logits[self._after(self.outputs[0])].argmax())


def _signed(values: Tensor, tokens: Sequence[int]) -> float:
    """One token's value, or one's less another's."""
    first, *rest = (float(values[token]) for token in tokens)
    return first - sum(rest)


def subject(
    model: ReplacementModel, graph: graphs.AttributionGraph, circuit: graphs.Circuit | None
) -> Subject:
    """Check that a graph is of this model, and run its prompt once."""
    settings = graph.settings
    own = (model.host.name, model.dictionary.name)
    if own != (settings.get("model"), settings.get("dictionary")):
        raise ValueError(
            f"the graph is of {settings.get('model')} with the dictionary "
            f"{settings.get('dictionary')!r}, not of {own[0]} with {own[1]!r}; open that model."
        )
    outputs, tokens = _outputs(graph)
    clean = observe(model, list(settings["token_ids"]))
    found = Subject(model, graph, circuit or graph.prune(), clean, outputs, tokens)
    _check_same(found)
    return found


def _outputs(graph: graphs.AttributionGraph) -> tuple[list[int], list[list[int]]]:
    """The rows of tokens and differences, and their ids; directions have none."""
    rows = np.flatnonzero((graph.nodes["kind"] == "logit").to_numpy()[graph.targets])
    own = [[int(i)] if i >= 0 else [] for i in graph.nodes["feature"][graph.targets[rows]]]
    tokens = graph.settings.get("outputs", own)  # files from before they were kept
    known = [n for n, ids in enumerate(tokens) if ids]
    if not known:
        raise ValueError(
            "the graph explains no token, so nothing says what its circuit is for; trace it with "
            "a token, or a difference of two, as the target."
        )
    return rows[known].tolist(), [list(tokens[n]) for n in known]


def _check_same(found: Subject) -> None:
    """Refuse a model whose features are not as active as the graph says."""
    table = found.features
    width = max(reading.size for reading in found.clean.readings)
    for layer, reading in enumerate(found.clean.readings):
        rows = table.loc[table["layer"] == layer]
        if not len(rows):
            continue
        own = (reading.positions * width + reading.features).cpu()
        keys = torch.from_numpy((rows["position"] * width + rows["feature"]).to_numpy(copy=True))
        at = torch.searchsorted(own, keys).clamp_max(max(0, len(own) - 1))
        same = len(own) > 0 and bool((own[at] == keys).all())
        if same:
            seen = reading.activations.cpu().double()[at].numpy()
            wanted = rows["activation"].to_numpy()
            same = bool(np.abs(seen - wanted).max() <= CLOSE * np.abs(wanted).max())
        if not same:
            raise ValueError(
                f"features of layer {layer} are not as active on this model as the graph says: its "
                "weights are others than those that were traced; trace it again."
            )
