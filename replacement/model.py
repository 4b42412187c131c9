"""ReplacementModel: a host and a dictionary that stands in for its MLPs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from replacement import bundled, evidence, formats
from replacement.dictionary import Dictionary, written
from replacement.evidence.evidence import Evidence
from replacement.formats.finding import located
from replacement.host import Host, Run
from replacement.neurons import neuron_dictionary
from replacement.reading import LayerReading, Reading

if TYPE_CHECKING:
    from replacement.generation import Generation
    from replacement.monitor import Monitor
    from replacement.outcome import Outcome


@dataclass(frozen=True, eq=False)
class ReplacementModel:
    """A host whose MLPs are re-expressed in the features of a dictionary.

    `evidence` is what is known of the features: their names, contexts and what they promote.
    """

    host: Host
    dictionary: Dictionary
    evidence: Evidence | None = None

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
        if self.evidence is not None:
            self.evidence.check(self.dictionary)
        precision = torch.promote_types(self.host.dtype, torch.float32)
        moved = self.dictionary.to(self.host.device, precision)
        object.__setattr__(self, "dictionary", moved)

    def labelled(self, labels: Mapping[tuple[int, int], str]) -> "ReplacementModel":
        """The same model with these labels for its features, by (layer, feature), above all."""
        return replace(self, evidence=(self.evidence or Evidence()).relabelled(labels))

    @property
    def sites(self) -> list[str]:
        """The activations that a reading needs, by their names within a layer."""
        extra = frozenset().union(*(layer.hooks for layer in self.dictionary.layers))
        return [self.dictionary.read, self.dictionary.write, *sorted(extra)]

    @overload
    def run(self, prompt: str | Sequence[int] | Tensor) -> Run: ...

    @overload
    def run(
        self,
        prompt: str | Sequence[int] | Tensor,
        interventions: Any,
        regime: str = "free",
        layers: tuple[int, int] | None = None,
        names: Mapping[str, Any] | None = None,
    ) -> "Outcome": ...

    def run(
        self,
        prompt: str | Sequence[int] | Tensor,
        interventions: Any = None,
        regime: str = "free",
        layers: tuple[int, int] | None = None,
        names: Mapping[str, Any] | None = None,
    ) -> "Run | Outcome":
        """One forward pass of the host, keeping what a reading and a trace need.

        With `interventions` (`Set`, `Scale`, `Add`, `Ablate`, `Clamp`, `Swap`) the features that
        they name are changed and the result is an `Outcome`. What follows from the change depends
        on the regime: "free", "constrained" (within `layers`, first and last) or "direct"; see
        `replacement.regimes`. `names` are groups of features that interventions may name.
        """
        if interventions is None:
            return self.host.run(self.host.tokenize(prompt), self.sites)
        from replacement.intervene import intervene, observe

        return intervene(self, observe(self, prompt), interventions, regime, layers, names)

    def generate(
        self,
        prompt: str | Sequence[int] | Tensor,
        interventions: Any = (),
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Sequence[str | int] | None = None,
        names: Mapping[str, Any] | None = None,
        monitor: "Monitor | None" = None,
    ) -> "Generation":
        """Continue a prompt token by token, with features changed: everything else recomputes.

        Positions of interventions may lie in what is generated: None is everywhere,
        `slice(p, None)` from p on, and negative ones count from the prompt's end. Temperature 0
        takes the likeliest token; above it tokens are drawn, of the `top_k` likeliest and of the
        fewest that hold the share `top_p`. `stop` are tokens or texts at which to stop: the
        host's own end of a text unless given. `monitor` watches features on the way.
        """
        from replacement.generation import Sampler, generate

        return generate(
            self,
            prompt,
            interventions=interventions,
            max_new_tokens=max_new_tokens,
            sampler=Sampler(temperature, top_k, top_p),
            seed=seed,
            stop=stop,
            names=names,
            monitor=monitor,
        )

    @torch.no_grad()
    def features(self, run: Run) -> tuple[LayerReading, ...]:
        """The features active on a run, layer by layer."""
        captured = [run.layer(index) for index in range(self.host.n_layers)]
        read = self.dictionary.read
        return tuple(
            layer.read(at[read], at)
            for layer, at in zip(self.dictionary.layers, captured, strict=True)
        )

    @torch.no_grad()
    def read(self, run: Run) -> Reading:
        """The features active on a run, and per layer and position what they miss of the MLP."""
        dictionary, readings = self.dictionary, self.features(run)
        if dictionary.exact:
            return Reading(readings, None)
        errors = [
            run[f"blocks.{m}.{dictionary.write}"] - self.written(readings, m, run)
            for m in range(len(readings))
        ]
        return Reading(readings, torch.stack(errors))

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
    features: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ReplacementModel:
    """Open a host, Atlas unless given, and pair it with a dictionary; options go to `Host.open`.

    `dictionary` is a `Dictionary`, the folder of a saved one, "neurons" (the host's own), or one
    that ships with the host: Atlas has "per-layer" and "cross-layer". Unless given it is the first
    that ships with the host, and where none does, "neurons". `features` is a file of evidence on
    its features; unless given, the one in the dictionary's folder where there is one.
    """
    shipped = host.dictionaries if isinstance(host, Host) else bundled.dictionaries(host)
    if dictionary is None:
        dictionary = next(iter(shipped), bundled.NEURONS)
    folder = dictionary_folder(dictionary, shipped)
    chosen = dictionary if isinstance(dictionary, Dictionary) else None
    if folder is not None:
        chosen = formats.load(folder)
        beside = folder / evidence.FILE
        features = beside if features is None and beside.exists() else features
    known = None if features is None else evidence.load(features)
    opened = host if isinstance(host, Host) else Host.open(host, **options)
    return ReplacementModel(opened, chosen or neuron_dictionary(opened), known)


def dictionary_folder(source: Any, shipped: Mapping[str, Path]) -> Path | None:
    """The folder that a dictionary is in; neurons and what is a dictionary already have none."""
    if isinstance(source, Dictionary) or source == bundled.NEURONS:
        return None
    return located(shipped.get(source, source), (*shipped, bundled.NEURONS))
