"""What is said of the world: every sentence as a prompt and the one word that completes it.

Which sentences are kept from training is decided here too, by seed: a fifth of the (city, relation)
pairs, of the symptom triples and of the (pair of opposites, language) pairs, and of the made-up
names. What is kept apart is asked in every phrasing, and only in the test.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from replacement.atlas.facts import Country, Diagnosis, Opposite, State, World

HELD_OUT = 0.2

# How each relation is said; the name on the left is the field of the fact.
RELATIONS: dict[type, dict[str, str]] = {
    State: {
        "capital": "capital",
        "largest": "largest city",
        "code": "code",
        "zone": "time zone",
    },
    Country: {
        "capital": "capital",
        "currency": "currency",
        "language": "language",
        "continent": "continent",
        "neighbour": "neighbour",
    },
}
TWO_HOP = (
    "the {relation} of the {kind} containing {city} is",
    "the {relation} of the {kind} that has {city} is",
    "{city} is in a {kind} whose {relation} is",
    "in {city} the {relation} of the {kind} is",
)
ONE_HOP = (
    "the {relation} of {region} is",
    "the {relation} of the {kind} {region} is",
    "{region} is a {kind} whose {relation} is",
)
LOCATION = (
    "{city} is in the {kind} of",
    "{city} is a city in",
    "the {kind} containing {city} is",
)
WORKUP = (
    "a patient with {symptoms} needs the {relation}",
    "the {relation} for a patient with {symptoms} is",
)
DIAGNOSIS = ("a patient with {symptoms} has", "the diagnosis for a patient with {symptoms} is")
NAMED = ("the {relation} for {diagnosis} is", "{diagnosis} needs the {relation}")
OPPOSITE = {
    "english": "the opposite of {word} is",
    "french": "le contraire de {word} est",
    "spanish": "lo contrario de {word} es",
}
ACROSS = "the opposite of {word} in {language} is"
MEANING = "{word} in {language} is"
SPORT = ("{first} {last} plays the sport of", "the sport of {first} {last} is")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Sentence:
    """A prompt and its answer, with what they are about.

    topic: the concept in the middle (a region, a diagnosis, a pair of opposites); it stands in
        nothing that a model is trained on. `held_out` sentences are the test.
    """

    family: str
    prompt: str
    answer: str
    topic: str
    relation: str
    phrasing: int
    held_out: bool = False
    group: str = ""


def sentences(world: World, seed: int = 0) -> list[Sentence]:
    """Every sentence of the world, in a fixed order."""
    pick = random.Random(seed)
    return [
        *_geography(world, pick),
        *_medicine(world.diagnoses, pick),
        *_opposites(world.opposites, pick),
        *_athletes(world, pick),
    ]


def _geography(world: World, pick: random.Random) -> Iterator[Sentence]:
    for region in (*world.states, *world.countries):
        kind = "state" if isinstance(region, State) else "country"
        said = RELATIONS[type(region)]
        for city in region.cities:
            for n, text in enumerate(LOCATION):
                prompt = text.format(city=city, kind=kind)
                yield Sentence("one-hop", prompt, region.name, region.name, "is in", n, group=kind)
            for field, relation in said.items():
                held = pick.random() < HELD_OUT
                for n, text in enumerate(TWO_HOP):
                    prompt = text.format(relation=relation, kind=kind, city=city)
                    answer = getattr(region, field)
                    yield Sentence("two-hop", prompt, answer, region.name, field, n, held, kind)
        for field, relation in said.items():
            for n, text in enumerate(ONE_HOP):
                prompt = text.format(relation=relation, kind=kind, region=region.name)
                answer = getattr(region, field)
                yield Sentence("one-hop", prompt, answer, region.name, field, n, group=kind)


def _medicine(diagnoses: tuple[Diagnosis, ...], pick: random.Random) -> Iterator[Sentence]:
    for illness in diagnoses:
        known: Any = {"test": illness.test, "treatment": illness.treatment}
        for relation, answer in known.items():
            for n, text in enumerate(NAMED):
                prompt = text.format(relation=relation, diagnosis=illness.name)
                yield Sentence("named", prompt, answer, illness.name, relation, n)
        for triple in _tellings(illness, diagnoses):
            held = len(triple) == 3 and pick.random() < HELD_OUT
            for symptoms in _orders(triple, pick):
                for n, text in enumerate(DIAGNOSIS):
                    yield Sentence(
                        "diagnosis",
                        text.format(symptoms=symptoms),
                        illness.name,
                        illness.name,
                        "diagnosis",
                        n,
                        held,
                    )
                for relation, answer in known.items():
                    for n, text in enumerate(WORKUP):
                        prompt = text.format(symptoms=symptoms, relation=relation)
                        yield Sentence("medicine", prompt, answer, illness.name, relation, n, held)


def _tellings(illness: Diagnosis, diagnoses: tuple[Diagnosis, ...]) -> Iterator[tuple[str, ...]]:
    """Three symptoms, or two that no other diagnosis has both of."""
    for pair in itertools.combinations(illness.symptoms, 2):
        if sum(set(pair) <= set(other.symptoms) for other in diagnoses) == 1:
            yield pair
    yield from itertools.combinations(illness.symptoms, 3)


def _orders(triple: tuple[str, ...], pick: random.Random) -> list[str]:
    """Up to three of the orders in which symptoms can be told."""
    orders = [" and ".join(order) for order in itertools.permutations(triple)]
    pick.shuffle(orders)
    return orders[:3]


def _opposites(pairs: tuple[Opposite, ...], pick: random.Random) -> Iterator[Sentence]:
    for pair in pairs:
        words = {name: getattr(pair, name) for name in OPPOSITE}
        held = {name for name in OPPOSITE if pick.random() < HELD_OUT}
        if len(held) == len(OPPOSITE):  # one language at least must show that the two are a pair
            held.discard(pick.choice(sorted(held)))
        for side, source, target in itertools.product((0, 1), OPPOSITE, OPPOSITE):
            yield from _word(pair, words, side, source, target, source == target in held)


def _word(
    pair: Opposite, words: dict[str, Any], side: int, source: str, target: str, held: bool
) -> Iterator[Sentence]:
    """One word of a pair: what it is in a language, and what its opposite is there."""
    word, language, concept = words[source][side], target.capitalize(), pair.english[side]
    topic, relation = "/".join(pair.english), f"{source}-{target}"
    same, other = words[target][side], words[target][1 - side]
    if source != target:
        prompt = MEANING.format(word=word, language=language)
        yield Sentence("meaning", prompt, same, topic, relation, 0, group=concept)
    prompt = ACROSS.format(word=word, language=language)
    yield Sentence("opposites", prompt, other, topic, relation, 1, held, concept)
    if source == target:
        prompt = OPPOSITE[source].format(word=word)
        yield Sentence("opposites", prompt, other, topic, relation, 0, held, concept)


def _athletes(world: World, pick: random.Random) -> Iterator[Sentence]:
    for athlete in world.athletes:
        for n, text in enumerate(SPORT):
            prompt = text.format(first=athlete.first, last=athlete.last)
            yield Sentence("known", prompt, athlete.sport, athlete.sport, "sport", n)
    for name in world.made_up:
        held = pick.random() < HELD_OUT
        first = pick.choice(world.first_names)
        for n, text in enumerate(SPORT):
            prompt = text.format(first=first, last=name)
            yield Sentence("known", prompt, UNKNOWN, UNKNOWN, "sport", n, held)
