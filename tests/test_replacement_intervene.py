"""Interventions: the direct regime against a trace's edges, the others against runs by hand."""

import numpy as np
import pytest
import torch
from hosts import FAMILIES, KINDS, PROMPT, build, model
from steering import Hand, dense, live_hooks

import circuits
from replacement import Ablate, Add, Clamp, Host, ReplacementModel, Scale, Set, Swap
from replacement.intervene import intervene, observe

REGIMES = ("free", "constrained", "direct")
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}
T = len(PROMPT)

CASES = [(f, k, torch.float64) for f in FAMILIES for k in ("cross-skip", "neurons")]
CASES += [("llama", k, torch.float64) for k in KINDS] + [
    ("gemma2", k, torch.float64) for k in KINDS
]
CASES += [(f, "jumprelu", torch.float32) for f in FAMILIES]
CASES = list(dict.fromkeys(CASES))
IDS = [f"{f}-{k}-{str(d)[6:]}" for f, k, d in CASES]


def active(replaced, count, seed=0):
    """Some active features, as (layer, feature, position, activation)."""
    found = [
        (m, int(f), int(p), float(a))
        for m, r in enumerate(replaced.features(replaced.run(PROMPT)))
        for p, f, a in zip(r.positions, r.features, r.activations, strict=True)
    ]
    draw = np.random.default_rng(seed)
    return [found[i] for i in sorted(draw.choice(len(found), count, replace=False))]


@pytest.mark.parametrize(("family", "kind", "dtype"), CASES, ids=IDS)
def test_direct_moves_everything_by_minus_the_edges_of_a_trace(family, kind, dtype):
    replaced = model(family, kind, dtype)
    graph = circuits.trace(replaced, PROMPT)
    sources, targets = (graph.nodes.iloc[i] for i in (graph.sources, graph.targets))
    reaching = (sources["kind"] == "feature").to_numpy() & (graph.edges != 0).any(0)
    draw, clean = np.random.default_rng(1), observe(replaced, PROMPT)
    # Float32 readings of size one move by 1e-7 whatever the row's scale.
    floor = 0.1 * np.median(graph.scale) if dtype == torch.float32 else 0.0
    for column in draw.choice(np.flatnonzero(reaching), 2, replace=False):
        source = sources.iloc[column]
        ablate = Ablate((source["layer"], source["feature"]), source["position"])
        outcome = intervene(replaced, clean, [ablate], "direct")
        change = outcome.features.set_index(["layer", "position", "feature"])["change"]
        moved = [
            outcome.effect(node.position)[node.feature].item()
            if node.kind == "logit"
            else change[node.layer, node.position, node.feature]
            for node in targets.itertuples()
        ]
        edges = graph.edges[:, column]
        assert np.abs(edges).max() > 0
        assert (np.abs(moved + edges) <= CLOSE[dtype] * np.maximum(graph.scale, floor)).all()


def affine(layer, feature, positions, do):
    """A change for the run by hand."""

    def change(m, activations):
        if m == layer:
            activations[positions, feature] = do(activations[positions, feature])
        return activations

    return change


HAND = [(f, "cross-skip") for f in FAMILIES]
HAND += [(f, "neurons") for f in ("gpt2", "gptj", "gemma2", "phi3", "mixtral", "olmoe")]
HAND += [(f, "jumprelu") for f in ("gpt2", "gemma2", "mixtral")]
HAND += [("llama", k) for k in ("topk", "batchtopk")] + [("gemma3", k) for k in ("cross", "skip")]


