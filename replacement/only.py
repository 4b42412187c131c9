"""Only: a prompt run again with some of its features alone, or without them.

Every MLP's output is what the features write that are let through, plus what the dictionary missed
of it on the clean run, a constant. What is let through recomputes: a feature that loses what drove
it falls silent too. With `patterns` held, attention patterns and norms' denominators are those of
the clean run as well: this is the local replacement model, of which an attribution graph is the
exact account. Otherwise they recompute.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replacement.dictionary import written
from replacement.host import Run
from replacement.model import ReplacementModel
from replacement.outcome import UNEMBEDDED
from replacement.reading import LayerReading, Reading
from replacement.regimes import Clean, Hook, frozen, hooked

Through = Callable[[int, LayerReading], Bool[Tensor, " active"]]  # of a layer's reading, which


def among(model: ReplacementModel, places: Int[Tensor, "features 3"], kept: bool = True) -> Through:
    """Lets through these (layer, position, feature), or with `kept=False` all but these."""

    def through(layer: int, reading: LayerReading) -> Bool[Tensor, " active"]:
        width = reading.size
        own = places[places[:, 0] == layer].to(reading.positions.device)
        keys = reading.positions * width + reading.features
        return torch.isin(keys, own[:, 1] * width + own[:, 2]) == kept

    return through


@torch.no_grad()
def run_only(
    model: ReplacementModel, clean: Clean, reading: Reading, through: Through, patterns: bool
) -> Run:
    """The logits with the features let through alone; `reading` is that of the clean run."""
    part = _Part(model, clean, reading, through, patterns)
    held = frozen(model, clean, part.moved) if patterns else []
    with hooked(model.host, held + part.hooks()):
        return model.run(clean.run.ids).only(UNEMBEDDED)


@dataclass(eq=False)
class _Part:
    """The hooks of one run, and what its layers have read so far."""

    model: ReplacementModel
    clean: Clean
    reading: Reading
    through: Through
    patterns: bool
    moved: dict[int, Tensor] = field(default_factory=dict)
    _readings: list[LayerReading] = field(default_factory=list)
    _captured: dict[str, Tensor] = field(default_factory=dict)

    def hooks(self) -> list[Hook]:
        """Every layer's read sites, and its write site."""
        found: list[Hook] = []
        for m, layer in enumerate(self.model.dictionary.layers):
            for site in (self.model.dictionary.read, *layer.hooks):
                found.append((f"blocks.{m}.{site}", self._keep(site)))
            found.append((f"blocks.{m}.{self.model.dictionary.write}", self._write(m)))
        return found

    def _keep(self, site: str) -> Callable[..., None]:
        def keep(x: Tensor, hook: Any) -> None:
            x = x[0] if x.ndim > 2 else x  # routers work on (tokens, experts)
            self._captured[site] = x.to(torch.promote_types(x.dtype, torch.float32))

        return keep

    def _write(self, m: int) -> Callable[..., Tensor]:
        dictionary = self.model.dictionary

        def write(y: Tensor, hook: Any) -> Tensor:
            x = self._captured[dictionary.read]
            if self.patterns:  # a normalised read site has recomputed its denominator
                x = self.clean.run[f"blocks.{m}.{dictionary.read}"] + self.moved[m]
            own = dictionary.layers[m].read(x, self._captured)
            self._readings.append(_part(own, self.through(m, own)))
            out: Float[Tensor, "positions d_model"]
            out = written(self._readings, dictionary.layers, m, x)
            errors = self.reading.errors
            out = out if errors is None else out + errors[m]
            return out.to(y.dtype)[None]

        return write


def _part(reading: LayerReading, chosen: Bool[Tensor, " active"]) -> LayerReading:
    """Some of a reading's features; their readers are not needed any more."""
    return replace(
        reading,
        positions=reading.positions[chosen],
        features=reading.features[chosen],
        activations=reading.activations[chosen],
        values=reading.values[chosen],
        terms=(),
    )
