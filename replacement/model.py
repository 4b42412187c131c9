"""ReplacementModel: a host and a dictionary that stands in for its MLPs."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.dictionary import Dictionary, written
from replacement.host import Host, Run
from replacement.neurons import neuron_dictionary
from replacement.reading import LayerReading, Reading

DICTIONARIES = ("neurons",)


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


def load(host: Any, dictionary: str | Dictionary = "neurons", **options: Any) -> ReplacementModel:
    """Open a host and pair it with a dictionary; options go to `Host.open`."""
    opened = host if isinstance(host, Host) else None
    if isinstance(dictionary, str) and dictionary not in DICTIONARIES:
        near = difflib.get_close_matches(dictionary, DICTIONARIES, n=1, cutoff=0)
        raise ValueError(f"there is no dictionary {dictionary!r}; did you mean {near[0]!r}?")
    opened = opened or Host.open(host, **options)
    chosen = neuron_dictionary(opened) if isinstance(dictionary, str) else dictionary
    return ReplacementModel(opened, chosen)
