"""Whether circuits name the concept in the middle: of Atlas, on questions that it never saw.

    PYTHONPATH=. python benchmarks/mediators.py --out mediators.json      # under a minute

On held-out (city, relation) pairs, each asked in a phrasing drawn by seed: the label of the top
mediator between the city and the answer, and the strongest path from one to the other. Features,
labels and groups are those that `circuits.trace` finds; the world is asked only which region is
right. Exit status 1 if the top mediator is the right region in less than 85% of a dictionary's
prompts.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import circuits
import replacement
from replacement.atlas import facts
from replacement.atlas.sentences import Sentence, sentences

KINDS = ("per-layer", "cross-layer")
AIM, SEED = 0.85, 0


def questions(count: int) -> list[tuple[Sentence, str]]:
    """Held-out questions, one a pair of city and relation, each with its city."""
    world = facts.load()
    cities = {
        city: region.name for region in (*world.states, *world.countries) for city in region.cities
    }
    asked: dict[tuple[str, str], list[Sentence]] = {}
    for sentence in sentences(world):
        if sentence.held_out and sentence.family == "two-hop":
            inside = [
                c
                for c, region in cities.items()
                if region == sentence.topic and c in sentence.prompt
            ]
            asked.setdefault((max(inside, key=len), sentence.relation), []).append(sentence)
    draw = random.Random(SEED)
    pairs = draw.sample(sorted(asked), count)
    return [(draw.choice(asked[pair]), pair[0]) for pair in pairs]


def measure(kind: str, asked: list[tuple[Sentence, str]]) -> dict[str, Any]:
    """How often the concept in the middle is the region that the city is in."""
    model = replacement.load("atlas", kind)
    mediated = passed = 0
    missed = []
    for sentence, city in asked:
        graph = circuits.trace(model, sentence.prompt, targets=sentence.answer)
        circuit = graph.prune()
        try:
            found = circuit.mediators(city, sentence.answer)
            path = circuit.paths(city, sentence.answer, top=1)
        except ValueError:  # nothing of the city is left in the pruned circuit
            found, path = [], []
        right = bool(found) and found[0].label == sentence.topic
        mediated += right
        passed += bool(path) and path[0].labels == (city, sentence.topic, sentence.answer)
        if not right:
            missed.append([sentence.prompt, sentence.topic, [str(m) for m in found[:3]]])
    count = len(asked)
    return {
        "prompts": count,
        "top mediator is the region": mediated / count,
        "strongest path is city, region, answer": passed / count,
        "missed": missed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--prompts", type=int, default=100)
    asked = parser.parse_args()
    drawn = questions(asked.prompts)
    found = {kind: measure(kind, drawn) for kind in KINDS}
    text = json.dumps(found, indent=1, ensure_ascii=False)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    return int(any(f["top mediator is the region"] < AIM for f in found.values()))


if __name__ == "__main__":
    sys.exit(main())
