"""`circuits steer`: how changes are written, what they become, and what is reported."""

import json

import commands
import pytest
import torch
from hosts import PROMPT, model
from hypothesis import given
from hypothesis import strategies as st

import replacement
from circuits.steering import intervention, read
from replacement import Add, Scale, Set

DALLAS = "the capital of the state containing Dallas is"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Texas=0", ("Texas", "=", 0.0)),
        ("California=2x", ("California", "x", 2.0)),
        ("L2/F472 += 1.5", ("L2/F472", "+=", 1.5)),
        ("say Austin=-3e-1", ("say Austin", "=", -0.3)),
        ("Texas=.5X", ("Texas", "x", 0.5)),
        ("a=b=2", ("a=b", "=", 2.0)),
    ],
)
def test_a_change_is_read(text, parts):
    change = read(text)
    assert (change.what, change.how, change.number) == parts and change.text == text


@given(
    st.text("abcXYZ /=+", min_size=1).filter(lambda t: t.strip() == t and t[-1] not in "+="),
    st.sampled_from(["=", "+=", "x"]),
    st.floats(-1e6, 1e6),
)
def test_what_is_written_is_what_is_read(what, how, number):
    text = f"{what}={number!r}x" if how == "x" else f"{what}{how}{number!r}"
    change = read(text)
    assert (change.what, change.how, change.number) == (what, how, number)


@pytest.mark.parametrize(
    "text", ["Texas", "=0", "Texas=", "Texas=x", "Texas=two", "Texas=nan", "Texas=inf", "T+=2x"]
)
def test_what_is_no_change_is_refused(text):
    with pytest.raises(ValueError, match=r"write Texas=0, California=2x or L2/F472\+=1\.5"):
        read(text)


def done(opened, text, positions=None):
    run = opened.run(PROMPT)
    readings = opened.features(run)
    return intervention(opened, read(text), positions, lambda: (run.ids, readings)), readings


def test_a_change_is_the_intervention_that_it_names():
    opened = model("llama", "topk")
    feature = int(done(opened, "L1/F0=0")[1][1].features[0])
    for text, kind, number in (("=2.5", Set, 2.5), ("=3x", Scale, 3.0), ("+=-1", Add, -1.0)):
        found, _ = done(opened, f"L1/F{feature}{text}", [2])
        by_hand = kind([(1, feature)], number, [2])
        assert type(found) is kind and found.positions == [2]
        ours, theirs = (opened.run(PROMPT, [each]).logits for each in (found, by_hand))
        assert torch.equal(ours, theirs)


def test_times_nothing_is_times_the_largest_that_is_known():
    atlas = replacement.load("atlas", device="cpu")
    run = atlas.run(DALLAS)
    seen = (run.ids, atlas.features(run))
    found = intervention(atlas, read("California=2x"), None, lambda: seen)
    assert isinstance(found, Set) and len(found.what) > 2
    largest = [atlas.evidence.describe(*pair)["max"] for pair in found.what]
    assert found.value == pytest.approx([2 * size for size in largest])
    assert isinstance(intervention(atlas, read("Texas=2x"), None, lambda: seen), Scale)


def test_times_nothing_is_refused_where_nothing_is_known():
    opened = model("llama", "topk")
    active = set(done(opened, "L1/F0=0")[1][1].features.tolist())
    idle = next(f for f in range(24) if f not in active)
    with pytest.raises(ValueError, match=f"give its activation, as in L1/F{idle}=3.5"):
        done(opened, f"L1/F{idle}=2x")


def test_the_command_shows_both_sides(monkeypatch, capsys):
    given = ("steer", DALLAS, "--feature", "Texas=0", "--feature", "California=1x", "--tokens", 1)
    status, text, _ = commands.run(monkeypatch, capsys, *given)
    assert status == 0 and "clean" in text and "steered" in text
    assert "Austin" in text and "Sacramento" in text and "L2/F472" in text
    status, text, _ = commands.run(monkeypatch, capsys, *given, "--json")
    report = json.loads(text)
    assert report["clean"]["text"] == "Austin" and report["steered"]["text"] == "Sacramento"
    assert [c["kind"] for c in report["changes"]] == ["set", "set"]
    likely = {row["token"]: row for row in report["likely"]}
    assert likely["Austin"]["before"] > 0.99 > 0.1 > likely["Austin"]["after"]
    assert likely["Sacramento"]["after"] == max(row["after"] for row in report["likely"])


def test_positions_are_where_the_change_is_made(monkeypatch, capsys):
    def likely(*more):
        given = ("steer", DALLAS, "--feature", "L2/F472=0", "--tokens", 1, "--json", *more)
        status, text, _ = commands.run(monkeypatch, capsys, *given)
        assert status == 0
        row = next(r for r in json.loads(text)["likely"] if r["token"] == "Austin")
        return row["after"] - row["before"]

    assert likely("--at", 6) < -1e-4 and likely("--from", 6) == likely("--at", 6, "--at", 7)
    assert likely("--at", 1) == 0 and likely("--from", 8) == 0  # what is generated comes later


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ((), "nothing is to be changed"),
        (("--feature", "Texas"), "says no change"),
        (("--feature", "Texs=0"), "'Texs' is not known; the nearest that is: Texas"),
        (("--feature", "L9/F1=0"), "the dictionary has layers 0 to 3"),
        (("--feature", "Texas=0", "--at", 1, "--from", 2), "exclude each other"),
        (("--feature", "Texas=0", "--at", 99), "position 99 is outside"),
        (("--feature", "Texas=0", "--feature", "L2/F472=1"), "both change L2/F472"),
        (("--feature", "Texas=0", "--device", "tpu"), "--device=tpu"),
        (("--feature", "Texas=0", "--tokens", 0), "max_new_tokens=0"),
    ],
)
def test_mistakes_are_one_line(more, line, monkeypatch, capsys):
    status, _, err = commands.run(monkeypatch, capsys, "steer", DALLAS, *more)
    assert status == 2 and line in err and "Traceback" not in err
