"""Concepts in a host: which features stand for one, and what happens when they are exchanged.

Works on batches of prompts through the Hugging Face model, with hooks on its MLPs. A group is at
most twelve features, chosen on training prompts: those that write at least 15% of all that
they write for one topic, the most written first. It detects its topic where the sum of what they
write, each weighted by the share of it that is for the topic, passes a threshold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from replacement.dictionary import Dictionary

SIZE, PRECISION = 12, 0.15


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as ids, padded on the right, with their last positions, answers and topics."""

    ids: Tensor
    last: Tensor
    answers: Tensor
    topics: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: Tensor) -> "Prompts":
        """Some of the prompts."""
        return Prompts(*(t[chosen] for t in (self.ids, self.last, self.answers, self.topics)))


def prompts(tokenizer: Any, sentences: Sequence[Any], topics: Sequence[str]) -> Prompts:
    """Encode sentences; a topic is its place in `topics`, of which `sentences` hold the name."""
    found = tokenizer([s.prompt for s in sentences]).input_ids
    ids = torch.full((len(found), max(map(len, found))), tokenizer.pad_token_id)
    for row, prompt in enumerate(found):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    place = {name: n for n, name in enumerate(topics)}
    return Prompts(
        ids,
        torch.tensor([len(prompt) - 1 for prompt in found]),
        torch.tensor(tokenizer.convert_tokens_to_ids([s.answer for s in sentences])),
        torch.tensor([place.get(s.topic, -1) for s in sentences]),
    )


