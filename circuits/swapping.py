"""Swap: one concept in the place of another, and what the model answers then.

Names are all that a user gives. With {"Texas": "California"} the prompt is run once more as its
*counterpart*: the word on which Texas is read is replaced by the word on which California is (of
each, the token on which most features bear that name, by the model's evidence). Then, in the prompt
itself, every feature that bears the one name or the other takes the activation that it has in the
counterpart: those of Texas fall silent where they were active, and those of California are as
active as they are of their own accord. Everything else recomputes. Only the concept is exchanged,
not the word: all other features of the counterpart, those of its word among them, stay out. Where
both are in the prompt, {"Texas": "California", "California": "Texas"} has them change places.

As a control, as many random active features of the same layers, outside of both concepts, are
silenced and taken over in the same way.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits.rates import Rate, rate
from replacement import Set
from replacement.evidence import concepts
from replacement.evidence.concepts import Active
from replacement.evidence.evidence import Evidence
from replacement.host import Run
from replacement.intervene import intervene, observe
from replacement.interventions import unknown
from replacement.model import ReplacementModel
from replacement.reading import LayerReading
from replacement.regimes import Clean

SHOWN = 5  # tokens of each run whose probabilities are reported
NAMED = 8  # concepts of a prompt that are told where another was looked for
_WANTED = ("prompt", "source", "target", "answer")

Place = tuple[int, int, int]  # layer, position, feature


@dataclass(frozen=True, eq=False)
class Swap:
    """A prompt's answer as it is, with concepts exchanged, and with random features exchanged.

    `answers` has the likely tokens of all three, with their probabilities (before, after,
    control). `features` has what was set: layer, position, feature, token, before and after.
    `counterpart` is the prompt from which activations were taken.
    """

    prompt: str
    exchanged: Mapping[str, str]
    counterpart: str
    before: str
    after: str
    control: str
    answers: pd.DataFrame
    features: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Swaps:
    """Swaps over a table of prompts: how often the answer became the one wanted.

    `table` is the one given, with the columns before, after, control (answers), success and
    control_success, and `problem`: why a row could not be swapped (it counts as a failure).
    """

    table: pd.DataFrame
    success: Rate
    control: Rate


@dataclass(frozen=True, eq=False)
class _Pair:
    """A prompt and its counterpart, and of each the features of the concepts exchanged."""

    evidence: Evidence
    clean: Clean
    other: Run
    readings: Sequence[LayerReading]
    off: Mapping[Place, float]
    on: Mapping[Place, float]


@torch.no_grad()
def swap(
    model: ReplacementModel,
    prompt: str | Sequence[int] | Tensor,
    exchange: Mapping[str, str],
    seed: int = 0,
) -> Swap:
    """Put concepts in the place of others, {"Texas": "California"}; `seed` draws the control."""
    if not exchange:
        raise ValueError('exchange is empty; name two concepts, {"Texas": "California"}.')
    pair = _pair(model, observe(model, prompt), exchange)
    changed = {**dict.fromkeys(pair.off, 0.0), **pair.on}
    drawn = _random(pair, np.random.default_rng(seed))
    runs = [pair.clean.run.logits, *(_set(model, pair.clean, new) for new in (changed, drawn))]
    chances = [logits[-1].cpu().double().softmax(-1) for logits in runs]
    before, after, control = (model.host.token(int(p.argmax())) for p in chances)
    return Swap(
        prompt=prompt if isinstance(prompt, str) else model.host.text(pair.clean.run.ids),
        exchanged=dict(exchange),
        counterpart=model.host.text(pair.other.ids),
        before=before,
        after=after,
        control=control,
        answers=_answers(model, chances),
        features=_features(pair, changed),
    )


def swaps(model: ReplacementModel, table: pd.DataFrame, seed: int = 0) -> Swaps:
    """Swap in every row of a table with the columns prompt, source, target and answer.

    `answer` is the token that the swap should lead to; spaces around it do not count.
    """
    missing = [name for name in _WANTED if name not in table]
    if missing or not len(table):
        lacks = f"lacks the column {missing[0]!r}" if missing else "has no rows"
        raise ValueError(f"the table {lacks}; give one row a prompt: {', '.join(_WANTED)}.")
    rows = []
    for number, row in enumerate(table[list(_WANTED)].itertuples(index=False)):
        found = {"before": "", "after": "", "control": "", "problem": ""}
        try:
            done = swap(model, row.prompt, {row.source: row.target}, seed + number)
            found |= {"before": done.before, "after": done.after, "control": done.control}
        except ValueError as error:
            found["problem"] = str(error)
        rows.append(found)
    result = table.assign(**pd.DataFrame(rows, index=table.index))
    answer = result["answer"].str.strip()
    for name, column in (("success", "after"), ("control_success", "control")):
        result[name] = (result[column].str.strip() == answer) & (result["problem"] == "")
    counts = [rate(int(result[n].sum()), len(result)) for n in ("success", "control_success")]
    return Swaps(result, *counts)


def _pair(model: ReplacementModel, clean: Clean, exchange: Mapping[str, str]) -> _Pair:
    """The prompt's counterpart, and where the concepts are in both."""
    evidence = model.evidence
    if evidence is None:
        raise ValueError(
            f"the dictionary {model.dictionary.name!r} has no evidence, so no concept has a name; "
            "gather some with `circuits features`, or load it with features=."
        )
    ids, names = list(clean.run.ids), [*exchange, *exchange.values()]
    words = {name: _words(model, evidence, name) for name in names}
    for source, target in exchange.items():
        places = _found(evidence, [source], clean.run, clean.readings)
        if not places:
            raise ValueError(_absent(evidence, source, clean))
        # The first of the positions whose token is most of the name's.
        at = min({p for _, p, _ in places}, key=lambda p: (-words[source].get(ids[p], 0), p))
        ids[at] = _best(words[target])
    other = model.run(ids)
    readings = model.features(other)
    off = _found(evidence, names, clean.run, clean.readings)
    on = _found(evidence, names, other, readings)
    return _Pair(evidence, clean, other, readings, off, on)


