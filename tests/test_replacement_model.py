"""ReplacementModel: what it reads, what it misses, and the model with every MLP replaced."""

import pytest
import torch
from hosts import DTYPES, FAMILIES, KINDS, PROMPT, build, dictionary, host, model, options
from oracle import activate, blocks, norm_before_mlp

import replacement
from replacement import ReLU, ReplacementModel

CLOSE = {torch.float32: 2e-5, torch.float64: 2e-5}  # Hugging Face's norms are float32 always


def naive_replaced(family, dtype, replaced, ids):
    """Hugging Face's own forward pass with each MLP's output computed by loops."""
    net, layers = build(family, dtype), replaced.dictionary.layers
    read, write = replaced.dictionary.read, replaced.dictionary.write
    active, inputs = [], {}

    def stand_in(m, x):
        layer, rows = layers[m], []
        values = torch.stack([layer.reader.to(x) @ v for v in x]) + layer.reader_bias.to(x)
        active.append(activate(layer.activation, values))
        for p in range(len(x)):
            out = torch.zeros_like(x[p])
            for source in range(m + 1):
                lower = layers[source]
                if m in lower.writers:
                    for f in active[source][p].nonzero()[:, 0]:
                        out = out + active[source][p, f] * lower.writers[m][f].to(x)
                if m in lower.biases:
                    out = out + lower.biases[m].to(x)
            rows.append(out if layer.skip is None else out + layer.skip.to(x) @ x[p])
        return torch.stack(rows)[None]

    def reading(m, block):
        norm = norm_before_mlp(block)
        post = getattr(block, "post_feedforward_layernorm", None)

        def at_norm(module, args, output):
            x = args[0]
            if read == "hook_resid_mid":
                inputs[m] = x[0]
            elif read == "ln2.hook_normalized":
                if isinstance(module, torch.nn.LayerNorm):
                    x = x - x.mean(-1, keepdim=True)
                eps = getattr(module, "eps", None) or module.variance_epsilon
                inputs[m] = (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())[0]
            else:
                inputs[m] = output[0]

        norm.register_forward_hook(at_norm)
        place = post if post is not None and write == "hook_mlp_out" else block.mlp
        place.register_forward_hook(lambda module, args, output: stand_in(m, inputs[m]))

    for m, block in enumerate(blocks(net)):
        reading(m, block)
    with torch.no_grad():
        return net(torch.tensor([ids])).logits[0]


CASES = [
    (f, k) for f in ("gpt2", "gemma2", "neox", "llama", "phi") for k in KINDS if k != "neurons"
]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("family", "kind"), CASES, ids=["-".join(c) for c in CASES])
def test_replaced_equals_a_naive_loop(family, kind, dtype):
    replaced = model(family, kind, dtype)
    mine, wanted = replaced.replaced(PROMPT), naive_replaced(family, dtype, replaced, PROMPT)
    assert (mine - wanted).abs().max() <= CLOSE[dtype] * max(1, wanted.abs().max())
    # The dictionary is random: had nothing been replaced, the host's own logits would show.
    assert (mine - replaced.run(PROMPT).logits).abs().max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_replace_the_mlps_exactly(family, dtype):
    replaced = replacement.load(host(family, dtype))
    run = replaced.run(PROMPT)
    assert torch.equal(replaced.replaced(PROMPT), run.logits)
    reading = replaced.read(run)
    assert reading.errors is None
    for m in range(3):
        true = run[f"blocks.{m}.mlp.hook_out"]
        gap = (replaced.written(reading.layers, m, run) - true).abs().max()
        assert gap <= (1e-5 if dtype == torch.float32 else 1e-12) * true.abs().max()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "neurons"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_features_and_error_make_up_the_mlp(family, kind):
    """By loops over features: what is written plus the error is what the host wrote."""
    replaced = model(family, kind, torch.float64)
    run = replaced.run(PROMPT)
    reading, layers = replaced.read(run), replaced.dictionary.layers
    for m in range(3):
        out = reading.errors[m].clone()
        for source in range(m + 1):
            found, lower = reading.layers[source], layers[source]
            if m in lower.writers:
                for p, f, a in zip(found.positions, found.features, found.activations, strict=True):
                    out[p] += a * lower.writers[m][f]
            if m in lower.biases:
                out += lower.biases[m]
        if layers[m].skip is not None:
            out += run[f"blocks.{m}.{replaced.dictionary.read}"] @ layers[m].skip.T
        torch.testing.assert_close(out, run[f"blocks.{m}.{replaced.dictionary.write}"])


def test_one_token_is_a_prompt():
    for family in ("llama", "mixtral", "gpt2"):
        for kind in ("relu", "neurons"):
            replaced = model(family, kind, torch.float64)
            assert replaced.replaced([7]).shape == (1, 50)
            assert len(replaced.read(replaced.run([7])).layers) == 3


def test_options_fall_back_only_where_a_site_is_absent():
    assert options("gptj", "topk")["read"] == options("phi", "jumprelu")["read"] == "mlp.hook_in"
    assert options("neox", "jumprelu")["read"] == "ln2.hook_normalized"


@pytest.mark.parametrize(
    ("family", "site"),
    [("gptj", "ln2.hook_normalized"), ("phi", "hook_resid_mid"), ("neox", "hook_resid_mid")],
)
def test_a_site_that_the_host_lacks_is_refused_by_name(family, site):
    with pytest.raises(ValueError, match=site):
        replaced = ReplacementModel(host(family), dictionary(3, ReLU(), read=site))
        replaced.read(replaced.run(PROMPT))


MISMATCHED = {
    "layers": (dictionary(2, ReLU()), ["2 layers", "has 3", "another host"]),
    "more-layers": (dictionary(4, ReLU()), ["4 layers", "has 3", "another host"]),
    "width": (dictionary(3, ReLU(), width=16), ["width is [16]", "is 32", "another host"]),
}


@pytest.mark.parametrize("mismatch", MISMATCHED)
def test_a_dictionary_for_another_host_is_refused(mismatch):
    features, said = MISMATCHED[mismatch]
    with pytest.raises(ValueError) as caught:
        ReplacementModel(host("llama"), features)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_load_takes_a_host_a_model_and_a_dictionary():
    features = dictionary(3, ReLU())
    for source in (host("llama"), build("llama")):
        loaded = replacement.load(source, features)
        assert torch.equal(loaded.replaced(PROMPT), model("llama", "relu").replaced(PROMPT))
    with pytest.raises(ValueError, match=r"no dictionary 'neuron'.*'neurons'"):
        replacement.load(host("llama"), dictionary="neuron")
