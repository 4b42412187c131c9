from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from graph_cases import concepts, graph
from hypothesis import given
from hypothesis import strategies as st


def through(circuit, source, target):
    """{label: share of the flow that passes it}, by listing every path, and the whole flow."""
    found = circuit.to_networkx()
    label = {name: circuit.labels()[node] for node, name in circuit.names().items()}
    whole, part = 0.0, {}
    for path in nx.all_simple_paths(found, source, target):
        share = np.prod([found.edges[step]["direct"] for step in pairwise(path)])
        whole += share
        for text in {label[name] for name in path if name.startswith("feature")}:
            part[text] = part.get(text, 0.0) + share
    return {text: share / whole for text, share in part.items()}


@given(st.integers(0, 10**6), st.integers(0, 4))
def test_a_mediators_share_is_that_of_the_paths_through_it(seed, labels):
    circuit = concepts(graph(seed).prune(0.95, 0.99), seed, labels)
    names = circuit.to_networkx()
    if not nx.has_path(names, "token:P1", "logit:P1:F7"):
        with pytest.raises(ValueError, match="nothing flows"):
            circuit.mediators("t1", "out0")
        return
    expected = through(circuit, "token:P1", "logit:P1:F7")
    found = circuit.mediators("t1", "out0")
    assert {m.label: pytest.approx(m.share) for m in found} == expected
    assert [m.share for m in found] == sorted((m.share for m in found), reverse=True)
    labels_of = {name: circuit.labels()[node] for node, name in circuit.names().items()}
    assert all(labels_of[name] == m.label for m in found for name in m.nodes)


def test_what_bears_the_name_of_an_end_is_not_between():
    circuit = graph(3, tokens=[" Dallas", " is"]).prune(1.0, 1.0)
    a, b, c = (m.nodes for m in circuit.mediators("Dallas", "out0")[:3])
    named = circuit.group(a, "Dallas").group(b, "out0").group(c, "Texas")
    labels = {m.label for m in named.mediators("Dallas", "out0")}
    assert "Texas" in labels and not labels & {"Dallas", "out0"}


def test_what_begins_at_a_concept_is_counted_once():
    """From a concept of two nodes, of which one feeds the other, nothing is counted twice."""
    circuit = graph(5).prune(1.0, 1.0)
    names = circuit.to_networkx()
    features = [n for n in names if n.startswith("feature")]
    first, second = next((a, b) for a, b in names.edges if {a, b} <= set(features))
    together = circuit.group([first, second], "both")
    for mediator in together.mediators("both", "out0"):
        assert 0 < mediator.share <= 1 + 1e-9


def test_unknown_ends_are_met_with_the_nearest():
    circuit = graph(1, tokens=[" Dallas", " Texas"]).prune(1.0, 1.0)
    with pytest.raises(ValueError, match=r"source='Dalas'.*'Dallas'"):
        circuit.mediators("Dalas", "out0")
    with pytest.raises(ValueError, match=r"target='out9'"):
        circuit.mediators("Dallas", "out9")
