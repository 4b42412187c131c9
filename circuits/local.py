"""Local: the host on one prompt with everything non-linear frozen, as a chain of operators.

Layer m takes the residual stream from `pre` to `mid` to `post`:

    mid  = pre + attention(pre)
    post = mid + skip(mid) + what the features write here + error + constants

(a parallel block feeds all of it from `pre`). Features of layer m read from `mid` through `read`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.operators import Attention, Norm, Skip, frozen_attention, frozen_norm
from replacement.blocks import Block, NormWeights
from replacement.host import Run
from replacement.model import ReplacementModel
from replacement.reading import Reading

WRITTEN = 1 << 26  # numbers of written directions kept between sweeps


@dataclass(frozen=True, eq=False)
class Layer:
    """One frozen layer."""

    attention: Attention
    read: Norm | None
    write: Norm | None
    skip: Skip | None
    parallel: bool
    at_mid: Float[Tensor, "positions d_model"] | None  # constants that this layer's features see
    at_post: Float[Tensor, "positions d_model"] | None  # constants that they do not


@dataclass(frozen=True, eq=False)
class Group:
    """Readers of one layer, as vectors in the stream (at `mid`, or at the end for outputs)."""

    layer: int
    positions: Int[Tensor, " readers"]
    vectors: Float[Tensor, "readers d_model"]
    constants: Float[Tensor, " readers"]


@dataclass(frozen=True, eq=False)
class Local:
    """The frozen chain, the sources that write into it, and where their columns are."""

    layers: Sequence[Layer]
    reading: Reading
    errors: Float[Tensor, "layers positions d_model"] | None
    embeddings: Float[Tensor, "positions d_model"]
    final: Norm

    @property
    def positions(self) -> int:
        """How many tokens the prompt has."""
        return len(self.embeddings)

    @cached_property
    def starts(self) -> list[list[int]]:
        """Per layer, where each position's active features start within the layer's reading."""
        edges = torch.arange(self.positions + 1)
        return [
            torch.searchsorted(layer.positions.cpu(), edges).tolist()
            for layer in self.reading.layers
        ]

    @cached_property
    def offsets(self) -> list[int]:
        """Per layer, the number of its first feature among all active ones; the total last."""
        sizes = [0, *(len(layer.features) for layer in self.reading.layers)]
        return torch.tensor(sizes).cumsum(0).tolist()

    @property
    def active(self) -> int:
        """How many features are active; they are numbered 0.. by layer, position, feature."""
        return self.offsets[-1]

    @property
    def others(self) -> int:
        """Columns after the features': errors by layer and position, tokens, a remainder for
        each layer, one bias."""
        errors = 0 if self.errors is None else self.errors.shape[0] * self.positions
        return errors + self.positions + len(self.layers) + 1

    @property
    def width(self) -> int:
        """All columns of a full row."""
        return self.active + self.others

    @cached_property
    def feature_layers(self) -> Int[Tensor, " active"]:
        """The layer of every active feature."""
        sizes = torch.tensor([len(layer.features) for layer in self.reading.layers])
        return torch.arange(len(self.layers)).repeat_interleave(sizes)

    @cached_property
    def feature_positions(self) -> Int[Tensor, " active"]:
        """The position of every active feature."""
        return torch.cat([layer.positions for layer in self.reading.layers]).cpu()

    def written(self, source: int, m: int, cone: int) -> Float[Tensor, "active d_model"]:
        """What layer `source`'s features at positions below `cone` write into `post` of layer m.

        Every sweep needs it again; it is kept as long as all of it together is small.
        """
        if (source, m) in self._written:
            return self._written[source, m][: self.starts[source][cone]]
        reading, write = self.reading.layers[source], self.layers[m].write
        small = self._written_size <= WRITTEN
        end = len(reading.features) if small else self.starts[source][cone]
        out = reading.writes(m, slice(0, end))
        if write is not None:
            out = write.push_at(out, reading.positions[:end])
        if small:
            self._written[source, m] = out
        return out[: self.starts[source][cone]]

    @cached_property
    def _written(self) -> dict[tuple[int, int], Tensor]:
        return {}

    @cached_property
    def _written_size(self) -> int:
        rows = sum(len(r.features) * len(r.writers) for r in self.reading.layers)
        return rows * self.embeddings.shape[1]

    def readers(self, numbers: Int[Tensor, " chosen"]) -> list[Group]:
        """The chosen features (ascending numbers) as readers, the highest layer first."""
        groups = []
        for m in reversed(range(len(self.layers))):
            inside = (numbers >= self.offsets[m]) & (numbers < self.offsets[m + 1])
            which = (numbers[inside] - self.offsets[m]).to(self.embeddings.device)
            if len(which):
                groups.append(self._group(m, which))
        return groups

    def _group(self, m: int, which: Tensor) -> Group:
        reading, read = self.reading.layers[m], self.layers[m].read
        vectors, constants = reading.readers(which), reading.constants(which)
        positions = reading.positions[which]
        if read is not None:
            if read.offset is not None:
                constants = constants + vectors @ read.offset
            vectors = read.pull_at(vectors, positions)
        return Group(m, positions, vectors, constants)

    def outputs(
        self,
        vectors: Float[Tensor, "readers d_model"],
        positions: Int[Tensor, " readers"],
        constants: Float[Tensor, " readers"],
    ) -> Group:
        """Readers of the final norm's output, such as the unembedding's columns."""
        if self.final.offset is not None:
            constants = constants + vectors @ self.final.offset
        return Group(len(self.layers), positions, self.final.pull_at(vectors, positions), constants)


def freeze(model: ReplacementModel, run: Run, reading: Reading) -> Local:
    """The chain of operators for one run."""
    blocks = [model.host.block(m) for m in range(model.host.n_layers)]
    layers = [_layer(model, blocks[m], m, run) for m in range(len(blocks))]
    errors = reading.errors
    if errors is not None:
        errors = torch.stack(
            [
                e if layer.write is None else layer.write.push(e)
                for e, layer in zip(errors, layers, strict=True)
            ]
        )
    final = _norm(model.host.final_norm, run)
    return Local(layers, reading, errors, run["blocks.0.hook_in"], final)


def _norm(weights: NormWeights, run: Run) -> Norm:
    return frozen_norm(weights, run[weights.hook])


def _layer(model: ReplacementModel, block: Block, m: int, run: Run) -> Layer:
    dictionary = model.dictionary
    post1 = None if block.post1 is None else _norm(block.post1, run)
    post2 = None if block.post2 is None else _norm(block.post2, run)
    pattern = run[f"blocks.{m}.attn.hook_pattern"]
    attention = frozen_attention(block, pattern, _norm(block.norm1, run), post1)
    read = {
        "mlp.hook_in": _norm(block.norm2, run),
        "ln2.hook_normalized": Norm(run[block.norm2.hook], center=block.norm2.center),
        "hook_resid_mid": None,
    }[dictionary.read]
    write = post2 if dictionary.write == "mlp.hook_out" else None
    weight = dictionary.layers[m].skip
    skip = None if weight is None else Skip(weight, read, write)
    written = _constants(model, m, write, skip, run)
    mid = attention.bias
    if block.parallel and mid is not None:
        mid, written = None, mid if written is None else written + mid
    return Layer(attention, read, write, skip, block.parallel, mid, written)


def _constants(
    model: ReplacementModel, m: int, write: Norm | None, skip: Skip | None, run: Run
) -> Tensor | None:
    """What the writers' biases, the skip path and a post-norm add at `post`."""
    total = torch.zeros_like(run["blocks.0.hook_in"])
    for layer in model.dictionary.layers:
        if m in layer.biases:
            total = total + layer.biases[m]
    if write is not None:
        total = write.push(total)
        total = total if write.bias is None else total + write.bias
    if skip is not None and skip.bias is not None:
        total = total + skip.bias
    return total if bool(total.any()) else None
