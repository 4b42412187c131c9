from collections import defaultdict
from itertools import groupby, pairwise

import networkx as nx
import numpy as np
import pytest
from graph_cases import concepts, graph, seeds, shares, square
from hypothesis import given
from hypothesis import strategies as st

from graphs import paths


def every_path(g, circuit, starts=("token",)):
    """{node ids: strength} of all simple paths to explained targets, by networkx."""
    found = circuit.to_networkx()
    id_of = dict(zip(circuit.nodes["node"], list(found), strict=True))
    node_of = {v: k for k, v in id_of.items()}
    share, seed, kind = shares(square(g)), seeds(g), g.nodes["kind"]
    out = {}
    for source in (n for n in found if kind[node_of[n]] in starts):
        for target in (n for n in found if seed[node_of[n]] > 0):
            for path in nx.all_simple_paths(found, source, target):
                steps = list(pairwise(path))
                product = np.prod([share[node_of[t], node_of[s]] for s, t in steps])
                sign = np.prod([np.sign(found.edges[step]["weight"]) for step in steps])
                out[tuple(path)] = (product * seed[node_of[target]], int(sign))
    return out


def nodes(path):
    """The names of a path whose steps are single nodes."""
    return tuple(name for (name,) in path.nodes)


@pytest.mark.parametrize("seed", range(5))
def test_the_strongest_paths_are_those_of_a_full_enumeration(seed):
    g = graph(seed, layers=3)
    circuit = g.prune(0.95, 0.99)
    everything = every_path(g, circuit)
    got = circuit.paths(top=10_000)
    assert all(len(step) == 1 for p in got for step in p.nodes)
    assert {nodes(p) for p in got} == set(everything)
    for path in got:
        strength, sign = everything[nodes(path)]
        assert path.share == pytest.approx(strength, rel=1e-5) and path.sign == sign
    few = circuit.paths(top=7)
    assert [p.share for p in few] == sorted((p.share for p in few), reverse=True)
    assert len(few) == min(7, len(circuit.paths(top=10_000)))
    best = [p.share for p in circuit.paths(top=10_000)][:7]
    assert [p.share for p in few] == pytest.approx(best)


def by_steps(circuit, everything):
    """{labels: (share, net share)}: paths of nodes with the same steps, summed."""
    label = {name: circuit.labels()[node] for node, name in circuit.names().items()}
    out = defaultdict(lambda: [0.0, 0.0])
    for names, (share, sign) in everything.items():
        steps = tuple(text for text, _ in groupby(label[name] for name in names))
        out[steps][0] += share
        out[steps][1] += share * sign
    return {steps: found for steps, found in out.items() if len(steps) > 1}


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_paths_of_concepts_are_the_sums_over_their_paths_of_nodes(seed, labels):
    g = graph(seed, layers=3)
    circuit = concepts(g.prune(0.95, 0.99), seed, labels)
    expected = by_steps(circuit, every_path(g, circuit))
    got = {p.labels: p for p in circuit.paths(top=10_000)}
    assert set(got) == set(expected)
    for steps, path in got.items():
        share, net = expected[steps]
        assert path.share == pytest.approx(share, rel=1e-5)
        assert abs(net) < 1e-9 or path.sign == np.sign(net)
    order = [p.share for p in circuit.paths(top=10_000)]
    assert order == sorted(order, reverse=True)
    assert [p.share for p in circuit.paths(top=3)] == pytest.approx(order[:3])


@pytest.mark.parametrize("seed", range(4))
def test_a_circuit_with_too_many_beginnings_still_has_its_shares_right(seed, monkeypatch):
    g = graph(seed, layers=3)
    circuit = concepts(g.prune(0.95, 0.99), seed, 3)
    expected = by_steps(circuit, every_path(g, circuit))
    exact = circuit.paths(top=3)
    monkeypatch.setattr(paths, "OPENED", 1)
    for path in (found := circuit.paths(top=3)):
        assert path.share == pytest.approx(expected[path.labels][0], rel=1e-5)
    assert len(found) == len(exact) and found[0].share <= exact[0].share * (1 + 1e-9)