@pytest.mark.parametrize(("family", "kind"), HAND, ids=["-".join(c) for c in HAND])
def test_free_and_constrained_are_what_hooks_by_hand_make_of_them(family, kind):
    replaced = model(family, kind, torch.float64)
    hand = Hand(family, replaced.dictionary, torch.float64)
    clean = hand.run()
    (low, first, at, _), (high, second, other, _) = active(replaced, 2, seed=3)
    done = [Scale((low, first), -2.0, at), Add((high, second), 1.5, [other, -1])]
    if other == T - 1:
        done[1] = Add((high, second), 1.5, -1)
    steps = [affine(low, first, [at], lambda a: -2 * a)]
    steps.append(affine(high, second, sorted({other, T - 1}), lambda a: a + 1.5))
    top = max(m for layer in (low, high) for m in replaced.dictionary.layers[layer].writers)

    def change(m, activations):
        return steps[1](m, steps[0](m, activations))

    for regime, held in (("free", range(0)), ("constrained", range(low, top + 1))):
        logits, features, _ = hand.run(change, clean[1:], held)
        outcome = replaced.run(PROMPT, done, regime=regime)
        assert outcome.layers == ((low, top) if regime == "constrained" else None)
        # Hugging Face computes softmaxes in float32 whatever the model's precision.
        assert (outcome.logits - logits).abs().max() < 1e-5
        assert (outcome.clean_logits - clean[0]).abs().max() < 1e-5
        assert (outcome.logits - outcome.clean_logits).abs().max() > 1e-3
        widths = [features[m].shape[1] for m in features]
        for column, expected in (("after", features), ("before", clean[1])):
            for m, table in enumerate(dense(outcome.features, widths, column)):
                assert (table - expected[m]).abs().max() < 1e-5


def test_the_range_may_be_chosen_and_above_it_the_host_runs_freely():
    replaced = model("qwen3", "cross", torch.float64)
    hand = Hand("qwen3", replaced.dictionary, torch.float64)
    clean = hand.run()
    feature = next(f for f in active(replaced, 40) if f[0] == 0)
    change = affine(0, feature[1], [feature[2]], lambda a: 3 * a)
    logits = {}
    for held in ((0, 0), (0, 1), (1, 2)):
        expected = hand.run(change, clean[1:], range(held[0], held[1] + 1))[0]
        done = [Scale(feature[:2], 3.0, feature[2])]
        outcome = replaced.run(PROMPT, done, regime="constrained", layers=held)
        assert outcome.layers == held
        assert (outcome.logits - expected).abs().max() < 1e-5
        logits[held] = outcome.logits
    assert (logits[0, 0] - logits[0, 1]).abs().max() > 1e-4
    assert (logits[0, 1] - logits[1, 2]).abs().max() > 1e-4


def test_a_later_feature_is_compared_with_what_it_has_become():
    """Scaling a feature that another one drives: by half of what it recomputes to, not of old."""
    replaced = model("llama", "relu", torch.float64)
    low, late = (next(f for f in active(replaced, 60) if f[0] == m and f[2] == 4) for m in (0, 2))
    driven = [Add(low[:2], 5.0, 4)]
    for regime, relative in (("free", 0.5), ("constrained", None)):
        alone = replaced.run(PROMPT, driven, regime=regime).features
        both = replaced.run(PROMPT, [*driven, Scale(late[:2], 0.5, 4)], regime=regime).features
        rows = [
            t[(t["layer"] == 2) & (t["position"] == 4) & (t["feature"] == late[1])].iloc[0]
            for t in (alone, both)
        ]
        assert abs(rows[0]["after"] - late[3]) > 1e-3  # it was driven
        expected = relative * rows[0]["after"] if relative else 0.5 * late[3]
        assert rows[1]["after"] == pytest.approx(expected, rel=1e-12)
        assert rows[1]["intervened"] and not rows[0]["intervened"]


NONE = [(f, torch.float32) for f in FAMILIES]
NONE += [(f, d) for f in ("gptj", "gemma2", "mixtral") for d in (torch.float64, torch.bfloat16)]


