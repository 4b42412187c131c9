"""Dictionary: features that read at one site of each layer and write at one or more.

A per-layer transcoder has one writer, a skip transcoder a linear path beside its features, and a
cross-layer transcoder a writer for its own layer and for each layer above:

    a_l = activation(x_l @ reader_l.T + reader_bias_l)
    y_m = sum over l <= m of (a_l @ writer_{l -> m} + writer_bias_{l -> m})  +  x_m @ skip_m.T

where x_l is host layer l's activation at `read` and y_m stands in for the one at `write`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.activations import Activation
from replacement.neurons import Neurons
from replacement.reading import LayerReading, Term, sparse

READ_SITES = ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")
WRITE_SITES = ("hook_mlp_out", "mlp.hook_out")


@dataclass(frozen=True, eq=False)
class Transcoder:
    """One layer's features: a reader and one or more writers each."""

    reader: Float[Tensor, "features d_model"]
    writers: Mapping[int, Float[Tensor, "features d_model"]]
    activation: Activation
    reader_bias: Float[Tensor, " features"] | None = None
    writer_biases: Mapping[int, Float[Tensor, " d_model"]] | None = None
    skip: Float[Tensor, "d_model d_model"] | None = None
    hooks: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        shape = tuple(self.reader.shape)
        if len(shape) != 2:
            raise ValueError(f"reader has shape {shape}; give (features, d_model).")
        if not self.writers:
            raise ValueError("writers is empty; give at least {own layer: (features, d_model)}.")
        for name, tensor, wanted in self._tensors():
            if tuple(tensor.shape) != wanted:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {wanted}.")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds NaN or infinite numbers; re-export the dictionary.")

    def _tensors(self) -> list[tuple[str, Tensor, tuple[int, ...]]]:
        features, width = self.reader.shape
        named: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
            ("reader", self.reader, (features, width)),
            ("reader_bias", self.reader_bias, (features,)),
            ("skip", self.skip, (width, width)),
        ]
        named += [(f"writers[{m}]", w, (features, width)) for m, w in self.writers.items()]
        threshold = getattr(self.activation, "threshold", None)
        if isinstance(threshold, Tensor) and threshold.ndim:
            named.append(("threshold", threshold, (features,)))
        named += [(f"writer_biases[{m}]", b, (width,)) for m, b in self.biases.items()]
        return [(name, t, wanted) for name, t, wanted in named if t is not None]

    @property
    def biases(self) -> Mapping[int, Tensor]:
        """The writers' biases, by the layer written to."""
        return self.writer_biases or {}

    @property
    def size(self) -> int:
        """How many features it has."""
        return len(self.reader)

    @property
    def width(self) -> int:
        """The host's d_model, as this layer has it."""
        return self.reader.shape[1]

    def read(
        self, x: Float[Tensor, "positions d_model"], captured: Mapping[str, Tensor]
    ) -> LayerReading:
        """The features that are active where the read site holds x."""
        values = x @ self.reader.T
        if self.reader_bias is not None:
            values = values + self.reader_bias
        found = sparse(values, self.activation(values))
        return LayerReading(*found, (Term(self.reader, self.reader_bias),), self.writers)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Transcoder":
        """A copy on another device or in another precision."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(device=device, dtype=dtype)

        reader = self.reader.detach().to(device=device, dtype=dtype)
        return Transcoder(
            reader=reader,
            writers={m: w.detach().to(device=device, dtype=dtype) for m, w in self.writers.items()},
            activation=self.activation,
            reader_bias=move(self.reader_bias),
            writer_biases={
                m: b.detach().to(device=device, dtype=dtype) for m, b in self.biases.items()
            },
            skip=move(self.skip),
        )


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Features for every layer of a host: one `Transcoder` (or the host's `Neurons`) a layer."""

    layers: Sequence[Transcoder | Neurons]
    read: str = "mlp.hook_in"
    write: str = "hook_mlp_out"
    name: str = "unnamed"

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a dictionary needs at least one layer.")
        for site, known in ((self.read, READ_SITES), (self.write, WRITE_SITES)):
            if site not in known:
                raise ValueError(f"site {site!r} is not known; use one of {', '.join(known)}.")
        for index, layer in enumerate(self.layers):
            written = {*layer.writers, *layer.biases}
            outside = sorted(m for m in written if not index <= m < len(self.layers))
            if outside:
                raise ValueError(
                    f"layer {index} writes to layers {outside}; a feature can write only to its "
                    f"own layer and those above it, up to {len(self.layers) - 1}."
                )

    @property
    def exact(self) -> bool:
        """Whether the features are the whole MLP, so that there is no error to account for."""
        return all(isinstance(layer, Neurons) for layer in self.layers)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Dictionary":
        """A copy on another device or in another precision."""
        layers = [layer.to(device, dtype) for layer in self.layers]
        return Dictionary(layers, self.read, self.write, self.name)


def written(
    readings: Sequence[LayerReading], layers: Sequence[Transcoder | Neurons], m: int, x: Tensor
) -> Float[Tensor, "positions d_model"]:
    """What the features of layers 0..m write at layer m's write site, biases and skip included.

    `x` is the activation at layer m's read site (the skip path reads it).
    """
    out = torch.zeros_like(x)
    for reading, layer in zip(readings, layers, strict=False):
        if m in layer.writers:
            # One row of the sparse activations per position, times the writers.
            rows = reading.writes(m, slice(None))
            out.index_add_(0, reading.positions, rows)
        if m in layer.biases:
            out += layer.biases[m]
    skip = layers[m].skip
    return out if skip is None else out + x @ skip.T
