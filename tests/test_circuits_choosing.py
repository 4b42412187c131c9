"""Choosing: which features get a row when not all can, and where the rest goes."""

import numpy as np
import pytest
import torch
from hosts import PROMPT, model

import circuits
from circuits import expand as expanding
from circuits import local as freezing
from circuits import rows as making
from circuits.local import freeze

DOUBLE = torch.float64
FIRST = circuits.Token(4, 6)
KEYS = ["kind", "layer", "position", "feature"]


def table(graph, which):
    return [tuple(row) for row in graph.nodes.iloc[which][KEYS].itertuples(index=False, name=None)]


def same_rows(part, whole, close=1e-12):
    """Rows and kept columns as in the complete graph; per layer the rest is the remainder."""
    rows = {name: r for r, name in enumerate(table(whole, whole.targets))}
    picked = [rows[name] for name in table(part, part.targets)]
    columns = {name: c for c, name in enumerate(table(whole, whole.sources))}
    scale = np.abs(whole.edges).sum(1)[picked, None]
    mine = table(part, part.sources)
    own = [c for c, name in enumerate(mine) if name[0] != "remainder"]
    wanted = whole.edges[picked][:, [columns[mine[c]] for c in own]]
    assert (np.abs(part.edges[:, own] - wanted) <= close * scale).all()
    np.testing.assert_allclose(part.values, whole.values[picked], rtol=1e-12)

    missing = [name for name in columns if name[0] == "feature" and name not in set(mine)]
    assert missing
    remainders = [c for c, name in enumerate(mine) if name[0] == "remainder"]
    assert [mine[c][1] for c in remainders] == [0, 1, 2]
    for layer, column in enumerate(remainders):
        left = [columns[name] for name in missing if name[1] == layer]
        gap = np.abs(part.edges[:, column] - whole.edges[picked][:, left].sum(1))
        assert (gap <= close * scale[:, 0]).all()


def chosen(graph):
    return {name for name in table(graph, graph.targets) if name[0] == "feature"}


def flow(whole, expanded):
    """Every node's influence when only these features have rows: the definition, target by target.

    Paths end in what has no row. The shares are of all that a row reads but the bias.
    """
    names, sources = table(whole, whole.targets), table(whole, whole.sources)
    place = {name: c for c, name in enumerate(sources)}
    weighed = np.array([name[0] != "bias" for name in sources])
    influence = np.zeros(len(sources))
    for r in sorted(range(len(names)), key=lambda r: -names[r][1]):
        w = whole.weights[r]
        if names[r][0] == "feature":
            if names[r] not in expanded:
                continue
            w += influence[place[names[r]]]
        sizes = np.abs(whole.edges[r]) * weighed
        if w > 0 and sizes.sum() > 0:
            influence += w * sizes / sizes.sum()
    return dict(zip(sources, influence.tolist(), strict=True))


def greedy(whole, budget):
    """One at a time, always the feature of the largest influence so far."""
    expanded = set()
    while len(expanded) < budget:
        influence = flow(whole, expanded)
        left = [n for n in influence if n[0] == "feature" and n not in expanded]
        expanded.add(max(left, key=influence.get))
    return expanded


CASES = [("llama", "relu"), ("gemma2", "cross-skip"), ("neox", "neurons"), ("gpt2", "topk")]


@pytest.mark.parametrize("budget", [1, 17, 80])
@pytest.mark.parametrize(("family", "kind"), CASES, ids=["-".join(c) for c in CASES])
def test_rows_of_a_budget_are_those_of_the_complete_graph(family, kind, budget):
    traced = model(family, kind, DOUBLE)
    whole = circuits.trace(traced, PROMPT)
    part = circuits.trace(traced, PROMPT, budget=budget)
    assert part.settings["expanded"] == budget and part.settings["budget"] == budget
    assert len(chosen(part)) == budget
    same_rows(part, whole)


@pytest.mark.parametrize("budget", [4, 12, 40])
@pytest.mark.parametrize(("family", "kind"), CASES[:3], ids=["-".join(c) for c in CASES[:3]])
def test_the_chosen_capture_what_an_exact_greedy_choice_captures(family, kind, budget):
    traced = model(family, kind, DOUBLE)
    whole = circuits.trace(traced, PROMPT)
    mine = chosen(circuits.trace(traced, PROMPT, budget=budget))
    best = greedy(whole, budget)
    captured = {}
    for name, group in {"mine": mine, "best": best}.items():
        influence = flow(whole, group)
        captured[name] = sum(influence[n] for n in group)
    assert captured["best"] > 0
    assert captured["mine"] >= 0.95 * captured["best"]
    # A choice at random captures far less: the bound above is no gift.
    features = sorted(n for n in flow(whole, set()) if n[0] == "feature")
    drawn = np.random.default_rng(0).choice(len(features), budget, replace=False)
    group = {features[i] for i in drawn}
    influence = flow(whole, group)
    assert sum(influence[n] for n in group) < 0.7 * captured["best"]


