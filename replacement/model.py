"""ReplacementModel: a host and a dictionary that stands in for its MLPs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement import bundled, formats
from replacement.dictionary import Dictionary, written
from replacement.formats.finding import unknown
from replacement.host import Host, Run
from replacement.neurons import neuron_dictionary
from replacement.reading import LayerReading, Reading


@dataclass(frozen=True, eq=False)
class ReplacementModel:
    """A host whose MLPs are re-expressed in the features of a dictionary."""

    host: Host
    dictionary: Dictionary

    def __post_init__(self) -> None:
        layers, widths = self.host.n_layers, {layer.width for layer in self.dictionary.layers}
        if len(self.dictionary.layers) != layers:
            raise ValueError(
                f"the dictionary has {len(self.dictionary.layers)} layers and "
                f"{self.host.name} has {layers}; it was made for another host."
            )
        if widths != {self.host.d_model}:
            raise ValueError(
                f"the dictionary's width is {sorted(widths)} and {self.host.name}'s is "
                f"{self.host.d_model}; it was made for another host."
            )
        for site in (self.dictionary.read, self.dictionary.write):
            if f"blocks.0.{site}" not in self.host.bridge.hook_dict:
                raise ValueError(
                    f"{self.host.name} has no activation {site!r}, where the dictionary reads or "
                    "writes; it was made for another family of hosts."
                )
        precision = torch.promote_types(self.host.dtype, torch.float32)
        moved = self.dictionary.to(self.host.device, precision)
        object.__setattr__(self, "dictionary", moved)

    @property
    def sites(self) -> list[str]:
        """The activations that a reading needs, by their names within a layer."""
        extra = frozenset().union(*(layer.hooks for layer in self.dictionary.layers))
        return [self.dictionary.read, self.dictionary.write, *sorted(extra)]

    def run(self, prompt: str | Sequence[int] | Tensor) -> Run:
        """One forward pass of the host, keeping what a reading and a trace need."""
        return self.host.run(self.host.tokenize(prompt), self.sites)

    @torch.no_grad()
    def read(self, run: Run) -> Reading:
        """The features active on a run, and per layer and position what they miss of the MLP."""
        dictionary = self.dictionary
        readings: list[LayerReading] = []
        for index, layer in enumerate(dictionary.layers):
            captured = run.layer(index)
            readings.append(layer.read(captured[dictionary.read], captured))
        if dictionary.exact:
            return Reading(tuple(readings), None)
        errors = [
            run[f"blocks.{m}.{dictionary.write}"] - self.written(readings, m, run)
            for m in range(len(readings))
        ]
        return Reading(tuple(readings), torch.stack(errors))

    def written(
        self, readings: Sequence[LayerReading], layer: int, run: Run
    ) -> Float[Tensor, "positions d_model"]:
        """The dictionary's stand-in for one layer's MLP output on a run."""
        x = run[f"blocks.{layer}.{self.dictionary.read}"]
        return written(readings, self.dictionary.layers, layer, x)

    @torch.no_grad()
    def replaced(
        self, prompt: str | Sequence[int] | Tensor
    ) -> Float[Tensor, "positions vocabulary"]:
        """The logits when every MLP is replaced by its features, with no errors added back."""
        dictionary, hooks = self.dictionary, []
        readings: list[LayerReading] = []
        seen: dict[str, Tensor] = {}
        precision = torch.promote_types(self.host.dtype, torch.float32)

        def reads(index: int) -> Any:
            def hook(x: Tensor, hook: Any) -> None:
                seen["x"] = x[0]
                readings.append(dictionary.layers[index].read(x[0].to(precision), {}))

            return hook

        def writes(index: int) -> Any:
            def hook(y: Tensor, hook: Any) -> Tensor:
                out = written(readings, dictionary.layers, index, seen["x"].to(precision))
                return out.to(y.dtype)[None]

            return hook

        ids = self.host.tokenize(prompt)
        if not dictionary.exact:
            for index in range(self.host.n_layers):
                hooks.append((f"blocks.{index}.{dictionary.read}", reads(index)))
                hooks.append((f"blocks.{index}.{dictionary.write}", writes(index)))
        batch = torch.tensor([ids], device=self.host.device)
        return self.host.bridge.run_with_hooks(batch, fwd_hooks=hooks)[0]


def load(
    host: Any = bundled.DEFAULT_HOST,
    dictionary: str | os.PathLike[str] | Dictionary | None = None,
    **options: Any,
) -> ReplacementModel:
    """Open a host, Atlas unless given, and pair it with a dictionary; options go to `Host.open`.

    `dictionary` is a `Dictionary`, the folder of a saved one, "neurons" (the host's own), or one
    that ships with the host: Atlas has "per-layer" and "cross-layer". Unless given it is the first
    that ships with the host, and where none does, "neurons".
    """
    shipped = host.dictionaries if isinstance(host, Host) else bundled.dictionaries(host)
    if dictionary is None:
        dictionary = next(iter(shipped), bundled.NEURONS)
    chosen = None if dictionary == bundled.NEURONS else _dictionary(dictionary, shipped)
    opened = host if isinstance(host, Host) else Host.open(host, **options)
    return ReplacementModel(opened, chosen or neuron_dictionary(opened))


def _dictionary(source: Any, shipped: Mapping[str, Path]) -> Dictionary:
    """A dictionary as it is, or read from its folder; a name that is neither is refused."""
    if isinstance(source, Dictionary):
        return source
    if source in shipped:
        return formats.load(shipped[source])
    if not Path(source).expanduser().exists():
        raise unknown(os.fspath(source), (*shipped, bundled.NEURONS))
    return formats.load(source)
