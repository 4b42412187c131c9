"""Outcome: what an intervention did to the features and to the next token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from replacement.host import Host, Run
from replacement.interventions import places
from replacement.plan import Plan
from replacement.reading import LayerReading

UNEMBEDDED = "unembed.hook_out"  # the logits before any soft cap


@dataclass(frozen=True, eq=False)
class Outcome:
    """A prompt run with features changed, beside its clean run.

    `features` has one row for each feature and position active in either run: layer, position,
    feature, token, before, after, change, and whether it was itself intervened on. In the free
    and constrained regimes these are activations: of the intervened features as they were set, of
    the others as the changed stream makes them. In the direct regime, where activations are
    frozen, they are the own values (what the readers read) of the features of the clean run.
    `layers` is the range held in the constrained regime, first and last.
    """

    regime: str
    layers: tuple[int, int] | None
    host: Host
    clean: Run
    run: Run
    features: pd.DataFrame

    @property
    def logits(self) -> Float[Tensor, "positions vocabulary"]:
        """The logits after the intervention."""
        return self.run.logits

    @property
    def clean_logits(self) -> Float[Tensor, "positions vocabulary"]:
        """The logits of the clean run."""
        return self.clean.logits

    def effect(self, position: int = -1) -> Float[Tensor, " vocabulary"]:
        """The change of each token's logit as a trace counts it: before any soft cap, less the
        mean over the vocabulary.
        """
        (at,) = places(position, len(self.run.ids))
        change = (self.run[UNEMBEDDED][at] - self.clean[UNEMBEDDED][at]).cpu().double()
        return change - change.mean()

    def moved(self, position: int = -1, top: int = 10) -> pd.DataFrame:
        """The tokens whose probability rose most, and those whose fell most, at a position."""
        if top < 1:
            raise ValueError(f"top={top} must be at least 1: how many tokens that rose, and fell.")
        (at,) = places(position, len(self.run.ids))
        before, after = (
            run.logits[at].cpu().double().softmax(-1) for run in (self.clean, self.run)
        )
        change = after - before
        order = change.argsort(descending=True)
        up, down = order[change[order] > 0][:top], order[change[order] < 0].flip(0)[:top]
        ids = torch.cat([up, down.flip(0)])
        columns = {"before": before[ids], "after": after[ids], "change": change[ids]}
        columns["logit"] = self.effect(position)[ids]
        table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        table.insert(0, "token", np.array([self.host.token(i) for i in ids.tolist()], dtype=object))
        table.insert(1, "id", ids.numpy())
        return table


def feature_table(
    run: Run,
    before: Sequence[LayerReading],
    after: Sequence[tuple[Tensor, Tensor, Tensor]],
    plan: Plan,
    values: bool,
) -> pd.DataFrame:
    """Features active in either run; `after` is by layer (positions, features, numbers)."""
    parts = []
    for layer, (reading, found) in enumerate(zip(before, after, strict=True)):
        width = reading.size
        numbers = reading.values if values else reading.activations
        old, new = (
            (_numpy(positions) * width + _numpy(features), _numpy(number))
            for positions, features, number in (
                (reading.positions, reading.features, numbers),
                found,
            )
        )
        keys = np.union1d(old[0], new[0])
        part = {"layer": np.full(len(keys), layer), "position": keys // width}
        part |= {"feature": keys % width, "before": _at(keys, *old), "after": _at(keys, *new)}
        touched = plan.get(layer)
        own = [] if touched is None else _numpy(touched.positions * width + touched.features)
        part["intervened"] = np.isin(keys, own)
        parts.append(part)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    table = pd.DataFrame(columns)
    table.insert(5, "change", table["after"] - table["before"])
    texts = np.array(run.tokens, dtype=object)
    table.insert(3, "token", texts[columns["position"]])
    return table


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _at(keys: np.ndarray, own: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Numbers by key, zero where there is none."""
    out = np.zeros(len(keys))
    out[np.searchsorted(keys, own)] = numbers
    return out
