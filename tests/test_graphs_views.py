"""What a picture says of its boxes: shares, chances and places; how edges pass a stack of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from graph_cases import graph
from pictures import circuit

from graphs.drawing import draw
from graphs.hovering import hover_texts
from graphs.neuronpedia import neuronpedia
from graphs.page import page_data
from graphs.views import about, concept_view, feature_view


def chain(seed):
    """A circuit with a group of two features of which one feeds the other."""
    made = graph(seed, layers=4, features=3, positions=3).prune(0.9, 1.0)
    names, kind = made.names(), dict(zip(made.nodes["node"], made.nodes["kind"], strict=True))
    inner = made.edges.loc[[kind[n] == "feature" == kind[m] for n, m in ends(made)]]
    strongest = inner.nlargest(1, "share").iloc[0]
    return made.group([names[int(strongest[end])] for end in ("source", "target")], "both")


def ends(made):
    return made.edges[["source", "target"]].itertuples(index=False, name=None)


def met(made, chosen):
    """How much of what is explained meets these nodes: every path walked down from its output."""
    fed: dict[int, list[tuple[int, float]]] = {}
    for (s, t), direct in zip(ends(made), made.edges["direct"], strict=True):
        fed.setdefault(t, []).append((s, direct))

    def walked(node):
        return 1.0 if node in chosen else sum(d * walked(s) for s, d in fed.get(node, ()))

    explained = made.nodes.loc[made.nodes["weight"] > 0, ["node", "weight"]]
    return sum(w * walked(int(n)) for n, w in explained.itertuples(index=False, name=None))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("view", [concept_view, feature_view])
def test_the_share_that_runs_through_a_box_counts_every_path_once(seed, view):
    made = chain(seed)
    nodes, numbers = view(made, None).nodes, made.nodes["node"].to_numpy()
    expected = [met(made, {int(numbers[m]) for m in each}) for each in nodes["members"]]
    np.testing.assert_allclose(nodes["through"], expected, atol=1e-12)
    assert (nodes["through"] <= 1 + 1e-12).all()
    if view is concept_view:
        both = nodes.loc[nodes["label"] == "both"].iloc[0]
        alone = [met(made, {int(numbers[m])}) for m in both["members"]]
        assert max(alone) < both["through"] < sum(alone)  # one path leads through both
        assert (nodes["role"] == "rest").any()


def test_the_hover_and_the_card_tell_that_share():
    made = chain(0)
    view = concept_view(made, None)
    row = view.nodes.index[view.nodes["label"] == "both"][0]
    share = view.nodes["through"][row]
    assert f"{share:.0%} of the influence runs through it" in hover_texts(view, made)[row]
    carded = page_data(made)["views"]["concepts"]["nodes"]["through"]
    assert carded[row] == pytest.approx(share, rel=1e-2)


def told(made):
    """The outputs' texts in the picture, chances in the card, and Neuronpedia's (text, chance)."""
    view = feature_view(made, None)
    chances = page_data(made)["views"]["features"]["nodes"]["chance"]
    texts = view.nodes.loc[view.nodes["role"] == "output", "text"].tolist()
    found = [n for n in neuronpedia(made)["nodes"] if n["feature_type"] == "logit"]
    return texts, chances[-len(texts) :], [(n["clerp"], n["token_prob"]) for n in found]


def test_a_chance_is_told_where_the_model_predicts_and_nowhere_else():
    made = circuit(outputs=3)  # the third is not among the likely tokens
    texts, chances, clerps = told(made)
    assert texts == ["out0 50%", "out1 0.1%", "out2"] and chances == [0.5, 0.001, None]
    assert clerps == [
        ('Output " out0" (p=0.500)', 0.5),
        ('Output " out1" (p=0.001)', 0.001),
        ('Output " out2"', 0.0),
    ]
    nodes = made.nodes.copy()
    nodes.loc[nodes["feature"].eq(0) & nodes["kind"].eq("logit"), "position"] = 2
    elsewhere = replace(made, nodes=nodes)
    texts, chances, clerps = told(elsewhere)
    assert texts[0] == "out0" and chances[0] is None and clerps[0] == ('Output " out0"', 0.0)
    assert texts[1] == "out1 0.1%"
    there = replace(elsewhere, settings={**made.settings, "predicted_at": 2})
    texts, chances, _ = told(there)
    assert texts == ["out0 50%", "out1", "out2"] and chances == [0.5, None, None]


def test_a_difference_or_a_group_of_outputs_has_no_chance():
    made = circuit()
    nodes = made.nodes.copy()
    nodes.loc[nodes["kind"] == "logit", "feature"] = -1
    nodes.loc[nodes["kind"] == "logit", "token"] = ["Austin - Paris", "Texas - Ohio"]
    odd = {**made.settings, "predictions": [["?", -1, 0.5]]}
    texts, chances, clerps = told(replace(made, nodes=nodes, settings=odd))
    assert texts == ["Austin - Paris", "Texas - Ohio"] and chances == [None, None]
    assert clerps[0] == ('Output "Austin - Paris"', 0.0)
    grouped = made.group(["out0", "out1"], "outs")
    assert "outs" in concept_view(grouped, None).nodes["text"].tolist()


@pytest.mark.parametrize(
    ("kind", "one", "several"),
    [
        ("token", "word 1 of the prompt", "3 words of the prompt"),
        ("feature", "feature, layer 0 at the", "3 features, layer 0 at 3 words"),
        ("error", "error, layer 0 at the", "3 errors, layer 0 at 3 words"),
    ],
)
def test_a_group_over_several_words_is_not_told_as_one_place(kind, one, several):
    made = circuit(features=3, errors=3, edges=0)
    nodes = made.nodes.copy()
    for own in (nodes["kind"] == "feature", nodes["kind"] == "error"):
        nodes.loc[own, ["layer", "position"]] = [[0, 0], [0, 1], [0, 3]]
    made = replace(made, nodes=nodes)
    numbers = nodes.loc[nodes["kind"] == kind, "node"].tolist()[:3]
    grouped = made.group([made.names()[n] for n in numbers], "scattered")
    assert any(f"<br>{one}<br>" in text for text in hover_texts(feature_view(made, None), made))
    view = concept_view(grouped, None)
    row = view.nodes["label"].tolist().index("scattered")
    assert f"<br>{several}<br>" in hover_texts(view, grouped)[row]
    data = page_data(grouped)["views"]["concepts"]["nodes"]
    assert data["positions"][row] == ([0, 1, 2] if kind == "token" else [0, 1, 3])


def test_an_edge_passes_a_stack_of_boxes_on_one_side():
    """A slanting edge enters a stack at its left and would leave it at its right."""
    made = circuit(["one", "two", "three"], features=0, outputs=1, edges=0, errors=0)
    view = feature_view(made, None)
    extra = view.nodes.iloc[[1] * 6].assign(
        role="feature", layer=1, text=["a", "a box", "a wider box", "a box", "a", "a box"]
    )
    nodes = pd.concat([view.nodes, extra], ignore_index=True)
    edge = pd.DataFrame({"source": [0], "target": [3], "weight": 1.0, "share": 1.0, "path": False})
    drawing = draw(type(view)(nodes, edge, None), 300.0)  # too narrow for boxes side by side
    places, line = drawing.places, next(t for t in drawing.traces if t.of == "edges")
    stack = np.arange(4, 10)
    assert len(set(places.x[stack])) == 1
    low, high = places.y[stack].min(), places.y[stack].max()
    beside = line.x[(line.y >= low) & (line.y <= high)] - places.x[4]
    assert len(set(beside.tolist())) == 1 and abs(beside[0]) > places.wide[stack].max() / 2


def test_a_picture_says_how_far_it_was_validated():
    made = circuit(edges=60)
    assert "Not validated yet" in about(made)["scores"]
    free = {"count": 13, "spearman": 0.7978, "sign": 0.92, "pearson": 0.7, "error": 0.8}
    found = {"agreement": {"free": free}}
    settings = {**made.settings, "validation": found}
    said = about(replace(made, settings=settings))["scores"]
    assert "of 13 effects" in said and "92% go the way" in said and "0.80" in said
    blank = {**found, "agreement": {"free": {**free, "spearman": None}}}
    settings = {**made.settings, "validation": blank}
    assert "Not validated" in about(replace(made, settings=settings))["scores"]
