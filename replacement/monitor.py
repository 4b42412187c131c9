"""Monitor: watch named features while the model generates, and act when they fire."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from replacement.generation import Generation
from replacement.host import Host
from replacement.interventions import Clamp, Names, What, resolve
from replacement.model import ReplacementModel

ACTIONS = ("record", "clamp", "stop")


class Firing(NamedTuple):
    """A rule that fired: its concept, and where and how strongly its strongest feature did."""

    concept: str
    action: str
    position: int
    token: str
    layer: int
    feature: int
    activation: float


@dataclass(frozen=True, eq=False)
class Rule:
    """A concept (a feature, several, or a named group), a threshold and an action.

    The rule fires at a token where any of the features exceeds the threshold. It is recorded
    whatever the action, which may also be "clamp" (the features are held to the threshold),
    "stop" (no further token is generated) or a function, which is called with the `Firing`.
    """

    concept: What
    threshold: float
    action: str | Callable[[Firing], Any] = "record"

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold={self.threshold} of {self.name} must be a finite number.")
        if not callable(self.action) and self.action not in ACTIONS:
            known = ", ".join(ACTIONS)
            raise ValueError(
                f"action={self.action!r} of {self.name} is not known; use {known} or a function."
            )

    @property
    def name(self) -> str:
        """The concept as text."""
        return self.concept if isinstance(self.concept, str) else repr(self.concept)

    @property
    def act(self) -> str:
        """The action as text."""
        action = self.action
        if isinstance(action, str):
            return action
        return f"call {getattr(action, '__name__', repr(action))}"

    def firing(self, position: int, token: str, strongest: tuple[float, int, int]) -> Firing:
        """What is reported: the strongest feature's activation, layer and number."""
        activation, layer, feature = strongest
        return Firing(self.name, self.act, position, token, layer, feature, activation)


@dataclass(frozen=True, eq=False)
class Monitor:
    """Rules about features of a model; `generate` reports which fired at which token.

    What is compared with a threshold is the activation that the model itself computes there,
    before an intervention on that very feature. The prompt's tokens are watched like those that
    are generated; the last of these, which the model has not read, is not.
    """

    model: ReplacementModel
    rules: Sequence[Rule]
    names: Names | None = None
    _pairs: list[list[tuple[int, int]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("a monitor needs at least one rule: Monitor(model, [Rule(...)]).")
        pairs = [resolve(self.model, rule.concept, self.names) for rule in self.rules]
        object.__setattr__(self, "_pairs", pairs)

    def generate(self, prompt: str | Sequence[int] | Tensor, **options: Any) -> Generation:
        """`model.generate` under this monitor's eyes."""
        return self.model.generate(prompt, monitor=self, **options)

    @cached_property
    def watched(self) -> Mapping[int, Tensor]:
        """The features that are watched, by layer, ascending."""
        every = sorted({pair for pairs in self._pairs for pair in pairs})
        device = self.model.host.device
        return {
            layer: torch.tensor([f for own, f in every if own == layer], device=device)
            for layer in sorted({layer for layer, _ in every})
        }

    @cached_property
    def _columns(self) -> Mapping[tuple[int, int], int]:
        """Where each watched feature stands among those of its layer."""
        return {
            (layer, feature): column
            for layer, features in self.watched.items()
            for column, feature in enumerate(features.tolist())
        }

    @property
    def clamps(self) -> list[Clamp]:
        """The rules that hold their features down, as interventions."""
        return [
            Clamp(pairs, high=rule.threshold)
            for rule, pairs in zip(self.rules, self._pairs, strict=True)
            if rule.action == "clamp"
        ]

    def fire(
        self, seen: Mapping[int, Tensor], start: int, host: Host, ids: Sequence[int]
    ) -> list[Firing]:
        """The rules that fire on what was seen of the tokens from `start` on, by position."""
        rows = {layer: activations.tolist() for layer, activations in seen.items()}
        firings: list[Firing] = []
        for at in range(len(ids) - start):
            for rule, pairs in zip(self.rules, self._pairs, strict=True):
                strongest = max((rows[m][at][self._columns[m, f]], m, f) for m, f in pairs)
                if strongest[0] > rule.threshold:
                    firings.append(rule.firing(start + at, host.token(ids[start + at]), strongest))
                    if callable(rule.action):
                        rule.action(firings[-1])
        return firings
