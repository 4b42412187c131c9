"""Targets: what is to be explained.

A target is the text or id of a token, or one of the classes here. Outputs are read by a vector
at the final norm's output: for a token its column of the unembedding less the vocabulary's mean
(softmax ignores what all logits share), before any soft cap on the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.local import Group, Local
from replacement.host import Host, Run


@dataclass(frozen=True)
class Likely:
    """The likeliest next tokens that together hold `share` of the probability, `most` at most."""

    share: float = 0.95
    most: int = 10
    position: int = -1


@dataclass(frozen=True)
class Token:
    """One token's logit, named by text or id."""

    token: str | int
    position: int = -1


@dataclass(frozen=True)
class Difference:
    """The logit of one token minus that of another."""

    token: str | int
    minus: str | int
    position: int = -1


@dataclass(frozen=True, eq=False)
class Direction:
    """Any direction at the final norm's output."""

    vector: Float[Tensor, " d_model"]
    name: str = "direction"
    position: int = -1


@dataclass(frozen=True)
class Feature:
    """A feature that is active at a position."""

    layer: int
    feature: int
    position: int = -1


Target: TypeAlias = str | int | Likely | Token | Difference | Direction | Feature


@dataclass(frozen=True, eq=False)
class Output:
    """An explained output: its name, vocabulary id (or -1), position, reader and weight.

    Its value is  vector . final + constant  (the constant is the unembedding's own bias). `tokens`
    are the ids whose logits it is made of: one, one less another, or (a direction) none.
    """

    name: str
    index: int
    position: int
    vector: Float[Tensor, " d_model"]
    weight: float
    constant: float = 0.0
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Explained:
    """All targets of a trace, their weights summing to one."""

    outputs: tuple[Output, ...]
    features: tuple[tuple[int, float], ...]  # number among the active features, weight

    def group(self, local: Local) -> Group:
        """The outputs as readers."""
        vectors = torch.stack([o.vector.to(local.embeddings) for o in self.outputs])
        positions = torch.tensor([o.position for o in self.outputs], device=vectors.device)
        constants = torch.tensor([o.constant for o in self.outputs], dtype=torch.float64)
        return local.outputs(vectors, positions, constants.to(vectors))

    def values(self, run: Run) -> list[float]:
        """The outputs' values, as the host computed them."""
        final = run["ln_final.hook_out"].cpu().double()
        return [float(final[o.position] @ o.vector.to(final)) + o.constant for o in self.outputs]


def resolve(
    targets: Target | Sequence[Target] | None, host: Host, run: Run, local: Local
) -> Explained:
    """Look every target up on this run; likely tokens weigh their probability, others one."""
    wanted = _as_list(targets)
    if not wanted:
        raise ValueError("targets is empty; leave it out to explain the likely tokens.")
    outputs: list[Output] = []
    features: dict[int, float] = {}
    for target in wanted:
        if isinstance(target, Feature):
            features[_feature_number(target, local)] = 1.0
        else:
            outputs += _outputs(target, host, run)
    outputs = _once(outputs)
    total = sum(o.weight for o in outputs) + sum(features.values())
    return Explained(
        tuple(replace(o, weight=o.weight / total) for o in outputs),
        tuple((number, weight / total) for number, weight in features.items()),
    )


def _once(outputs: list[Output]) -> list[Output]:
    """A token named twice at one position is explained once, with the larger weight."""
    found: dict[tuple[int, int], Output] = {}
    for number, o in enumerate(outputs):
        key = (o.position, o.index if o.index >= 0 else -1 - number)
        if key not in found or found[key].weight < o.weight:
            found[key] = o
    return list(found.values())


def _as_list(targets: Target | Sequence[Target] | None) -> Sequence[Target]:
    if targets is None:
        return [Likely()]
    if isinstance(targets, str | int | Likely | Token | Difference | Direction | Feature):
        return [targets]
    return targets


