"""Faithfulness against brute force: raw hooks on Hugging Face's model and dense matrices."""

import math

import jaxtyping
import pytest
import torch
from hosts import FEATURES, PROMPT, TEXT, WIDTH, build, dictionary, host, model, speaking
from oracle import activate, blocks

import replacement
from replacement import Dictionary, Host, JumpReLU, ReLU, ReplacementModel, TopK, Transcoder

CORPUS = [PROMPT, [7, 8, 9], [1], [40, 2, 11, 30, 30]]
KINDS = {
    "topk": {"activation": TopK(2)},
    "cross": {"activation": JumpReLU(1.0), "cross": True},
    "skip": {"activation": TopK(3), "skip": True},
}


def stand_ins(layers, inputs):
    """What the dictionary puts in each MLP's place, and its activations, by dense matrices."""
    found = []
    outputs = []
    for m, (layer, x) in enumerate(zip(layers, inputs, strict=False)):
        found.append(activate(layer.activation, x @ layer.reader.to(x).T + layer.reader_bias.to(x)))
        y = torch.zeros_like(x)
        for a, lower in zip(found, layers, strict=False):
            y += a @ lower.writers[m].to(x) if m in lower.writers else 0
            y += lower.biases[m].to(x) if m in lower.biases else 0
        outputs.append(y if layer.skip is None else y + x @ layer.skip.to(x).T)
    return outputs, found


def hooked(net, layers, ids, replace):
    """Logits and each MLP's input and output; with `replace`, the stand-in's output."""
    inputs, outputs, handles = [], [], []

    def hook(module, args, output):
        inputs.append(args[0][0])
        outputs.append(stand_ins(layers, inputs)[0][-1] if replace else output[0])
        return outputs[-1][None]

    for block in blocks(net):
        handles.append(block.mlp.register_forward_hook(hook))
    with torch.no_grad():
        logits = net(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return logits, inputs, outputs


def brute(net, made, corpus, counted):
    """All numbers at once from everything kept; `counted` picks positions of a prompt."""
    rows = {"true": [], "missed": [], "active": [], "kl": [], "same": []}
    for ids in corpus:
        logits, inputs, outputs = hooked(net, made.layers, ids, replace=False)
        replaced = hooked(net, made.layers, ids, replace=True)[0]
        wrote, found = stand_ins(made.layers, inputs)
        for p in counted(range(len(ids))):
            rows["true"].append(torch.stack([y[p] for y in outputs]))
            rows["missed"].append(
                torch.stack([y[p] - w[p] for y, w in zip(outputs, wrote, strict=True)])
            )
            rows["active"].append(torch.stack([a[p] != 0 for a in found]))
            host_p, other = logits[p].double().softmax(-1), replaced[p].double().softmax(-1)
            rows["kl"].append(
                sum(float(a) * math.log(float(a / b)) for a, b in zip(host_p, other, strict=True))
            )
            rows["same"].append(int(logits[p].argmax()) == int(replaced[p].argmax()))
    true, missed, active = (
        torch.stack(rows[n]).double() for n in ("true", "missed", "active")
    )  # (positions, layers, width)
    spread = ((true - true.mean(0)) ** 2).sum((0, 2))
    return {
        "fvu": ((missed**2).sum((0, 2)) / spread).tolist(),
        "l0": active.sum(2).mean(0).tolist(),
        "dead": (active.sum(0) == 0).double().mean(1).tolist(),
        "kl": sum(rows["kl"]) / len(rows["kl"]),
        "top1": sum(rows["same"]) / len(rows["same"]),
        "positions": len(rows["kl"]),
    }


COUNTED = {
    "all": ({}, lambda places: places),
    "last": ({"last": True}, lambda places: places[-1:]),
    "skip-first": ({"skip_first": 1}, lambda places: places[1:]),
    "both": ({"last": True, "skip_first": 3}, lambda places: places[3:][-1:]),
}


@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_number_is_that_of_brute_force(family, kind, counted):
    options, pick = COUNTED[counted]
    made = dictionary(3, **KINDS[kind])
    net = build(family, torch.float64)
    replaced = ReplacementModel(host(family, torch.float64), made)
    measured = replacement.evaluate(replaced, iter(CORPUS), **options)
    wanted = brute(net, made, CORPUS, pick)
    close = 1e-9 if family == "gpt2" else 1e-4  # Hugging Face's RMSNorm is float32 always
    for name in ("fvu", "l0", "dead"):
        found = [getattr(layer, name) for layer in measured.layers]
        assert found == pytest.approx(wanted[name], rel=close), name
    assert measured.kl == pytest.approx(wanted["kl"], rel=close) and measured.kl > 0.01
    assert measured.top1 == pytest.approx(wanted["top1"])
    assert measured.positions == wanted["positions"]
    assert {layer.features for layer in measured.layers} == {FEATURES}
    assert measured.fvu == pytest.approx(sum(wanted["fvu"]) / 3, rel=close)
    assert measured.l0 == pytest.approx(sum(wanted["l0"]))
    assert measured.dead == pytest.approx(sum(wanted["dead"]) / 3)
    assert 0 < measured.dead < 1


def test_the_share_of_all_features_that_are_dead_weighs_layers_by_their_features():
    layers = list(dictionary(3, ReLU()).layers)
    layers[1] = constant(torch.zeros(WIDTH), 1, features=3 * FEATURES)
    made = Dictionary(layers)
    measured = replacement.evaluate(ReplacementModel(host("gpt2"), made), CORPUS)
    dead = [layer.dead for layer in measured.layers]
    assert dead[1] == 1
    assert measured.dead == pytest.approx((dead[0] + 3 + dead[2]) / 5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "gemma2"])
