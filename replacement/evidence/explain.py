"""Explain: ask a language model what a feature means, and see whether its label predicts anything.

Of a feature's strong examples every other one is shown, with the activating word marked, and the
model gives a label. The others are held out: mixed with texts in which the feature is silent, they
are shown with the label, and the model says of each whether the feature is active there. The score
is the balanced accuracy of that, so that 0.5 is chance. Nothing here runs unless it is called.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from replacement.evidence.evidence import Place
from replacement.evidence.gathering import Example, distinct, examples
from replacement.evidence.harvest import Harvest
from replacement.evidence.speakers import Speaker
from replacement.host import Host
from replacement.model import ReplacementModel
from replacement.training.randomness import generator

SHOWN, ASKED = 8, 5  # examples shown for a label, and held out for its score
STRONG = 0.25  # of its largest activation, from which a feature counts as active
_TRIED = 8 * ASKED  # chunks drawn in search of those where it is silent

_LABEL = """\
A feature of a language model is active on the word between « and » in each of these texts:

{texts}

What do these words have in common, or what are these texts about? Answer with a label of one to \
five words and nothing else."""

_PREDICT = """\
A feature of a language model is described as: {label}

Is that feature active anywhere in each of these texts?

{texts}

Answer with one line for each text: its number, a colon, and yes or no."""


def explain(
    model: ReplacementModel,
    found: Harvest,
    places: Iterable[Place],
    speaker: Speaker,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[Place, tuple[str, float]]:
    """Labels and scores of features by a speaker, of those with two strong examples."""
    said: dict[Place, tuple[str, float]] = {}
    for done, (layer, feature) in enumerate(places, start=1):
        seen = distinct(examples(found, found.layers[layer], feature))
        strong = [e for e in seen if abs(e.activation) >= STRONG * abs(seen[0].activation)]
        if len(strong) > 1:
            label = labelled(model.host, strong[::2][:SHOWN], speaker)
            silent = _silent(model, found, (layer, feature))
            held = [example.chunk.tolist() for example in strong[1::2][:ASKED]]
            if label:
                said[layer, feature] = label, score(model.host, label, held, silent, speaker)
        progress(done)
    return said


def labelled(host: Host, shown: Sequence[Example], speaker: Speaker) -> str:
    """A label from examples."""
    texts = "\n".join(f"- {_marked(host, example)}" for example in shown)
    lines = speaker.answer(_LABEL.format(texts=texts)).strip().splitlines()
    return lines[0].strip(" \"'.") if lines else ""


def score(
    host: Host,
    label: str,
    active: Sequence[list[int]],
    silent: Sequence[list[int]],
    speaker: Speaker,
) -> float:
    """Balanced accuracy of telling active from silent texts by a label.

    No answer means no; where there are no texts of a kind, that half of the score is chance.
    """
    truth = [True] * len(active) + [False] * len(silent)
    texts = [host.text(chunk) for chunk in (*active, *silent)]
    order = torch.randperm(len(texts), generator=generator("explain", label)).tolist()
    listed = "\n".join(f"{n}. {_line(texts[i])}" for n, i in enumerate(order, start=1))
    reply = speaker.answer(_PREDICT.format(label=label, texts=listed))
    yes = {int(n) for n in re.findall(r"(?im)^\W*(\d+)\W+yes\b", reply)}
    told = {i: n in yes for n, i in enumerate(order, start=1)}
    right = [told[i] == is_active for i, is_active in enumerate(truth)]
    halves = (right[: len(active)], right[len(active) :])
    return sum(sum(half) / len(half) if half else 0.5 for half in halves) / 2


def _silent(model: ReplacementModel, found: Harvest, place: Place) -> list[list[int]]:
    """Chunks, drawn at random by a seed, in which a feature is nowhere strong."""
    layer, feature = place
    numbers, bound = sorted(found.pool), STRONG * float(found.layers[layer].largest[feature])
    order = torch.randperm(len(numbers), generator=generator("silent", place))[:_TRIED]
    silent: list[list[int]] = []
    for index in order.tolist():
        ids = found.pool[numbers[index]].tolist()
        reading = model.read(model.run(ids)).layers[layer]
        mine = reading.activations[reading.features == feature].abs()
        if not bool((mine >= bound).any()):
            silent.append(ids)
        if len(silent) == ASKED:
            break
    return silent


def _marked(host: Host, example: Example) -> str:
    """A window of an example with the activating token marked."""
    ids, at = example.window()
    before, after = (host.text(part) if part else "" for part in (ids[:at], ids[at + 1 :]))
    return _line(f"{before} «{host.token(ids[at]).strip()}» {after}")


def _line(text: str) -> str:
    return " ".join(text.split())
