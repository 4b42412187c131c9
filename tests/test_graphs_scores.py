import numpy as np
import pytest
from graph_cases import graph, parts, seeds, shares, square

import graphs


def published(g, kept=None):
    """Replacement and the mean share of input that is no error, over the nodes that have input."""
    kind, seed, matrix = g.nodes["kind"].to_numpy(), seeds(g), square(g)
    kept = np.ones(len(kind), dtype=bool) if kept is None else kept
    error = np.isin(kind, ("error", "remainder")) | ~kept
    share = shares(matrix)
    share[~kept] = 0  # nothing is followed through what was pruned
    total = np.linalg.solve((np.eye(len(share)) - share).T, seed)
    inflow = total - seed
    token = inflow[kind == "token"].sum()
    replacement = token / (token + inflow[error].sum())
    rows = np.zeros(len(kind), dtype=bool)
    rows[g.targets] = True
    rows &= kept
    fraction = 1 - share[:, error].sum(1)
    return replacement, (fraction * total)[rows].sum() / total[rows].sum()


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_scores_of_a_graph(seed, csr):
    g = graph(seed, csr=csr)
    assert tuple(g.scores()) == pytest.approx(published(g), rel=1e-9)


@pytest.mark.parametrize("nodes", [0.3, 0.6, 0.9])
def test_scores_of_a_circuit_count_what_was_pruned_as_error(nodes):
    for seed in range(5):
        g = graph(seed, layers=4)
        circuit = g.prune(nodes)
        kept = np.zeros(len(g.nodes), dtype=bool)
        kept[circuit.nodes["node"]] = True
        assert tuple(circuit.scores()) == pytest.approx(published(g, kept), rel=1e-9)


def test_without_errors_both_scores_are_one():
    case = parts(0)
    case["edges"][
        :, np.isin(case["nodes"]["kind"].to_numpy()[case["sources"]], ("error", "remainder"))
    ] = 0
    for row in case["edges"]:
        row[0] = 1.0  # every target reads the first token: no influence ends in a feature
    case["values"] = case["edges"].sum(1)
    assert tuple(graphs.assemble(**case).scores()) == pytest.approx((1.0, 1.0))


def test_the_bias_does_not_count():
    case = parts(1)
    expected = graphs.assemble(**case).scores()
    case["edges"][:, case["nodes"]["kind"].to_numpy()[case["sources"]] == "bias"] *= 100
    assert tuple(graphs.assemble(**case).scores()) == pytest.approx(tuple(expected), rel=1e-12)
