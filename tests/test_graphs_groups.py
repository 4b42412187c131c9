import json
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from graph_cases import concepts, graph
from hypothesis import given
from hypothesis import strategies as st

import graphs
from graphs.scores import graph_scores
from graphs.supernodes import ALIKE, profiles


def features(circuit):
    return [name for name in circuit.names().values() if name.startswith("feature")]


def labelled(seed=0, labels=("Texas", "capital", ""), **options):
    """A graph whose features have a few labels."""
    g = graph(seed, **{"features": 6, **options})
    rows = g.nodes.loc[g.nodes["kind"] == "feature"]
    keys = zip(rows["layer"], rows["feature"], strict=True)
    return g.labelled({key: labels[n % len(labels)] for n, key in enumerate(keys)})


@given(st.integers(0, 10**6), st.integers(0, 5))
def test_edges_of_concepts_are_the_sums_of_their_members_edges(seed, labels):
    circuit = concepts(graph(seed, features=5).prune(0.95, 0.99), seed, labels)
    view = circuit.concepts()
    owner = circuit.concept_of()
    members = dict(zip(view.nodes["name"], view.nodes["members"], strict=True))
    assert sorted(m for own in members.values() for m in own) == sorted(circuit.names().values())
    weight, share = {}, {}
    for row in circuit.edges.itertuples():
        pair = owner[row.source], owner[row.target]
        weight[pair] = weight.get(pair, 0.0) + row.weight
        share[pair] = share.get(pair, 0.0) + row.share
    inner = dict(zip(view.nodes["name"], view.nodes["inner"], strict=True))
    assert all(inner[a] == pytest.approx(w, abs=1e-6) for (a, b), w in weight.items() if a == b)
    for row in view.edges.itertuples():
        assert row.weight == pytest.approx(weight[row.source, row.target], abs=1e-6)
        assert row.share == pytest.approx(share[row.source, row.target], abs=1e-6)
        assert 0 < row.direct <= 1 + 1e-6
    assert len(view.edges) == sum(a != b for a, b in weight)


@given(st.integers(0, 10**6), st.integers(0, 5))
def test_the_books_of_concepts_balance(seed, labels):
    circuit = concepts(graph(seed, features=5).prune(0.9, 0.9), seed, labels)
    view = circuit.concepts()
    into = view.edges.groupby("target")["weight"].sum()
    into = view.nodes["name"].map(into).fillna(0.0)
    gap = into + view.nodes["inner"] + view.nodes["rest"] - view.nodes["value"]
    assert np.abs(gap).max() < 1e-6
    for column in ("influence", "weight", "value", "rest"):
        assert view.nodes[column].sum() == pytest.approx(circuit.nodes[column].sum())


def test_the_rest_is_what_pruning_and_the_bias_took():
    g = graph(4)
    circuit = g.prune(0.8, 0.8)
    kept = set(zip(circuit.edges["source"], circuit.edges["target"], strict=True))
    row = {int(target): n for n, target in enumerate(g.targets)}
    for node in circuit.nodes.itertuples():
        lost = 0.0
        if node.node in row:
            edges = zip(g.sources, g.edges[row[node.node]], strict=True)
            lost = sum(weight for source, weight in edges if (source, node.node) not in kept)
        assert node.rest == pytest.approx(lost, abs=1e-9)
    assert circuit.nodes["rest"].abs().max() > 0.1


def test_scores_of_a_grouped_circuit_are_those_of_its_nodes():
    """Recomputed from the rows of the graph, with what the circuit kept."""
    g = labelled()
    circuit = g.prune()
    assert circuit.groups
    kept = np.zeros(len(g.nodes), dtype=bool)
    kept[circuit.nodes["node"]] = True
    expected = graph_scores(g, kept)
    for other in (circuit, circuit.grouped("profile"), circuit.group(features(circuit)[:3], "x")):
        assert other.scores() == expected
        assert other.nodes.equals(circuit.nodes) and other.edges.equals(circuit.edges)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_what_runs_through_a_concept_counts_every_path_once(seed, labels):
    g = graph(seed)
    circuit = concepts(g.prune(0.95, 0.99), seed, labels)
    view = circuit.concepts().nodes.set_index("name")
    found = circuit.to_networkx()
    weight = dict(zip(circuit.names().values(), circuit.nodes["weight"], strict=True))
    for _, row in view.iterrows():
        members = set(row["members"])
        total = 0.0
        for member in members:
            for end in (n for n, w in weight.items() if w > 0):
                if member == end:
                    total += weight[end]
                    continue
                for path in nx.all_simple_paths(found, member, end):
                    if not members & set(path[1:]):  # counted where it first comes down to it
                        share = np.prod([found.edges[e]["direct"] for e in pairwise(path)])
                        total += share * weight[end]
        assert row["through"] == pytest.approx(total, abs=1e-6) and total <= 1 + 1e-6


