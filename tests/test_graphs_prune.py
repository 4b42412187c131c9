from fractions import Fraction

import numpy as np
import pytest
from graph_cases import graph, reached, seeds, shares, square
from hypothesis import given
from hypothesis import strategies as st

from graphs.threshold import smallest_kept


@given(
    st.lists(st.integers(0, 2000) | st.sampled_from([1, 2, 3]), min_size=1, max_size=60),
    st.sampled_from([Fraction(k, 64) for k in range(1, 65)]),
    st.sampled_from([np.float32, np.float64]),
)
def test_threshold_is_that_of_a_full_sort(numbers, share, dtype):
    values = np.array(numbers, dtype=dtype)  # whole numbers: every sum is exact
    total, running, cut = sum(numbers), 0, None
    for number in sorted(numbers, reverse=True):
        running, cut = running + number, number
        if running >= share * total:
            break
    expected = (values >= cut) & (values > 0)
    np.testing.assert_array_equal(smallest_kept(values, float(share)), expected)


@given(
    st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=True), min_size=1, max_size=80),
    st.floats(0.01, 0.99),
)
def test_what_is_kept_reaches_the_share_and_no_less_would(numbers, share):
    values = np.array(numbers, dtype=np.float32)
    kept = smallest_kept(values, share)
    total = sum(map(Fraction, numbers))
    mass = sum((Fraction(float(v)) for v in values[kept]), Fraction(0))
    assert mass >= Fraction(share) * total * (1 - Fraction(1, 10**9))
    if kept.any():
        lowest = values[kept].min()
        assert (values[~kept] < lowest).all()
        less = sum((Fraction(float(v)) for v in values[values > lowest]), Fraction(0))
        assert less <= Fraction(share) * total * (1 + Fraction(1, 10**9))


def cut_by_sorting(scores, share):
    ordered = np.sort(scores.ravel())[::-1]
    return ordered[np.searchsorted(np.cumsum(ordered) / ordered.sum(), share - 1e-12)]


def naive(g, nodes, edges, errors="prunable"):
    """circuit-tracer's pruning on N x N matrices: (kept nodes, kept edges)."""
    kind, full, seed = g.nodes["kind"].to_numpy(), square(g), seeds(g)
    always = (kind == "token") | (seed > 0)
    inflow = reached(full, seed) - seed
    kept = (inflow >= cut_by_sorting(inflow, nodes)) | always
    if errors == "kept":
        kept |= kind == "error"
    inside = full * kept[:, None] * kept[None]
    score = shares(inside) * reached(inside, seed)[:, None]
    chosen = (score >= cut_by_sorting(score, edges)) & (score > 0)
    while True:
        chosen &= kept[:, None] & kept[None]
        stay = kept & (always | (chosen.any(0) & ((kind != "feature") | chosen.any(1))))
        if (stay == kept).all():
            return kept, chosen
        kept = stay


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("errors", ["prunable", "kept"])
@pytest.mark.parametrize("nodes, edges", [(0.8, 0.98), (0.5, 0.6), (0.3, 0.9), (0.9, 0.3)])
def test_pruning_is_the_naive_one(nodes, edges, errors, csr):
    for seed in range(8):
        g = graph(seed, csr=csr, layers=4, features=4)
        circuit = g.prune(nodes, edges, errors)
        kept, chosen = naive(g, nodes, edges, errors)
        assert sorted(circuit.nodes["node"]) == np.flatnonzero(kept).tolist()
        pairs = set(zip(circuit.edges["target"], circuit.edges["source"], strict=True))
        assert pairs == set(map(tuple, np.argwhere(chosen).tolist()))
        weights = square(g)[circuit.edges["target"], circuit.edges["source"]]
        np.testing.assert_allclose(circuit.edges["weight"], weights)


def test_keeping_everything_keeps_every_edge_that_carries_influence():
    g = graph(5, layers=3)
    circuit = g.prune(1.0, 1.0)
    kept, chosen = naive(g, 1.0, 1.0)
    assert len(circuit.edges) == chosen.sum() and len(circuit.nodes) == kept.sum()
    assert circuit.edges["share"].sum() == pytest.approx(1.0)


def test_the_bias_never_enters_and_tokens_and_targets_always_do():
    g = graph(6)
    circuit = g.prune(1e-6, 1e-6)
    kinds = circuit.nodes["kind"]
    assert (kinds == "bias").sum() == 0
    assert (kinds == "token").sum() == 2 and (kinds == "logit").sum() == 2


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"nodes=.* must lie in \(0, 1\]; 0.8 keeps 80%"):
        graph().prune(nodes=share)
    with pytest.raises(ValueError, match=r"edges=.* must lie in \(0, 1\]"):
        graph().prune(edges=share)
