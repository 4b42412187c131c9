"""Targets: what can be explained, and that it is what was asked for."""

import numpy as np
import pytest
import torch
from hosts import PROMPT, TEXT, VOCABULARY, WORDS, build, model, speaking

import circuits
from circuits import Difference, Direction, Feature, Likely, Token

DOUBLE = torch.float64


def probabilities(family="llama", dtype=DOUBLE, ids=PROMPT):
    """From the Hugging Face model itself."""
    with torch.no_grad():
        return build(family, dtype)(torch.tensor([ids])).logits[0].softmax(-1)


def explained(graph):
    rows = np.flatnonzero(graph.weights > 0)
    return graph.nodes.iloc[graph.targets[rows]], graph.weights[rows]


def row_of(graph, kind="logit", which=0):
    """One target's row as {source name: edge}, and its value."""
    rows = np.flatnonzero(graph.nodes["kind"].to_numpy()[graph.targets] == kind)
    return as_dict(graph, rows[which]), graph.values[rows[which]]


def as_dict(graph, row):
    columns = ["kind", "layer", "position", "feature"]
    names = graph.nodes.iloc[graph.sources][columns].itertuples(index=False, name=None)
    return dict(zip(names, graph.edges[row], strict=True))


def equal(one, other, close=1e-12):
    assert one.keys() == other.keys()
    size = sum(abs(v) for v in other.values())
    assert size > 0
    assert max(abs(one[k] - other[k]) for k in one) <= close * size


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_likely_tokens_are_the_hosts_and_weigh_their_probability(family):
    chances = probabilities(family)[-1]
    order = chances.argsort(descending=True)[:10].tolist()
    nodes, weights = explained(circuits.trace(model(family, "topk", DOUBLE), PROMPT))
    assert nodes["feature"].tolist() == order
    assert set(nodes["position"]) == {len(PROMPT) - 1} and set(nodes["layer"]) == {3}
    np.testing.assert_allclose(weights, chances[order] / chances[order].sum(), rtol=1e-5)
    assert weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("position", [0, 3, -2])
@pytest.mark.parametrize(("share", "most"), [(0.3, 50), (0.01, 50), (1.0, 4), (1.0, 50)])
def test_likely_takes_as_few_as_hold_the_share(share, most, position):
    chances = probabilities()[position].sort(descending=True).values
    wanted = next(n for n in range(1, 51) if chances[:n].sum() >= share - 1e-9 or n == most)
    graph = circuits.trace(model("llama", "topk", DOUBLE), PROMPT, Likely(share, most, position))
    nodes, _ = explained(graph)
    assert len(nodes) == wanted
    assert set(nodes["position"]) == {position % len(PROMPT)}


@pytest.mark.parametrize("kind", ["topk", "cross-skip", "neurons"])
def test_a_token_has_the_same_row_whatever_else_is_explained(kind):
    likely = circuits.trace(model("llama", kind, DOUBLE), PROMPT)
    index = int(likely.nodes.iloc[likely.targets[2]]["feature"])
    alone = circuits.trace(model("llama", kind, DOUBLE), PROMPT, index)
    nodes, weights = explained(alone)
    assert nodes["feature"].tolist() == [index] and weights.tolist() == [1.0]
    equal(row_of(alone)[0], as_dict(likely, 2))


def test_a_tokens_value_is_its_logit_less_the_mean():
    logits = build("llama", DOUBLE)(torch.tensor([PROMPT])).logits[0].detach()
    for position in (0, 4, -1):
        graph = circuits.trace(model("llama", "topk", DOUBLE), PROMPT, Token(7, position))
        _, value = row_of(graph)
        # Hugging Face computes the norms in float32; see hosts.py
        wanted = float(logits[position, 7] - logits[position].mean())
        assert value == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", ["gptj", "phi"])