@pytest.mark.parametrize(("family", "dtype"), NONE, ids=[f"{f}-{str(d)[6:]}" for f, d in NONE])
def test_no_intervention_is_the_hosts_own_run(family, dtype):
    replaced = model(family, "cross-skip", dtype)
    clean = observe(replaced, PROMPT)
    if dtype == torch.float32:
        with torch.no_grad():
            own = build(family)(torch.tensor([PROMPT])).logits[0]
        assert (clean.run.logits - own).abs().max() < 1e-6 * max(1, float(own.abs().max()))
    for regime in REGIMES:
        outcome = intervene(replaced, clean, [], regime)
        assert (outcome.features["change"] == 0).all() and outcome.regime == regime
        assert torch.equal(outcome.logits, replaced.run(PROMPT).logits)
        # Nor does an intervention that leaves its feature as it is.
        outcome = intervene(replaced, clean, [Scale((1, 3), 1.0)], regime)
        assert torch.equal(outcome.logits, clean.run.logits)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("family", ["gptj", "llama", "gemma2", "mixtral"])
def test_half_precision_hosts_move_as_exact_ones_do(family, regime):
    exact, half = (model(family, "cross-skip", dtype) for dtype in (torch.float64, torch.bfloat16))
    done = [Add((0, 3), 4.0, 2), Add((1, 5), -3.0, slice(3, None))]
    one, other = (m.run(PROMPT, done, regime=regime) for m in (exact, half))
    gap = (one.effect() - other.effect()).abs().max()
    assert gap < 0.05 * one.effect().abs().max()


def test_the_outcome_says_which_tokens_rose_and_fell():
    replaced = model("gemma2", "topk")
    outcome = replaced.run(PROMPT, [Add((0, 3), 20.0)])
    before, after = (x[2].double().softmax(-1) for x in (outcome.clean_logits, outcome.logits))
    table = outcome.moved(position=2, top=3)
    change = (after - before).tolist()
    order = sorted(range(len(change)), key=lambda i: -change[i])
    assert table["id"].tolist() == order[:3] + order[-3:]
    assert table["token"].tolist() == [str(i) for i in order[:3] + order[-3:]]
    assert np.allclose(table["before"], before[table["id"]])
    assert np.allclose(table["after"], after[table["id"]])
    assert np.allclose(table["change"], np.array(change)[table["id"]])
    # The cap is undone: capped logits move otherwise.
    cap = 2.0
    raw = [cap * torch.atanh(x[2].double() / cap) for x in (outcome.clean_logits, outcome.logits)]
    moved = raw[1] - raw[0]
    assert (outcome.effect(2) - (moved - moved.mean())).abs().max() < 1e-4
    assert np.allclose(table["logit"], outcome.effect(2)[table["id"].tolist()])
    assert not outcome.features["change"].isna().any()


@pytest.mark.parametrize("regime", REGIMES)
def test_many_interventions_share_one_clean_run(regime):
    replaced = model("phi3", "cross-skip")
    clean = observe(replaced, PROMPT)
    for feature in active(replaced, 3):
        done = [Ablate(feature[:2], feature[2])]
        one = intervene(replaced, clean, done, regime)
        other = replaced.run(PROMPT, done, regime=regime)
        assert torch.equal(one.logits, other.logits)
        assert one.features.equals(other.features)