@pytest.mark.parametrize("budget", [3, 40, 90])
@pytest.mark.parametrize(("family", "kind"), CASES, ids=["-".join(c) for c in CASES])
def test_screening_changes_which_columns_are_held_and_nothing_else(
    monkeypatch, family, kind, budget
):
    traced = model(family, kind, DOUBLE)
    whole = circuits.trace(traced, PROMPT)
    screened = []
    screen = expanding._screen
    monkeypatch.setattr(expanding, "HELD", 1)
    monkeypatch.setattr(
        expanding, "_screen", lambda *args: screened.append(screen(*args)) or screened[-1]
    )
    part = circuits.trace(traced, PROMPT, budget=budget)
    if 2 * budget < whole.settings["active"]:
        assert len(screened) == 1 and len(screened[0]) < whole.settings["active"]
    assert len(chosen(part)) == budget
    assert part.discrepancy <= 1e-9
    same_rows(part, whole)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_what_matters_only_through_others_is_found(family):
    """More than a round's worth: later rounds must count what flows through the earlier ones."""
    traced = model(family, "neurons", DOUBLE)
    whole = circuits.trace(traced, PROMPT, FIRST)
    mine = chosen(circuits.trace(traced, PROMPT, FIRST, budget=130))
    direct = flow(whole, set())
    by_direct_effect = sorted((n for n in direct if n[0] == "feature"), key=direct.get)[-130:]
    captured = [
        sum(flow(whole, set(group))[n] for n in group)
        for group in (mine, by_direct_effect, greedy(whole, 130))
    ]
    assert captured[0] >= 0.998 * captured[2]
    assert captured[1] <= 0.985 * captured[2]  # so that direct effects alone would not do


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_screening_still_finds_what_matters(monkeypatch, family):
    traced = model(family, "relu", DOUBLE)
    whole = circuits.trace(traced, PROMPT)
    monkeypatch.setattr(expanding, "HELD", 1)
    mine = chosen(circuits.trace(traced, PROMPT, budget=40))
    captured = [sum(flow(whole, g)[n] for n in g) for g in (mine, greedy(whole, 40))]
    assert captured[0] >= 0.9 * captured[1]


@pytest.mark.parametrize("carried", [1, 1000])
@pytest.mark.parametrize("budget", [None, 30])
def test_chunks_of_any_size_give_the_same_rows(monkeypatch, carried, budget):
    for family, kind in CASES:
        traced = model(family, kind, DOUBLE)
        once = circuits.trace(traced, PROMPT, budget=budget)
        with monkeypatch.context() as patched:
            patched.setattr(making, "CARRIED", carried)
            patched.setattr(making, "OVERHEAD", 0)
            patched.setattr(making, "BLOCK", 7)
            patched.setattr(freezing, "WRITTEN", 0)
            split = circuits.trace(traced, PROMPT, budget=budget)
        assert split.discrepancy <= 1e-9
        places = {name: r for r, name in enumerate(table(split, split.targets))}
        order = [places[name] for name in table(once, once.targets)]
        assert table(split, split.sources) == table(once, once.sources)
        scale = np.abs(once.edges).sum(1)[:, None]
        assert (np.abs(split.edges[order] - once.edges) <= 1e-12 * scale).all()


def test_a_plan_holds_every_feature_once_and_keeps_to_its_size(monkeypatch):
    traced = model("llama", "relu", DOUBLE)
    run = traced.run(PROMPT)
    local = freeze(traced, run, traced.read(run))
    numbers = torch.arange(local.active)[::3]
    for carried in (1, 3 * local.width, 1 << 26):
        monkeypatch.setattr(making, "CARRIED", carried)
        chunks = making.plan(local, numbers)
        assert torch.equal(torch.cat(chunks).sort().values, numbers)
        assert max(map(len, chunks)) <= max(1, carried // local.width)


def test_a_budget_that_holds_all_is_complete():
    traced = model("llama", "topk", DOUBLE)
    active = circuits.trace(traced, PROMPT).settings["active"]
    exact, less = (circuits.trace(traced, PROMPT, budget=b) for b in (active, active - 1))
    assert exact.settings["complete"] and not less.settings["complete"]
    assert not exact.edges[:, exact.nodes["kind"].to_numpy()[exact.sources] == "remainder"].any()
    assert len(exact.targets) == len(less.targets) + 1


@pytest.mark.parametrize("budget", [None, 5, 90])
def test_progress_is_told_up_to_the_end(budget):
    told = []
    graph = circuits.trace(
        model("llama", "relu", DOUBLE), PROMPT, budget=budget, progress=lambda *n: told.append(n)
    )
    assert told == sorted(told) and told[-1] == (graph.settings["expanded"],) * 2


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_below_one_is_refused(budget):
    with pytest.raises(ValueError, match=rf"budget={budget} must be at least 1; 4096"):
        circuits.trace(model("llama", "topk", DOUBLE), PROMPT, budget=budget)


def test_a_budget_below_the_features_asked_for_is_refused():
    traced = model("llama", "topk", DOUBLE)
    first = traced.read(traced.run(PROMPT)).layers[0]
    asked = [circuits.Feature(0, int(first.features[i]), int(first.positions[i])) for i in range(3)]
    with pytest.raises(ValueError, match=r"budget=2 .* 3 features"):
        circuits.trace(traced, PROMPT, asked, budget=2)
