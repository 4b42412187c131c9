"""A corpus that needs none: text sampled from the host itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from replacement.host import Host
from replacement.training.corpus import Documents
from replacement.training.parallel import Ranks
from replacement.training.randomness import generator
from replacement.training.settings import Settings


@dataclass(frozen=True)
class SelfGenerated:
    """Text sampled from the host, from its beginning-of-text token on, at a temperature.

    A host without such a token begins with a random one.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be more than 0; 1 is usual.")


def generated(host: Host, corpus: SelfGenerated, settings: Settings, ranks: Ranks) -> Documents:
    """Sampled documents by number. Each batch has random numbers of its own, so that any can be
    sampled again without those before it."""

    def documents(start: int) -> Iterator[list[int]]:
        batch, within = divmod(start, settings.prompts)
        while True:
            random = generator(settings.seed, "sample", ranks.rank, batch)
            rows = sample(host, settings, corpus.temperature, random)
            yield from (_ended(host, row) for row in rows.tolist()[within:])
            batch, within = batch + 1, 0

    return documents


@torch.no_grad()
def sample(
    host: Host, settings: Settings, temperature: float, random: torch.Generator
) -> Int[Tensor, "prompts length"]:
    """A batch of sampled prompts, token by token, with the host's cache of keys and values."""
    first = _special(host, "bos_token_id")
    if first is None:
        tokens = torch.randint(host.vocabulary, (settings.prompts, 1), generator=random)
    else:
        tokens = torch.full((settings.prompts, 1), first)
    cache = None
    for _ in range(min(settings.length, host.context) - 1):
        logits, cache = host.bridge(
            tokens[:, -1:].to(host.device),
            return_type="logits_and_cache",
            past_key_values=cache,
            use_cache=True,
        )
        chances = torch.softmax(logits[:, -1].float().cpu() / temperature, dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=random)], dim=1)
    return tokens


def _ended(host: Host, row: list[int]) -> list[int]:
    """A sampled prompt up to its end-of-text token."""
    end = _special(host, "eos_token_id")
    return row[: row.index(end, 1)] if end in row[1:] else row


def _special(host: Host, name: str) -> int | None:
    found = getattr(host.tokenizer, name, None)
    found = getattr(host.bridge.original_model.config, name, None) if found is None else found
    return found[0] if isinstance(found, list) else found