def test_pruning_groups_features_of_one_label_at_one_position():
    circuit = labelled().prune(1.0, 1.0)
    nodes = circuit.nodes.assign(name=list(circuit.names().values()))
    rows = nodes.loc[(nodes["kind"] == "feature") & (nodes["label"] != "")]
    expected = {
        (label, frozenset(part["name"]))
        for (_, label), part in rows.groupby(["position", "label"])
        if len(part) > 1
    }
    assert {(g.label, frozenset(g.members)) for g in circuit.groups} == expected and expected
    assert {g.method for g in circuit.groups} == {"label"}
    assert len(set(circuit.group_names())) == len(circuit.groups)


def test_grouping_by_what_is_promoted():
    g = graph(1, features=6)
    rows = g.nodes.loc[g.nodes["kind"] == "feature"]
    evidence = {
        f"L{r.layer}/F{r.feature}": {"promotes": [[t, 1.0] for t in ("ab" if n % 2 else "cd")]}
        for n, r in enumerate(rows.itertuples())
    }
    circuit = replace(g, evidence=evidence).prune(1.0, 1.0).grouped("promotes")
    names = circuit.nodes.assign(name=list(circuit.names().values())).set_index("name")
    assert circuit.groups and {group.method for group in circuit.groups} == {"promotes"}
    for group in circuit.groups:
        own = names.loc[list(group.members)]
        keys = [f"L{r.layer}/F{r.feature}" for r in own.itertuples()]
        assert (
            len({json.dumps(evidence[key]) for key in keys}) == 1 and own["position"].nunique() == 1
        )


@pytest.mark.parametrize("seed", range(4))
def test_groups_by_profile_are_alike_and_cohesion_is_the_mean_cosine(seed):
    circuit = graph(seed, features=8).prune(1.0, 1.0).grouped("profile")
    rows = profiles(circuit).toarray()
    place = {name: n for n, name in enumerate(circuit.names().values())}
    assert circuit.groups
    for group in circuit.groups:
        own = rows[[place[m] for m in group.members]]
        assert np.linalg.norm(own, axis=1) == pytest.approx(1)
        cosine = own @ own.T
        pairs = cosine[~np.eye(len(own), dtype=bool)]
        assert (
            group.cohesion == pytest.approx(max(0, pairs.mean())) and pairs.mean() >= ALIKE - 1e-9
        )


def test_ways_follow_each_other_and_hand_made_groups_stay():
    circuit = labelled(labels=("Texas", "", "", ""), features=16).prune(1.0, 1.0)
    free = [n for n in features(circuit) if not any(n in g.members for g in circuit.groups)]
    by_hand = circuit.group(free[:2], "mine").grouped(("label", "profile"))
    methods = [g.method for g in by_hand.groups]
    assert methods[0] == "hand" and {"label", "profile"} <= set(methods)
    taken = [member for g in by_hand.groups for member in g.members]
    assert len(taken) == len(set(taken))
    with pytest.raises(ValueError, match="by='colour' is not one of label"):
        circuit.grouped("colour")


def test_groups_by_hand():
    circuit = labelled().prune(1.0, 1.0)
    a, b, c = features(circuit)[:3]
    one = circuit.group([a, b], "one")
    moved = {g.label: set(g.members) for g in one.group([b, c], "two").groups}
    assert moved["one"] == {a} and moved["two"] == {b, c}
    assert "one" in one.labels().values() and "one" not in one.split("one").labels().values()
    assert "uno" in one.rename("one", "uno").labels().values()
    assert [g.pinned for g in one.pin("one").groups if g.label == "one"] == [True]
    assert "one" not in circuit.labels().values()  # nothing was changed in place
    whole = one.group(["one", c], "by label")  # a label stands for all that bear it
    assert set(whole.groups[-1].members) == {a, b, c}


