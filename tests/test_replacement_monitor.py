"""Monitors against the readings of whole runs."""

import pytest
import torch
from hosts import PROMPT, model, speaking
from steering import live_hooks

from replacement import Ablate, Add, Clamp, Monitor, Rule

NEW = 6
GROUP = [(0, 3), (0, 17), (2, 8)]
NAMES = {"Texas": GROUP}


def fired(replaced, ids, pairs, threshold, interventions=()):
    """By position: the strongest of a group's features, from one run of the whole text."""
    run = replaced.host.run(ids, replaced.sites)
    if interventions:
        table = replaced.run(ids, list(interventions)).features
        found = {(r.layer, r.feature, r.position): r.after for r in table.itertuples()}
    else:
        found = {
            (m, int(f), int(p)): float(a)
            for m, r in enumerate(replaced.features(run))
            for p, f, a in zip(r.positions, r.features, r.activations, strict=True)
        }
    out = []
    for p in range(len(ids)):
        activation, m, f = max((found.get((m, f, p), 0.0), m, f) for m, f in pairs)
        if activation > threshold:
            out.append((p, m, f, activation))
    return out


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((f, "cross-skip") for f in ("gpt2", "gptj", "mistral", "gemma3", "mixtral")),
        *((f, "neurons") for f in ("gpt2", "phi3", "mixtral")),
        ("llama", "topk"),
    ],
)
def test_it_reports_which_rule_fired_where_and_how_strongly(family, kind):
    replaced = model(family, kind, torch.float64)
    steer = [Add((1, 4), 3.0)]
    monitor = Monitor(replaced, [Rule("Texas", 0.05), Rule((0, 5), 0.0)], NAMES)
    written = monitor.generate(PROMPT, interventions=steer, max_new_tokens=NEW, stop=())
    unwatched = replaced.generate(PROMPT, steer, max_new_tokens=NEW, stop=())
    assert written.ids == unwatched.ids and unwatched.firings == ()
    for name, pairs, threshold in (("Texas", GROUP, 0.05), ("(0, 5)", [(0, 5)], 0.0)):
        # The last token was written, but not read.
        expected = fired(replaced, written.ids[:-1], pairs, threshold, steer)
        own = [f for f in written.firings if f.concept == name]
        assert [(f.position, f.layer, f.feature) for f in own] == [e[:3] for e in expected]
        assert [f.activation for f in own] == pytest.approx([e[3] for e in expected], abs=1e-5)
        assert all(f.token == written.tokens[f.position] for f in own)
        assert all(f.action == "record" for f in own)
    assert written.firings
    assert [f.position for f in written.firings] == sorted(f.position for f in written.firings)


def test_a_rule_that_clamps_is_a_clamp_everywhere():
    replaced = model("mistral", "relu", torch.float64)
    group = [(0, f) for f in range(12)]
    monitor = Monitor(replaced, [Rule(group, 0.25, "clamp")])
    held = monitor.generate(PROMPT, max_new_tokens=NEW, stop=())
    clamp = [Clamp(group, high=0.25)]
    assert held.ids == replaced.generate(PROMPT, clamp, max_new_tokens=NEW, stop=()).ids
    assert held.ids != replaced.generate(PROMPT, max_new_tokens=NEW, stop=()).ids
    assert held.firings and all(f.activation > 0.25 for f in held.firings)


def test_a_rule_that_stops_ends_the_text_at_the_token_where_it_fires():
    replaced = model("llama", "relu", torch.float64)
    whole = Monitor(replaced, [Rule((2, 8), 0.0)]).generate(PROMPT, max_new_tokens=8, stop=())
    late = [f for f in whole.firings if f.position > len(PROMPT)]
    early = [f for f in whole.firings if f.position <= len(PROMPT)]
    threshold = max([0.0, *(f.activation for f in early)])
    late = [f for f in late if f.activation > threshold]
    assert late
    cut = Monitor(replaced, [Rule((2, 8), threshold, "stop")]).generate(
        PROMPT, max_new_tokens=8, stop=()
    )
    assert cut.stopped == "rule" and cut.ids == whole.ids[: late[0].position + 1]
    assert [f.position for f in cut.firings] == [late[0].position]


def test_what_is_watched_is_read_before_its_own_intervention():
    replaced = model("llama", "relu", torch.float64)
    rules = [Rule((0, 3), 0.0)]
    plain, ablated = (
        Monitor(replaced, rules).generate(PROMPT, interventions=done, max_new_tokens=1)
        for done in ([], [Ablate((0, 3))])
    )
    assert plain.firings and plain.firings == ablated.firings


def test_a_rule_may_call_a_function():
    replaced, told = speaking(), []

    def tell(firing):
        told.append(firing)

    monitor = Monitor(replaced, [Rule("0/3", -1.0, tell)])
    written = monitor.generate("The capital of Texas is", max_new_tokens=3, stop=())
    assert tuple(told) == written.firings and len(told) == len(written.ids) - 1
    assert [f.token for f in told[:2]] == written.tokens[:2]
    assert {(f.concept, f.action) for f in told} == {("0/3", "call tell")}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_function_that_fails_leaves_no_hooks(error):
    replaced = model("llama", "relu", torch.float64)
    replaced.run(PROMPT)
    before = live_hooks(replaced.host)

    def fail(firing):
        assert live_hooks(replaced.host) != before
        raise error

    with pytest.raises(error):
        Monitor(replaced, [Rule((0, 3), -1.0, fail)]).generate(PROMPT, max_new_tokens=2)
    assert live_hooks(replaced.host) == before


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda m: Monitor(m, []), "a monitor needs at least one rule: Monitor(model, [Rule("),
        (
            lambda m: Monitor(m, [Rule("Texs", 1.0)], NAMES),
            "the concept 'Texs' is not known; the nearest that is: Texas.",
        ),
        (lambda m: Rule("Texas", float("nan")), "threshold=nan of Texas must be a finite number."),
        (
            lambda m: Rule("Texas", 1.0, "shout"),
            "action='shout' of Texas is not known; use record, clamp, stop or a function.",
        ),
        (
            lambda m: Monitor(m, [Rule("0/3", 1.0, "clamp")]).generate(
                PROMPT, interventions=[Ablate("0/3")], max_new_tokens=2
            ),
            "interventions 1 (Ablate) and 2 (Clamp) both change L0/F3 at position 0; keep one.",
        ),
    ],
)
def test_bad_input_is_one_clear_line(make, line):
    replaced = model("llama", "topk")
    with pytest.raises(ValueError) as error:
        made = make(replaced)
        made.generate(PROMPT, max_new_tokens=2)
    assert str(error.value).startswith(line)