def test_the_nodes_of_a_step_are_those_on_its_paths():
    g = graph(2, layers=3)
    circuit = concepts(g.prune(0.95, 0.99), 2, 2)
    everything = every_path(g, circuit)
    label = {name: circuit.labels()[node] for node, name in circuit.names().items()}
    for path in circuit.paths(top=20):
        on = [set() for _ in path.labels]
        for names in everything:
            steps = [(text, list(part)) for text, part in groupby(names, key=label.get)]
            if tuple(text for text, _ in steps) == path.labels:
                for place, (_, part) in enumerate(steps):
                    on[place].update(part)
        assert [set(step) for step in path.nodes] == on


def test_paths_between_named_ends():
    g = graph(1, tokens=[" Dallas", " Texas"])
    circuit = g.prune(1.0, 1.0)
    everything = every_path(g, circuit)
    for source, target in (("Texas", "out0"), ("token:P1", "logit:P1:F7")):
        best = circuit.paths(source=source, target=target, top=3)
        wanted = {
            k: v[0] for k, v in everything.items() if (k[0], k[-1]) == ("token:P1", "logit:P1:F7")
        }
        assert [p.share for p in best] == pytest.approx(sorted(wanted.values())[::-1][:3], rel=1e-5)
        assert all(str(p).startswith("Texas ") and str(p).endswith(" out0") for p in best)


def test_an_unknown_name_is_met_with_the_nearest():
    circuit = graph(1, tokens=[" Dallas", " Texas"]).prune(1.0, 1.0)
    with pytest.raises(ValueError, match=r"'Texsa'.*'Texas'"):
        circuit.paths(source="Texsa")
    with pytest.raises(ValueError, match="out0"):
        circuit.paths(target="out00")
    with pytest.raises(ValueError, match="top=0"):
        circuit.paths(top=0)


@pytest.mark.parametrize("seed", range(3))
def test_paths_to_a_concept_end_where_they_arrive(seed):
    """Nothing is counted again that runs on within the concept, so shares stay below one."""
    g = graph(seed, layers=3)
    circuit = concepts(g.prune(1.0, 1.0), seed, 2)
    goal = {n for n, text in circuit.labels().items() if text == "concept 0"}
    names = circuit.names()
    if not goal:
        return
    found = circuit.to_networkx()
    influence = circuit.nodes.set_index("node")["influence"]
    whole = sum(influence[n] for n in goal)
    total = 0.0
    for start in (n for n in found if n.startswith("token")):
        for end in goal:
            for path in nx.all_simple_paths(found, start, names[end]):
                if not {names[n] for n in goal} & set(path[:-1]):
                    share = np.prod([found.edges[e]["direct"] for e in pairwise(path)])
                    total += share * influence[end] / whole
    got = circuit.paths(target="concept 0", top=10_000)
    assert sum(p.share for p in got) == pytest.approx(total, rel=1e-5) and total <= 1 + 1e-6


def test_a_word_that_is_predicted_again_is_not_its_own_output():
    g = graph(1, tokens=[" Dallas", " out0"])
    circuit = g.prune(1.0, 1.0)
    everything = every_path(g, circuit)
    direct = [p for p in circuit.paths(top=10_000) if p.labels == ("out0", "out0")]
    wanted = everything.get(("token:P1", "logit:P1:F7"))
    assert (wanted is None) == (not direct)
    assert wanted is not None and direct[0].share == pytest.approx(wanted[0], rel=1e-5)


def test_a_word_in_a_group_is_found_by_its_own_text():
    circuit = graph(1, tokens=[" Dallas", " Texas"]).prune(1.0, 1.0)
    grouped = circuit.group(["Dallas", "Texas"], "the words")
    assert [p.share for p in grouped.paths(source="Texas", top=1)] == pytest.approx(
        [p.share for p in circuit.paths(source="Texas", top=1)]
    )
