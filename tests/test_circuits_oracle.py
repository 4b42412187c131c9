"""Every edge against autograd through the untouched Hugging Face model."""

import random
from functools import lru_cache

import numpy as np
import pytest
import torch
from hosts import CONFIGS, DTYPES, FAMILIES, KINDS, PARALLEL, PROMPT, dictionary, host, jump, model
from oracle import Naive, naive

import circuits
from replacement import Dictionary, ReplacementModel, TopK

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
SAMPLED = 24  # rows compared of each graph: autograd takes one target at a time


@lru_cache(maxsize=1)
def both(family, kind, dtype):
    replaced = model(family, kind, dtype)
    return circuits.trace(replaced, PROMPT), naive(family, dtype, replaced.dictionary, PROMPT)


def target_value(run: Naive, node) -> torch.Tensor:
    if node.kind == "logit":
        return run.logit(node.feature, node.position)
    return run.values[node.layer][node.position, node.feature]


def expected_row(run: Naive, value: torch.Tensor, nodes) -> np.ndarray:
    """The row in the order of the graph's columns, the bias being what is left of the value."""
    features, errors, tokens = run.row(value)
    row = np.zeros(len(nodes))
    for i, node in enumerate(nodes.itertuples()):
        if node.kind == "feature":
            row[i] = float(features[node.layer][node.position, node.feature])
        elif node.kind == "error":
            row[i] = float(errors[node.layer][node.position])
        elif node.kind == "token":
            row[i] = float(tokens[node.position])
    taken = sum(float(part.double().sum()) for part in [*features, *errors, tokens])
    row[(nodes["kind"] == "bias").to_numpy()] = value.item() - taken
    return row


def compare(graph, run: Naive, close: float, sampled: int = SAMPLED) -> None:
    assert graph.settings["complete"]
    nodes = graph.nodes.iloc[graph.sources]
    rows = list(range(len(graph.targets)))
    logits = [r for r in rows if graph.nodes["kind"][graph.targets[r]] == "logit"]
    features = [r for r in rows if r not in logits]
    chosen = logits[:3] + random.Random(0).sample(features, min(sampled - 3, len(features)))
    for r in chosen:
        node = graph.nodes.iloc[graph.targets[r]]
        value = target_value(run, node)
        wanted = expected_row(run, value, nodes)
        scale = np.abs(wanted).sum()
        assert scale > 0
        assert abs(value.item() - graph.values[r]) <= close * scale
        gap = np.abs(wanted - graph.edges[r])
        worst = int(gap.argmax())
        assert gap[worst] <= close * scale, (dict(node), dict(nodes.iloc[worst]))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_edges_equal_autograd(family, kind, dtype):
    graph, run = both(family, kind, dtype)
    compare(graph, run, CLOSE[dtype])
    sources = graph.nodes.iloc[graph.sources]
    found = sources[sources["kind"] == "feature"]
    for layer, active in enumerate(run.activations):
        here = found[found["layer"] == layer]
        wanted = {(int(p), int(f)) for p, f in active.nonzero()}
        assert set(zip(here["position"], here["feature"], strict=True)) == wanted
        numbers = active[here["position"].tolist(), here["feature"].tolist()].numpy()
        np.testing.assert_allclose(here["activation"], numbers, rtol=0, atol=10 * CLOSE[dtype])
