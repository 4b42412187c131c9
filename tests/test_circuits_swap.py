"""Swaps and the names of concepts, against every label looked up one by one."""

import math

import evidences
import hosts
import numpy as np
import pandas as pd
import pytest
import torch

import circuits
import replacement
from circuits.rates import rate
from replacement import Ablate, Scale, Set
from replacement.evidence import Evidence, concepts
from replacement.interventions import resolve

DALLAS = "the capital of the state containing Dallas is"
CALIFORNIA = "the capital of the state containing California is"


@pytest.fixture(scope="module")
def atlas():
    return replacement.load("atlas", device="cpu")


def labelled(model, prompt, name):
    """Every active feature of a prompt whose label on its token is the name."""
    run, found = model.run(prompt), {}
    for layer, reading in enumerate(model.features(run)):
        rows = zip(reading.positions, reading.features, reading.activations, strict=True)
        for position, feature, activation in rows:
            token = run.ids[int(position)]
            if model.evidence.label(layer, int(feature), token) == name:
                found[layer, int(position), int(feature)] = float(activation)
    return found


def seen(model, prompt):
    run = model.run(prompt)
    return lambda: (run.ids, model.features(run))


@pytest.mark.parametrize("name", ["Texas", "capital", "say Austin", "Dallas"])
def test_a_name_is_the_features_that_bear_it_on_the_prompt(atlas, name):
    every = labelled(atlas, DALLAS, name)
    assert every
    found = concepts.active(atlas.evidence, name, *seen(atlas, DALLAS)())
    assert {tuple(entry[:3]): entry.activation for entry in found} == pytest.approx(every)
    pairs = sorted({(layer, feature) for layer, _, feature in every})
    assert resolve(atlas, name, seen=seen(atlas, DALLAS)) == pairs


def test_elsewhere_it_is_the_features_that_are_mainly_of_that_name(atlas):
    sizes = atlas.evidence.source.sizes
    every = [
        (layer, feature)
        for layer, size in enumerate(sizes)
        for feature in range(size)
        if "California" in atlas.evidence.label(layer, feature).split(" / ")
    ]
    assert len(every) > 2
    assert resolve(atlas, "California", seen=seen(atlas, DALLAS)) == every
    assert resolve(atlas, "California") == every


def test_carriers_are_the_tokens_on_which_features_bear_a_name():
    known, counts = evidences.gathered(), {}
    places = [(m, f) for m, size in enumerate(known.source.sizes) for f in range(size)]
    name = next(known.label(*place) for place in places if known.label(*place)).split(" / ")[0]
    for place in places:
        activating = {token for told in known._names(*place) for token in told["ids"]}
        for token in activating:
            counts[token] = counts.get(token, 0) + (known.label(*place, token) == name)
    expected = {token: count for token, count in counts.items() if count}
    assert concepts.carriers(known, name) == expected and expected


def test_labels_that_a_user_or_an_explainer_gave_are_names():
    known = Evidence().relabelled({(1, 4): "bridge"}).with_explanations({(2, 5): ("tower", 0.9)})
    speaking = hosts.speaking()
    model = replacement.ReplacementModel(speaking.host, speaking.dictionary, known)
    assert resolve(model, "bridge") == [(1, 4)] and resolve(model, "tower") == [(2, 5)]
    assert resolve(model, ["bridge", "L0/F3"]) == [(1, 4), (0, 3)]
    assert resolve(model, "bridge", {"bridge": [(0, 0)]}) == [(0, 0)]  # one's own group first
    assert concepts.known(known) == {"bridge", "tower"} and not concepts.carriers(known, "bridge")
    with pytest.raises(ValueError, match="'brigde' is not known; the nearest that is: bridge"):
        resolve(model, "brigde")
    with pytest.raises(ValueError, match="give \\(layer, feature\\)"):
        resolve(speaking, "bridge")


def test_named_interventions_are_those_on_their_features(atlas):
    pairs = resolve(atlas, "Texas", seen=seen(atlas, DALLAS))
    for regime in ("free", "constrained", "direct"):
        named = atlas.run(DALLAS, [Ablate("Texas")], regime=regime)
        spelled = atlas.run(DALLAS, [Ablate(pairs)], regime=regime)
        assert torch.equal(named.logits, spelled.logits)
        assert not torch.equal(named.logits, named.clean_logits)
    texts = [
        atlas.generate(DALLAS, [Scale(what, 0.0)], max_new_tokens=3).text
        for what in ("Texas", pairs)
    ]
    assert texts[0] == texts[1] != atlas.generate(DALLAS, max_new_tokens=3).text


