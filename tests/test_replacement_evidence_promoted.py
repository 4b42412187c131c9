"""Promoted tokens: against sums written out by hand, and against the host itself."""

import hosts
import pytest
import torch

from replacement.evidence import promoted as module
from replacement.evidence.promoted import SHOWN, promoted

CASES = [
    ("llama", "topk"), ("gpt2", "neurons"), ("gemma2", "cross"), ("gemma2", "jumprelu"),
    ("gemma3", "neurons"), ("neox", "topk"), ("mixtral", "neurons"), ("gptj", "relu"),
]  # fmt: skip


def normed(vector, norm):
    """One norm on one vector, without its denominator."""
    if norm.center:
        vector = vector - vector.mean()
    return vector if norm.weight is None else vector * norm.weight


def attended(vector, block):
    """What one layer's attention makes of a vector, head by head."""
    x = normed(vector, block.norm1)
    size = block.outputs.shape[0] // block.heads
    total = torch.zeros_like(vector)
    for head in range(block.heads):
        own = head * block.kv_heads // block.heads
        value = x @ block.values[:, own * size : (own + 1) * size]
        total = total + value @ block.outputs[head * size : (head + 1) * size]
    return total if block.post1 is None else normed(total, block.post1)


def by_hand(model, layer, feature):
    """The logits that a feature promotes, and those through attention, both demeaned."""
    host, dictionary = model.host, model.dictionary
    blocks = [host.block(m) for m in range(host.n_layers)]
    straight = torch.zeros(host.d_model, dtype=host.dtype)
    through = torch.zeros(host.d_model, dtype=host.dtype)
    for m, writer in dictionary.layers[layer].writers.items():
        wrote = writer[feature]
        if dictionary.write == "mlp.hook_out" and blocks[m].post2 is not None:
            wrote = normed(wrote, blocks[m].post2)
        straight = straight + wrote
        for later in blocks[m + 1 :]:
            through = through + attended(wrote, later)
    logits = [normed(v, host.final_norm) @ host.unembedding for v in (straight, through)]
    return [row - row.mean() for row in logits]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_lists_are_the_extremes_of_the_sums_by_hand(family, kind, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7 * hosts.VOCABULARY)  # several blocks a layer
    model = hosts.model(family, kind)
    up, down, through = promoted(model)
    row = 0
    for layer, transcoder in enumerate(model.dictionary.layers):
        features = len(transcoder.writers[layer])
        for feature in range(0, features, 5):
            direct, carried = by_hand(model, layer, feature)
            lists = ((up, direct, True), (down, direct, False), (through, carried, True))
            for got, logits, largest in lists:
                best = logits.topk(SHOWN, largest=largest).values
                values, tokens = got.values[row + feature], got.tokens[row + feature]
                torch.testing.assert_close(values, best, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(logits[tokens], best, rtol=1e-4, atol=1e-4)
        row += features
    assert row == len(up.tokens) == len(down.tokens) == len(through.tokens)


def test_nothing_is_above_the_last_layer():
    model = hosts.model("llama", "topk")
    _, _, through = promoted(model)
    assert not through.values[-hosts.FEATURES :].any()
    assert through.values[: hosts.FEATURES].all()


@torch.no_grad()
def test_through_attention_is_what_the_host_does():
    """On a prompt of one token all heads look at it alone: alike, as the matrix takes them."""
    host = hosts.model("llama", "topk").host
    seen = []
    for x in torch.randn(2, 1, 1, host.d_model):  # the difference of two is free of biases
        kept = {}
        hooks = [("blocks.2.hook_in", lambda value, hook, x=x: x)]
        hooks += [
            (f"blocks.2.{name}", lambda value, hook, n=name, k=kept: k.update({n: value}))
            for name in ("ln1.hook_scale", "hook_attn_out")
        ]
        host.bridge.run_with_hooks(torch.tensor([[5]]), fwd_hooks=hooks)
        seen.append((x / kept["ln1.hook_scale"], kept["hook_attn_out"]))
    (one, wrote_one), (two, wrote_two) = seen
    wanted = (two - one) @ module.through_attention(host.block(2))
    torch.testing.assert_close(wrote_two - wrote_one, wanted, rtol=1e-3, atol=1e-4)
