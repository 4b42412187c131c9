"""Every edge against autograd through the untouched Hugging Face model."""

import random

import numpy as np
import pytest
import torch
from hosts import DTYPES, FAMILIES, KINDS, PROMPT, build, dictionary, host, model
from oracle import Naive, naive

import circuits
from replacement import Host, ReplacementModel, TopK

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
SAMPLED = 16  # rows compared of each graph: autograd takes one target at a time


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


def compare(graph, run: Naive, dtype: torch.dtype, sampled: int = SAMPLED) -> None:
    close = CLOSE[dtype]
    assert graph.settings["complete"]
    nodes = graph.nodes.iloc[graph.sources]
    # A neuron of layer 0 may read one token only, and nearly nothing of it, by cancellation
    # within that one inner product: no float32 can be right to its own scale then.
    floor = 0.1 * np.median(graph.scale) if dtype == torch.float32 else 0.0
    rows = list(range(len(graph.targets)))
    logits = [r for r in rows if graph.nodes["kind"][graph.targets[r]] == "logit"]
    features = [r for r in rows if r not in logits]
    chosen = logits[:3] + random.Random(0).sample(features, min(sampled - 3, len(features)))
    for r in chosen:
        node = graph.nodes.iloc[graph.targets[r]]
        value = target_value(run, node)
        wanted = expected_row(run, value, nodes)
        assert np.abs(wanted).sum() > 0
        scale = max(np.abs(wanted).sum(), floor)
        assert abs(value.item() - graph.values[r]) <= close * scale
        gap = np.abs(wanted - graph.edges[r])
        worst = int(gap.argmax())
        assert gap[worst] <= close * scale, (dict(node), dict(nodes.iloc[worst]))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_edges_equal_autograd(family, kind, dtype):
    replaced = model(family, kind, dtype)
    graph = circuits.trace(replaced, PROMPT)
    run = naive(build(family, dtype), replaced.dictionary, PROMPT)
    compare(graph, run, dtype)
    sources = graph.nodes.iloc[graph.sources]
    found = sources[sources["kind"] == "feature"]
    for layer, active in enumerate(run.activations):
        here = found[found["layer"] == layer]
        wanted = {(int(p), int(f)) for p, f in active.nonzero()}
        assert set(zip(here["position"], here["feature"], strict=True)) == wanted
        numbers = active[here["position"].tolist(), here["feature"].tolist()].numpy()
        np.testing.assert_allclose(here["activation"], numbers, rtol=0, atol=10 * CLOSE[dtype])


SITES = [
    (read, write)
    for read in ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")
    for write in ("hook_mlp_out", "mlp.hook_out")
]


@pytest.mark.parametrize(("read", "write"), SITES, ids=["->".join(s) for s in SITES])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_edges_equal_autograd_at_every_site(family, read, write):
    """Skip paths and writers across layers, with a LayerNorm and with norms after the MLP."""
    dtype = torch.float64
    opened = host(family, dtype)
    features = dictionary(3, TopK(5), read, write, skip=True, cross=True, seed=1)
    replaced = ReplacementModel(opened, features)
    graph = circuits.trace(replaced, PROMPT)
    compare(graph, naive(build(family, dtype), replaced.dictionary, PROMPT), dtype)


VARIANTS = {
    "neox-sequential": ("neox", {"use_parallel_residual": False}),
    "llama-one-value-head": ("llama", {"num_key_value_heads": 1}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "attention_bias": False}),
    "gpt2-untied": (
        "gpt2",
        {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
    ),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 3}),
    "olmoe-shares-sum-to-one": ("olmoe", {"norm_topk_prob": True}),
    "phi3-ungrouped": ("phi3", {"num_key_value_heads": 4}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_edges_equal_autograd_on_variants_of_a_family(variant):
    family, changes = VARIANTS[variant]
    dtype = torch.float64
    opened = Host.open(build(family, dtype, **changes))
    replaced = ReplacementModel(opened, dictionary(3, TopK(5), cross=True))
    graph = circuits.trace(replaced, PROMPT)
    compare(graph, naive(build(family, dtype, **changes), replaced.dictionary, PROMPT), dtype)


def test_the_oracle_predicts_as_the_model_does():
    """The naive model, patched, still computes what Hugging Face computes."""
    replaced = model("gemma2", "cross-skip", torch.float32)
    run = naive(build("gemma2"), replaced.dictionary, PROMPT)
    capped = torch.tanh(run.final @ run.unembedding.T / 2.0) * 2.0
    with torch.no_grad():
        untouched = build("gemma2")(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(capped.detach(), untouched, rtol=0, atol=1e-5)