def test_the_unembeddings_bias_belongs_to_a_tokens_value(family):
    logits = build(family, DOUBLE)(torch.tensor([PROMPT])).logits[0, -1].detach()
    graph = circuits.trace(model(family, "topk", DOUBLE), PROMPT, 7)
    assert row_of(graph)[1] == pytest.approx(float(logits[7] - logits.mean()), abs=1e-9)


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma2"])
@pytest.mark.parametrize("position", [-1, 3])
def test_a_difference_is_the_difference_of_the_rows(family, position):
    traced = model(family, "cross", DOUBLE)
    plus, _ = row_of(circuits.trace(traced, PROMPT, Token(11, position)))
    minus, _ = row_of(circuits.trace(traced, PROMPT, Token(12, position)))
    graph = circuits.trace(traced, PROMPT, Difference(11, 12, position))
    both, value = row_of(graph)
    equal(both, {name: plus[name] - minus[name] for name in plus})
    assert sum(both.values()) == pytest.approx(value, abs=1e-9)
    node = explained(graph)[0].iloc[0]
    assert node["feature"] == -1 and node["token"] == "11 minus 12"
    assert node["position"] == position % len(PROMPT)


def test_a_differences_value_is_that_of_the_logits():
    logits = build("phi", DOUBLE)(torch.tensor([PROMPT])).logits[0, -1].detach()
    graph = circuits.trace(model("phi", "topk", DOUBLE), PROMPT, Difference(11, 12))
    assert row_of(graph)[1] == pytest.approx(float(logits[11] - logits[12]), abs=1e-9)


def test_any_direction():
    traced = model("llama", "skip", DOUBLE)
    unembedding = build("llama", DOUBLE).lm_head.weight.detach()
    token, _ = row_of(circuits.trace(traced, PROMPT, Token(9, 2)))
    direction = Direction(2 * (unembedding[9] - unembedding.mean(0)), "twice", 2)
    graph = circuits.trace(traced, PROMPT, direction)
    twice, value = row_of(graph)
    equal(twice, {name: 2 * edge for name, edge in token.items()})
    assert value == pytest.approx(sum(twice.values()), abs=1e-9)
    node = explained(graph)[0].iloc[0]
    assert (node["token"], node["feature"], node["position"]) == ("twice", -1, 2)


@pytest.mark.parametrize("kind", ["topk", "cross-skip", "neurons"])
@pytest.mark.parametrize("budget", [None, 20])
def test_a_feature_has_the_row_it_has_in_the_complete_graph(kind, budget):
    traced = model("gemma2", kind, DOUBLE)
    whole = circuits.trace(traced, PROMPT)
    rows = np.flatnonzero(whole.nodes["kind"].to_numpy()[whole.targets] == "feature")
    row = next(r for r in rows if whole.nodes["layer"][whole.targets[r]] == 1)
    name = whole.nodes.iloc[whole.targets[row]]
    target = Feature(int(name["layer"]), int(name["feature"]), int(name["position"]))
    graph = circuits.trace(traced, PROMPT, target, budget=budget)
    nodes, weights = explained(graph)
    assert weights.tolist() == [1.0]
    keys = ["kind", "layer", "position", "feature"]
    assert nodes.iloc[0][keys].tolist() == name[keys].tolist()
    mine = as_dict(graph, int(np.flatnonzero(graph.weights > 0)[0]))
    all_of_it = as_dict(whole, row)
    shared = {k: v for k, v in mine.items() if k[0] != "remainder"}
    equal(shared, {k: all_of_it[k] for k in shared})
    assert "logit" not in set(graph.nodes["kind"])


def test_several_targets_share_the_weight():
    traced = model("llama", "topk", DOUBLE)
    whole = circuits.trace(traced, PROMPT)
    feature = whole.nodes.iloc[whole.targets[-1]]
    asked = [
        4,
        Token(5, 2),
        Difference(6, 7),
        Feature(*(int(feature[n]) for n in ("layer", "feature", "position"))),
    ]
    graph = circuits.trace(traced, PROMPT, asked)
    nodes, weights = explained(graph)
    assert weights.tolist() == [0.25] * 4
    assert nodes["position"].tolist()[:3] == [6, 2, 6]
    mixed = circuits.trace(traced, PROMPT, [Likely(), 4])
    assert mixed.weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("twice", [[4, 4], [4, Token(4)], [Feature(0, -1, 0)] * 2])
