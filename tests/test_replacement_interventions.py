"""What interventions mean: identities between them, features by name, positions of every kind."""

import pytest
import torch
from hosts import FEATURES, PROMPT, model
from hypothesis import given, settings
from hypothesis import strategies as st

from replacement import Ablate, Add, Clamp, Scale, Set, Swap
from replacement.intervene import intervene, observe
from replacement.interventions import places, resolve

T = len(PROMPT)
few = settings(max_examples=8)
regimes = st.sampled_from(["free", "constrained", "direct"])
kinds = st.sampled_from(["cross-skip", "jumprelu", "topk"])
features = st.tuples(st.integers(0, 2), st.integers(0, FEATURES - 1))
positions = st.one_of(
    st.none(), st.integers(-T, T - 1), st.integers(0, T - 1).map(lambda p: slice(p, None))
)
numbers = st.floats(-4, 4).map(lambda x: round(x, 3))
_CLEAN = {}


def run(kind, regime, *interventions):
    replaced = model("llama", kind, torch.float64)
    if kind not in _CLEAN:
        _CLEAN[kind] = observe(replaced, PROMPT)
    return intervene(replaced, _CLEAN[kind], list(interventions), regime)


def activation(kind, feature, position):
    reading = model("llama", kind, torch.float64).features(_CLEAN[kind].run)[feature[0]]
    here = (reading.positions == position) & (reading.features == feature[1])
    return float(reading.activations[here].sum())


def same(one, other, close=1e-12):
    a, b = one.features, other.features
    assert (one.logits - other.logits).abs().max() <= close
    keys = ["layer", "position", "feature"]
    both = a.merge(b, on=keys, how="outer").fillna(0.0)
    assert (both["after_x"] - both["after_y"]).abs().max() <= close


@few
@given(kinds, regimes, features, positions)
def test_what_does_nothing(kind, regime, feature, at):
    nothing = run(kind, regime)
    same(run(kind, regime, Scale(feature, 1.0, at)), nothing, 0)
    same(run(kind, regime, Add(feature, 0.0, at)), nothing, 0)
    same(run(kind, regime, Clamp(feature, low=-1e6, positions=at)), nothing, 0)
    where = places(at, T)
    own = [[activation(kind, feature, p) for p in where]]
    same(run(kind, regime, Set(feature, own, at)), nothing, 0)


@few
@given(kinds, regimes, features, positions)
def test_three_ways_to_ablate(kind, regime, feature, at):
    ablated = run(kind, regime, Ablate(feature, at))
    same(run(kind, regime, Set(feature, 0.0, at)), ablated, 0)
    same(run(kind, regime, Scale(feature, 0.0, at)), ablated, 0)
    same(run(kind, regime, Clamp(feature, 0.0, 0.0, at)), ablated, 0)


@few
@given(kinds, features, features, positions, numbers, numbers)
def test_direct_is_linear(kind, one, other, at, x, y):
    if one == other:
        whole, parts = [Add(one, x + y, at)], [Add(one, x, at), Add(one, y, at)]
    else:
        parts = [Add(one, x, at), Add(other, y, at)]
        whole = parts
    together = run(kind, "direct", *whole)
    alone = [run(kind, "direct", part) for part in parts]
    for p in range(T):
        gap = together.effect(p) - sum(outcome.effect(p) for outcome in alone)
        assert gap.abs().max() < 1e-11
    gap = together.features["change"] - sum(outcome.features["change"] for outcome in alone)
    assert gap.abs().max() < 1e-11


@few
@given(kinds, regimes, st.lists(features, min_size=2, max_size=4, unique=True), st.randoms())
def test_the_order_of_interventions_is_irrelevant(kind, regime, several, random):
    made = [Set(several[0], 2.0), *(Scale(f, 1.5, slice(1, None)) for f in several[1:])]
    shuffled = random.sample(made, len(made))
    same(run(kind, regime, *made), run(kind, regime, *shuffled))


@few
@given(kinds, regimes, st.lists(features, min_size=2, max_size=4, unique=True), numbers, positions)
def test_a_group_is_its_features(kind, regime, several, value, at):
    apart = run(kind, regime, *(Set(f, value * i, at) for i, f in enumerate(several)))
    values = [value * i for i in range(len(several))]
    same(run(kind, regime, Set(several, values, at)), apart, 0)
    rows = [[v] * len(places(at, T)) for v in values]
    same(run(kind, regime, Set(several, torch.tensor(rows), at)), apart, 1e-6)


@few
@given(kinds, regimes, st.lists(features, min_size=4, max_size=4, unique=True), positions)
def test_a_swap_exchanges_clean_activations(kind, regime, four, at):
    run(kind, regime)
    where = places(at, T)
    sets = [
        Set(taker, [[activation(kind, giver, p) for p in where]], at)
        for taker, giver in zip(four, four[2:] + four[:2], strict=True)
    ]
    same(run(kind, regime, Swap(four[:2], four[2:], at)), run(kind, regime, *sets), 0)


@few
@given(kinds, features, numbers, numbers)
def test_a_clamp_sets_what_lies_outside(kind, feature, one, other):
    low, high = sorted((one, other))
    run(kind, "direct")
    own = [activation(kind, feature, p) for p in range(T)]
    within = Set(feature, [[min(max(a, low), high) for a in own]])
    same(run(kind, "direct", Clamp(feature, low, high)), run(kind, "direct", within), 1e-12)


@pytest.mark.parametrize(
    ("what", "pairs"),
    [
        ((2, 3), [(2, 3)]),
        ([2, 3], [(2, 3)]),
        ("L2/F3", [(2, 3)]),
        ("2/3", [(2, 3)]),
        (torch.tensor([2, 3]), [(2, 3)]),
        (["L2/F3", (0, 1)], [(2, 3), (0, 1)]),
        ("Texas", [(1, 4), (2, 5)]),
        (["Texas", "0/0"], [(1, 4), (2, 5), (0, 0)]),
        (((0, 1), (0, 2)), [(0, 1), (0, 2)]),
    ],
)
def test_features_are_named_in_many_ways(what, pairs):
    names = {"Texas": [(1, 4), "L2/F5"]}
    assert resolve(model("llama", "topk"), what, names) == pairs


@pytest.mark.parametrize(
    ("positions", "prompt", "grown"),
    [
        (None, [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]),
        (-1, [3], [3]),
        (2, [2], [2]),
        ([3, -4], [3, 0], [3, 0]),
        (range(1, 3), [1, 2], [1, 2]),
        (slice(2, None), [2, 3], [2, 3, 4, 5]),
        (slice(-2, None), [2, 3], [2, 3, 4, 5]),
        (slice(None, -1), [0, 1, 2], [0, 1, 2]),
        (slice(-9, None, 2), [0, 2], [0, 2, 4]),
        (slice(1, 99), [1, 2, 3], [1, 2, 3, 4, 5]),
    ],
)
def test_positions_are_of_the_prompt_and_open_ends_go_on(positions, prompt, grown):
    assert places(positions, 4) == prompt
    assert places(positions, 4, 6) == grown
    assert places(5, 4, 6) == [5]


def test_values_for_each_position_follow_the_order_given():
    replaced = model("llama", "relu", torch.float64)
    outcome = replaced.run(PROMPT, [Set((1, 3), [[5.0, 6.0, 7.0]], [4, -1, 0])])
    rows = outcome.features.query("layer == 1 and feature == 3 and intervened")
    assert dict(zip(rows["position"], rows["after"], strict=True)) == {4: 5.0, 6: 6.0, 0: 7.0}
