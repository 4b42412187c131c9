"""Harvest: one streaming pass counts and keeps what a dense recomputation of everything does."""

import json
import math
from functools import cache

import hosts
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import replacement
from replacement.evidence import harvest as module
from replacement.evidence.harvest import (
    BATCH,
    BINS,
    IN_ONE_CHUNK,
    LOWEST,
    LayerHarvest,
    _read,
    bins,
    harvest,
)

CASES = [("llama", "topk"), ("gpt2", "neurons"), ("mixtral", "neurons"), ("gemma2", "batchtopk")]


def corpus(number=44, seed=0):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (number,), generator=random).tolist()
    return [torch.randint(3, 20, (n,), generator=random).tolist() for n in lengths]


def dense(documents, readings):
    """(tokens, activations of all features) of every document."""
    found = []
    for ids, reading in zip(documents, readings, strict=True):
        features = len(next(iter(reading.writers.values())))
        values = torch.zeros(len(ids), features)
        values[reading.positions, reading.features] = reading.activations.float()
        found.append((ids, values))
    return found


def alone(model, layer):
    return [model.read(model.run(ids)).layers[layer] for ids in documents()]


def together(model, layer):
    """What the harvest reads, to the bit: equal activations must stay equal."""
    batches = (documents()[start : start + BATCH] for start in range(0, len(documents()), BATCH))
    return [readings[layer] for batch in batches for _, readings in _read(model, batch)]


def kept(rows, size, of_one):
    """The rule of the table, for one feature and in words: [(chunk, position, token, value)]."""
    table = []
    for row in rows:
        same = [old for old in table if old[2] == row[2]]
        if len(same) >= of_one:
            rivals = same
        elif len(table) < size:
            table.append(row)
            continue
        else:
            rivals = table
        weakest = min(rivals, key=lambda old: abs(old[3]))
        if abs(row[3]) > abs(weakest[3]):
            table[table.index(weakest)] = row
    return table


def strongest_of_two_tokens(number, ids, values, skip_first):
    """One chunk's rows for one feature: its strongest position, and that of another token."""
    places = [at for at in range(skip_first, len(ids)) if values[at]]
    rows = []
    while places and len(rows) < IN_ONE_CHUNK:
        at = max(places, key=lambda at: abs(values[at]))
        rows.append((number, at, ids[at], float(values[at])))
        places = [other for other in places if ids[other] != ids[at]]
    return rows


@cache
def documents():
    return corpus()


@pytest.mark.parametrize("skip_first", [0, 1])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_counts_are_those_of_a_dense_recomputation(family, kind, skip_first):
    model = hosts.model(family, kind)
    found = harvest(model, documents(), skip_first=skip_first)
    assert found.chunks == len(documents())
    assert found.positions == sum(max(0, len(ids) - skip_first) for ids in documents())
    for token in range(model.host.vocabulary):
        assert found.frequency[token] == sum(token in ids for ids in documents())
    for index, layer in enumerate(found.layers):
        parts = [values[skip_first:] for _, values in dense(documents(), alone(model, index))]
        sizes = torch.cat(parts).abs()
        # A sum in another order may fall on the other side of an edge: rarely.
        assert (layer.fired - (sizes > 0).sum(0)).abs().sum() <= 2
        torch.testing.assert_close(layer.largest, sizes.amax(0), rtol=1e-4, atol=1e-6)
        peaks = torch.stack([part.abs().amax(0) for part in parts if len(part)])
        for got, of in ((layer.histogram, sizes), (layer.peaks, peaks)):
            edges = [2.0 ** (LOWEST + b) for b in range(1, BINS)]
            wanted = [torch.bucketize(of[:, f][of[:, f] > 0], torch.tensor(edges), right=True)
                      for f in range(of.shape[1])]  # fmt: skip
            wanted = torch.stack([torch.bincount(w, minlength=BINS) for w in wanted])
            assert (got - wanted).abs().sum() <= 2


