"""Generation with a cache against runs of the whole text, and against Hugging Face's own."""

import pytest
import torch
from hosts import FAMILIES, PROMPT, build, dictionary, host, model, speaking
from steering import live_hooks

from replacement import Ablate, Add, BatchTopK, Clamp, Host, ReplacementModel, Scale, Set, Swap
from replacement.generation import Sampler

NEW = 6


def uncached(replaced, interventions, new=NEW):
    """Greedy, each token from a run of all that there is so far."""
    ids, short = list(PROMPT), []
    for _ in range(new):
        outcome = replaced.run(ids, interventions)
        top = outcome.logits[-1].topk(2).values
        short.append(float(top[0] - top[1]))
        ids.append(int(outcome.logits[-1].argmax()))
    assert min(short) > 1e-4  # no ties: rounding cannot choose between tokens
    return ids


CASES = [(f, "cross-skip") for f in FAMILIES]
CASES += [(f, "neurons") for f in ("gpt2", "gptj", "phi3", "mixtral", "olmoe")]
CASES += [("mistral", "topk"), ("gemma3", "batchtopk-threshold"), ("gemma2", "skip-normalized")]


@pytest.mark.parametrize(("family", "kind"), CASES, ids=["-".join(c) for c in CASES])
def test_cached_is_uncached(family, kind):
    replaced = model(family, kind, torch.float64)
    done = [
        Add((0, 3), 6.0, slice(5, None)),
        Scale([(1, 5), (2, 7)], -2.0),
        Clamp((2, 9), low=3.0, positions=slice(2, None)),
        Set((1, 11), 4.0, 3),
    ]
    steered = replaced.generate(PROMPT, done, max_new_tokens=NEW, stop=())
    assert steered.ids == uncached(replaced, done)
    assert steered.stopped == "length" and len(steered.new_ids) == NEW
    assert steered.prompt_length == len(PROMPT) and steered.ids[: len(PROMPT)] == PROMPT


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_cached_is_uncached_where_windows_are_narrow(family, window):
    """A window of one token (Atlas has it): transformers' own cache goes wrong there."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    more = {"use_sliding_window": True, "layer_types": layers} if family == "qwen3" else {}
    opened = Host.open(build(family, torch.float64, sliding_window=window, **more))
    replaced = ReplacementModel(opened, model(family, "cross", torch.float64).dictionary)
    done = [Add((1, 3), 6.0, slice(5, None))]
    assert replaced.generate(PROMPT, done, NEW, stop=()).ids == uncached(replaced, done)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_interventions_it_is_hugging_faces_own(family):
    replaced = model(family, "cross")
    with torch.no_grad():
        own = build(family).generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT)),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )
    assert replaced.generate(PROMPT, max_new_tokens=NEW).ids == own[0].tolist()


def test_open_ended_positions_reach_what_is_generated():
    """Within the prompt only, within a part of what is generated only, and everywhere."""
    replaced = model("mistral", "relu", torch.float64)
    texts = {}
    for name, at in {
        "prompt": range(len(PROMPT)),
        "all": None,
        "late": slice(9, None),
        "one": 9,
    }.items():
        done = [Add([(0, f) for f in range(12)], 5.0, at)]
        texts[name] = replaced.generate(PROMPT, done, max_new_tokens=8, stop=()).new_ids
    clean = replaced.generate(PROMPT, max_new_tokens=8, stop=()).new_ids
    # Tokens up to position 9 (two of them new) are read before anything changes.
    assert texts["late"][:3] == clean[:3] and texts["late"] != clean
    assert texts["one"][:3] == clean[:3] and texts["one"] != texts["late"]
    assert texts["prompt"] != texts["all"]


def entries(reading):
    return reading.positions, reading.features, reading.activations


def test_a_swap_takes_the_prompts_activations():
    replaced = model("llama", "relu", torch.float64)
    run = replaced.run(PROMPT)
    ends = slice(None, -1)
    reading = [
        {(int(p), int(f)): float(a) for p, f, a in zip(*entries(r), strict=True)}
        for r in replaced.features(run)
    ]
    rows = [[reading[m].get((p, f), 0.0) for p in range(6)] for m, f in ((2, 5), (1, 4))]
    swapped = replaced.generate(PROMPT, [Swap((1, 4), (2, 5), ends)], max_new_tokens=4, stop=())
    sets = [Set((1, 4), [rows[0]], ends), Set((2, 5), [rows[1]], ends)]
    assert swapped.ids == replaced.generate(PROMPT, sets, max_new_tokens=4, stop=()).ids


def test_text_tokens_and_stops():
    replaced = speaking()
    whole = replaced.generate("The capital of Texas is", max_new_tokens=5, stop=())
    assert whole.text == replaced.host.text(whole.ids)
    assert whole.new_text == "".join(whole.new_tokens)
    assert whole.text.endswith(whole.new_text) and whole.stopped == "length"
    first = whole.new_tokens[2]
    at = whole.new_tokens.index(first) + 1
    for stop in (whole.new_ids[at - 1], first):
        short = replaced.generate("The capital of Texas is", max_new_tokens=5, stop=[stop])
        assert short.stopped == "stop" and short.new_ids == whole.new_ids[:at]


def test_it_ends_where_the_host_says_that_a_text_ends():
    replaced = model("llama", "topk")
    end = replaced.generate(PROMPT, max_new_tokens=1).new_ids[0]
    ending = ending_with(end)
    short = ending.generate(PROMPT, max_new_tokens=5)
    assert short.new_ids == [end] and short.stopped == "stop"
    assert len(ending.generate(PROMPT, max_new_tokens=5, stop=()).new_ids) == 5


def ending_with(end):
    opened = Host.open(build("llama", eos_token_id=end))
    return ReplacementModel(opened, model("llama", "topk").dictionary)


def test_sampling_follows_the_seed_and_its_limits():
    replaced = model("gpt2", "topk")
    options = {"max_new_tokens": 8, "stop": (), "temperature": 1.5}
    greedy = replaced.generate(PROMPT, max_new_tokens=8, stop=()).ids
    drawn = [replaced.generate(PROMPT, seed=s, **options).ids for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert replaced.generate(PROMPT, top_k=1, **options).ids == greedy
    assert replaced.generate(PROMPT, top_p=1e-9, **options).ids == greedy


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.65}, [1, 3]),
        ({"top_p": 0.75}, [1, 2, 3]),
        ({"top_k": 3, "top_p": 0.6}, [1, 3]),
    ],
)
def test_draws_have_the_probabilities_that_they_should(options, kept):
    share = torch.tensor([0.1, 0.4, 0.2, 0.3])
    temperature = 2.0
    sampler = Sampler(temperature, **options)
    generator = torch.Generator().manual_seed(0)
    draws = [sampler(temperature * share.log(), generator) for _ in range(3000)]
    found = torch.bincount(torch.tensor(draws), minlength=4) / len(draws)
    expected = torch.zeros(4)
    expected[kept] = share[kept] / share[kept].sum()
    assert (found - expected).abs().max() < 0.03
    assert set(draws) == set(kept)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_every_hook_is_gone_however_it_ends(error, monkeypatch):
    replaced = model("gptj", "cross")
    greedy = replaced.generate(PROMPT, max_new_tokens=3).ids
    before = live_hooks(replaced.host)
    calls = []

    def stop(self, logits, generator):
        calls.append(live_hooks(replaced.host))
        if len(calls) == 2:
            raise error
        return 4

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(Sampler, "__call__", stop)
        replaced.generate(PROMPT, [Ablate((0, 1))], max_new_tokens=3)
    assert calls[0] != before and live_hooks(replaced.host) == before
    assert replaced.generate(PROMPT, max_new_tokens=3).ids == greedy


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1."),
        (
            {"max_new_tokens": 10},
            "max_new_tokens=10 after a prompt of 7 tokens is more than GPT2LMHeadModel reads; "
            "ask for at most 9.",
        ),
        ({"temperature": -1.0}, "temperature=-1.0 must be a number from 0 (the likeliest) up."),
        ({"temperature": float("nan")}, "temperature=nan must be a number from 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1: the tokens drawn from."),
        ({"top_p": 1.5}, "top_p=1.5 must lie in (0, 1]: the share drawn from."),
        (
            {"interventions": [Swap((0, 1), (0, 2))]},
            "Swap takes its activations from the prompt, which has 7 tokens; give positions within",
        ),
        ({"interventions": [Set((0, 1), 1.0, 11)]}, "position 11 is outside the 11 tokens; give 0"),
    ],
)
def test_bad_input_is_one_clear_line(options, line):
    with pytest.raises(ValueError) as error:
        model("gpt2", "topk").generate(PROMPT, **{"max_new_tokens": 4, **options})
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_features_chosen_over_a_whole_prompt_cannot_be_followed():
    opened = host("gpt2")
    replaced = ReplacementModel(opened, dictionary(3, BatchTopK(4)))
    assert len(replaced.generate(PROMPT, max_new_tokens=2).new_ids) == 2
    with pytest.raises(ValueError, match=r"layer 1 picks its features over a whole prompt"):
        replaced.generate(PROMPT, [Ablate((1, 2))], max_new_tokens=2)