def test_pinning_and_renaming_take_single_features_too():
    circuit = labelled(labels=("Texas", "", "capital", "", "")).prune(1.0, 1.0)
    alone = next(label for label in circuit.labels().values() if label.startswith("L"))
    assert [g.label for g in circuit.pin(alone).groups if g.pinned] == [alone]
    renamed = circuit.rename("Texas", "X").labels()
    texas = [node for node, label in circuit.labels().items() if label == "Texas"]
    assert {renamed[node] for node in texas} == {"X"} and "Texas" not in renamed.values()


def test_groups_of_one_label_have_names_of_their_own():
    circuit = graph(5, positions=1).prune(1.0, 1.0)
    a, b, c = features(circuit)[:3]
    made = circuit.group([a], "T").group([b], "T").group([c], "T#2")
    assert len(set(made.group_names())) == 3
    assert len(made.concepts().nodes) == len(circuit.concepts().nodes)


def test_mistakes_in_groups_are_named():
    circuit = labelled().prune(1.0, 1.0)
    name = features(circuit)[0]
    for act, match in (
        (lambda: circuit.group(["Texsa"], "x"), r"'Texsa' names nothing.*'Texas'"),
        (lambda: circuit.group([name], " "), "label is empty"),
        (lambda: circuit.group([], "x"), "'x' has no members"),
        (lambda: circuit.split("Texsa"), r"'Texsa'.*'Texas'"),
        (lambda: circuit.rename("Texas", ""), "new label is empty"),
    ):
        with pytest.raises(ValueError, match=match):
            act()


@given(st.integers(0, 10**6), st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4))
def test_groups_survive_a_file_and_a_new_trace(tmp_path_factory, seed, labels):
    circuit = graph(seed, features=5).prune(1.0, 1.0)
    for label, member in zip(labels, features(circuit), strict=False):
        if label.strip():
            circuit = circuit.group([member], label)
    circuit = circuit.pin(circuit.groups[0].label) if circuit.groups else circuit
    path = tmp_path_factory.mktemp("groups") / "groups.json"
    circuit.save_groups(path)
    again = graph(seed, features=5).prune(1.0, 1.0).load_groups(path)
    assert again.groups == circuit.groups
    smaller = graph(seed, features=5).prune(0.5, 0.5)
    known = set(smaller.names().values())
    fitting = [kept for g in circuit.groups if (kept := tuple(m for m in g.members if m in known))]
    if circuit.groups and not fitting:
        with pytest.raises(ValueError, match="made for another prompt"):
            smaller.load_groups(path)
    else:
        assert [g.members for g in smaller.load_groups(path).groups] == fitting


def test_a_file_of_groups_that_is_none_is_refused(tmp_path):
    circuit, path = graph().prune(), tmp_path / "groups.json"
    good = {"format": "circuit-groups", "version": "1", "groups": []}
    for content, match in (
        ("nonsense", "is not JSON"),
        ("[]", "is not a file of groups"),
        (json.dumps({**good, "version": "7"}), "version 7"),
        (json.dumps({**good, "groups": [{"label": "x"}]}), "needs a label and a list"),
        (json.dumps({**good, "groups": None}), "groups must be a list, not None"),
        (
            json.dumps({**good, "groups": [{"label": "x", "members": ["a"], "pinned": "no"}]}),
            "pinned of 'x' must be true or false",
        ),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=match):
            circuit.load_groups(path)


def test_labels_given_by_hand_win(tmp_path):
    g = labelled(labels=("Texas",))
    row = g.nodes.loc[g.nodes["kind"] == "feature"].iloc[0]
    mine = g.labelled({(int(row.layer), int(row.feature)): "mine"})
    assert mine.nodes["label"].tolist().count("mine") == 1
    assert g.nodes["label"].tolist().count("mine") == 0
    mine.save(tmp_path / "g.safetensors")
    back = graphs.load(tmp_path / "g.safetensors")
    pd.testing.assert_series_equal(
        back.nodes["label"].astype(object), mine.nodes["label"].astype(object)
    )


def test_the_features_of_a_concept_are_what_interventions_take():
    circuit = labelled().prune(1.0, 1.0)
    rows = circuit.nodes.loc[circuit.nodes["label"] == "Texas"]
    expected = {(int(r.layer), int(r.feature)) for r in rows.itertuples()}
    assert set(circuit.features("Texas")) == expected and expected
    with pytest.raises(ValueError, match="'t0' is no concept of features"):
        circuit.features("t0")
