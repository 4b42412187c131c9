"""Evidence: names by their definition, labels by who gave them, descriptions from the corpus."""

import itertools
import json

import hosts
import numpy as np
import pytest
from evidences import LINES, gathered
from hypothesis import given
from hypothesis import strategies as st

import replacement
from replacement.evidence import Evidence, gather, read_labels
from replacement.evidence.evidence import CLEAR, DESCRIBED, STANDS_OUT
from replacement.evidence.gathering import Example, _weak, contexts
from replacement.evidence.names import LEFT, MOST, TOKENS, names

WORDS = hosts.WORDS


def naive(examples, strong, frequency, corpus, weak):
    """Names word by word, from sets: [(word, score, share, tokens)]."""
    total = sum(a for a, _, _ in examples)
    left, found = list(examples), []
    while len(found) < MOST and sum(a for a, _, _ in left) / total >= LEFT - 1e-9:
        best = None
        for word in sorted({w for _, _, chunk in examples for w in chunk}):
            p = sum(a for a, _, chunk in left if word in chunk) / total
            recall = min(1.0, p * strong / frequency[word])
            score = 2 * p * recall / (p + recall) if p else 0.0
            rank = score * (1 - frequency[word] / (corpus + 1)) * (0.5 if weak[word] else 1)
            if best is None or round(rank, 12) > round(best[3], 12):
                best = (word, score, p, rank)
        beside = {}
        for a, token, chunk in examples:
            with_word, whole = beside.get(token, (0.0, 0.0))
            beside[token] = (with_word + a * (best[0] in chunk), whole + a)
        mostly = [t for t, (with_word, whole) in beside.items() if with_word >= whole / 2]
        mostly.sort(key=lambda t: (-beside[t][0], t))
        found.append((*best[:3], tuple(mostly)[:TOKENS]))
        left = [e for e in left if best[0] not in e[2]]
    return found


@given(st.data())
def test_names_are_those_of_the_definition(data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    number = data.draw(st.integers(1, 20))
    chunks = [random.integers(0, 9, random.integers(1, 6)) for _ in range(number)]
    sizes = random.uniform(0.1, 9, number)
    tokens = random.integers(0, 30, number)
    strong = int(random.integers(1, 60))
    frequency = random.integers(1, 40, 9)
    weak = random.random(9) < 0.3
    got = names(sizes, tokens, chunks, strong, frequency, 40, weak)
    rows = [
        (float(a), int(t), set(c.tolist())) for a, t, c in zip(sizes, tokens, chunks, strict=True)
    ]
    wanted = naive(rows, strong, frequency, 40, weak)
    assert [n.word for n in got] == [w[0] for w in wanted]
    for name, (_, score, share, activating) in zip(got, wanted, strict=True):
        assert (name.score, name.share) == (pytest.approx(score), pytest.approx(share))
        assert name.tokens == activating


def test_a_feature_without_examples_has_no_name():
    none = np.zeros(0)
    assert names(none, none.astype(int), [], 0, np.ones(9, int), 9, np.zeros(9, bool)) == []


def test_a_word_that_stands_everywhere_is_no_name():
    chunks = [np.array([1, 2]), np.array([1, 3])]
    one = names(
        np.ones(2), np.array([2, 3]), chunks, 2, np.array([0, 500, 1, 1]), 500, np.zeros(4, bool)
    )
    assert [name.word for name in one] == [2, 3]


def example(tokens, at, activation):
    return Example(np.array(tokens), at, tokens[at], activation)


def test_what_is_active_everywhere_is_not_named_by_what_stands_everywhere():
    """A dense neuron: each of its chunks holds the same word, as all chunks do."""
    chunks = [np.array([1, 2]), np.array([1, 2]), np.array([1, 3])]
    frequency, none = np.array([0, 499, 40, 40]), np.zeros(4, bool)
    found = names(np.ones(3), np.array([1, 1, 1]), chunks, 500, frequency, 500, none)
    assert [name.word for name in found] == [2, 3]


def test_contexts_differ_in_text_and_as_far_as_possible_in_token():
    seen = [example([7, 1, n], 0, -9.0 - n) for n in range(6, 0, -1)]
    seen += [example([7, 1, 6], 1, 5.0), example([8, 2], 0, 3.0), example([9, 2], 0, 2.0)]
    got = contexts(seen)
    assert [e.activation for e in got] == [-15.0, -14.0, -13.0, 3.0, 2.0]


def test_a_context_is_a_window_of_sixteen_tokens_around():
    for length, at in [(5, 0), (5, 4), (16, 3), (40, 0), (40, 20), (40, 39)]:
        tokens, place = example(list(range(length)), at, 1.0).window()
        assert len(tokens) == min(16, length) and tokens[place] == at
        assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))