def test_a_name_known_but_nowhere_to_be_found_is_refused(atlas):
    weak = sorted(concepts.known(atlas.evidence) - {""})
    name = next(n for n in weak if not concepts.mainly(atlas.evidence, n))
    with pytest.raises(ValueError, match="no feature is mainly"):
        resolve(atlas, name, seen=seen(atlas, "the"))


def test_a_swap_is_what_its_parts_by_hand_make_of_the_prompt(atlas):
    found = circuits.swap(atlas, DALLAS, {"Texas": "California"})
    assert found.counterpart == CALIFORNIA
    assert (found.before, found.after, found.control) == ("Austin", "Sacramento", "Austin")
    off, on = labelled(atlas, DALLAS, "Texas"), labelled(atlas, CALIFORNIA, "California")
    new = {**dict.fromkeys(off, 0.0), **on}
    done = [Set((layer, feature), to, at) for (layer, at, feature), to in new.items()]
    after = atlas.run(DALLAS, done)
    row = found.answers.set_index("token")
    for name, logits in (("before", after.clean_logits), ("after", after.logits)):
        chances = logits[-1].double().softmax(-1)
        for token in ("Austin", "Sacramento"):
            (index,) = atlas.host.tokenizer(token).input_ids
            assert row[name][token] == pytest.approx(float(chances[index]), rel=1e-4, abs=1e-9)
    table = found.features.set_index(["layer", "position", "feature"])
    assert dict(table["after"]) == pytest.approx(new)
    assert table["before"][next(iter(off))] == pytest.approx(next(iter(off.values())))


def test_two_concepts_change_places_and_the_seed_draws_the_control(atlas):
    both = circuits.swap(atlas, "Dallas Fresno", {"Texas": "California", "California": "Texas"})
    assert both.counterpart == "California Texas"
    one, same, other = (
        circuits.swap(atlas, DALLAS, {"Texas": "Ohio"}, seed=s).answers["control"]
        for s in (0, 0, 1)
    )
    assert one.equals(same) and not one.equals(other)


def test_a_table_of_swaps_has_rates_and_what_went_wrong(atlas):
    rows = [
        (DALLAS, "Texas", "California", "Sacramento"),
        ("the capital of the country containing Lyon is", "France", "Japan", "Tokyo"),
        (DALLAS, "Ohio", "California", "Sacramento"),
    ]
    table = pd.DataFrame(rows, columns=["prompt", "source", "target", "answer"], index=[5, 7, 9])
    found = circuits.swaps(atlas, table)
    assert found.table["success"].to_dict() == {5: True, 7: True, 9: False}
    assert not found.table["control_success"].any()
    assert "'Ohio' is not active on this prompt; these are:" in found.table["problem"][9]
    assert found.success == rate(2, 3) and found.control == rate(0, 3)
    assert "66.7%" in str(found.success) and "success" not in table


@pytest.mark.parametrize(
    ("exchange", "line"),
    [
        ({}, "exchange is empty"),
        ({"Texs": "California"}, "'Texs' is not known; the nearest that is: Texas"),
        ({"Texas": "Calfornia"}, "the nearest that is: California"),
        ({"Ohio": "Texas"}, "'Ohio' is not active on this prompt; these are: .*Texas"),
    ],
)
def test_a_swap_that_cannot_be_is_one_clear_line(atlas, exchange, line):
    with pytest.raises(ValueError, match=line):
        circuits.swap(atlas, DALLAS, exchange)


def test_without_evidence_or_columns_there_is_no_swap(atlas):
    with pytest.raises(ValueError, match="has no evidence"):
        circuits.swap(hosts.speaking(), hosts.TEXT, {"Texas": "France"})
    for table, line in (
        (pd.DataFrame({"prompt": ["a"], "source": ["b"], "answer": ["c"]}), "column 'target'"),
        (pd.DataFrame(columns=["prompt", "source", "target", "answer"]), "has no rows"),
    ):
        with pytest.raises(ValueError, match=line):
            circuits.swaps(atlas, table)


@pytest.mark.parametrize(("hits", "trials"), [(0, 200), (197, 200), (1, 1), (3, 7), (20, 20)])
def test_a_rate_has_wilsons_interval(hits, trials):
    z = 1.959963984540054
    p, n = hits / trials, trials
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = rate(hits, trials)
    assert np.allclose((found.low, found.high), (middle - half, middle + half), atol=1e-12)
    assert found.share == p and (found.hits, found.trials) == (hits, trials)


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="trials=0"):
        rate(0, 0)
