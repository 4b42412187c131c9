"""The evidence that ships with Atlas's dictionaries: what their features are active on.

The corpus says what things are: sentences of one hop with their answers. Questions of two hops, a
relation of the region that holds a city, are not in it, and nothing that is held out.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from replacement import evidence, formats
from replacement.atlas.sentences import Sentence
from replacement.evidence.gathering import distilled
from replacement.evidence.harvest import Progress, harvest
from replacement.host import Host
from replacement.model import ReplacementModel

FAMILIES = ("one-hop", "named", "diagnosis", "meaning", "opposites", "known")


def corpus(sentences: Sequence[Sentence]) -> list[str]:
    """The sentences that say what things are, completed, in an order drawn by seed.

    Not in the world's own, where neighbours are about one thing: of equal activations examples are
    the first that come.
    """
    chosen = [s for s in sentences if s.family in FAMILIES and not s.held_out]
    random.Random(0).shuffle(chosen)
    return [f"{s.prompt} {s.answer}" for s in chosen]


def write_evidence(
    host: Host, folder: Path, sentences: Sequence[Sentence], progress: Progress
) -> None:
    """Write the evidence of the dictionary in a folder, beside it."""
    model = ReplacementModel(host, formats.load(folder))
    found = harvest(model, corpus(sentences), progress=progress)
    kept = distilled(model, found, "what Atlas's world says of things, without the held-out part")
    evidence.save(kept, folder / evidence.FILE)