def _words(model: ReplacementModel, evidence: Evidence, name: str) -> dict[int, int]:
    """The tokens on which features bear a name, and how many do."""
    found = concepts.carriers(evidence, name)
    if not found:
        raise unknown(model, name)
    return found


def _best(words: Mapping[int, int]) -> int:
    """The token on which most features bear the name; of equals that of the lowest id."""
    return max(words, key=lambda token: (words[token], -token))


def _found(
    evidence: Evidence, names: Sequence[str], run: Run, readings: Sequence[LayerReading]
) -> dict[Place, float]:
    """The features that bear one of the names, with their activations."""
    entries = [e for name in names for e in concepts.active(evidence, name, run.ids, readings)]
    return {_place(entry): entry.activation for entry in entries}


def _place(entry: Active) -> Place:
    return entry.layer, entry.position, entry.feature


def _absent(evidence: Evidence, name: str, clean: Clean) -> str:
    """Why a concept cannot be taken out of a prompt, and what could be."""
    strength: dict[str, float] = {}
    for entry in concepts.everything(clean.readings):
        label = evidence.label(entry.layer, entry.feature, clean.run.ids[entry.position])
        strength[label] = strength.get(label, 0.0) + abs(entry.activation)
    strength.pop("", None)
    there = ", ".join(sorted(strength, key=lambda label: -strength[label])[:NAMED])
    return f"the concept {name!r} is not active on this prompt; these are: {there}."


def _set(model: ReplacementModel, clean: Clean, new: Mapping[Place, float]) -> Tensor:
    done = [Set((layer, feature), to, at) for (layer, at, feature), to in new.items()]
    return intervene(model, clean, done).logits


def _random(pair: _Pair, draw: np.random.Generator) -> dict[Place, float]:
    """As many random features of each layer silenced, and taken over, as the concepts have."""
    both = {(layer, feature) for layer, _, feature in (*pair.off, *pair.on)}
    chosen: dict[Place, float] = {}
    sides = ((pair.off, pair.clean.readings, False), (pair.on, pair.readings, True))
    for own, readings, taken in sides:
        counts = Counter(layer for layer, _, _ in own)
        entries = concepts.everything(readings)
        for layer, count in sorted(counts.items()):
            free = [e for e in entries if e.layer == layer and (layer, e.feature) not in both]
            picked = draw.choice(len(free), min(count, len(free)), replace=False)
            chosen |= {_place(free[i]): free[i].activation if taken else 0.0 for i in picked}
    return chosen


def _answers(model: ReplacementModel, chances: Sequence[Tensor]) -> pd.DataFrame:
    """The likely tokens of all runs, with their probability in each."""
    likely = [p.topk(min(SHOWN, len(p))).indices.tolist() for p in chances]
    ids = list(dict.fromkeys(token for tokens in likely for token in tokens))
    columns = zip(("before", "after", "control"), chances, strict=True)
    table = pd.DataFrame({name: p[ids].numpy() for name, p in columns})
    table.insert(0, "token", [model.host.token(i) for i in ids])
    return table


def _features(pair: _Pair, changed: Mapping[Place, float]) -> pd.DataFrame:
    tokens = pair.clean.run.tokens
    clean = {_place(e): e.activation for e in concepts.everything(pair.clean.readings)}
    rows = [
        (layer, at, feature, tokens[at], clean.get((layer, at, feature), 0.0), to)
        for (layer, at, feature), to in sorted(changed.items())
    ]
    names = ["layer", "position", "feature", "token", "before", "after"]
    return pd.DataFrame(rows, columns=names)
