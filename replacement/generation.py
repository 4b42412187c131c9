"""Generate: text token by token, with features changed and watched on the way.

The host keeps the keys and values of the tokens that it has read, so each step reads one token.
Everything recomputes (the free regime): there is no clean run to hold to where tokens are new.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.activations import BatchTopK
from replacement.host import Host
from replacement.interventions import Names
from replacement.model import ReplacementModel
from replacement.plan import Plan, listed, plan
from replacement.regimes import Steering, hooked

if TYPE_CHECKING:
    from replacement.monitor import Firing, Monitor


@dataclass(frozen=True, eq=False)
class Generation:
    """A prompt and its continuation.

    `stopped` says why it ends: "length", "stop" (a token or text to stop at) or "rule" (one of
    the monitor's). `firings` is what the monitor reports.
    """

    ids: list[int]
    tokens: list[str]
    prompt_length: int
    text: str
    new_text: str
    stopped: str
    firings: tuple["Firing", ...] = ()

    @property
    def new_ids(self) -> list[int]:
        """The ids of the continuation."""
        return self.ids[self.prompt_length :]

    @property
    def new_tokens(self) -> list[str]:
        """The tokens of the continuation."""
        return self.tokens[self.prompt_length :]


@dataclass(frozen=True, eq=False)
class Sampler:
    """How the next token is chosen: the likeliest at temperature 0, else at random."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature} must be a number from 0 (the likeliest) up."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1: the tokens drawn from.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]: the share drawn from.")

    def __call__(self, logits: Float[Tensor, " vocabulary"], generator: torch.Generator) -> int:
        """One token."""
        if self.temperature == 0:
            return int(logits.argmax())
        likely, ids = (logits.cpu().double() / self.temperature).softmax(-1).sort(descending=True)
        likely = likely[: self.top_k]
        if self.top_p is not None:
            # Keep the fewest tokens that together hold the share.
            likely = likely[likely.cumsum(0) - likely < self.top_p * likely.sum()]
        return int(ids[torch.multinomial(likely, 1, generator=generator)])


@torch.no_grad()
def generate(
    model: ReplacementModel,
    prompt: str | Sequence[int] | Tensor,
    interventions: Any = (),
    max_new_tokens: int = 20,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Sequence[str | int] | None = None,
    names: Names | None = None,
    monitor: "Monitor | None" = None,
) -> Generation:
    """Continue a prompt; see `ReplacementModel.generate`."""
    host, sampler = model.host, sampler or Sampler()
    ids = host.tokenize(prompt)
    length = len(ids)
    steering = _steering(
        model, ids, _total(host, length, max_new_tokens), interventions, names, monitor
    )
    ends = _ends(host) if stop is None else list(stop)
    generator = torch.Generator().manual_seed(seed)
    firings: list[Firing] = []
    stopped, cache = "length", _cache()
    with hooked(host, steering.hooks()):
        while len(ids) < length + max_new_tokens:
            logits = _step(host, ids[steering.start :], cache)
            if monitor is not None:
                fired = monitor.fire(steering.seen, steering.start, host, ids)
                firings += fired
                if any(firing.action == "stop" for firing in fired):
                    stopped = "rule"
                    break
            steering.start = len(ids)
            ids.append(sampler(logits, generator))
            if _ended(host, ids, length, ends):
                stopped = "stop"
                break
    return _generation(host, ids, length, stopped, firings)


def _generation(
    host: Host, ids: list[int], length: int, stopped: str, firings: Sequence[Any]
) -> Generation:
    return Generation(
        ids=ids,
        tokens=[host.token(i) for i in ids],
        prompt_length=length,
        text=host.text(ids),
        new_text=host.text(ids[length:]),
        stopped=stopped,
        firings=tuple(firings),
    )


def _total(host: Host, length: int, new: int) -> int:
    """The tokens that there will be at most."""
    if new < 1:
        raise ValueError(f"max_new_tokens={new} must be at least 1.")
    if length + new > host.context:
        raise ValueError(
            f"max_new_tokens={new} after a prompt of {length} tokens is more than {host.name} "
            f"reads; ask for at most {host.context - length}."
        )
    return length + new


def _steering(
    model: ReplacementModel,
    ids: list[int],
    total: int,
    interventions: Any,
    names: Names | None,
    monitor: "Monitor | None",
) -> Steering:
    """The plan for all tokens that there may be, and what is to be watched."""
    watched = {} if monitor is None else monitor.watched
    clamps = [] if monitor is None else monitor.clamps
    seen = functools.cache(lambda: (ids, model.features(model.run(ids))))
    chosen = plan(model, [*listed(interventions), *clamps], len(ids), total, names, seen)
    _check_causal(model, chosen, watched)
    return Steering(model, chosen, watched=watched)


def _check_causal(model: ReplacementModel, chosen: Plan, watched: Any) -> None:
    """A feature must not depend on tokens that are still to come."""
    for m in sorted({*chosen, *watched}):
        activation = getattr(model.dictionary.layers[m], "activation", None)
        if isinstance(activation, BatchTopK) and activation.threshold is None:
            raise ValueError(
                f"layer {m} picks its features over a whole prompt (BatchTopK without a "
                "threshold), which is not known while it grows; give BatchTopK(k, threshold)."
            )


def _cache() -> Any:
    """Keys and values of all tokens, also where attention has a window: masks leave out the rest.

    The cache that transformers makes of its own accord forgets what lies outside a window, but
    with a window of one token (Atlas has such layers) it forgets nothing and masks nothing.
    """
    from transformers import DynamicCache

    return DynamicCache()


def _step(host: Host, new: list[int], cache: Any) -> Float[Tensor, " vocabulary"]:
    """Read some tokens more, whose keys and values the cache takes: the logits after the last."""
    batch = torch.tensor([new], device=host.device)
    logits, _ = host.bridge(batch, return_type="logits_and_cache", past_key_values=cache)
    logits = logits[0, -1]
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            f"{host.name} computes NaN or infinite logits; open it with dtype=torch.float32, or "
            "intervene less strongly."
        )
    return logits


def _ends(host: Host) -> list[int]:
    """The host's own tokens for the end of a text."""
    config = getattr(host.bridge.original_model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    ends = [*ends, getattr(host.tokenizer, "eos_token_id", None)]
    return [end for end in ends if end is not None]


def _ended(host: Host, ids: list[int], length: int, ends: Sequence[str | int]) -> bool:
    texts = [end for end in ends if isinstance(end, str)]
    if ids[-1] in ends:
        return True
    new = host.text(ids[length:]) if texts else ""
    return any(text in new for text in texts)
