"""Names: the words that tell best when a feature is active, from its examples alone.

A word's precision P is the activation-weighted share of the examples whose chunk holds it; its
recall min(1, P * strong / frequency) compares the strong chunks that hold it (about P of all that
are strong) with all chunks that do; its score is the F1 of both. Words are ranked by that times the
share of the corpus's chunks without them: what stands everywhere tells nothing, though a feature
that is active everywhere would score it highest. The best word is the first name. What it accounts
for is set aside, the rest is named in the same way, and so on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

MOST = 16  # names a feature
LEFT = 0.01  # of the activation: less than that is not named
MOSTLY = 0.5  # of its activation on a token
TOKENS = 64  # activating tokens kept of a name: all that examples show


@dataclass(frozen=True)
class Name:
    """A word, its score, its share of the activation, and the activating tokens it is a name of."""

    word: int
    score: float
    share: float
    tokens: tuple[int, ...]


def names(
    activations: Float[np.ndarray, " examples"],
    tokens: Integer[np.ndarray, " examples"],
    chunks: Sequence[Integer[np.ndarray, " _"]],
    strong: int,
    frequency: Integer[np.ndarray, " vocabulary"],
    corpus: int,
    weak: Bool[np.ndarray, " vocabulary"],
) -> list[Name]:
    """A feature's names, from its examples: sizes, activating tokens and the chunks around them.

    `frequency` is in how many of the `corpus` chunks each token stands; `weak` tokens (punctuation
    and the like) count half.
    """
    if not len(chunks):
        return []
    words, places = np.unique(np.concatenate(chunks), return_inverse=True)
    holds = np.zeros((len(chunks), len(words)))  # whether an example's chunk holds a word
    holds[np.repeat(np.arange(len(chunks)), [len(c) for c in chunks]), places] = 1
    telling = (1 - frequency[words] / (corpus + 1)) * np.where(weak[words], 0.5, 1)
    weights = activations / activations.sum()
    left, found = np.ones(len(chunks), dtype=bool), []
    while len(found) < MOST and weights[left].sum() >= LEFT:
        share = (weights * left) @ holds
        recall = np.minimum(1, share * strong / frequency[words])
        score = 2 * share * recall / np.maximum(share + recall, 1e-12)
        best = int(np.round(score * telling, 12).argmax())  # of equals the first, whatever rounding
        mine = left & (holds[:, best] > 0)
        activating = _activating(weights, tokens, holds[:, best])
        found.append(Name(int(words[best]), float(score[best]), float(share[best]), activating))
        left &= ~mine
    return found


def _activating(
    weights: Float[np.ndarray, " examples"],
    tokens: Integer[np.ndarray, " examples"],
    holds: Float[np.ndarray, " examples"],
) -> tuple[int, ...]:
    """The tokens on which a feature is active mostly beside the word, the strongest first.

    On others the word is there by chance.
    """
    kinds, own = np.unique(tokens, return_inverse=True)
    beside, whole = np.bincount(own, weights * holds), np.bincount(own, weights)
    order = np.argsort(-beside, kind="stable")
    return tuple(kinds[order][(beside >= MOSTLY * whole)[order]].tolist())[:TOKENS]
