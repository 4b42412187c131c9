"""The books of every row balance, on every family and every kind of dictionary."""

import numpy as np
import pytest
import torch
from hosts import DTYPES, FAMILIES, KINDS, PROMPT, dictionary, host, model

import circuits
from replacement import JumpReLU, ReplacementModel

BALANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def check(graph, scale, close):
    """`scale`: per row, the sum of |edge| over single sources."""
    assert np.isfinite(graph.edges).all()
    imbalance = np.abs(graph.edges.astype(np.float64).sum(1) - graph.values) / scale
    assert imbalance.max() <= close
    assert graph.discrepancy <= close
    # The discrepancy counts the bias into the scale; it can only be the smaller of the two.
    assert graph.discrepancy <= imbalance.max() * (1 + 1e-6)
    assert imbalance.max() > 0  # not computed as what is left


def names(graph):
    columns = ["kind", "layer", "position", "feature"]
    return [tuple(row) for row in graph.nodes.loc[graph.targets, columns].itertuples(index=False)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_books_balance(family, kind, dtype):
    replaced = model(family, kind, dtype)
    whole = circuits.trace(replaced, PROMPT)
    assert whole.settings["complete"]
    assert whole.edges.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    scale = np.abs(whole.edges.astype(np.float64)).sum(1)
    check(whole, scale, BALANCE[dtype])

    part = circuits.trace(replaced, PROMPT, budget=30)
    assert not part.settings["complete"] and part.settings["expanded"] == 30
    row = dict(zip(names(whole), scale, strict=True))
    check(part, np.array([row[name] for name in names(part)]), BALANCE[dtype])


@pytest.mark.parametrize("kind", ["relu", "neurons"])
@pytest.mark.parametrize("ids", [[7], [7, 7], list(range(16))], ids=len)
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "neox", "mixtral"])
def test_books_balance_at_the_ends_of_length(family, ids, kind):
    graph = circuits.trace(model(family, kind, torch.float64), ids)
    check(graph, np.abs(graph.edges).sum(1), 1e-9)


def test_scale_is_the_sum_of_sizes_without_the_bias():
    for budget in (None, 20):
        graph = circuits.trace(model("llama", "cross", torch.float64), PROMPT, budget=budget)
        whole = circuits.trace(model("llama", "cross", torch.float64), PROMPT)
        bias = whole.nodes["kind"].to_numpy()[whole.sources] == "bias"
        sizes = dict(zip(names(whole), np.abs(whole.edges[:, ~bias]).sum(1), strict=True))
        np.testing.assert_allclose(graph.scale, [sizes[n] for n in names(graph)], rtol=1e-12)


def test_a_dictionary_with_nothing_active_leaves_all_to_errors_and_tokens():
    opened = host("llama", torch.float64)
    silent = ReplacementModel(opened, dictionary(3, JumpReLU(1e9)))
    graph = circuits.trace(silent, PROMPT)
    assert set(graph.nodes["kind"]) == {"error", "token", "remainder", "bias", "logit"}
    assert graph.settings["active"] == 0
    check(graph, np.abs(graph.edges).sum(1), 1e-9)


def test_a_wrong_edge_would_be_seen():
    graph = circuits.trace(model("llama", "topk", torch.float64), PROMPT)
    edges = graph.edges.copy()
    edges[3, np.abs(edges[3]).argmax()] *= 1.001
    with pytest.raises(AssertionError):
        check(type(graph)(**{**vars(graph), "edges": edges}), np.abs(edges).sum(1), 1e-9)
