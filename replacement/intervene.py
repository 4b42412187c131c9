"""Intervene: run a prompt with features changed, and compare with its clean run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from replacement.host import Run
from replacement.interventions import Names
from replacement.model import ReplacementModel
from replacement.outcome import UNEMBEDDED, Outcome, feature_table
from replacement.plan import Plan, activations_at, plan
from replacement.reading import LayerReading
from replacement.regimes import (
    REGIMES,
    Clean,
    Steering,
    frozen,
    frozen_sites,
    hooked,
    linear_values,
)
from replacement.words import nearest


@torch.no_grad()
def observe(model: ReplacementModel, prompt: str | Sequence[int] | Tensor) -> Clean:
    """A prompt's clean run, with which any number of interventions may be compared."""
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(x: Tensor, hook: Any) -> None:
            kept[name] = x

        return keep

    ids = model.host.tokenize(prompt)
    with hooked(model.host, [(name, keeper(name)) for name in frozen_sites(model)]):
        run = model.run(ids)
    return Clean(run, model.features(run), kept)


@torch.no_grad()
def intervene(
    model: ReplacementModel,
    clean: Clean,
    interventions: Any,
    regime: str = "free",
    layers: tuple[int, int] | None = None,
    names: Names | None = None,
) -> Outcome:
    """Run a prompt again with features changed; see `replacement.regimes` for what follows.

    `layers` are the first and last layer held in the constrained regime. By default they are the
    first that is intervened on and the last that the features intervened on write to.
    """
    _check_regime(regime, layers)
    ids = clean.run.ids
    chosen = plan(model, interventions, len(ids), None, names, lambda: (ids, clean.readings))
    held = _held(model, chosen, regime, layers)
    moved: dict[int, Tensor] = {}
    write = model.dictionary.write
    outputs = {m: (clean.readings[m], clean.run[f"blocks.{m}.{write}"]) for m in held}
    steering = Steering(model, chosen, outputs, moved)
    # The frozen norms first: where a post-norm writes, the plan has the last word.
    hooks = frozen(model, clean, moved) if regime == "direct" else []
    with hooked(model.host, hooks + steering.hooks()):
        after = model.run(ids)
    if regime == "direct":
        found = _values(clean, moved)
    else:
        found = _activations(model, clean, after, chosen, held)
    return Outcome(
        regime=regime,
        layers=(held[0], held[-1]) if regime == "constrained" and held else None,
        host=model.host,
        clean=clean.run.only(UNEMBEDDED),
        run=after.only(UNEMBEDDED),
        features=feature_table(after, clean.readings, found, chosen, regime == "direct"),
    )


def _check_regime(regime: str, layers: tuple[int, int] | None) -> None:
    if regime not in REGIMES:
        near = nearest(str(regime), REGIMES)
        meant = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(REGIMES)}."
        raise ValueError(f"regime={regime!r} is not known; {meant}")
    if layers is not None and regime != "constrained":
        raise ValueError(f"layers={layers} are held in the constrained regime only, not {regime}.")


def _held(
    model: ReplacementModel, chosen: Plan, regime: str, layers: tuple[int, int] | None
) -> range:
    """The layers whose MLP outputs are those of the clean run."""
    count = model.host.n_layers
    if regime == "direct":
        return range(count)
    if regime == "free" or (layers is None and not chosen):
        return range(0)
    if layers is None:
        writers = [m for layer in chosen for m in model.dictionary.layers[layer].writers]
        layers = (min(chosen), max([*chosen, *writers]))
    if not 0 <= layers[0] <= layers[1] < count:
        raise ValueError(
            f"layers={layers} must be the first and the last that are held, from 0 to {count - 1}."
        )
    return range(layers[0], layers[1] + 1)


def _values(clean: Clean, moved: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Direct: the own values of the clean run's features, moved linearly."""
    return [
        (r.positions, r.features, r.values + linear_values(r, moved[m]))
        for m, r in enumerate(clean.readings)
    ]


def _activations(
    model: ReplacementModel, clean: Clean, after: Run, chosen: Plan, held: range
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Activations in the changed stream, and what the intervened ones were made."""
    found = []
    for m, reading in enumerate(model.features(after)):
        own = reading.positions, reading.features, reading.activations
        if m in chosen:
            own = _replaced(own, chosen, m, clean.readings[m] if m in held else reading)
        found.append(own)
    return found


def _replaced(
    own: tuple[Tensor, Tensor, Tensor], chosen: Plan, m: int, reading: LayerReading
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's activations with the intervened ones replaced; those made zero are not active."""
    change, width = chosen[m], reading.size
    new = change(activations_at(reading, change.positions, change.features))
    positions, features, activations = own
    others = ~torch.isin(positions * width + features, change.positions * width + change.features)
    fires = new != 0
    return (
        torch.cat([positions[others], change.positions[fires]]),
        torch.cat([features[others], change.features[fires]]),
        torch.cat([activations[others], new[fires]]),
    )
