import json
from dataclasses import replace
from io import BytesIO

import networkx as nx
import pandas as pd
import pytest
from graph_cases import AWKWARD, concepts, graph
from hypothesis import given
from hypothesis import strategies as st

import graphs


def same(circuit, other):
    """Whether nothing about two circuits differs, to the bit."""
    kinds = {"kind": object, "token": object, "label": object}
    pd.testing.assert_frame_equal(
        circuit.nodes.astype(kinds).reset_index(drop=True),
        other.nodes.astype(kinds)[list(circuit.nodes)],
        check_exact=True,
    )
    pd.testing.assert_frame_equal(circuit.edges, other.edges, check_exact=True)
    assert other.groups == circuit.groups and other.scores() == circuit.scores()
    assert dict(other.settings) == dict(circuit.settings)
    assert dict(other.evidence) == dict(circuit.evidence)


def case(seed, labels, tokens=None):
    g = graph(seed, features=5, positions=2, tokens=tokens)
    feature = g.nodes.loc[g.nodes["kind"] == "feature"].iloc[0]
    key = f"L{feature.layer}/F{feature.feature}"
    g = replace(g, evidence={key: {"label": "<script>", "promotes": [["a", 1.5]]}})
    g = g.labelled({(int(feature.layer), int(feature.feature)): "Texas"})
    return concepts(g.prune(0.95, 0.99), seed, labels)


@given(
    st.integers(0, 10**6),
    st.integers(0, 4),
    st.lists(st.text(max_size=4) | st.sampled_from(AWKWARD), min_size=2, max_size=2),
)
def test_to_networkx_and_back(seed, labels, tokens):
    circuit = case(seed, labels, tokens)
    same(circuit, graphs.from_networkx(circuit.to_networkx()))


@pytest.mark.parametrize("seed", range(3))
def test_back_from_a_graphml_file(seed):
    circuit, buffer = case(seed, 2), BytesIO()
    nx.write_graphml(circuit.to_networkx(), buffer)
    buffer.seek(0)
    same(circuit, graphs.from_networkx(nx.read_graphml(buffer)))


def test_the_digraph_tells_concepts_members_labels_weights_and_shares():
    circuit = case(1, 2)
    found = circuit.to_networkx()
    shown, concept = circuit.labels(), circuit.concept_of()
    for node, name in circuit.names().items():
        assert found.nodes[name]["label"] == shown[node]
        assert found.nodes[name]["concept"] == concept[node]
    view = circuit.to_networkx(concepts=True)
    for name, data in view.nodes(data=True):
        members = json.loads(data["members"])
        assert {found.nodes[m]["concept"] for m in members} == {name}
    for source, target, data in view.edges(data=True):
        inner = [
            d["weight"]
            for s, t, d in found.edges(data=True)
            if (found.nodes[s]["concept"], found.nodes[t]["concept"]) == (source, target)
        ]
        assert data["weight"] == pytest.approx(sum(inner), abs=1e-9) and data["share"] > 0


def test_other_digraphs_are_refused():
    circuit = case(0, 1)
    for other in (nx.DiGraph(), nx.path_graph(3, nx.DiGraph), circuit.to_networkx(concepts=True)):
        with pytest.raises(ValueError, match=r"does not come from Circuit\.to_networkx"):
            graphs.from_networkx(other)


def test_what_was_taken_out_of_the_digraph_is_gone_from_the_groups_too():
    circuit = case(1, 2)
    found = circuit.to_networkx()
    member = circuit.groups[0].members[0]
    found.remove_node(member)
    back = graphs.from_networkx(found)
    assert member not in [m for g in back.groups for m in g.members]
    assert len(back.concepts().nodes) and len(back.nodes) == len(circuit.nodes) - 1
    found.add_edge(*list(found)[:2])
    with pytest.raises(ValueError, match="lacks its weight"):
        graphs.from_networkx(found)
