"""Harvest: one pass over a corpus, what every feature does there, in bounded memory.

Each feature keeps counts (how often it is active and how strongly) and a table of examples: the
chunks with its largest activations, at most a few of one activating token, so that a feature that
means one thing on one word and another on another shows both. Neurons go below zero as well as
above; they count by size and keep their sign for display.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.model import ReplacementModel
from replacement.reading import LayerReading
from replacement.training.corpus import Chunks, open_corpus
from replacement.training.harvest import watched

EXAMPLES, OF_ONE_TOKEN = 128, 4  # chunks that a feature keeps, and those with one activating token
LOWEST, BINS = -20, 40  # bin b holds sizes in [2^(b + LOWEST), 2^(b + LOWEST + 1)); ends take all
STRONG = 2  # bins below that of the largest activation that still count as strong
IN_ONE_CHUNK = 2  # examples, of different activating tokens: a place and the word for it, say
BATCH = 32  # chunks in a forward pass
_KEPT = 4096  # chunks held before those that no table refers to any more are dropped

Progress = Callable[[int, int | None], Any]  # told the chunks done, and of how many if known


class LayerHarvest:
    """What one layer's features did, chunk after chunk."""

    def __init__(self, features: int) -> None:
        self.fired = torch.zeros(features, dtype=torch.long)
        self.largest = torch.zeros(features)
        self.histogram = torch.zeros(features, BINS, dtype=torch.int32)
        self.peaks = torch.zeros(features, BINS, dtype=torch.int32)  # chunks, by their largest
        shape = (features, EXAMPLES)
        self.chunk = torch.full(shape, -1, dtype=torch.int32)
        self.position = torch.zeros(shape, dtype=torch.int32)
        self.token = torch.full(shape, -1, dtype=torch.int32)
        self.activation = torch.zeros(shape)

    def strong(self) -> Int[Tensor, " features"]:
        """Chunks with an activation of at least a quarter of the largest, to within the bins."""
        start = (bins(self.largest) - STRONG).clamp_min(0)
        counted = torch.arange(BINS) >= start[:, None]
        return (self.peaks * counted).sum(1)

    def add(
        self, number: int, tokens: Int[Tensor, " tokens"], reading: LayerReading, first: int = 0
    ) -> None:
        """Count the reading of one chunk of `tokens`, from position `first` on."""
        counted = reading.positions >= first
        features, positions, values = (
            part[counted].cpu()
            for part in (reading.features, reading.positions, reading.activations.float())
        )
        sizes = values.abs()
        if not bool(torch.isfinite(sizes).all()):
            raise ValueError(
                "the host computes NaN or infinite activations on this corpus; open it with "
                "dtype=torch.float32."
            )
        ones = torch.ones(len(features), dtype=torch.int32)
        self.fired.index_add_(0, features, ones.long())
        self.histogram.view(-1).index_add_(0, features * BINS + bins(sizes), ones)
        peak = torch.zeros_like(self.largest).scatter_reduce_(0, features, sizes, "amax")
        active = peak.nonzero()[:, 0]
        self.peaks[active, bins(peak[active])] += 1
        self.largest = torch.maximum(self.largest, peak)
        read = tokens[positions]
        for _ in range(IN_ONE_CHUNK):
            best = _first_peaks(features, sizes, len(peak))
            self._keep(number, features[best], positions[best], read[best], values[best])
            taken = torch.full((len(peak),), -1).index_put_((features[best],), read[best])
            sizes = sizes.masked_fill(read == taken[features], 0)

    def _keep(
        self,
        number: int,
        features: Int[Tensor, " active"],
        positions: Int[Tensor, " active"],
        tokens: Int[Tensor, " active"],
        values: Float[Tensor, " active"],
    ) -> None:
        """Put a chunk into the tables in the place of a weaker one.

        That is the weakest with the same activating token where there are enough of these, and
        otherwise the weakest of all; of equals the earlier chunk stays.
        """
        sizes = self.activation[features].abs()
        same = self.token[features] == tokens[:, None]
        crowded = same.sum(1, keepdim=True) >= OF_ONE_TOKEN
        weakest, slots = sizes.masked_fill(crowded & ~same, float("inf")).min(1)
        better = values.abs() > weakest
        rows, slots = features[better], slots[better]
        self.chunk[rows, slots] = number
        self.position[rows, slots] = positions[better].int()
        self.token[rows, slots] = tokens[better].int()
        self.activation[rows, slots] = values[better]