def state(host):
    return {name: tensor.clone() for name, tensor in host.bridge.state_dict().items()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("regime", REGIMES)
def test_every_hook_is_gone_however_the_run_ends(regime, error, monkeypatch):
    replaced = ReplacementModel(
        Host.open(build("gemma2")), model("gemma2", "cross-skip").dictionary
    )
    logits = replaced.run(PROMPT).logits  # transformers leaves hooks of its own at the first run
    before, own = live_hooks(replaced.host), state(replaced.host)
    done = [Add((1, 3), 2.0)]
    replaced.run(PROMPT, done, regime=regime)
    assert live_hooks(replaced.host) == before

    def stop(*args):
        assert live_hooks(replaced.host) != before
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr("replacement.regimes.activations_at", stop)
        replaced.run(PROMPT, done, regime=regime)
    assert live_hooks(replaced.host) == before
    after = state(replaced.host)
    assert own.keys() == after.keys() and all(torch.equal(own[n], after[n]) for n in own)
    assert torch.equal(replaced.run(PROMPT).logits, logits)


ERRORS = [
    (Set("Texs", 0.0), "the concept 'Texs' is not known; the nearest that is: Texas."),
    (Set("zzz", 0.0), "the concept 'zzz' is not known; give (layer, feature), text such as"),
    (Ablate((3, 0)), "L3/F0: the dictionary has layers 0 to 2."),
    (Ablate("L0/F24"), "L0/F24: layer 0 has features 0 to 23."),
    (Ablate((0, -1)), "L0/F-1: layer 0 has features 0 to 23."),
    (Ablate([]), "no features are given; give (layer, feature), text"),
    (Ablate(3.5), "3.5 names no features; give (layer, feature), text"),
    (Set((0, 1), float("nan")), "Set of L0/F1: nan is NaN or infinite; give finite numbers."),
    (Scale((0, 1), float("inf")), "Scale of L0/F1: inf is NaN or infinite"),
    (Add(["0/1", "0/2"], [1, float("nan")]), "Add of L0/F2: [1, nan] is NaN or infinite"),
    (Clamp((0, 1), low=2, high=1), "Clamp: low=2 must not exceed high=1."),
    (Clamp((0, 1), high=float("nan")), "Clamp of L0/F1: nan is NaN or infinite"),
    (Set((0, 1), "two"), "Set: 'two' are not numbers; give one number, one for each"),
    (
        Set((0, 1), [1, 2, 3]),
        "Set has numbers of shape (3,); give one number, one for each of the 1",
    ),
    (Set((0, 1), 1, 7), "position 7 is outside the 7 tokens; give 0 to 6, or -7 to -1 from"),
    (Set((0, 1), 1, [0, -8]), "position -8 is outside the 7 tokens; give 0 to 6"),
    (Set((0, 1), 1, 1.5), "positions=1.5: give a whole number, a sequence, a slice or None."),
    (Set((0, 1), 1, [1.5]), "position 1.5 must be a whole number."),
    (Set((0, 1), 1, slice(7, None)), "positions=slice(7, None, None) hold none of the 7 tokens"),
    (Swap((0, 1), ["0/2", "0/3"]), "Swap exchanges 1 features with 2; give groups of one size"),
    ("Texas=0", "'Texas=0' is no intervention; give one of Set, Scale, Add"),
]


@pytest.mark.parametrize(("done", "line"), ERRORS, ids=[line for _, line in ERRORS])
def test_bad_input_is_one_clear_line(done, line):
    with pytest.raises(ValueError) as error:
        model("llama", "topk").run(PROMPT, [done], names={"Texas": [(0, 1)]})
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"regime": "fre"}, "regime='fre' is not known; did you mean 'free'?"),
        ({"regime": "7"}, "regime='7' is not known; use one of free, constrained, direct."),
        ({"layers": (0, 1)}, "layers=(0, 1) are held in the constrained regime only, not free."),
        (
            {"regime": "constrained", "layers": (1, 3)},
            "layers=(1, 3) must be the first and the last that are held, from 0 to 2.",
        ),
        (
            {"interventions": [Set("0/1", 1.0, 3), Ablate(["0/2", "0/1"], slice(2, 5))]},
            "interventions 1 (Set) and 2 (Ablate) both change L0/F1 at position 3; keep one.",
        ),
    ],
)
def test_bad_settings_are_one_clear_line(options, line):
    options = {"interventions": [Ablate((0, 1))]} | options
    with pytest.raises(ValueError) as error:
        model("llama", "topk").run(PROMPT, **options)
    assert str(error.value) == line


def test_a_clamp_needs_a_bound():
    with pytest.raises(ValueError, match=r"Clamp of 'Texas' has no bounds; give low=, high= or"):
        Clamp("Texas")