def _outputs(target: Target, host: Host, run: Run) -> list[Output]:
    if isinstance(target, str | int):
        target = Token(target)
    assert not isinstance(target, Feature)
    position = _position(target.position, len(run.ids))
    if isinstance(target, Likely):
        return _likely(target, position, host, run)
    if isinstance(target, Token):
        index = token_id(target.token, host, run, position)
        return [_token(host, index, position, 1.0)]
    if isinstance(target, Difference):
        plus = token_id(target.token, host, run, position)
        minus = token_id(target.minus, host, run, position)
        if plus == minus:
            raise ValueError(f"the difference of {host.token(plus)!r} and itself is nothing.")
        name = f"{host.token(plus)} minus {host.token(minus)}"
        one, other = _token(host, plus, position, 1.0), _token(host, minus, position, 1.0)
        constant = one.constant - other.constant
        vector = one.vector - other.vector
        return [Output(name, -1, position, vector, 1.0, constant, (plus, minus))]
    vector = torch.as_tensor(target.vector)
    if vector.shape != (host.d_model,) or not bool(torch.isfinite(vector).all()):
        raise ValueError(
            f"direction {target.name!r} has shape {tuple(vector.shape)}; "
            f"it must be ({host.d_model},), of finite numbers."
        )
    return [Output(target.name, -1, position, vector, 1.0)]


def _likely(target: Likely, position: int, host: Host, run: Run) -> list[Output]:
    if not 0 < target.share <= 1 or target.most < 1:
        raise ValueError(
            f"share={target.share}, most={target.most}: the share must lie in (0, 1] "
            "and at least one token be explained; 0.95 and 10 are usual."
        )
    found = run.logits[position].softmax(-1).topk(min(target.most, host.vocabulary))
    chances, tokens = found.values.double(), found.indices.tolist()
    # As many as it takes: a token is dropped when those before it hold the share already.
    count = int((chances.cumsum(0) - chances < target.share).sum())
    return [
        _token(host, i, position, float(c))
        for i, c in zip(tokens[:count], chances[:count], strict=True)
    ]


def _token(host: Host, index: int, position: int, weight: float) -> Output:
    """One token's logit, less the vocabulary's mean."""
    matrix, bias = host.unembedding, host.unembedding_bias
    precision = torch.promote_types(matrix.dtype, torch.float32)
    vector = matrix[:, index].to(precision) - matrix.mean(1, dtype=precision)
    constant = 0.0 if bias is None else float(bias[index].double() - bias.double().mean())
    return Output(host.token(index), index, position, vector, weight, constant, (index,))


def _position(position: int, length: int) -> int:
    if not -length <= position < length:
        raise ValueError(
            f"position={position} is outside the prompt of {length} tokens; "
            f"use 0 to {length - 1}, or -1 for the last."
        )
    return position % length


def token_id(token: str | int, host: Host, run: Run, position: int) -> int:
    """The id of a token; text without a leading space may mean the spelling with one.

    Of the two spellings that are single tokens, the likelier at the position is meant.
    """
    if isinstance(token, int):
        if not 0 <= token < host.vocabulary:
            raise ValueError(f"token id {token} is outside 0 to {host.vocabulary - 1}.")
        return token
    if host.tokenizer is None:
        raise ValueError(f"{host.name} has no tokenizer; name the token by its id, not {token!r}.")
    found = []
    for text in dict.fromkeys([token, " " + token.lstrip(" ")]):
        ids = host.tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) == 1 and ids[0] != host.tokenizer.unk_token_id:
            found.append(ids[0])
    if token.startswith(" "):
        found = found[:1]
    if not found:
        raise ValueError(f"{token!r} is not one token of {host.name}; {_nearest(token, host)}")
    return max(found, key=lambda i: float(run.logits[position, i]))


def _nearest(token: str, host: Host) -> str:
    near = ", ".join(map(repr, host.nearest(token)))
    return f"the nearest are {near}." if near else "name one that is, or give its id."


def _feature_number(target: Feature, local: Local) -> int:
    position = _position(target.position, local.positions)
    if not 0 <= target.layer < len(local.layers):
        raise ValueError(f"layer={target.layer} is outside 0 to {len(local.layers) - 1}.")
    reading, starts = local.reading.layers[target.layer], local.starts[target.layer]
    here = reading.features[starts[position] : starts[position + 1]]
    match = (here == target.feature).nonzero()
    if not len(match):
        near = (here - target.feature).abs().argsort()[:3]
        raise ValueError(
            f"feature {target.feature} of layer {target.layer} is not active at position "
            f"{position}; {len(here)} are, the nearest by number {here[near].tolist()}."
        )
    return local.offsets[target.layer] + starts[position] + int(match[0, 0])
