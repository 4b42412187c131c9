import dataclasses

import numpy as np
import pytest
from graph_cases import graph, parts
from scipy import sparse

import graphs


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_edge_that_is_not_finite_names_its_row(bad, csr):
    case = parts()
    row, column = np.argwhere(case["edges"])[5]
    case["edges"][row, column] = bad
    if csr:
        case["edges"] = sparse.csr_array(case["edges"])
    with pytest.raises(ValueError, match=f"row {row} "):
        graphs.assemble(**case)


@pytest.mark.parametrize("csr", [False, True])
def test_an_edge_that_does_not_go_up_is_refused(csr):
    case = parts()
    layer = case["nodes"]["layer"].to_numpy()
    level = layer[case["sources"]][None] == layer[case["targets"]][:, None]
    row, column = np.argwhere(level)[0]
    case["edges"][row, column] = 1e-30
    if csr:
        case["edges"] = sparse.csr_array(case["edges"])
    with pytest.raises(ValueError, match="layer"):
        graphs.assemble(**case)


def test_shapes_that_do_not_fit_are_refused():
    case = parts()
    short = sparse.csr_array(case["edges"][:, :-1])  # the test run's own shape check lets it pass
    with pytest.raises(ValueError, match="shape"):
        graphs.assemble(**{**case, "edges": short})
    with pytest.raises(ValueError, match="kind"):
        graphs.assemble(**{**case, "nodes": case["nodes"].replace("error", "eror")})
    with pytest.raises(ValueError, match="activation"):
        graphs.assemble(**{**case, "nodes": case["nodes"].drop(columns="activation")})


@pytest.mark.parametrize("weights", [lambda w: w * 0.9, lambda w: w * 0, lambda w: -w])
def test_weights_that_do_not_sum_to_one_are_refused(weights):
    case = parts()
    with pytest.raises(ValueError, match="sum to"):
        graphs.assemble(**{**case, "weights": weights(case["weights"])})


def test_a_graph_is_frozen():
    g = graph()
    with pytest.raises(dataclasses.FrozenInstanceError):
        g.edges = None
    before = g.nodes.copy(), g.edges.copy()
    g.prune().to_networkx()
    assert g.nodes.equals(before[0]) and (g.edges == before[1]).all()


def test_the_whole_graph_as_networkx_has_every_edge():
    g = graph(4)
    found = g.to_networkx()
    assert found.number_of_nodes() == len(g.nodes)
    assert found.number_of_edges() == np.count_nonzero(g.edges)
    assert sum(d["weight"] for _, _, d in found.edges(data=True)) == pytest.approx(g.edges.sum())