# Layer -> (which features to set, to what), both (prompts, positions, features).
Sets = Mapping[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Machine:
    """A host and a dictionary, run on batches; what is not set is recomputed."""

    model: Any
    dictionary: Dictionary
    pad: int

    @torch.no_grad()
    def run(
        self, batch: Prompts, sets: Sets | None = None, replaced: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Predicted tokens and, layer by layer, the features' activations.

        `replaced` puts the features in place of every MLP, without errors. Otherwise the MLPs stay
        and what setting features changes in their writing is added.
        """
        layers: Any = self.dictionary.layers
        acts, news = [], []
        real = (batch.ids != self.pad).float()[..., None]

        def hook(module: Any, inputs: Any, out: Tensor) -> Tensor:
            index, layer = len(acts), layers[len(acts)]
            x = inputs[0]
            values = x @ layer.reader.T
            values = values if layer.reader_bias is None else values + layer.reader_bias
            own = layer.activation(values.flatten(0, 1)).view_as(values) * real
            chosen = (sets or {}).get(index)
            new = own if chosen is None else torch.where(chosen[0], chosen[1], own)
            acts.append(new)
            news.append(new if replaced else None if sets is None else new - own)
            if not replaced and sets is None:
                return out
            return self._written(
                index, x, news, torch.zeros_like(out) if replaced else out, replaced
            )

        hooks = [block.mlp.register_forward_hook(hook) for block in self.model.model.layers]
        try:
            states = self.model.model(batch.ids).last_hidden_state
        finally:
            for handle in hooks:
                handle.remove()
        logits = self.model.lm_head(states[torch.arange(len(batch)), batch.last])
        return logits.argmax(-1), acts

    def _written(self, index: int, x: Tensor, news: list[Any], out: Tensor, whole: bool) -> Tensor:
        """What the features write at a layer, with biases and skip where they are the whole MLP."""
        for layer, new in zip(self.dictionary.layers, news, strict=False):
            if index in layer.writers:
                out = out + new @ layer.writers[index]
            if whole and index in layer.biases:
                out = out + layer.biases[index]
        skip = self.dictionary.layers[index].skip
        return out + x @ skip.T if whole and skip is not None else out

    def writing(self, batch: Prompts) -> Tensor:
        """How much each feature writes in each prompt at most, in shares of what its layer writes.

        (prompts, all layers' features)
        """
        parts: list[list[Tensor]] = []
        for rows in torch.arange(len(batch)).split(256):
            _, acts = self.run(batch.rows(rows))
            parts.append([a.amax(1) for a in acts])
        layers = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        written = [layer * norm for layer, norm in zip(layers, self.norms, strict=True)]
        return torch.cat([w / w.sum(1).mean() for w in written], 1)

    @property
    def norms(self) -> list[Tensor]:
        """The length of what a unit of each feature writes, to all layers together, by layer."""
        return [
            torch.stack([(w**2).sum(1) for w in layer.writers.values()]).sum(0).sqrt()
            for layer in self.dictionary.layers
        ]


@dataclass(frozen=True, eq=False)
class Group:
    """The features that stand for one topic, how much each counts, and when they tell it."""

    features: Tensor
    weights: Tensor
    threshold: float

    def score(self, writing: Tensor) -> Tensor:
        """How strongly the group speaks in each prompt."""
        return writing[:, self.features] @ self.weights


def groups(writing: Tensor, topics: Tensor, count: int) -> list[Group]:
    """One group for each topic."""
    sums = torch.zeros(count, writing.shape[1]).index_add_(0, topics, writing)
    means = sums / torch.bincount(topics, minlength=count).clamp_min(1)[:, None]
    share = means / means.sum(0).clamp_min(1e-9)
    chosen = torch.where(share >= PRECISION, means, torch.zeros(())).topk(SIZE, dim=1)
    found = []
    for topic in range(count):
        features = chosen.indices[topic][chosen.values[topic] > 0]
        group = Group(features, share[topic, features], 0.0)
        threshold = _threshold(group.score(writing), topics == topic)
        found.append(replace(group, threshold=threshold))
    return found


def _threshold(score: Tensor, positive: Tensor) -> float:
    """Half way between the last score that the best F1 takes in and the next below it."""
    order = score.sort(descending=True)
    hits = positive[order.indices].float().cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(score) + 1) + positive.sum())
    next_below = torch.cat([order.values[1:], torch.zeros(1)])
    f1[(order.values == next_below) | (order.values <= 0)] = -1.0
    best = int(f1.argmax())
    return float(order.values[best] + next_below[best]) / 2


def f1(group: Group, writing: Tensor, positive: Tensor) -> float:
    """How well a group tells the prompts of its topic from the others."""
    told = group.score(writing) > group.threshold
    return 2 * float((told & positive).sum()) / max(1.0, float(told.sum() + positive.sum()))


def swapped(
    machine: Machine,
    batches: tuple[Prompts, Prompts],
    features: tuple[Sequence[Tensor], Sequence[Tensor]],
    chance: torch.Generator | None = None,
    replaced: bool = False,
) -> Tensor:
    """Predictions on the first batch with its group at zero and the second's as in the second.

    With `chance`, as many random active features that are in neither group are taken instead.
    """
    here, there = (machine.run(batch, replaced=replaced)[1] for batch in batches)
    sets, start = {}, 0
    for index, (mine, theirs) in enumerate(zip(here, there, strict=True)):
        off = _mask(features[0], start, mine)
        on = _mask(features[1], start, theirs)
        if chance is not None:
            both = off | on
            off, on = _random(off, both, mine, chance), _random(on, both, theirs, chance)
        sets[index] = (off | on, torch.where(on, theirs, torch.zeros(())))
        start += mine.shape[-1]
    return machine.run(batches[0], sets, replaced)[0]


def _mask(features: Sequence[Tensor], start: int, acts: Tensor) -> Tensor:
    """Where a layer's features belong to each prompt's group, at every position."""
    rows, positions, width = acts.shape
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for row, group in enumerate(features):
        inside = group[(group >= start) & (group < start + width)] - start
        mask[row, inside] = True
    return mask[:, None].expand(rows, positions, width)


def _random(mask: Tensor, both: Tensor, acts: Tensor, chance: torch.Generator) -> Tensor:
    """As many active features outside the groups as inside, per prompt, drawn at random."""
    count = (mask & (acts > 0)).flatten(1).sum(1)
    free = ((acts > 0) & ~both).flatten(1)
    order = (torch.rand(free.shape, generator=chance) * free).argsort(1, descending=True)
    drawn = torch.zeros_like(free)
    for row, n in enumerate(count.tolist()):
        drawn[row, order[row, :n]] = True
    return (drawn & free).view_as(mask)