@pytest.mark.parametrize("skip_first", [0, 1])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_table_holds_the_strongest_chunks_few_of_one_token(
    monkeypatch, family, kind, skip_first
):
    monkeypatch.setattr(module, "EXAMPLES", 6)
    monkeypatch.setattr(module, "OF_ONE_TOKEN", 2)
    monkeypatch.setattr(module, "_KEPT", 3)  # chunks are dropped on the way, too
    model = hosts.model(family, kind)
    found = harvest(model, documents(), skip_first=skip_first)
    referred, full = set(), 0
    for index, layer in enumerate(found.layers):
        runs = dense(documents(), together(model, index))
        for feature in range(len(layer.fired)):
            rows = []
            for number, (ids, values) in enumerate(runs):
                rows += strongest_of_two_tokens(
                    number, ids, values[:, feature].tolist(), skip_first
                )
            wanted = sorted(kept(rows, 6, 2))
            used = layer.chunk[feature] >= 0
            columns = (layer.chunk, layer.position, layer.token, layer.activation)
            got = sorted(zip(*(c[feature][used].tolist() for c in columns), strict=True))
            assert [row[:3] for row in got] == [row[:3] for row in wanted]
            assert [r[3] for r in got] == pytest.approx([r[3] for r in wanted], rel=1e-3, abs=1e-5)
            referred.update(row[0] for row in got)
            full += len(got) == 6
    assert full > 10  # so that something was replaced
    assert {n: ids.tolist() for n, ids in found.pool.items()} == {
        n: documents()[n] for n in referred
    }


def test_neurons_keep_their_sign():
    found = harvest(hosts.model("gpt2", "neurons"), documents())
    values = torch.cat([layer.activation for layer in found.layers])
    assert (values < -0.1).any() and (values > 0.1).any()
    assert all((layer.largest >= 0).all() for layer in found.layers)


def test_the_same_corpus_gives_the_same_harvest():
    one, two = (harvest(hosts.model("llama", "topk"), documents()) for _ in range(2))
    for mine, other in zip(one.layers, two.layers, strict=True):
        for name, tensor in vars(mine).items():
            assert torch.equal(tensor, getattr(other, name)), name


def test_files_iterables_and_cut_documents_are_chunks(tmp_path):
    model = hosts.speaking()
    texts = [hosts.TEXT, "", "The capital of France is Paris", "The" + " word20" * 20]
    (tmp_path / "c.txt").write_text("\n".join(texts))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for source in (texts, iter(texts), tmp_path / "c.txt", str(tmp_path / "c.jsonl")):
        found = harvest(model, source, tokens=8)
        assert (found.chunks, found.positions) == (5, 5 + 6 + 21)
        assert found.frequency[hosts.WORDS.index(" word20")] == 3
    assert harvest(model, texts, prompts=2, tokens=8).chunks == 2
    assert harvest(model, texts).positions == 5 + 6 + 21  # cut at the host's context of 16


def test_progress_is_told_of_every_batch():
    told = []
    progress = lambda done, total: told.append((done, total))  # noqa: E731
    harvest(hosts.model("llama", "topk"), documents(), progress=progress)
    assert told == [(32, None), (44, None)]


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ([], {}, "no position to count"),
        (["", "  "], {}, "no position to count"),
        ([hosts.TEXT], {"skip_first": 9}, "skip_first=9"),
        ("nowhere.txt", {}, "no corpus file nowhere.txt"),
    ],
)
def test_a_corpus_without_positions_is_refused(source, options, says):
    with pytest.raises(ValueError, match=says):
        harvest(hosts.speaking(), source, **options)


def test_numbers_that_are_none_are_refused():
    layer = LayerHarvest(4)
    where = torch.tensor([0])
    reading = replacement.reading.LayerReading(
        where, where, torch.tensor([float("inf")]), where.float(), (), {}
    )
    with pytest.raises(ValueError, match=r"NaN or infinite activations.*float32"):
        layer.add(0, torch.tensor([5]), reading)


@given(st.floats(2.0**-30, 2.0**30, width=32))
def test_bins_are_powers_of_two(size):
    exact = math.floor(math.log2(size))
    (got,) = bins(torch.tensor([size])).tolist()
    assert got == min(max(exact - LOWEST, 0), BINS - 1)


def test_strong_chunks_reach_to_a_quarter_of_the_largest():
    layer = LayerHarvest(2)
    for number, size in enumerate([8.0, 7.0, 2.0, 1.99, 0.1]):
        at = torch.tensor([0])
        value = torch.tensor([size])
        reading = replacement.reading.LayerReading(at, at, value, value, (), {})
        layer.add(number, torch.tensor([5]), reading)
    assert layer.strong().tolist() == [3, 0]