def test_neurons_are_faithful(family):
    measured = replacement.evaluate(model(family, "neurons"), CORPUS)
    assert (measured.kl, measured.top1, measured.fvu) == (0, 1, 0)
    assert measured.prompts == 4 and measured.positions == 16
    assert measured.l0 > 0


def constant(bias, layer, features=2):
    """Features that are never active, beside a bias."""
    nothing = torch.zeros(features, len(bias), dtype=bias.dtype)
    return Transcoder(nothing, {layer: nothing}, ReLU(), writer_biases={layer: bias})


def outputs(net):
    """What each MLP writes over the corpus."""
    kept = [hooked(net, [], ids, replace=False)[2] for ids in CORPUS]
    return [torch.cat(layer) for layer in zip(*kept, strict=True)]


def test_the_mean_explains_nothing_and_zeros_explain_less():
    opened, true = host("gpt2", torch.float64), outputs(build("gpt2", torch.float64))
    means = Dictionary([constant(y.mean(0), m) for m, y in enumerate(true)])
    measured = replacement.evaluate(ReplacementModel(opened, means), CORPUS)
    assert [layer.fvu for layer in measured.layers] == pytest.approx([1, 1, 1], rel=1e-9)
    assert (measured.l0, measured.dead) == (0, 1)
    zeros = Dictionary([constant(0 * y[0], m) for m, y in enumerate(true)])
    measured = replacement.evaluate(ReplacementModel(opened, zeros), CORPUS)
    about = [float((y**2).sum() / ((y - y.mean(0)) ** 2).sum()) for y in true]
    assert [layer.fvu for layer in measured.layers] == pytest.approx(about, rel=1e-9)
    assert all(fvu > 1 for fvu in about)


def test_a_large_mean_costs_no_precision():
    """sum y² - n mean² would be wrong in its third digit here."""
    net = build("gpt2", torch.float64)
    with torch.no_grad():
        for block in blocks(net):
            block.mlp.c_proj.bias += 1e6
    true = outputs(net)
    means = Dictionary([constant(y.mean(0), m) for m, y in enumerate(true)])
    measured = replacement.evaluate(ReplacementModel(Host.open(net), means), CORPUS)
    assert [layer.fvu for layer in measured.layers] == pytest.approx([1, 1, 1], rel=1e-6)


def test_texts_are_prompts_too():
    replaced = speaking()
    ids = replaced.host.tokenize(TEXT)
    assert replacement.evaluate(replaced, [TEXT]) == replacement.evaluate(replaced, [ids])


@pytest.fixture
def unchecked():
    """As in production, where nobody checks annotations before we do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("corpus", "options", "says"),
    [
        ("The capital", {}, "a single prompt; give a list"),
        (PROMPT, {}, "a single prompt; give a list"),
        ([], {}, "has 0 positions to count"),
        ([[5]], {}, "has 1 positions to count"),
        (CORPUS, {"skip_first": 99}, "has 0 positions to count.*lower skip_first"),
        (CORPUS, {"skip_first": -1}, "skip_first=-1 must be at least 0"),
        ([PROMPT, PROMPT], {"last": True}, "MLPs write the same at all 2 positions"),
        ([PROMPT, []], {}, "prompt is empty"),
        ([[3, 77]], {}, "token id 77 is outside"),
    ],
)
def test_a_corpus_that_cannot_be_judged_is_refused(corpus, options, says):
    with pytest.raises(ValueError, match=says):
        replacement.evaluate(model("gpt2", "topk"), corpus, **options)


def test_logits_that_overflow_are_named():
    layers = [constant(torch.full((WIDTH,), 3e38), m) for m in range(3)]
    with pytest.raises(ValueError, match=r"NaN or infinite logits.*replaced"):
        replacement.evaluate(ReplacementModel(host("llama"), Dictionary(layers)), CORPUS)


def test_a_layer_that_writes_the_same_everywhere_does_not_hide_the_others():
    """Atlas's first layers see only the word they stand on, and these prompts end in the same."""
    said = [f"the capital of {place} is" for place in ("Texas", "France", "Ohio")]
    measured = replacement.evaluate(replacement.load("atlas"), said, last=True)
    unexplained = [layer.fvu for layer in measured.layers]
    assert unexplained[:3] == [None] * 3 and measured.fvu == unexplained[3]
    assert 0 < measured.fvu < 1 and measured.top1 == 1
