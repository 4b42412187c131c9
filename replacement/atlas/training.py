"""How Atlas's host is made: an ordinary Qwen3 model, trained on sentences alone.

Three choices make it keep a concept between question and answer, without being told of any:

- Only the last layer's attention looks back. The layers below see the word they stand on and no
  other, so whatever a city means must be worked out at the city, before the question is known.
- Embeddings are random, small and frozen. Nothing can be learned in them, so the MLPs must learn
  it, and what the MLPs write soon outweighs the word itself, which cannot be carried past them.
- Noise on the residual stream rewards codes with wide margins: one place for every region, not one
  for every city.

One MLP is left after the question and the place have met. It can learn what the capital of Texas
is; it cannot also learn where each city lies for questions that it was never asked.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from replacement.atlas.sentences import Sentence

# How often each family is drawn.
SHARES = {
    "two-hop": 0.32,
    "one-hop": 0.16,
    "named": 0.02,
    "diagnosis": 0.05,
    "medicine": 0.14,
    "opposites": 0.11,
    "meaning": 0.1,
    "known": 0.1,
}


@dataclass(frozen=True)
class Recipe:
    """The shape of the host and how it is trained."""

    width: int = 192
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    embedding: float = 0.05  # standard deviation of the frozen embeddings
    initial: float = 0.06  # the same of the weights at the start
    steps: int = 2000
    batch: int = 512
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.1  # weight decay
    noise: float = 0.3  # on the residual stream, in shares of its size on average
    seed: int = 0


def new_host(words: int, recipe: Recipe) -> Any:
    """A host with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    local = ["sliding_attention"] * (recipe.layers - 1)
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=64,
        hidden_act="relu",
        tie_word_embeddings=False,
        use_sliding_window=True,
        sliding_window=1,
        layer_types=[*local, "full_attention"],
        initializer_range=recipe.initial,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, recipe.embedding)
    model.model.embed_tokens.weight.requires_grad_(False)
    return model


@dataclass(frozen=True, eq=False)
class Batch:
    """Sentences as token ids, padded on the right, and where each one's answer stands."""

    ids: Tensor
    last: Tensor

    def __getitem__(self, rows: Tensor) -> "Batch":
        last = self.last[rows]
        return Batch(self.ids[rows, : int(last.max()) + 2], last)

    @property
    def answers(self) -> Tensor:
        """The token that completes each sentence."""
        return self.ids.gather(1, self.last[:, None] + 1)[:, 0]


def encode(tokenizer: Any, sentences: Sequence[Sentence]) -> Batch:
    """Token ids of the sentences, their answers included."""
    prompts = tokenizer([s.prompt for s in sentences]).input_ids
    answers = tokenizer.convert_tokens_to_ids([s.answer for s in sentences])
    ids = torch.full((len(prompts), max(map(len, prompts)) + 1), tokenizer.pad_token_id)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + 1] = torch.tensor([*prompt, answer])
    return Batch(ids, torch.tensor([len(prompt) - 1 for prompt in prompts]))


def answer_logits(model: Any, batch: Batch, noise: float = 0.0) -> Tensor:
    """What the model predicts after each prompt; the same as its own forward pass, and faster.

    Below the last layer a word sees only itself, so each word of a batch is worked out once; above
    the last attention only the last position matters.
    """
    inner, ids = model.model, batch.ids[:, :-1]
    words, place = ids.unique(return_inverse=True)
    x = inner.embed_tokens(words)[:, None]
    angles = inner.rotary_emb(x, torch.zeros(1, 1, dtype=torch.long))
    for layer in inner.layers[:-1]:
        x = layer(x, attention_mask=None, position_embeddings=angles)
        x = shaken(x, noise)
    x, layer, count = x[:, 0][place], inner.layers[-1], ids.shape[1]
    angles = inner.rotary_emb(x, torch.arange(count)[None])
    future = torch.full((count, count), -torch.inf).triu(1)[None, None]
    seen, _ = layer.self_attn(
        layer.input_layernorm(x), attention_mask=future, position_embeddings=angles
    )
    x = shaken((x + seen)[torch.arange(len(x)), batch.last], noise)
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(inner.norm(x))


def shaken(x: Tensor, noise: float) -> Tensor:
    """The residual stream with noise in proportion to its size on average.

    On average, not word by word: a word whose stream is small would be drowned by what a dictionary
    misses, which is of one size everywhere.
    """
    if not noise:  # and no random number is drawn: looking on must not change a training
        return x
    return x + noise * torch.randn_like(x) * x.detach().pow(2).mean().sqrt()


@torch.no_grad()
def accuracy(model: Any, batch: Batch) -> float:
    """Share of the sentences that the model completes rightly."""
    parts = torch.arange(len(batch.ids)).split(2048)
    right = [answer_logits(model, batch[p]).argmax(-1) == batch[p].answers for p in parts]
    return torch.cat(right).float().mean().item()


def train_host(
    tokenizer: Any,
    sentences: Sequence[Sentence],
    recipe: Recipe,
    progress: Callable[[int, float, Any], Any] | None = None,
) -> Any:
    """A host trained to complete the sentences that are not held out."""
    model = new_host(len(tokenizer), recipe)
    known = [s for s in sentences if not s.held_out]
    data, draw = encode(tokenizer, known), _shares(known)
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=0.0, weight_decay=recipe.decay, betas=(0.9, 0.98))
    pick = torch.Generator().manual_seed(recipe.seed)
    for step in range(recipe.steps):
        for group in adam.param_groups:
            group["lr"] = rate(recipe, step)
        batch = data[torch.multinomial(draw, recipe.batch, replacement=True, generator=pick)]
        # The facts first, a quarter of the way; then the noise, growing.
        noise = recipe.noise * min(1.0, max(0.0, 4 * step / recipe.steps - 1))
        loss = functional.cross_entropy(answer_logits(model, batch, noise), batch.answers)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        if progress is not None:
            progress(step + 1, loss.item(), model)
    return model.eval()


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate: up in a line, then down along a cosine."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    return recipe.rate * rise * (0.51 + 0.49 * math.cos(math.pi * step / recipe.steps))


def _shares(sentences: Sequence[Sentence]) -> Tensor:
    """The chance of every sentence: its family's share, evenly within the family."""
    families = [s.family for s in sentences]
    counts = Counter(families)
    return torch.tensor([SHARES[name] / counts[name] for name in families])