def test_a_target_named_twice_is_explained_once_or_refused(twice):
    traced = model("llama", "topk", DOUBLE)
    if isinstance(twice[0], Feature):
        first = traced.read(traced.run(PROMPT)).layers[0]
        twice = [Feature(0, int(first.features[0]), int(first.positions[0]))] * 2
    for budget in (None, 20):
        try:
            graph = circuits.trace(traced, PROMPT, twice, budget=budget)
        except ValueError as error:
            assert "twice" in str(error)
            continue
        assert len(set(graph.targets)) == len(graph.targets)
        assert graph.weights.sum() == pytest.approx(1, abs=1e-12)
        names = graph.nodes[["kind", "layer", "position", "feature"]]
        assert not names.iloc[graph.targets].duplicated().any()


@pytest.mark.parametrize("token", [" Dallas", WORDS.index(" Dallas"), "Dallas"])
def test_a_token_by_text_by_id_and_without_its_space(token):
    nodes, _ = explained(circuits.trace(speaking(), TEXT, token))
    assert nodes["feature"].tolist() == [WORDS.index(" Dallas")]
    assert nodes["token"].tolist() == [" Dallas"]


@pytest.mark.parametrize("word", ["Austin", "Texas"])
def test_of_two_spellings_the_likelier_is_meant(word):
    run = speaking().run(TEXT)
    ids = [WORDS.index(word), WORDS.index(" " + word)]
    for position in range(len(run.ids)):
        graph = circuits.trace(speaking(), TEXT, Token(word, position))
        nodes, _ = explained(graph)
        assert nodes["feature"].tolist() == [max(ids, key=lambda i: float(run.logits[position, i]))]
    named, _ = explained(circuits.trace(speaking(), TEXT, " " + word))
    assert named["feature"].tolist() == [ids[1]]


def test_both_spellings_are_chosen_somewhere():
    """Or the test above would pass on a tracer that always takes the same one."""
    run = speaking().run(TEXT)
    pairs = [(WORDS.index(w), WORDS.index(" " + w)) for w in ("Austin", "Texas")]
    signs = {bool(run.logits[p, a] > run.logits[p, b]) for p in range(5) for a, b in pairs}
    assert signs == {True, False}


def test_difference_by_text():
    graph = circuits.trace(speaking(), TEXT, Difference(" Austin", "Dallas"))
    assert explained(graph)[0]["token"].tolist() == [" Austin minus  Dallas"]


WRONG = {
    "unknown": ("Dalas", ["'Dalas' is not one token", "' Dallas'"]),
    "nothing-near": ("xyzzy", ["'xyzzy' is not one token", "id"]),
    "two-tokens": (" Austin Texas", ["' Austin Texas' is not one token"]),
    "empty-text": ("", ["'' is not one token"]),
    "id-too-large": (VOCABULARY, [f"token id {VOCABULARY} is outside 0 to {VOCABULARY - 1}"]),
    "id-negative": (-1, ["token id -1 is outside"]),
    "none": ([], ["targets is empty", "leave it out"]),
    "same": (Difference(" Austin", 4), ["the difference of ' Austin' and itself"]),
    "share": (Likely(share=0.0), ["share=0.0", "(0, 1]"]),
    "share-above": (Likely(share=1.5), ["share=1.5", "(0, 1]"]),
    "most": (Likely(most=0), ["most=0", "at least one"]),
    "position": (Token(4, 5), ["position=5 is outside the prompt of 5 tokens", "0 to 4"]),
    "position-below": (Likely(position=-6), ["position=-6", "-1 for the last"]),
    "direction-shape": (Direction(torch.ones(3)), ["shape (3,)", "(32,)"]),
    "direction-nan": (Direction(torch.full((32,), torch.nan)), ["finite"]),
    "feature-inactive": (Feature(0, 10_000), ["feature 10000 of layer 0 is not active", "nearest"]),
    "feature-layer": (Feature(3, 0), ["layer=3 is outside 0 to 2"]),
    "feature-position": (Feature(0, 0, 9), ["position=9"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_target_is_refused_with_its_value_and_the_remedy(wrong):
    target, said = WRONG[wrong]
    with pytest.raises(ValueError) as caught:
        circuits.trace(speaking(), TEXT, target)
    assert all(part in str(caught.value) for part in said), str(caught.value)