def test_a_description_says_what_the_corpus_shows():
    model, known = hosts.speaking(), gathered()
    ids = [model.host.tokenize(line) for line in LINES]
    readings = [model.read(model.run(each)).layers for each in ids]
    texts = {tuple(map(model.host.token, each)): number for number, each in enumerate(ids)}
    for layer in range(3):
        for feature in range(hosts.FEATURES):
            found = known.describe(layer, feature)
            values = [
                {
                    int(p): float(a)
                    for p, f, a in zip(r.positions, r.features, r.activations, strict=True)
                    if f == feature
                }
                for r in (reading[layer] for reading in readings)
            ]
            flat = [a for each in values for a in each.values()]
            assert found["density"] == len(flat) / sum(map(len, ids))
            assert found["max"] == pytest.approx(max(flat, default=0.0), rel=1e-3)
            assert sum(found["histogram"]["counts"]) == len(flat)
            edges = found["histogram"]["edges"]
            assert len(edges) == len(found["histogram"]["counts"]) + 1
            assert all(edges[0] <= a < edges[-1] for a in flat)
            for context in found["contexts"]:
                activation = values[texts[tuple(context["tokens"])]][context["at"]]
                assert context["activation"] == pytest.approx(activation, rel=1e-3)
            assert len(found["contexts"]) <= 5
            assert bool(found["contexts"]) == bool(flat)
            assert json.loads(json.dumps(found)) == found


def test_promoted_tokens_are_listed_by_text():
    model = hosts.speaking()
    found = gathered().describe(2, 3)
    direct = model.dictionary.layers[2].writers[2][3] * model.host.final_norm.weight
    logits = direct @ model.host.unembedding
    logits = logits - logits.mean()
    for key, order in (
        ("promotes", logits.argsort(descending=True)),
        ("suppresses", logits.argsort()),
    ):
        assert [text for text, _ in found[key]] == [model.host.token(int(i)) for i in order[:10]]
        wanted = logits[order[:10]].tolist()
        assert [value for _, value in found[key]] == pytest.approx(wanted, rel=2e-3)
    assert found["promotes_through_attention"] == []  # nothing is above the last layer


def says(found):
    """A token that a feature promotes far above its tenth; None where there is none."""
    listed = found["promotes"]
    stands_out = listed and listed[0][1] >= STANDS_OUT * abs(listed[-1][1])
    return f"say {listed[0][0].strip()}" if stands_out else None


def test_a_label_is_the_name_on_its_tokens_or_the_names_together():
    known, kinds = gathered(), set()
    for layer, feature in itertools.product(range(3), range(hosts.FEATURES)):
        found = known.describe(layer, feature)
        names = known._names(layer, feature)  # a description lists the first few
        assert [n["name"] for n in found["names"]] == [n["name"] for n in names][:DESCRIBED]
        much = [n for n in names if n["share"] >= 0.2][:2]
        for token, word in [(None, None), *enumerate(WORDS)]:
            mine = much if token is None else [n for n in names if word in n["tokens"]][:1]
            clear = any(n["score"] >= CLEAR for n in mine)
            wanted = " / ".join(n["name"] for n in mine)
            wanted = wanted if clear else says(found) or wanted
            assert known.label(layer, feature, token) == wanted
            kinds.add((len(mine), clear, token is None))
            assert wanted == wanted.strip()
    assert {(2, True, True), (1, True, False), (1, False, False), (0, False, False)} <= kinds


PLACE = (1, 7)


def test_given_labels_win_over_explained_ones_and_these_over_names():
    known = gathered()
    told = known.with_explanations({PLACE: ("a city", 0.9)})
    assert told.label(*PLACE) == told.label(*PLACE, 3) == "a city"
    described = told.describe(*PLACE)
    assert described["explained"] == {"label": "a city", "score": 0.9}
    assert described["names"] == known.describe(*PLACE)["names"]
    mine = told.relabelled({PLACE: "Texas"})
    assert mine.label(*PLACE, 3) == mine.describe(*PLACE)["label"] == "Texas"
    assert mine.relabelled({PLACE: "TX"}).label(*PLACE) == "TX"
    assert known.label(*PLACE) != "Texas"  # frozen


def test_labels_alone_suffice():
    labels = Evidence().relabelled({(2, 472): "Texas"})
    assert labels.label(2, 472, 17) == "Texas" and labels.label(0, 0) == ""
    assert labels.describe(2, 472) == {"label": "Texas"}


