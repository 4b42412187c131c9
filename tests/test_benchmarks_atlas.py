"""A quick part of benchmarks/atlas.py, and its way of counting against brute force."""

import importlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import replacement

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("atlas"), importlib.import_module("concepts")


@pytest.fixture(scope="module")
def atlas(bench):
    return bench[0].Atlas("per-layer")


def test_the_host_answers_what_it_was_never_told(atlas):
    for family, least in (("two-hop", 0.99), ("medicine", 0.99), ("opposites", 0.95)):
        batch = atlas.encoded(atlas.some([family], True, 300))
        assert (atlas.machine.run(batch)[0] == batch.answers).float().mean() >= least, family


def test_the_batched_run_is_the_replacement_model(bench, atlas):
    """The benchmark's own hooks against ReplacementModel, prompt by prompt."""
    said = atlas.some(["two-hop", "medicine", "opposites", "known"], True, 12)
    batch = atlas.encoded(said)
    for replaced in (False, True):
        told, acts = atlas.machine.run(batch, replaced=replaced)
        for row, s in enumerate(said):
            if replaced:
                logits = atlas.replacement.replaced(s.prompt)
            else:
                run = atlas.replacement.run(s.prompt)
                logits = run.logits
                for layer, reading in enumerate(atlas.replacement.read(run).layers):
                    assert len(reading.positions) == int((acts[layer][row] > 0).sum())
            assert int(logits[-1].argmax()) == int(told[row])


def test_setting_nothing_changes_nothing(bench, atlas):
    batch = atlas.encoded(atlas.some(["two-hop"], True, 20))
    empty = [torch.tensor([], dtype=torch.long)] * 20
    told = bench[1].swapped(atlas.machine, (batch, batch), (empty, empty))
    assert torch.equal(told, atlas.machine.run(batch)[0])


def test_swapping_regions_moves_the_answer_and_random_features_do_not(bench, atlas, monkeypatch):
    main, _ = bench
    monkeypatch.setattr(main, "CHOOSING", 4000)
    monkeypatch.setattr(main, "SWAPPED", 60)
    regions = [r.name for r in (*atlas.world.states, *atlas.world.countries)]
    found, told = main.concepts(atlas, ["two-hop"], regions)
    assert max(len(group.features) for group in found) <= 12
    assert sum(v >= 0.9 for v in told.values()) / len(told) >= 0.85
    assert main.swap(atlas, "two-hop", regions, found) >= 0.85
    chance = torch.Generator().manual_seed(0)
    assert main.swap(atlas, "two-hop", regions, found, chance=chance) <= 0.1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=12))
def test_the_threshold_is_the_best_there_is(bench, rows):
    """Against every threshold tried one by one."""
    _, concepts = bench
    score = torch.tensor([float(value) for value, _ in rows])
    positive = torch.tensor([flag for _, flag in rows])
    if not (positive & (score > 0)).any():
        return
    group = concepts.Group(torch.tensor([0]), torch.ones(1), concepts._threshold(score, positive))
    best = 0.0
    for at in {value for value, _ in rows if value > 0}:
        told = score >= at
        hits = float((told & positive).sum())
        best = max(best, 2 * hits / float(told.sum() + positive.sum()))
    assert concepts.f1(group, score[:, None], positive) == pytest.approx(best)


def test_the_card_holds_what_was_measured(bench, tmp_path):
    main, _ = bench
    figures = {"per-layer": {"swap": 0.91, "random swap": 0.03, "agreement": 0.5}}
    card = tmp_path / "card.md"
    card.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    main.write_card(main.table(figures), card)
    text = card.read_text()
    assert "| swap | ≥ 0.9 | 0.910 |" in text and "old" not in text
    assert text.startswith("before") and text.endswith("after\n")
    assert main.short(figures) == [
        "per-layer: agreement is 0.500; the aim is 0.95",
        "random swap is 0.030 at best; the aim is 0.02",
    ]
    figures["cross-layer"] = {"swap": 0.2, "random swap": 0.0, "agreement": 0.99}
    assert len(main.short(figures)) == 1
    assert replacement.load("atlas", "per-layer").host.name == "atlas"
