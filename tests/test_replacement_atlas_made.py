"""How Atlas is made: what is held out stays out, and the short cut of its training is exact."""

import runpy
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replacement import Host, evidence, formats
from replacement.atlas import build, dictionaries, facts, features
from replacement.atlas.sentences import HELD_OUT, UNKNOWN, sentences
from replacement.atlas.tokenizer import tokenizer, vocabulary
from replacement.atlas.training import Batch, Recipe, accuracy, answer_logits, encode, new_host


@cache
def said():
    return sentences(facts.load())


@cache
def words():
    return tokenizer(vocabulary(facts.load(), said()))


@cache
def model():
    return new_host(len(words()), Recipe(width=32, hidden=16, heads=2)).eval()


def of(*families, held_out):
    return [s for s in said() if s.family in families and s.held_out == held_out]


def test_no_prompt_of_the_test_is_trained_on():
    assert not {s.prompt for s in said() if s.held_out} & {
        s.prompt for s in said() if not s.held_out
    }


def test_a_held_out_pair_is_asked_in_no_phrasing():
    """Counted by place and answer, not by the sentences' own notes."""
    places = {city for r in (*facts.load().states, *facts.load().countries) for city in r.cities}

    def pairs(held_out):
        found = set()
        asked = of("two-hop", held_out=held_out)
        for s, ids in zip(asked, words()([s.prompt for s in asked]).input_ids, strict=True):
            (city,) = places.intersection(words().convert_ids_to_tokens(ids))
            found.add((city, s.relation))
        return found

    held, known = pairs(True), pairs(False)
    assert not held & known
    assert abs(len(held) / (len(held) + len(known)) - HELD_OUT) < 0.03


def test_a_made_up_name_of_the_test_is_never_read_in_training():
    last = {s.prompt.replace("the sport of ", "").split()[1] for s in of("known", held_out=True)}
    seen = {word for s in said() if not s.held_out for word in s.prompt.split()}
    assert len(last) > 100 and not last & seen
    assert {s.answer for s in of("known", held_out=True)} == {UNKNOWN}


def test_a_diagnosis_is_never_written_in_the_prompt_that_asks_for_it():
    assert not [s.prompt for s in of("medicine", held_out=True) if s.topic in s.prompt]


def test_every_word_is_one_token():
    for s in said()[::101]:
        ids = words()(s.prompt).input_ids
        assert words().unk_token_id not in ids
        assert words().decode(ids) == s.prompt
        assert len(words()(s.answer).input_ids) == 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=20, unique=True))
def test_the_short_cut_of_training_is_the_forward_pass(chosen):
    batch = encode(words(), [said()[i] for i in chosen])
    with torch.no_grad():
        logits = model()(batch.ids[:, :-1]).logits[torch.arange(len(chosen)), batch.last]
        assert torch.allclose(answer_logits(model(), batch), logits, atol=1e-4)


def test_accuracy_counts_what_the_model_completes():
    batch = encode(words(), said()[:50])
    with torch.no_grad():
        told = answer_logits(model(), batch).argmax(-1)
    ids = batch.ids.clone()
    ids[torch.arange(25), batch.last[:25] + 1] = told[:25]
    ids[torch.arange(25, 50), batch.last[25:] + 1] = (told[25:] + 1) % len(words())
    assert accuracy(model(), Batch(ids, batch.last)) == 0.5


def test_the_evidence_is_from_what_things_are_and_not_from_what_is_asked():
    known = features.corpus(said())
    asked = {f"{s.prompt} {s.answer}" for s in said() if s.held_out}
    asked |= {f"{s.prompt} {s.answer}" for s in of("two-hop", "medicine", held_out=False)}
    assert "Dallas is in the state of Texas" in known and "the capital of Texas is Austin" in known
    assert len(known) > 10_000 and not asked & set(known)


def test_building_leaves_a_host_and_dictionaries_that_open(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "Recipe", lambda: Recipe(width=32, hidden=16, heads=2, steps=2))
    small = {
        kind: tuple(
            replace(part, settings=replace(part.settings, features=16, k=2, steps=2))
            for part in parts
        )
        for kind, parts in dictionaries.PARTS.items()
    }
    monkeypatch.setattr(build, "PARTS", small)
    monkeypatch.setattr(features, "FAMILIES", ("named",))
    build.build(tmp_path, lambda line: None)
    host = Host.open(tmp_path / "model")
    for kind in small:
        dictionary = formats.load(tmp_path / kind)
        assert len(dictionary.layers) == host.n_layers == 4
        crossing = [1, 2] if kind == "cross-layer" else [1]
        assert [list(layer.writers) for layer in dictionary.layers] == [[0], crossing, [2], [3]]
    files = [tmp_path / kind / evidence.FILE for kind in small]
    before = [file.read_bytes() for file in files]
    assert [evidence.load(file).source.chunks for file in files] == [96, 96]
    others = [file for file in tmp_path.rglob("*") if file.is_file() and file not in files]
    kept = [(file, file.stat().st_mtime_ns) for file in others]
    for file in files:
        file.unlink()
    monkeypatch.setattr(sys, "argv", ["atlas", "--features", "--out", str(tmp_path)])
    runpy.run_module("replacement.atlas", run_name="__main__")
    assert [file.read_bytes() for file in files] == before
    assert kept == [(file, file.stat().st_mtime_ns) for file in others]


@pytest.mark.parametrize("kind", list(dictionaries.PARTS))
def test_the_parts_cover_every_layer_once(kind):
    parts = dictionaries.PARTS[kind]
    assert [n for p in parts for n in range(p.first, p.end)] == list(range(Recipe().layers))
