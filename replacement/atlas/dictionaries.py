"""How Atlas's dictionaries are made, from what its MLPs read and write and from nothing else.

Below the last layer a word's activations are the same wherever it stands, so those layers learn
from words alone. What the last layer does for an answer happens at the ends of prompts, where only
a handful of words stand, so it learns from ends of prompts, the answers evenly. Nothing that the
layers below write at the end of a prompt tells one answer from another, so the features of the last
layer are its own in the cross-layer dictionary too.

The first layer gets many features, as hardly any of what it does is shared by words that mean the
same. The middle ones get few that fire rarely, and these come to stand for regions: larger ones
reconstruct better, and stand for cities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from replacement.atlas.sentences import Sentence
from replacement.atlas.training import Batch, encode, shaken
from replacement.dictionary import Dictionary, Transcoder
from replacement.training import Settings, fit

TIMES = 16  # ends of prompts for every answer
COPIES = 4  # of every word, each shaken anew
NOISE = 0.3  # as much as the host was trained under, and of the order of what a dictionary misses


@dataclass(frozen=True)
class Part:
    """Some neighbouring layers that are trained together, and how."""

    first: int
    end: int
    settings: Settings


# The last part is the last layer, which learns from ends of prompts.
_FIRST = Settings(features=1024, k=16, steps=2500, batch=512)
_MIDDLE = Settings(features=512, k=2, steps=2500, batch=512)
_LAST = Settings(features=1024, k=3, steps=2500, batch=512)
PARTS = {
    "per-layer": (Part(0, 1, _FIRST), Part(1, 3, _MIDDLE), Part(3, 4, _LAST)),
    "cross-layer": (
        Part(0, 1, _FIRST),
        Part(1, 3, replace(_MIDDLE, kind="cross-layer", k=3)),
        Part(3, 4, _LAST),
    ),
}


def train_dictionary(
    model: Any,
    tokenizer: Any,
    sentences: Sequence[Sentence],
    parts: Sequence[Part],
    progress: Callable[[Any], Any] | None = None,
) -> Dictionary:
    """A dictionary for Atlas's host, from the sentences that are not held out."""
    torch.manual_seed(parts[0].settings.seed)
    batch = encode(tokenizer, [s for s in sentences if not s.held_out])
    read, write = lower_layers(model, batch.ids[:, :-1], tokenizer.pad_token_id)
    layers: list[Transcoder] = []
    for part in parts[:-1]:
        span = slice(part.first, part.end)
        found = fit(read[span], write[span], part.settings, progress)
        layers += [_moved(layer, part.first) for layer in found.layers]
    last = parts[-1]
    found = fit(*last_layer(model, batch, last.settings.seed), last.settings, progress)
    kind = parts[1].settings.kind
    return Dictionary([*layers, _moved(found.layers[0], last.first)], name=f"atlas {kind}")


def _moved(layer: Any, up: int) -> Transcoder:
    """A transcoder that writes some layers higher than it was trained for."""
    return Transcoder(
        reader=layer.reader,
        writers={m + up: writer for m, writer in layer.writers.items()},
        activation=layer.activation,
        reader_bias=layer.reader_bias,
        writer_biases={m + up: bias for m, bias in layer.biases.items()},
    )


@torch.no_grad()
def lower_layers(model: Any, ids: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """What the MLPs below the last layer read and write, word by word.

    A word counts by the root of how often it is said: the few words of the questions stand in every
    prompt, so they must be right, and yet are not to drown the thousands of names.
    """
    words, counts = ids[ids != pad].unique(return_counts=True)
    words = words.repeat_interleave((counts.sqrt() / 4).ceil().long() * COPIES)
    seen = _watched(model, words[:, None])
    read, write = (torch.stack([layer[side][:, 0] for layer in seen[:-1]]) for side in (0, 1))
    return read, write


@torch.no_grad()
def last_layer(model: Any, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """What the last MLP reads and writes where prompts end, as often for every answer."""
    pick = torch.Generator().manual_seed(seed)
    chosen = []
    for answer in batch.answers.unique():
        rows = (batch.answers == answer).nonzero()[:, 0]
        chosen.append(rows[torch.randint(len(rows), (TIMES,), generator=pick)])
    read, write = [], []
    for rows in torch.cat(chosen).split(1024):
        at = torch.arange(len(rows)), batch.last[rows]
        last = _watched(model, batch.ids[rows, :-1])[-1]
        read.append(last[0][at])
        write.append(last[1][at])
    return torch.cat(read)[None], torch.cat(write)[None]


def _watched(model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What every MLP reads and writes."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.mlp.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
        for block in model.model.layers
    ]
    hooks += [
        block.register_forward_hook(lambda module, inputs, out: shaken(out, NOISE))
        for block in model.model.layers[:-1]
    ]
    try:
        model.model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