def test_a_feature_that_is_not_there_is_refused():
    for layer, feature in [(3, 0), (0, 24), (-1, 0)]:
        with pytest.raises(ValueError, match=rf"no L{layer}/F{feature} .*\[24, 24, 24\]"):
            gathered().describe(layer, feature)


def test_a_model_refuses_evidence_and_labels_of_another_dictionary():
    model = hosts.speaking()
    other = hosts.dictionary(3, hosts.KINDS["relu"]["activation"])
    assert replacement.ReplacementModel(model.host, other, gathered()).evidence is gathered()
    named = replacement.Dictionary(other.layers, name="another")
    with pytest.raises(ValueError, match=r"of the dictionary 'random'.*not of 'another'"):
        replacement.ReplacementModel(model.host, named, gathered())
    with pytest.raises(ValueError, match="not of 'neurons'"):
        replacement.ReplacementModel(
            model.host, replacement.neuron_dictionary(model.host), gathered()
        )
    far = Evidence().relabelled({(1, 99): "Texas"})
    with pytest.raises(ValueError, match=r"no L1/F99 in the dictionary 'random'.*\[24, 24, 24\]"):
        replacement.ReplacementModel(model.host, other, far)


def test_punctuation_and_special_tokens_are_named_only_where_nothing_else_is():
    marks = {hosts.WORDS[i] for i in np.flatnonzero(_weak(hosts.speaking().host))}
    assert marks == {"<unk>", "!"}
    frequency, odd = np.array([2, 2, 2]), np.array([True, False, True])
    both, alone = [np.array([0, 1]), np.array([1, 0])], [np.array([0, 0]), np.array([0, 2])]
    ones, tokens = np.ones(2), np.array([0, 0])
    assert [n.word for n in names(ones, tokens, both, 2, frequency, 9, odd)] == [1]
    assert [n.word for n in names(ones, tokens, alone, 2, frequency, 9, odd)] == [0]


def test_without_a_tokenizer_tokens_are_their_ids():
    model = hosts.model("llama", "topk")
    known = gather(model, [hosts.PROMPT, [3, 14]])
    assert set(known.texts) <= {str(i) for i in range(hosts.VOCABULARY)}
    assert any(known.label(0, f) for f in range(hosts.FEATURES))


# Users' labels.


def labels(tmp_path, text, name="labels.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(tmp_path / name)


def test_labels_are_read_from_csv_and_from_json(tmp_path):
    wanted = {(2, 472): "Texas", (0, 1): 'a, "b"'}
    text = 'layer,feature,label\n2,472, Texas\n0,1,"a, ""b"""\n'
    assert labels(tmp_path, text) == wanted
    other = "\ufefffeature,note,label,layer\r\n472,,Texas,2\r\n"
    assert labels(tmp_path, other) == {(2, 472): "Texas"}
    text = json.dumps({"L2/F472": "Texas", "L0/F1": 'a, "b"'}, indent=1)
    assert labels(tmp_path, text, "labels.json") == wanted


BAD = {
    "heading.csv": ("2,472,Texas\n", "line 1: there is no column 'layer'"),
    "number.csv": ("layer,feature,label\n1,2,a\n2,x,b\n", "line 3: layer '2' and feature 'x'"),
    "short.csv": ("layer,feature,label\n1\n", "line 2: layer '1' and feature None"),
    "empty.csv": ("layer,feature,label\n1,2,\n", "line 2: the label of L1/F2 is no text"),
    "twice.csv": ("layer,feature,label\n1,2,a\n1,2,b\n", "line 3: L1/F2 has a label already"),
    "latin.csv": (b"layer,feature,label\n1,2,caf\xe9\n", "not UTF-8"),
    "broken.json": ('{"L1/F2": "a",\n "L1"', "line 2: it is not JSON"),
    "name.json": ('{"L1/F2": "a",\n "L1F3": "b"}', "line 2: 'L1F3' names no feature.*L2/F472"),
    "number.json": ('{"L1/F2": "a",\n\n "L1/F3": 7}', "line 3: the label of L1/F3 is no text"),
    "twice.json": ('{"L1/F2": "a",\n "L1/F2": "b"}', "line 2: L1/F2 has a label already"),
    "list.json": ('["L1/F2"]', "line 1: it is no object"),
}


@pytest.mark.parametrize("name", BAD)
def test_labels_that_cannot_be_read_are_refused_with_their_line(tmp_path, name):
    text, says = BAD[name]
    with pytest.raises(ValueError, match=says) as error:
        labels(tmp_path, text, name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_of_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no file of labels .*mine\.csv; give a CSV"):
        read_labels(tmp_path / "mine.csv")
