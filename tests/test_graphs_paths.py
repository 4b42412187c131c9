from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from graph_cases import graph, seeds, shares, square


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


@pytest.mark.parametrize("seed", range(5))
def test_the_strongest_paths_are_those_of_a_full_enumeration(seed):
    g = graph(seed, layers=3)
    circuit = g.prune(0.95, 0.99)
    everything = every_path(g, circuit)
    got = [p for p in circuit.paths(top=10_000) if p.nodes[0].startswith("token")]
    assert {tuple(p.nodes) for p in got} == set(everything)
    for path in got:
        strength, sign = everything[tuple(path.nodes)]
        assert path.share == pytest.approx(strength, rel=1e-5) and path.sign == sign
    few = circuit.paths(top=7)
    assert [p.share for p in few] == sorted((p.share for p in few), reverse=True)
    assert len(few) == min(7, len(circuit.paths(top=10_000)))
    best = [p.share for p in circuit.paths(top=10_000)][:7]
    assert [p.share for p in few] == pytest.approx(best)


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