@dataclass(frozen=True, eq=False)
class Harvest:
    """A whole pass: all layers, the corpus's own counts and the chunks that tables refer to."""

    layers: tuple[LayerHarvest, ...]
    chunks: int
    positions: int
    frequency: Int[Tensor, " vocabulary"]  # in how many chunks each token stands
    pool: Mapping[int, Int[Tensor, " tokens"]]  # chunk number -> its token ids


def _first_peaks(
    features: Int[Tensor, " entries"], sizes: Float[Tensor, " entries"], count: int
) -> Int[Tensor, " active"]:
    """The entry where each feature is largest, the first of equals; none where it is zero."""
    peak = torch.zeros(count).scatter_reduce_(0, features, sizes, "amax")
    at_peak = (sizes == peak[features]) & (sizes > 0)
    entries = torch.arange(len(features))[at_peak]
    first = torch.full((count,), len(features))
    first.scatter_reduce_(0, features[at_peak], entries, "amin")
    return first[first < len(features)]


def bins(sizes: Float[Tensor, " sizes"]) -> Int[Tensor, " sizes"]:
    """The bin of each size: its power of two."""
    return (torch.frexp(sizes).exponent.long() - 1 - LOWEST).clamp(0, BINS - 1)


@torch.no_grad()
def harvest(
    model: ReplacementModel,
    corpus: Any,
    prompts: int | None = None,
    tokens: int = 128,
    skip_first: int = 0,
    progress: Progress = lambda done, total: None,
) -> Harvest:
    """One pass over a corpus, or its first `prompts` chunks of at most `tokens` tokens.

    The corpus is anything that `replacement.training` takes. The first `skip_first` positions of
    each chunk do not count: many hosts write outliers there.
    """
    layers = [LayerHarvest(layer.size) for layer in model.dictionary.layers]
    frequency = torch.zeros(model.host.vocabulary, dtype=torch.long)
    pool: dict[int, Tensor] = {}
    done, positions, kept = 0, 0, _KEPT
    source = islice(Chunks(model.host, open_corpus(corpus), tokens).once(), prompts)
    while batch := list(islice(source, BATCH)):
        for number, (chunk, readings) in enumerate(_read(model, batch), start=done):
            pool[number] = chunk.int()
            frequency[chunk.unique()] += 1
            positions += max(0, len(chunk) - skip_first)
            for layer, reading in zip(layers, readings, strict=True):
                layer.add(number, chunk, reading, skip_first)
        done += len(batch)
        if len(pool) > 2 * kept:
            pool = _referred(pool, layers)
            kept = max(_KEPT, len(pool))
        progress(done, prompts)
    if not positions:
        raise ValueError(
            "the corpus gives no position to count; give texts longer than skip_first="
            f"{skip_first} tokens."
        )
    return Harvest(tuple(layers), done, positions, frequency, _referred(pool, layers))


def _read(
    model: ReplacementModel, batch: Sequence[Sequence[int]]
) -> Iterator[tuple[Int[Tensor, " tokens"], list[LayerReading]]]:
    """The tokens and every layer's reading of each chunk of a batch.

    Chunks are read one by one, as some activations choose among all positions of a prompt.
    """
    sites = [[model.dictionary.read, *sorted(layer.hooks)] for layer in model.dictionary.layers]
    names = [f"blocks.{m}.{site}" for m, each in enumerate(sites) for site in each]
    ids, captured = watched(model.host, batch, names)
    precision = torch.promote_types(model.host.dtype, torch.float32)
    ends = torch.tensor([len(chunk) for chunk in batch]).cumsum(0).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        readings = []
        for m, layer in enumerate(model.dictionary.layers):
            seen = {s: captured[f"blocks.{m}.{s}"][start:end].to(precision) for s in sites[m]}
            readings.append(layer.read(seen[model.dictionary.read], seen))
        yield ids[start:end].cpu(), readings


def _referred(pool: Mapping[int, Tensor], layers: Sequence[LayerHarvest]) -> dict[int, Tensor]:
    """The chunks that a table refers to."""
    wanted = torch.cat([layer.chunk.unique() for layer in layers]).unique().tolist()
    return {number: pool[number] for number in wanted if number >= 0}
