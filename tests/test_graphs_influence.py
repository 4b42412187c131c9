import numpy as np
import pytest
from graph_cases import graph, parts, reached, seeds, shares, square
from hypothesis import given
from hypothesis import strategies as st

import graphs


def every_path(share, node):
    """Yield (source, product of shares) of every path that ends in `node`."""
    for source in np.flatnonzero(share[node]):
        yield source, share[node, source]
        for further, product in every_path(share, source):
            yield further, product * share[node, source]


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_influence_is_the_sum_over_every_path(seed, csr):
    g = graph(seed, csr=csr, layers=2, features=2)
    share, expected = shares(square(g)), seeds(g)
    for target, weight in enumerate(seeds(g)):
        if weight:
            for source, product in every_path(share, target):
                expected[source] += weight * product
    np.testing.assert_allclose(g.nodes["influence"], expected, rtol=1e-12, atol=1e-15)


@given(seed=st.integers(0, 10**6), layers=st.integers(1, 5), csr=st.booleans())
def test_influence_is_the_inverse(seed, layers, csr):
    g = graph(seed, csr=csr, layers=layers)
    expected = reached(square(g), seeds(g))
    np.testing.assert_allclose(g.nodes["influence"], expected, rtol=1e-9, atol=1e-12)


def test_rows_in_any_order_give_the_same_influence():
    case = parts(3)
    order = np.random.default_rng(0).permutation(len(case["targets"]))
    shuffled = {k: case[k][order] for k in ("edges", "targets", "values", "weights", "scale")}
    expected = graphs.assemble(**case).nodes["influence"]
    got = graphs.assemble(**{**case, **shuffled}).nodes["influence"]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_an_explained_feature_has_its_weight_and_what_flows_through():
    case = parts(1)
    rows = np.flatnonzero(case["nodes"]["kind"].to_numpy()[case["targets"]] == "feature")
    case["weights"] = case["weights"] / 2
    case["weights"][rows[0]] = 0.5
    g = graphs.assemble(**case)
    expected = reached(square(g), seeds(g))
    np.testing.assert_allclose(g.nodes["influence"], expected, rtol=1e-12, atol=1e-15)
    assert g.nodes["influence"][case["targets"][rows[0]]] >= 0.5


def test_more_rows_than_a_block():
    g = graph(0, layers=3, features=150, density=0.3)
    assert len(g.targets) > 256
    expected = reached(square(g), seeds(g))
    np.testing.assert_allclose(g.nodes["influence"], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("csr", [False, True])
def test_the_books(csr):
    case = parts(2)
    assert graph(2, csr=csr).discrepancy < 1e-14
    row = 4
    case["values"][row] += 0.01 * case["scale"][row]
    assert graphs.assemble(**case).discrepancy == pytest.approx(0.01, rel=0.5)
